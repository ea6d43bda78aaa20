"""Verdicts and the winner: pure functions over evaluations. No Ray, torch or network; numbers in, words out.

Losses are means in nats per example (classification) or per target token (language models).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Thresholds of the verdicts; relative numbers are shares (0.02 = 2%)."""

    overfit_rise: float = (
        0.02  # validation loss above the trial's minimum, while probe loss fell: Prechelt's generalisation loss
    )
    overfit_gap: float = (
        0.9  # (validation - probe) / validation above this is memorisation: probe loss under a tenth of validation loss
    )
    improving: float = 0.01  # a last evaluation that is the best by more than this is still improving
    underfit: float = (
        0.02  # a best loss less than this below the untuned model's (and the label prior's) has learnt nothing
    )
    diverge_ratio: float = 2.0  # validation and probe loss above so many times the untuned model's
    tie_standard_errors: float = 1.0  # a candidate closer to the best than this, paired per example, is tied with it

    def __post_init__(self) -> None:
        for name in ("overfit_rise", "improving", "underfit", "tie_standard_errors"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"selection.{name}: must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.overfit_gap <= 1:
            raise ValueError(f"selection.overfit_gap: must be above 0 and at most 1, got {self.overfit_gap}")
        if not self.diverge_ratio > 1:
            raise ValueError(f"selection.diverge_ratio: must be above 1, got {self.diverge_ratio}")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a trial, as selection sees it. None stands for a number that was not finite."""

    step: int
    samples_seen: int
    epoch: float
    val_loss: float | None
    probe_loss: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    trainable_parameters: int = 0
    checkpoint: str | None = None
    folder: str = ""  # names its per-example losses


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial: its parameters, how it ended, and its evaluations in the order of their steps."""

    id: str
    status: str  # running | complete | pruned | failed
    params: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Point] = ()
    reason: str | None = None  # why it was stopped or failed


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Losses of not fine-tuning: the untuned model's and, for classification, the label prior's (validation)."""

    val_loss: float | None = None
    probe_loss: float | None = None
    prior_loss: float | None = None

    def best(self) -> float | None:
        return min((loss for loss in (self.val_loss, self.prior_loss) if loss is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    word: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Winner:
    trial: str
    point: Point
    reason: str
    tied: tuple[str, ...] = ()


def overfit_reason(points: Sequence[Point], index: int, config: SelectionConfig) -> str | None:
    """Why the evaluation `points[index]` is overfit, or None when it is not.

    Overfit: its validation loss lies more than `overfit_rise` above the lowest before it (Prechelt 1998, "Early stopping
    - but when?", generalisation loss) while the probe loss fell since then; or its gap exceeds `overfit_gap`.
    """
    point = points[index]
    if point.val_loss is None or point.probe_loss is None:
        return None
    before = [p for p in points[:index] if p.val_loss is not None and p.probe_loss is not None]
    if before:
        lowest = min(before, key=lambda p: p.val_loss)
        rise = (
            point.val_loss / lowest.val_loss - 1 if lowest.val_loss > 0 else (math.inf if point.val_loss > 0 else 0.0)
        )
        if rise > config.overfit_rise and point.probe_loss < lowest.probe_loss:
            return (
                f"validation loss rose {rise:.1%} above its minimum ({lowest.val_loss:.4f} at {lowest.samples_seen} samples "
                f"to {point.val_loss:.4f} at {point.samples_seen}) while probe loss fell from {lowest.probe_loss:.4f} "
                f"to {point.probe_loss:.4f}"
            )
    if point.val_loss > 0 and (point.val_loss - point.probe_loss) / point.val_loss > config.overfit_gap:
        return (
            f"probe loss {point.probe_loss:.4f} is {1 - point.probe_loss / point.val_loss:.0%} below validation loss "
            f"{point.val_loss:.4f} (limit {config.overfit_gap:.0%}): the training rows are memorised"
        )
    return None


def diverged_reason(point: Point, reference: Reference, config: SelectionConfig) -> str | None:
    """Why `point` has diverged: a loss that is no number, or validation and probe loss far above the untuned model's."""
    if point.val_loss is None or point.probe_loss is None:
        return f"a loss was not finite at {point.samples_seen} samples"
    untuned = reference.best()
    if untuned is not None and min(point.val_loss, point.probe_loss) > config.diverge_ratio * untuned:
        return (
            f"validation loss {point.val_loss:.4f} and probe loss {point.probe_loss:.4f} are above "
            f"{config.diverge_ratio:g} times that of not fine-tuning ({untuned:.4f})"
        )
    return None


def verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """What a trial did, from its evaluations."""
    if curve.status == "failed":
        return Verdict(word="failed", reason=curve.reason or "it failed")
    points = list(curve.points)
    if curve.reason and curve.reason.startswith("diverged"):
        return Verdict(word="diverged", reason=curve.reason.removeprefix("diverged: "))
    if not points:
        if curve.status == "running":
            return Verdict(word="still improving", reason="no evaluation yet")
        return Verdict(word="failed", reason=curve.reason or "it ended without an evaluation")
    last = points[-1]
    if reason := diverged_reason(last, reference, config):
        return Verdict(word="diverged", reason=reason)
    finite = [p for p in points if p.val_loss is not None]
    best = min(finite, key=lambda p: p.val_loss)
    if reason := overfit_reason(points, len(points) - 1, config):
        kept = "" if best is last else f"; its evaluation at {best.samples_seen} samples is judged by itself"
        return Verdict(word="overfit", reason=reason + kept)
    untuned = reference.best()
    if untuned is not None and best.val_loss > untuned * (1 - config.underfit):
        return Verdict(
            word="underfit",
            reason=f"best validation loss {best.val_loss:.4f} is not {config.underfit:.0%} below that of not fine-tuning ({untuned:.4f})",
        )
    if len(finite) > 1 and best is last:
        earlier = min(p.val_loss for p in finite[:-1])
        gain = 1 - last.val_loss / earlier if earlier > 0 else 0.0
        if gain > config.improving:
            return Verdict(
                word="still improving",
                reason=f"the last evaluation is the best, {gain:.1%} below the one before ({earlier:.4f} to {last.val_loss:.4f}); "
                "more training may help",
            )
    gap = f", probe {best.probe_loss:.4f}" if best.probe_loss is not None else ""
    return Verdict(
        word="healthy", reason=f"lowest validation loss {best.val_loss:.4f}{gap} at {best.samples_seen} samples"
    )


def candidates(curve: Curve, config: SelectionConfig) -> list[Point]:
    """The evaluations of a trial that may win: finite, and not overfit."""
    if curve.status == "failed":
        return []
    points = list(curve.points)
    return [
        p
        for i, p in enumerate(points)
        if p.val_loss is not None and p.probe_loss is not None and overfit_reason(points, i, config) is None
    ]


def best_point(curve: Curve, config: SelectionConfig) -> Point | None:
    """The trial's best evaluation that may win; this is also what the search is told."""
    return min(candidates(curve, config), key=lambda p: (p.val_loss, p.samples_seen), default=None)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean loss of b minus that of a over the same rows, and its standard error.

    a, b: [N, 2] summed loss and number of targets of each row. With targets t_i and differences d_i the mean is the ratio
    D = sum d / sum t; its standard error sqrt(N / (N - 1) * sum (d_i - D t_i)^2) / sum t (Cochran 1977, ratio estimator).
    """
    differences, targets = b[:, 0].astype(float) - a[:, 0], a[:, 1].astype(float)
    total, rows = targets.sum(), len(targets)
    mean = differences.sum() / total
    if rows < 2:
        return float(mean), math.inf
    residuals = differences - mean * targets
    return float(mean), float(math.sqrt(rows / (rows - 1) * (residuals**2).sum()) / total)


def select(
    curves: Sequence[Curve],
    config: SelectionConfig,
    losses: Callable[[str], np.ndarray | None],
    reference: Reference | None = None,
) -> tuple[Winner | None, str]:
    """The winner, and the reason in words (also when there is none).

    Each trial stands with its best evaluation that is not overfit. The lowest validation loss leads; those within
    `tie_standard_errors` of it, paired per example, are tied, and among the tied the cheaper one wins: fewer trainable
    parameters, then fewer samples. `losses(folder)` gives the per-example losses [N, 2] of an evaluation; `reference` is
    what the reason compares with.
    """
    standing = [
        (curve, point)
        for curve in curves
        if (point := best_point(curve, config)) is not None and point.checkpoint is not None
    ]
    if not standing:
        return None, _nothing(curves, config)
    standing.sort(key=lambda item: (item[1].val_loss, item[1].trainable_parameters, item[1].samples_seen, item[0].id))
    leader, lead_point = standing[0]
    tied, differences = [(leader, lead_point)], {}
    of_leader = losses(lead_point.folder)
    for curve, point in standing[1:]:
        other = losses(point.folder) if of_leader is not None else None
        if other is None or of_leader is None or other.shape != of_leader.shape:
            continue
        difference, error = differences[curve.id] = paired_difference(of_leader, other)
        if difference <= config.tie_standard_errors * error:
            tied.append((curve, point))
    chosen, point = min(
        tied, key=lambda item: (item[1].trainable_parameters, item[1].samples_seen, item[1].val_loss, item[0].id)
    )
    sentences = [
        *_why_chosen(chosen, point, standing, tied, differences, config),
        *_why_not_others(chosen, point, curves, config),
        *_against_not_tuning(point, reference, config),
    ]
    reason = "; ".join(sentences) + "."
    return Winner(
        trial=chosen.id, point=point, reason=reason, tied=tuple(curve.id for curve, _ in tied if curve is not chosen)
    ), reason


Standing = Sequence[tuple[Curve, Point]]


def _why_chosen(
    chosen: Curve,
    point: Point,
    standing: Standing,
    tied: Standing,
    differences: Mapping[str, tuple[float, float]],
    config: SelectionConfig,
) -> list[str]:
    leader, lead_point = standing[0]
    if chosen is leader:
        sentences = [
            f"{chosen.id} has the lowest validation loss, {point.val_loss:.4f}, of {len(standing)} trials with a checkpoint "
            "that is not overfit"
        ]
    else:
        difference, error = differences[chosen.id]
        sentences = [
            f"{chosen.id} is tied with {leader.id}, which has the lowest validation loss ({lead_point.val_loss:.4f}): its "
            f"{point.val_loss:.4f} is {difference:.4f} ± {error:.4f} above, paired per example",
            f"of the tied it is the cheapest ({point.trainable_parameters:,} trainable parameters, {point.samples_seen} samples, "
            f"against {lead_point.trainable_parameters:,} and {lead_point.samples_seen})",
        ]
    others = [curve.id for curve, _ in tied if curve.id not in (chosen.id, leader.id)]
    if others:
        sentences.append(f"also within {config.tie_standard_errors:g} standard error: {', '.join(others)}")
    elif len(tied) == 1 and len(standing) > 1 and standing[1][0].id in differences:
        difference, error = differences[standing[1][0].id]
        sentences.append(f"the next, {standing[1][0].id}, is {difference:.4f} ± {error:.4f} above, paired per example")
    return sentences


def _why_not_others(chosen: Curve, point: Point, curves: Sequence[Curve], config: SelectionConfig) -> list[str]:
    sentences = []
    later = [p for p in chosen.points if p.step > point.step and p.val_loss is not None]
    if later:
        sentences.append(
            f"its checkpoint is that of step {point.step} (epoch {point.epoch:g}), not the trial's last, whose validation loss "
            f"is {later[-1].val_loss:.4f}"
        )
    overfit = [c.id for c in curves if any(overfit_reason(list(c.points), i, config) for i in range(len(c.points)))]
    if overfit:
        trials = "1 trial" if len(overfit) == 1 else f"{len(overfit)} trials"
        sentences.append(f"{trials} had overfit checkpoints, which could not win: {', '.join(overfit)}")
    return sentences


def _against_not_tuning(point: Point, reference: Reference | None, config: SelectionConfig) -> list[str]:
    if reference is None or reference.best() is None:
        return []
    untuned = reference.best()
    name = "the untuned model" if untuned == reference.val_loss else "always answering with train's label shares"
    if point.val_loss >= untuned:
        return [f"but it is no better than {name}, which has {untuned:.4f}"]
    if point.val_loss > untuned * (1 - config.underfit):
        return [f"but it is hardly better than {name}, which has {untuned:.4f}"]
    return [f"{name} has {untuned:.4f}"]


def _nothing(curves: Sequence[Curve], config: SelectionConfig) -> str:
    if not curves:
        return "Nothing may win: no trial has started."
    failed = [c.id for c in curves if c.status == "failed"]
    overfit = [c.id for c in curves if c.id not in failed and c.points and not candidates(c, config)]
    without = [c.id for c in curves if c.id not in failed and not c.points]
    parts = [
        f"{len(ids)} {word} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for ids, word in (
            (failed, "failed"),
            (overfit, "overfit or not finite at every evaluation"),
            (without, "without an evaluation"),
        )
        if ids
    ]
    return f"Nothing may win: of {len(curves)} trials, {'; '.join(parts) or 'none has a checkpoint'}."
