"""Verdicts over curves that a person brings as CSV: from any trainer, no sweep needed."""

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.verdicts import verdict
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation

LOSSES = ("train_loss", "probe_loss", "val_loss")


def diagnose(
    file: Path,
    config: SelectionConfig,
    *,
    untuned_loss: float | None = None,
    prior_loss: float | None = None,
) -> list[dict[str, str]]:
    """Verdict and reason of each trial in `file`, in the order of their first lines.

    Columns: trial, samples_seen, val_loss, and probe_loss or train_loss or both; others are
    ignored, and so are lines without a validation loss. Where there is no probe loss, the training
    loss stands for it. A line at 0 samples is the untuned model. Without such a line, or
    `untuned_loss`, a trial is judged beside its own beginning and the other trials. Raises
    InputError for what cannot be read, and for an `untuned_loss` or a `prior_loss` that no model
    can have.
    """
    for option, loss in (("--untuned-loss", untuned_loss), ("--prior-loss", prior_loss)):
        if loss is not None and not 0 <= loss < math.inf:
            raise InputError(f"{option}: must be a finite number of 0 or more, got {loss}")
    curves = _read(file)
    reference = Reference(val_loss=untuned_loss, prior_loss=prior_loss)
    losses = [p.val_loss for curve in curves for p in curve.points if p.val_loss is not None]
    reference = dataclasses.replace(reference, achieved=min(losses, default=None))
    found = []
    for curve in curves:
        own, points = reference, curve.points
        if points[0].samples_seen == 0:
            own = dataclasses.replace(
                own, val_loss=points[0].val_loss, probe_loss=points[0].probe_loss
            )
            points = points[1:]
        judged = verdict(dataclasses.replace(curve, points=points), own, config)
        found.append({"id": curve.id, "verdict": judged.word, "verdict_reason": judged.reason})
    return found


def _read(file: Path) -> list[Curve]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            for name in ("trial", "samples_seen", "val_loss"):
                if name not in columns:
                    raise InputError(
                        f"{file}: no column {name}; it has {', '.join(columns) or 'none'}"
                    )
            if not {"probe_loss", "train_loss"} & set(columns):
                raise InputError(
                    f"{file}: neither a column probe_loss nor train_loss; it has"
                    f" {', '.join(columns)}"
                )
            lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as CSV: {error}") from error
    if not lines:
        raise InputError(f"{file}: has no line below its header")
    points: dict[str, list[Evaluation]] = {}
    for number, line in lines:
        if not (line["val_loss"] or "").strip():
            continue  # exports have a line for every step, most of them without an evaluation
        trial = (line["trial"] or "").strip()
        if not trial:
            raise InputError(f"{file}, line {number}: trial: is empty")
        point = _point(line, f"{file}, line {number}")
        earlier = points.setdefault(trial, [])
        if any(other.samples_seen == point.samples_seen for other in earlier):
            raise InputError(
                f"{file}, line {number}: a second line of {trial} at {point.samples_seen} samples"
            )
        earlier.append(point)
    if not points:
        raise InputError(f"{file}: no line has a val_loss")
    return [
        Curve(
            id=trial,
            status="complete",
            points=tuple(sorted(of_trial, key=lambda p: p.samples_seen)),
        )
        for trial, of_trial in points.items()
    ]


def _point(line: Mapping[str, Any], where: str) -> Evaluation:
    seen = _number(line["samples_seen"], f"{where}: samples_seen")
    if seen is None or seen < 0 or seen != int(seen):
        raise InputError(
            f"{where}: samples_seen: must be a whole number of 0 or more, got"
            f" {(line['samples_seen'] or '').strip()!r}"
        )
    losses = {name: _number(line.get(name), f"{where}: {name}") for name in LOSSES}
    measured = (line.get("probe_loss") or "").strip()
    probe = losses["probe_loss"] if measured else losses["train_loss"]
    if probe is None and not measured and not (line.get("train_loss") or "").strip():
        raise InputError(
            f"{where}: neither a probe_loss nor a train_loss stands beside the val_loss"
        )
    return Evaluation(
        step=int(seen),
        samples_seen=int(seen),
        epoch=0.0,
        val_loss=losses["val_loss"],
        probe_loss=probe,
        train_loss=losses["train_loss"],
    )


def _number(text: str | None, where: str) -> float | None:
    """None for what is empty or not finite."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: must be a number, got {text!r}") from error
    return value if math.isfinite(value) else None
