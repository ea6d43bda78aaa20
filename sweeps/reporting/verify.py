"""Check that a checkpoint gives the number shown."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.ledger.leaderboard import TestScores, WinnerRow
from sweeps.reporting.handover import relative_name, trained_base
from sweeps.selection.curves import Curve
from sweeps.selection.ranking import final_ranking
from trainables.data.arrow import split_fingerprint
from trainables.data.manifest import Manifest, data_of, read_manifest
from trainables.data.sources import source_fingerprint
from trainables.errors import InputError
from trainables.evaluation.answered import Answered
from trainables.evaluation.record import Evaluation, Score
from trainables.evaluation.reloaded import MAX_TOKENS, measured
from trainables.hyperparameters import base_of
from trainables.models.base import BaseSpec
from trainables.models.checkpoint import load_checkpoint, load_untuned
from trainables.models.files import load_tokenizer, pad_token_of, quiet
from trainables.storage.checkpoints import read_evaluation
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from trainables.data.arrow import Split
    from trainables.engine.scoring import RowResults

Reported = dict[str, dict[str, float]]
"""Loss and metrics, by split."""

TOLERANCE = 1e-5  # relative, CPU in float32

# relative: bfloat16 or 4-bit arithmetic, or another device than the one that trained
LOW_PRECISION_TOLERANCE = 2e-2
# share of the rows: where two tokens are nearly as likely, rounding decides between them
OTHER_ANSWERS = 0.25


@dataclass(frozen=True, kw_only=True)
class Check:
    """A checkpoint's reported and measured loss and metrics on one split."""

    what: str
    reported: dict[str, float]
    measured: dict[str, float]
    tolerance: float  # relative

    @property
    def agrees(self) -> bool:
        return all(
            math.isclose(
                self.measured.get(name, math.nan), value, rel_tol=self.tolerance, abs_tol=1e-12
            )
            for name, value in self.reported.items()
        )


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify --json` prints."""

    agrees: bool
    """Whether all is as it was reported."""
    altered: tuple[str, ...]
    """What is no longer as it was when the sweep began: prepared data, base model."""
    changed_sources: tuple[str, ...]
    """Files that the data were read from and that are others now: no mismatch, as the sweep has
    used what it had prepared of them."""
    checks: tuple[Check, ...]


def verify(ledger: Ledger, config: SweepConfig) -> list[Check]:
    """Load winner and finalists as a user would (transformers and PEFT alone), evaluate them again,
    compare.

    The winner on the validation split and, where it was scored, on the test split; finalists on the
    validation split. Raises InputError when there is no winner to verify.
    """
    import torch

    quiet()
    winner = ledger.handed_over()
    if winner is None:
        raise InputError(
            f"{ledger.store.path('')}: there is no winner to verify; the sweep has not ended, or"
            " nothing could win"
        )
    with tempfile.TemporaryDirectory() as scratch:
        again = _Reevaluation(
            ledger=ledger,
            config=config,
            manifest=ledger.manifest(),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            scratch=Path(scratch),
            data=ledger.store.fetch("data", Path(scratch)),
        )
        reported = _reported_of_winner(ledger, winner)
        written = _answers_of_winner(ledger, winner, reported)
        name = f"the winner, {winner.trial}"
        checks = again.checks(name, WINNER, winner.params, reported, written)
        for curve, checkpoint in _finalists(ledger, config, winner):
            folder = relative_name(ledger, checkpoint)
            reported = {"validation": _reported(ledger, checkpoint)}
            checks += again.checks(f"finalist {curve.id}", folder, curve.params, reported)
    return checks


@dataclass(frozen=True, kw_only=True)
class _Reevaluation:
    """With what checkpoints are loaded and evaluated once more."""

    ledger: Ledger
    config: SweepConfig
    manifest: Manifest
    device: "torch.device"
    scratch: Path
    data: Path

    def checks(
        self,
        name: str,
        folder: str,
        params: Mapping[str, object],
        reported: Reported,
        written: Mapping[str, Answered] = {},
    ) -> list[Check]:
        """Of the checkpoint in `folder`, on each split that it was reported of; written: what it
        answered to rows of it.
        """
        from trainables.data.prepare import open_split
        from trainables.engine.scoring import with_reference

        base, task = base_of(params), TASKS[self.config.task]
        config, data = self.config.over(base), self.data / data_of(base, self.config.bases[0])
        spec = trained_base(
            config, params, self.manifest, pad_token_of(load_tokenizer(config.model))
        )
        splits = {
            name: with_reference(
                open_split(data, name),
                lambda pairs: self._measured(load_untuned(spec, self.device), pairs, spec),
            )
            for name in reported
        }
        fetched = self.ledger.store.fetch(folder, self.scratch)
        model = load_checkpoint(fetched, spec, self.device)
        exact = spec.quantisation == "none" and computes_exactly(self.config, self.device)
        checks = []
        for split_name, numbers in reported.items():
            found = self._measured(model, splits[split_name], spec)
            answers = written.get(split_name)
            if answers is not None:
                what = f"{name}, answers on {split_name}"
                same = self._same_answers(answers, model, splits[split_name], spec)
                allowed = TOLERANCE if exact else OTHER_ANSWERS
                rows = {"rows answered alike": float(len(answers.texts))}
                checks.append(Check(what=what, reported=rows, measured=same, tolerance=allowed))
            checks.append(
                Check(
                    what=f"{name}, {split_name}",
                    reported=measured_again(numbers, task),
                    measured={"loss": found.loss, **found.metrics(task)},
                    tolerance=TOLERANCE if exact else LOW_PRECISION_TOLERANCE,
                )
            )
        return checks

    def _same_answers(
        self, written: Answered, model: "PreTrainedModel", split: "Split", base: BaseSpec
    ) -> dict[str, float]:
        """To how many rows the model writes again what it wrote."""
        from trainables.evaluation.answering import Answering

        config = self.config
        again = Answering(
            task=TASKS[config.task],
            split=split,
            tokenizer=load_tokenizer(base.model),
            metrics=(),
            settings=config.generation,
            pad_token_id=base.pad_token_id,
            max_tokens=MAX_TOKENS,
            seed=config.seed,
            digest=written.settings,
        ).write(model)
        same = zip(written.texts, again.texts, strict=False)
        return {"rows answered alike": float(sum(a == b for a, b in same))}

    def _measured(self, model: "PreTrainedModel", split: "Split", base: BaseSpec) -> "RowResults":
        return measured(model, TASKS[self.config.task], split, base.pad_token_id, self.device)


def measured_again(numbers: Mapping[str, float], task: Task) -> dict[str, float]:
    """Loss and metrics of the task; of answers it is the texts that are compared."""
    names = ("loss", *task.metric_names)
    return {name: numbers[name] for name in names if name in numbers}


def computes_exactly(config: SweepConfig, device: "torch.device") -> bool:
    """Whether training and an evaluation on `device` both compute in float32 on a CPU."""
    return (
        device.type == "cpu"
        and config.train.precision != "bfloat16"
        and config.model.dtype in ("auto", "float32")
    )


def _finalists(
    ledger: Ledger, config: SweepConfig, winner: WinnerRow
) -> Iterator[tuple[Curve, str]]:
    """The new seeds beside the winner, each with the checkpoint that is kept of it."""
    finals = final_ranking(ledger.curves(), config.selection)
    again = {trial for final in finals for trial in final.seeds} - {winner.trial}
    for curve in ledger.curves():
        kept = [p.checkpoint for p in curve.points if p.checkpoint is not None]
        if curve.id in again and kept:
            yield curve, kept[-1]


def altered(ledger: Ledger, config: SweepConfig) -> list[str]:
    """What is no longer as it was when the sweep began, in words: prepared data and the files of
    the base model.
    """
    return [*_altered_splits(ledger, config), *_altered_base(ledger, config)]


def _altered_splits(ledger: Ledger, config: SweepConfig) -> list[str]:
    """Of the data for each base model."""
    winner, test = ledger.handed_over(), ledger.scored_test()
    tested = None
    if winner is not None and test is not None and test.trial == winner.trial:
        tested = base_of(winner.params)
    with tempfile.TemporaryDirectory() as scratch:
        data = ledger.store.fetch("data", Path(scratch))
        return [
            f"{Path('data', below, name)}.arrow is not what the sweep prepared"
            for base in config.bases
            for below in [data_of(base, config.bases[0])]
            for name, expected in _described(data / below, test if base == tested else None)
            if split_fingerprint(data / below / f"{name}.arrow") != expected
        ]


def _described(folder: Path, test: TestScores | None) -> Iterator[tuple[str, str]]:
    """Fingerprints of the splits that were tokenised; test: as it was scored."""
    manifest = read_manifest(folder)
    assert manifest is not None, "it was prepared to the end"
    yield from (
        (name, each.fingerprint) for name, each in manifest.splits.items() if each.is_tokenised
    )
    if test is not None:
        yield "test", test.summary.fingerprint


def changed_sources(manifest: Manifest) -> list[str]:
    """Files that the data were read from and that are others now, in words; those that are no
    longer here cannot be compared.
    """
    return [
        f"data.{name}: {source.source} is no longer the file that the sweep read; it uses the data"
        " that it prepared"
        for name, source in manifest.sources.items()
        if source_fingerprint(source.source) not in (None, source.sha256)
    ]


def _altered_base(ledger: Ledger, config: SweepConfig) -> list[str]:
    if not ledger.store.exists("base.json"):
        return []
    before, now = ledger.store.read_json("base.json"), config.model.fingerprints()
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    if not changed:
        return []
    return [f"the base model {config.model.words} has changed: {', '.join(changed[:3])}"]


def _reported_of_winner(ledger: Ledger, winner: WinnerRow) -> Reported:
    """On validation and, where this very checkpoint was scored there, on test."""
    assert winner.checkpoint is not None, "what is handed over has a checkpoint"
    reported: Reported = {"validation": _reported(ledger, winner.checkpoint)}
    test = ledger.scored_test()
    if test is not None and (test.trial, test.step) == (winner.trial, winner.step):
        reported["test"] = _finite(test.winner)
    return reported


def _answers_of_winner(
    ledger: Ledger, winner: WinnerRow, reported: Reported
) -> dict[str, Answered]:
    """What it wrote to rows of the splits that it was reported of, where it was asked."""
    folders = {"validation": winner.folder, "test": "baselines/test/winner"}
    return {
        split: answers
        for split in reported
        if (answers := ledger.answers(folders[split])) is not None
    }


def _finite(found: Evaluation | Score) -> dict[str, float]:
    """Loss and metrics that are numbers."""
    loss = found.val_loss if isinstance(found, Evaluation) else found.loss
    numbers = {"loss": loss, **found.metrics}
    return {name: value for name, value in numbers.items() if value is not None}


def _reported(ledger: Ledger, checkpoint: str) -> dict[str, float]:
    """The evaluation as the slot wrote it when it saved the checkpoint."""
    folder = relative_name(ledger, checkpoint).removesuffix("/checkpoint")
    return _finite(read_evaluation(ledger.store, folder))
