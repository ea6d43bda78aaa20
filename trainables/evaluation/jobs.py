"""Post-search jobs: what a slot does when no trial is left to train. No Ray here.

Files that come of a job go into the sweep's folder; numbers go back to the sweep.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainables.engine.memory import release
from trainables.evaluation.record import (
    Baseline,
    Baselines,
    BaselinesJob,
    ForgettingJob,
    Job,
    JobResult,
    MeasuredForgetting,
    Score,
    ScoredTest,
    TestJob,
    TrainedCheckpoint,
)
from trainables.hyperparameters import parse
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
    from trainables.runtime.protocol import SlotConfig


def run(store: Store, config: "SlotConfig", job: Job) -> JobResult:
    """`config`: of the slot (model, task, max_tokens, ...)."""
    with _bench(store, config) as bench:
        match job:
            case BaselinesJob():
                return Baselines(found=bench.baselines("validation"))
            case TestJob():
                return bench.test(job)
            case ForgettingJob():
                return bench.forgetting(job)


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
                data=data,
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
    data: Path
    scratch: Path
    max_tokens: int
    device: "torch.device"

    def baselines(self, split: str) -> dict[str, Baseline]:
        from trainables.evaluation.baselines import measure_baselines

        config, found = self.config, {}
        measured = measure_baselines(
            self.data,
            model=config.model,
            task=config.task,
            pad_token_id=config.pad_token_id,
            max_tokens=self.max_tokens,
            seed=config.seed,
            device=self.device,
            split=split,
            minutes=config.baseline_minutes,
        )
        for name, each in measured.items():
            if each.losses is not None:
                rows = f"baselines/{split}/{name}"
                write_rows(self.store, rows, each.losses, each.outcomes)
            found[name] = finite(each.written())
        return found

    def test(self, job: TestJob) -> ScoredTest:
        """Tokenise the test split, now that there is a winner, and score it, the default
        configuration, the untuned base and baselines on it.
        """
        from trainables.data.prepare import tokenise_split
        from trainables.data.tokens import GROUPS, SLICES

        described = tokenise_split(self.data, "test", load_tokenizer(self.config.model))
        if self.store.local is None:
            for name in ("test.arrow", SLICES.format("test"), GROUPS.format("test")):
                if (self.data / name).exists():
                    self.store.write_bytes(f"data/{name}", (self.data / name).read_bytes())
        scores = {name: self._score(name, *of) for name, of in self._models(job).items()}
        ways = self.baselines("test") if job.baselines else {}
        others = {name: _as_score(each) for name, each in ways.items()}
        return ScoredTest(split=described, scores=scores | others)

    def _models(self, job: TestJob) -> "dict[str, tuple[BaseSpec, Callable[[], PreTrainedModel]]]":
        """The base of each model that is scored, and what loads it."""
        from trainables.data.manifest import labels_of
        from trainables.models.checkpoint import load_base_model
        from trainables.tasks import TASKS

        labels = labels_of(self.data)
        of_winner = self._spec(job.winner.parameters, labels)
        found = {"winner": (of_winner, lambda: self._load(job.winner, labels))}
        if (default := job.default) is not None:
            of_default = self._spec(default.parameters, labels)
            found["default"] = (of_default, lambda: self._load(default, labels))
        # an untuned head is new: its number says nothing, and is another on each
        # machine
        if TASKS[self.config.task].is_language_model:
            untuned = self._spec(self.config.baseline, labels)
            found["untuned"] = (untuned, lambda: load_base_model(untuned, self.device))
        return found

    def _score(self, name: str, base: BaseSpec, load: "Callable[[], PreTrainedModel]") -> Score:
        from trainables.data.prepare import open_slices, open_split
        from trainables.engine.scoring import RowResults, evaluate_model, with_reference
        from trainables.models.checkpoint import load_base_model
        from trainables.tasks import TASKS

        config, task = self.config, TASKS[self.config.task]

        def measured(model: "PreTrainedModel", split: "Split") -> RowResults:
            rows, device = np.arange(len(split)), self.device
            return evaluate_model(
                model, task, split, rows, config.pad_token_id, self.max_tokens, device
            )

        split = with_reference(
            open_split(self.data, "test"),
            lambda pairs: measured(load_base_model(base, self.device), pairs),
        )
        results = measured(load(), split)
        write_rows(self.store, f"baselines/test/{name}", results.losses, results.rows_outcomes)
        release(self.device)  # before the next one is loaded
        slices = results.by_slice(task, open_slices(self.data, "test"))
        metrics = results.metrics(task)
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
            config.model,
            TASKS[config.task],
            labels,
            config.pad_token_id,
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
