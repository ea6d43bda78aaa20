"""Check that a checkpoint gives the number shown."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.reporting.handover import relative_name, trained_base
from sweeps.selection.ranking import final_ranking
from trainables.data.arrow import split_fingerprint
from trainables.data.sources import source_fingerprint
from trainables.errors import InputError
from trainables.models.checkpoint import load_checkpoint
from trainables.models.files import fingerprint, load_tokenizer, pad_token_of, quiet
from trainables.storage.checkpoints import read_evaluation
from trainables.tasks import TASKS

TOLERANCE = 1e-5  # relative, CPU in float32

# relative: bfloat16 or 4-bit arithmetic, or another device than the one that trained

LOW_PRECISION_TOLERANCE = 2e-2


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


def verify(ledger: Ledger, config: SweepConfig) -> list[Check]:
    """Load winner and finalists as a user would (transformers and PEFT alone), evaluate them again,
    compare.

    The winner on the validation split and, where it was scored, on the test split; finalists on the
    validation split. Raises InputError when there is no winner to verify.
    """
    import torch

    from trainables.data.prepare import open_split
    from trainables.engine.scoring import evaluate_model

    quiet()
    store = ledger.store
    if not store.exists("winner/winner.json"):
        raise InputError(
            f"{store.path('')}: there is no winner to verify; the sweep has not ended, or nothing"
            " could win"
        )
    winner = store.read_json("winner/winner.json")
    device, task = torch.device("cuda" if torch.cuda.is_available() else "cpu"), TASKS[config.task]
    manifest = ledger.manifest()
    pad_token_id = pad_token_of(load_tokenizer(config.model))
    exact = (
        device.type == "cpu"
        and config.train.precision != "bfloat16"
        and config.model.dtype in ("auto", "float32")
    )
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = store.fetch("data", Path(scratch))

        def check(
            name: str, folder: str, params: Mapping[str, Any], reported: dict[str, dict[str, float]]
        ) -> None:
            spec = trained_base(config, params, manifest, pad_token_id)
            model = load_checkpoint(store.fetch(folder, Path(scratch)), spec, device)
            for split_name, numbers in reported.items():
                split = open_split(data, split_name)
                found = evaluate_model(
                    model, task, split, np.arange(len(split)), pad_token_id, 16384, device
                )
                measured = {"loss": found.loss, **task.metrics(*found.columns)}
                tolerance = (
                    TOLERANCE if exact and spec.quantisation == "none" else LOW_PRECISION_TOLERANCE
                )
                checks.append(
                    Check(
                        what=f"{name}, {split_name}",
                        reported=numbers,
                        measured=measured,
                        tolerance=tolerance,
                    )
                )

        reported = {"validation": _reported(ledger, winner["checkpoint"])}
        test = store.read_json("test.json") if store.exists("test.json") else None
        if test is not None and (test["trial"], test["step"]) == (winner["trial"], winner["step"]):
            score = test["scores"]["winner"]
            reported["test"] = {"loss": score["loss"], **score["metrics"]}
        check(f"the winner, {winner['trial']}", "winner", winner["params"], reported)
        finals = final_ranking(ledger.curves(), config.selection)
        again = {trial for final in finals for trial in final.seeds} - {winner["trial"]}
        for curve in ledger.curves():
            kept = [p.checkpoint for p in curve.points if p.checkpoint is not None]
            if curve.id in again and kept:
                check(
                    f"finalist {curve.id}",
                    relative_name(ledger, kept[-1]),
                    curve.params,
                    {"validation": _reported(ledger, kept[-1])},
                )
    return checks


def altered(ledger: Ledger, config: SweepConfig) -> list[str]:
    """What is no longer as it was when the sweep began, in words: prepared data, the files that
    they came from where those are still here, and the files of the base model.
    """
    found = []
    manifest = ledger.manifest()
    with tempfile.TemporaryDirectory() as scratch:
        data = ledger.store.fetch("data", Path(scratch))
        described = {
            name: split.fingerprint for name, split in manifest.splits.items() if split.fingerprint
        }
        if ledger.store.exists("test.json"):
            described["test"] = ledger.store.read_json("test.json")["split"]["fingerprint"]
        for name, expected in described.items():
            if split_fingerprint(data / f"{name}.arrow") != expected:
                found.append(f"data/{name}.arrow is not what the sweep prepared")
    for name, source in manifest.sources.items():
        now = source_fingerprint(source.source)
        if now is not None and now != source.sha256:
            found.append(f"data.{name}: {source.source} is no longer the file that the sweep read")
    if ledger.store.exists("base.json"):
        before, now = ledger.store.read_json("base.json"), fingerprint(config.model)
        changed = sorted(
            name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
        )
        if changed:
            found.append(
                f"the base model {config.model.name} has changed: {', '.join(changed[:3])}"
            )
    return found


def _reported(ledger: Ledger, checkpoint: str) -> dict[str, float]:
    """The evaluation as the slot wrote it when it saved the checkpoint."""
    folder = relative_name(ledger, checkpoint).removesuffix("/checkpoint")
    evaluation = read_evaluation(ledger.store, folder)
    found = {"loss": evaluation.val_loss, **evaluation.metrics}
    return {name: value for name, value in found.items() if value is not None}
