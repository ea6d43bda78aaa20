"""How models over one base answer rows of a split, and what that is worth. No Ray here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.arrow import Split
from trainables.engine.decoding import generate
from trainables.evaluation.answered import Answered, Asked
from trainables.evaluation.generation import (
    Prompt,
    answers_of,
    draw_prompts,
    prompts_of,
    stop_tokens,
)
from trainables.metrics import Metric
from trainables.metrics.choosing import metrics_from
from trainables.metrics.config import GenerationConfig, settings_digest
from trainables.metrics.judge import Judge
from trainables.models.files import load_tokenizer
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainables.runtime.protocol import SlotBase, SlotConfig


@dataclass(frozen=True, kw_only=True)
class Answering:
    """max_tokens: of a micro-batch in training; seed: of the rows, and of what is drawn."""

    task: Task
    split: Split
    tokenizer: "PreTrainedTokenizerBase"
    metrics: Sequence[Metric]
    settings: GenerationConfig
    pad_token_id: int
    max_tokens: int
    seed: int
    digest: str
    """Of metrics and settings, as the sweep file has them."""
    rows: tuple[int, ...] | None = None
    """That are answered, as far as they can be asked; None: drawn by the seed."""

    @classmethod
    def of(
        cls, config: "SlotConfig", base: "SlotBase", split: Split, max_tokens: int
    ) -> "Answering":
        """As the sweep file says. Raises InputError for metrics that cannot be measured."""
        return cls(
            task=TASKS[config.task],
            split=split,
            tokenizer=load_tokenizer(base.model),
            metrics=metrics_from(config.metrics),
            settings=config.generation,
            pad_token_id=base.pad_token_id,
            max_tokens=max_tokens,
            seed=config.seed,
            digest=settings_digest(config.metrics, config.generation),
        )

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Of the rows that are answered."""
        if self.rows is not None:
            return prompts_of(self.task, self.split, self.rows, self.tokenizer)
        return draw_prompts(self.task, self.split, self.settings.rows, self.tokenizer, self.seed)

    @property
    def asked(self) -> Asked:
        return Asked(
            rows=tuple(prompt.row for prompt in self.prompts),
            prompts=tuple(prompt.text for prompt in self.prompts),
            references=tuple(prompt.reference for prompt in self.prompts),
        )

    def after_examples(self, joined: Callable[[int], np.ndarray]) -> list[Prompt]:
        """The prompts with what stands before them. joined: tokens of a whole row after that, by
        its position.
        """
        found = []
        for prompt, row in zip(self.prompts, self.split.rows(self.asked.rows), strict=True):
            whole, answered = joined(prompt.row), len(row["input_ids"]) - len(prompt.ids)
            found.append(replace(prompt, ids=whole[: len(whole) - answered]))
        return found

    def stop(self, model: "PreTrainedModel") -> tuple[int, ...]:
        """Tokens that end an answer."""
        own = getattr(model, "generation_config", None)
        said = stop_tokens(self.tokenizer, generation_config=own)
        return tuple(sorted({*said, *self._learnt_stop}))

    @cached_property
    def _learnt_stop(self) -> tuple[int, ...]:
        """Read off many rows, which are the same for all models."""
        return stop_tokens(self.tokenizer, task=self.task, split=self.split)

    def write(self, model: "PreTrainedModel", prompts: Sequence[Prompt] | None = None) -> Answered:
        """What a model by itself writes, and its scores. prompts: for the same rows, such as with
        examples before them; None: the rows' own.
        """
        began, given = time.perf_counter(), self.prompts if prompts is None else prompts
        stop = self.stop(model)
        written = generate(
            model,
            given,
            self.settings,
            stop=stop,
            pad_token_id=self.pad_token_id,
            seed=self.seed,
            max_tokens=self.max_tokens,
        )
        return self.scored(written, stop, time.perf_counter() - began)

    def scored(
        self, written: Sequence[Sequence[int]], stop: Sequence[int], seconds: float
    ) -> Answered:
        """written: tokens to each of the rows' prompts; seconds: that it took."""
        answers = answers_of(self.prompts, written, self.tokenizer, stop)
        return Answered(
            rows=tuple(prompt.row for prompt in self.prompts),
            texts=tuple(answer.text for answer in answers),
            scores={each.name: _numbers(each.score(answers)) for each in self.metrics},
            lower_is_better=tuple(each.name for each in self.metrics if each.lower_is_better),
            seconds=seconds,
            notes=tuple(each.summary() for each in self.metrics if isinstance(each, Judge)),
            settings=self.digest,
        )


def _numbers(scores: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(score) if np.isfinite(score) else None for score in scores)
