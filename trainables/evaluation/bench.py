"""What baselines are measured on, and with what: data, the frozen model, its micro-batches. No Ray
here.

Letters of shapes: N rows that are answered, M rows of train, D width of the model, C classes, B
rows of a micro-batch, T tokens of the longest row, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.batches import cut_micro_batches
from trainables.data.prepare import Split
from trainables.engine.scoring import RowResults
from trainables.errors import InputError
from trainables.evaluation.class_metrics import class_outcomes
from trainables.evaluation.record import MeasuredBaseline
from trainables.models.base import LANGUAGE_MODEL, BaseModel, BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.files import context_length
from trainables.models.loading import load_model
from trainables.models.merging import plain
from trainables.models.origin import resolve
from trainables.models.output import hidden_states
from trainables.models.precision import base_dtype
from trainables.tasks import Task
from trainables.tasks.causal_lm.task import tokens_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXAMPLES = 4
WORDS = {
    "embeddings_logistic": "logistic regression on frozen embeddings",
    "embeddings_logistic_each": "logistic regressions on frozen embeddings, one a label",
    "embeddings_ridge": "ridge regression on frozen embeddings",
    "embeddings_neighbours": "nearest neighbours of frozen embeddings",
    "zero_shot": "prompt without examples",
    "few_shot": f"prompt with {EXAMPLES} examples",
    "retrieved": f"prompt with the {EXAMPLES} nearest examples",
}
PROMPTS = ("zero_shot", "few_shot", "retrieved")
Row = dict[str, Any]
Chosen = Sequence[Sequence[int] | np.ndarray] | np.ndarray
"""Rows of the pool that are shown to each row [N, k]."""
Found = dict[str, MeasuredBaseline]


def classes_of(split: Split) -> np.ndarray:
    """The class of each row, or its number [N]."""
    assert split.labels is not None, "rows have a class, or a number"
    return split.labels


def labels_of_each(split: Split) -> np.ndarray:
    """Of each row, for each class whether it has it [N, C]."""
    return split.values("labels").reshape(len(split), -1)


class Degenerate(Exception):
    """A baseline that would be another one under its own name; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and on what."""

    model: ModelConfig
    task: Task
    labels: Sequence[str]
    train: Split
    pool: np.ndarray  # rows of train that are used [M]
    split: Split
    pad_token_id: int
    max_tokens: int
    seed: int
    device: torch.device
    minutes: float
    deadline: float  # by time.perf_counter

    @property
    def rows(self) -> list[Row]:
        return self.split.rows(range(len(self.split)))

    @property
    def examples(self) -> list[Row]:
        return self.train.rows(self.pool)

    @property
    def prior(self) -> np.ndarray:
        """Share of each class in all of train [C]."""
        return np.bincount(classes_of(self.train), minlength=len(self.labels)) / len(self.train)

    def check_time(self) -> None:
        """Raise TimeoutError where there is none left."""
        if time.perf_counter() > self.deadline:
            raise TimeoutError(
                f"not done within {self.minutes:g} minutes (selection.baseline_minutes)"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of a base that nothing trains, whatever its class."""
        return base_dtype(self.model, "lora", self.device)


def scored(
    bench: Bench,
    nll: np.ndarray,
    targets: np.ndarray,
    tokens: Iterable[int],
    outcomes: np.ndarray | None = None,
) -> MeasuredBaseline:
    """From losses, targets and prompt tokens of the rows, each [N], and their outcomes [N, M]."""
    if not np.isfinite(nll).all():
        raise ArithmeticError(
            f"the loss of {np.count_nonzero(~np.isfinite(nll))} of {len(nll)} rows is not finite"
        )
    found = RowResults(nll=nll, targets=targets, outcomes=outcomes).over(bench.split.target_bytes)
    return MeasuredBaseline(
        val_loss=found.loss,
        metrics=found.metrics(bench.task),
        losses=found.losses,
        outcomes=found.rows_outcomes,
        tokens_per_request=float(np.mean(list(tokens))),
    )


def classified(
    bench: Bench, log_probabilities: np.ndarray, tokens: Iterable[int]
) -> MeasuredBaseline:
    """From the classes' log-probabilities [N, C]."""
    labels = classes_of(bench.split)
    nll = -log_probabilities[np.arange(len(labels)), labels]
    outcomes = class_outcomes(log_probabilities.argmax(1), labels, log_probabilities)
    return scored(bench, nll, np.ones_like(labels), tokens, outcomes)


def load_backbone(bench: Bench) -> "PreTrainedModel":
    """The model without a head. A pooler may be missing: hidden states do not pass through it."""
    from transformers import AutoModel

    config = plain(bench.model)
    model, info = AutoModel.from_pretrained(
        resolve(config.name),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        dtype=bench.dtype,
        output_loading_info=True,
    )
    lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if lacking:
        raise InputError(f"model.name: the weights of {config.name} lack {', '.join(lacking[:3])}")
    model.config.use_cache = False  # keys and values of every token would be kept for nothing
    return model.to(bench.device).eval()


def load_language_model(bench: Bench) -> BaseModel:
    spec = BaseSpec(
        model=bench.model,
        auto_class=LANGUAGE_MODEL,
        dtype=bench.dtype,
        pad_token_id=bench.pad_token_id,
    )
    return load_model(spec, device=bench.device, seed=bench.seed)


def context_tokens(base: BaseModel) -> float:
    """Tokens that the model takes; infinite where it does not say."""
    return context_length(base.model.config) or math.inf


def outputs(base: BaseModel, batch: dict[str, Tensor]) -> Tensor:
    """What goes into the output layer [B, T, D], or the logits [B, T, V] of a model whose `output`
    is None.
    """
    with hidden_states(base.output):
        return base.model(**batch).logits


def in_micro_batches(
    bench: Bench,
    lengths: Sequence[int] | np.ndarray,
    run: Callable[[np.ndarray], None],
    tokens: float = math.inf,
) -> None:
    """`run` for all rows, told which, with at most `tokens` in a micro-batch; for half as many
    where memory does not do.
    """
    left = cut_micro_batches(np.asarray(lengths), int(min(bench.max_tokens, tokens)))
    while left:
        bench.check_time()
        rows = left.pop(0)
        try:
            with torch.no_grad():
                run(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(rows) // 2
            left[:0] = [rows[:half], rows[half:]]


def micro_batch_tokens(base: BaseModel) -> float:
    """As many as have a bounded number of logits, where those of all are there at once."""
    return (
        math.inf
        if base.output is not None
        else tokens_at_once(base.model.config.get_text_config().vocab_size)
    )


def on_device(bench: Bench, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(bench.device) for name, tensor in batch.items()}
