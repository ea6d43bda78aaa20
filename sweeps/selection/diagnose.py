"""Verdicts over curves that a person brings as CSV: from any trainer, no sweep needed."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.verdicts import Verdict, verdict
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation


@dataclass(frozen=True, kw_only=True)
class DiagnosedTrial:
    """A trial of a file of curves."""

    id: str
    verdict: str
    verdict_reason: str


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """All trials of a file, in the order of their first lines."""

    trials: tuple[DiagnosedTrial, ...]


def diagnose(
    file: Path,
    config: SelectionConfig,
    *,
    untuned_loss: float | None = None,
    prior_loss: float | None = None,
) -> Diagnosed:
    """Verdict and reason of each trial in `file`.

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
    curves = _curves(file)
    losses = [p.val_loss for curve in curves for p in curve.points if p.val_loss is not None]
    reference = Reference(
        val_loss=untuned_loss, prior_loss=prior_loss, achieved=min(losses, default=None)
    )
    judged = {curve.id: _judged(curve, reference, config) for curve in curves}
    return Diagnosed(
        trials=tuple(
            DiagnosedTrial(id=trial, verdict=found.word, verdict_reason=found.reason)
            for trial, found in judged.items()
        )
    )


def _judged(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """The verdict beside the untuned model where the curve begins with it."""
    first = curve.points[0]
    if first.samples_seen == 0:
        reference = replace(reference, val_loss=first.val_loss, probe_loss=first.probe_loss)
        curve = replace(curve, points=curve.points[1:])
    return verdict(curve, reference, config)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What a line of the file says, as text; empty where it says nothing."""

    where: str
    trial: str
    samples_seen: str
    val_loss: str
    probe_loss: str
    train_loss: str


COLUMNS = [f.name for f in fields(_Line) if f.name != "where"]


def _curves(file: Path) -> list[Curve]:
    """The evaluations of each trial, in the order of the samples that it had seen."""
    points: dict[str, list[Evaluation]] = {}
    for line in _lines(file):
        if not line.val_loss:
            continue  # exports have a line for every step, most of them without an evaluation
        if not line.trial:
            raise InputError(f"{line.where}: trial: is empty")
        point = _evaluation(line)
        earlier = points.setdefault(line.trial, [])
        if any(other.samples_seen == point.samples_seen for other in earlier):
            raise InputError(
                f"{line.where}: a second line of {line.trial} at {point.samples_seen} samples"
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


def _lines(file: Path) -> list[_Line]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            _check_columns(file, columns)
            lines = [_line(row, f"{file}, line {reader.line_num}") for row in reader]
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as CSV: {error}") from error
    if not lines:
        raise InputError(f"{file}: has no line below its header")
    return lines


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    for name in ("trial", "samples_seen", "val_loss"):
        if name not in columns:
            raise InputError(f"{file}: no column {name}; it has {', '.join(columns) or 'none'}")
    if not {"probe_loss", "train_loss"} & set(columns):
        raise InputError(
            f"{file}: neither a column probe_loss nor train_loss; it has {', '.join(columns)}"
        )


def _line(row: Mapping[str, str | None], where: str) -> _Line:
    return _Line(where=where, **{name: (row.get(name) or "").strip() for name in COLUMNS})


def _evaluation(line: _Line) -> Evaluation:
    """Where it has no probe loss, the training loss stands for it."""
    seen = _number(line.samples_seen, f"{line.where}: samples_seen")
    if seen is None or seen < 0 or seen != int(seen):
        raise InputError(
            f"{line.where}: samples_seen: must be a whole number of 0 or more, got"
            f" {line.samples_seen!r}"
        )
    train_loss = _number(line.train_loss, f"{line.where}: train_loss")
    probe_loss = _number(line.probe_loss, f"{line.where}: probe_loss")
    val_loss = _number(line.val_loss, f"{line.where}: val_loss")
    if not line.probe_loss and not line.train_loss:
        raise InputError(
            f"{line.where}: neither a probe_loss nor a train_loss stands beside the val_loss"
        )
    return Evaluation(
        step=int(seen),
        samples_seen=int(seen),
        epoch=0.0,
        val_loss=val_loss,
        probe_loss=probe_loss if line.probe_loss else train_loss,
        train_loss=train_loss,
    )


def _number(text: str, where: str) -> float | None:
    """None for what is empty or not finite."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: must be a number, got {text!r}") from error
    return value if math.isfinite(value) else None
