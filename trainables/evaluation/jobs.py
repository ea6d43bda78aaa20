"""Post-search jobs: what a slot does when no trial is left to train. No Ray here.

Files that come of a job go into the sweep's folder; numbers go back to the sweep.
"""

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.manifest import EARLIER, TokenSummary, data_of
from trainables.engine.memory import release
from trainables.errors import InputError
from trainables.evaluation.answered import Answered, write_answers, write_asked
from trainables.evaluation.record import (
    AnswersJob,
    Baseline,
    Baselines,
    BaselinesJob,
    EarlierJob,
    ForgettingJob,
    Job,
    JobResult,
    MeasuredAnswers,
    MeasuredEarlier,
    MeasuredForgetting,
    Metrics,
    Score,
    ScoredTest,
    TestJob,
    TrainedCheckpoint,
    untuned_name,
)
from trainables.hyperparameters import base_of, parse
from trainables.models.base import BaseSpec
from trainables.models.files import load_tokenizer
from trainables.storage.checkpoints import write_rows
from trainables.storage.records import finite
from trainables.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel

    from trainables.data.arrow import Split
    from trainables.evaluation.answering import Answering
    from trainables.evaluation.baselines import Answer, Joined
    from trainables.runtime.protocol import SlotBase, SlotConfig


def run(store: Store, config: "SlotConfig", job: Job) -> JobResult:
    """`config`: of the slot (bases, task, max_tokens, ...)."""
    with _bench(store, config) as bench:
        match job:
            case BaselinesJob():
                return Baselines(found=bench.baselines("validation"))
            case TestJob():
                return bench.test(job)
            case ForgettingJob():
                return bench.of(job.winner.parameters).forgetting(job)
            case EarlierJob():
                return bench.of(job.winner.parameters).earlier(job)
            case AnswersJob():
                return replace(bench, word=job.base).answers(job)


@contextmanager
def _bench(store: Store, config: "SlotConfig") -> "Iterator[_Bench]":
    import torch

    from trainables.engine.budget import MICRO_BATCH_TOKENS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    max_tokens = config.max_tokens or MICRO_BATCH_TOKENS[device.type]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            data = store.fetch("data", folder)
            yield _Bench(
                store=store,
                config=config,
                prepared=data,
                word=config.first,
                scratch=folder,
                max_tokens=max_tokens,
                device=device,
            )
    finally:
        release(device)  # the slot's next base comes after


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Where a job is done, and with what."""

    store: Store
    config: "SlotConfig"
    prepared: Path
    """The folder of prepared data."""
    word: str
    """For the base model."""
    scratch: Path
    max_tokens: int
    device: "torch.device"

    @property
    def base(self) -> "SlotBase":
        return self.config.bases[self.word]

    @property
    def data(self) -> Path:
        """Prepared for this base."""
        return self.prepared / data_of(self.word, self.config.first)

    def of(self, parameters: Mapping[str, object]) -> "_Bench":
        """With the base of a trial with these parameters."""
        return replace(self, word=base_of(parameters))

    def baselines(self, split: str) -> dict[str, Baseline]:
        from trainables.evaluation.baselines import measure_baselines

        config, found = self.config, {}
        answered: dict[str, Metrics] = {}
        measured = measure_baselines(
            self.data,
            model=self.base.model,
            task=config.task,
            pad_token_id=self.base.pad_token_id,
            max_tokens=self.max_tokens,
            seed=config.seed,
            device=self.device,
            split=split,
            minutes=config.baseline_minutes,
            answer=self._answer_after(split, answered),
        )
        for name, each in measured.items():
            if each.losses is not None:
                rows = f"baselines/{split}/{name}"
                write_rows(self.store, rows, each.losses, each.outcomes)
            metrics = {**each.metrics, **answered.get(name, {})}
            found[name] = finite(replace(each.written(), metrics=metrics))
        return found

    def test(self, job: TestJob) -> ScoredTest:
        """Tokenise the test split, now that there is a winner, and score it, the default
        configuration, the untuned base and baselines on it.
        """
        benches = {word: replace(self, word=word) for word in self.config.bases}
        described = {word: bench._tokenise_test() for word, bench in benches.items()}
        scores = {
            name: bench._score(f"test/{name}", base, load)
            for name, bench, base, load in self._models(job)
        }
        ways = self.baselines("test") if job.baselines else {}
        others = {name: _as_score(each) for name, each in ways.items()}
        own = described[base_of(job.winner.parameters)]
        return ScoredTest(split=own, scores=scores | others)

    def _tokenise_test(self) -> TokenSummary:
        from trainables.data.prepare import tokenise_split
        from trainables.data.tokens import GROUPS, SLICES

        described = tokenise_split(self.data, "test", load_tokenizer(self.base.model))
        if self.store.local is None:
            kept = PurePosixPath("data", data_of(self.word, self.config.first))
            for name in ("test.arrow", SLICES.format("test"), GROUPS.format("test")):
                if (self.data / name).exists():
                    self.store.write_bytes(str(kept / name), (self.data / name).read_bytes())
        return described

    def _models(
        self, job: TestJob
    ) -> "Iterator[tuple[str, _Bench, BaseSpec, Callable[[], PreTrainedModel]]]":
        """Each model that is scored: its name, on what it is, its base, and what loads it."""
        from trainables.data.manifest import labels_of
        from trainables.models.checkpoint import load_untuned
        from trainables.tasks import TASKS

        labels = labels_of(self.data)
        for name, trained in (("winner", job.winner), ("default", job.default)):
            if trained is not None:
                bench = self.of(trained.parameters)
                spec = bench._spec(trained.parameters, labels)
                yield name, bench, spec, partial(bench._load, trained, labels)
        # an untuned head is new: its number says nothing, and is another on each
        # machine
        if TASKS[self.config.task].is_language_model:
            for word, base in self.config.bases.items():
                bench = replace(self, word=word)
                spec = bench._spec(base.baseline, labels)
                name = untuned_name(word, self.config.first)
                yield name, bench, spec, partial(load_untuned, spec, self.device)

    def _score(self, name: str, base: BaseSpec, load: "Callable[[], PreTrainedModel]") -> Score:
        """name: SPLIT/MODEL, under which the rows are written; base: whose loss is the reference of
        pairs.
        """
        from trainables.data.prepare import open_slices, open_split
        from trainables.engine.scoring import RowResults, evaluate_model, with_reference
        from trainables.models.checkpoint import load_untuned
        from trainables.tasks import TASKS

        part, task = name.split("/")[0], TASKS[self.config.task]

        def measured(model: "PreTrainedModel", split: "Split") -> RowResults:
            rows, pad, device = np.arange(len(split)), base.pad_token_id, self.device
            return evaluate_model(model, task, split, rows, pad, self.max_tokens, device)

        split = with_reference(
            open_split(self.data, part),
            lambda pairs: measured(load_untuned(base, self.device), pairs),
        )
        model = load()
        results = measured(model, split)
        write_rows(self.store, f"baselines/{name}", results.losses, results.rows_outcomes)
        slices = results.by_slice(task, open_slices(self.data, part))
        metrics = {**results.metrics(task), **self._answer(f"baselines/{name}", part, model)}
        release(self.device)  # before the next one is loaded
        return finite(Score(loss=results.loss, metrics=metrics, slices=slices))

    def forgetting(self, job: ForgettingJob) -> MeasuredForgetting:
        from trainables.data.prepare import open_split
        from trainables.evaluation.forgetting import GENERAL, measure_forgetting
        from trainables.models.checkpoint import load_base_model

        spec = self._spec(job.winner.parameters, ())
        found, losses = measure_forgetting(
            self._load(job.winner, ()),
            lambda: load_base_model(spec, self.device),
            open_split(self.data, GENERAL),
            open_split(self.data, "validation").sequences,
            self.device,
        )
        for name, each in zip(("before", "after"), losses, strict=True):
            write_rows(self.store, f"baselines/general/{name}", each)
        return finite(found)

    def earlier(self, job: EarlierJob) -> MeasuredEarlier:
        from trainables.data.manifest import labels_of
        from trainables.models.checkpoint import load_untuned

        labels = labels_of(self.data)
        spec = self._spec(job.winner.parameters, labels)
        if self.base.model.adapter == "merge":  # as the earlier winner is, whatever is over it
            spec = replace(spec, quantisation="none")
        return MeasuredEarlier(
            before=self._score(f"{EARLIER}/before", spec, lambda: load_untuned(spec, self.device)),
            after=self._score(f"{EARLIER}/after", spec, lambda: self._load(job.winner, labels)),
        )

    def answers(self, job: AnswersJob) -> MeasuredAnswers:
        from trainables.data.manifest import labels_of
        from trainables.models.checkpoint import load_untuned

        if job.trained is None:
            model = load_untuned(self._spec(self.base.baseline, ()), self.device)
        else:
            model = self._load(job.trained, labels_of(self.data))
        answering = self._answering("validation")
        assert answering is not None, "nobody asks for answers without metrics of them"
        return self._written(job.folder, answering, answering.write(model))

    def _answer(self, folder: str, split: str, model: "PreTrainedModel") -> Metrics:
        """Of its answers to rows of the test split, where there are metrics of answers; without
        them the losses stand by themselves.
        """
        try:
            answering = self._answering(split) if split == "test" else None
            if answering is None:
                return {}
            return self._written(folder, answering, answering.write(model)).metrics
        except InputError:  # no row can be asked, or a metric fails
            traceback.print_exc()
            return {}

    def _answer_after(self, split: str, found: dict[str, Metrics]) -> "Answer | None":
        """What has prompts with examples answered, too; their metrics go into `found`."""
        answering = self._answering(split)
        if answering is None:
            return None

        def answer(name: str, model: "PreTrainedModel", joined: "Joined") -> None:
            written = answering.write(model, answering.after_examples(joined))
            folder = f"baselines/{split}/{name}"
            found[name] = self._written(folder, answering, written).metrics

        return answer

    def _answering(self, split: str) -> "Answering | None":
        """How rows of a split are answered; None where no metric is of answers."""
        from trainables.data.prepare import open_split
        from trainables.evaluation.answering import Answering

        if not self.config.metrics:
            return None
        return Answering.of(self.config, self.base, open_split(self.data, split), self.max_tokens)

    def _written(self, folder: str, answering: "Answering", answered: Answered) -> MeasuredAnswers:
        split = folder.split("/")[1] if folder.startswith("baselines/") else "validation"
        write_asked(self.store, split, data_of(self.word, self.config.first), answering.asked)
        write_answers(self.store, folder, answered)
        return MeasuredAnswers(
            metrics=answered.means,
            rows=len(answered.rows),
            seconds=answered.seconds,
            notes=answered.notes,
        )

    def _load(self, trained: TrainedCheckpoint, labels: Sequence[str]) -> "PreTrainedModel":
        from trainables.models.checkpoint import load_checkpoint

        folder = self.store.fetch(trained.checkpoint, self.scratch)
        return load_checkpoint(folder, self._spec(trained.parameters, labels), self.device)

    def _spec(self, parameters: Mapping[str, object], labels: Sequence[str]) -> BaseSpec:
        """The base of a trial with these parameters."""
        from trainables.models.checkpoint import base_spec
        from trainables.tasks import TASKS

        hp, config = parse(parameters), self.config
        return base_spec(
            self.base.model,
            TASKS[config.task],
            labels,
            self.base.pad_token_id,
            hp.method,
            hp.options,
            self.device,
            config.precision,
        )


def _as_score(baseline: Baseline) -> Score:
    """The same on the test split, where the loss is called that."""
    fields = asdict(replace(baseline, val_loss=None))
    del fields["val_loss"]
    return Score(loss=baseline.val_loss, **fields)
