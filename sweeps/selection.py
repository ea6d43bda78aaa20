"""Verdicts and the winner: pure functions over evaluations. No Ray, torch or network; numbers in, words out.

Losses are means in nats per example (classification) or per target token (language models).
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from sweeps.intervals import MIN_UNITS, Difference, compare_all

TOO_EARLY = "too early to tell"
LOST_LATER = ("overfit", "diverged", "collapsed")  # what is said of a trial's last evaluation, and not of those before


@dataclass(frozen=True, kw_only=True)
class FinalistsConfig:
    """The best configurations, trained again with new seeds: a lucky seed must not win."""

    top: int = 0  # configurations; 0: none
    seeds: int = 3  # new ones, of each

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"selection.finalists.top: must be 0 or more, got {self.top}")
        if self.seeds < 1:
            raise ValueError(f"selection.finalists.seeds: must be at least 1, got {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a checkpoint must keep to in order to win, whatever its validation loss. None: no limit.

    Limits on what is forgotten are for language models, and make every evaluation measure it. Limits on slices need
    `data.slice`.
    """

    forgetting: float | None = None  # nats per token by which the loss on general text may lie above the base's
    kl: float | None = None  # nats by which predictions on the task's prompts may diverge from the base's
    slice_loss: float | None = None  # highest loss that a slice may have
    slice_gap: float | None = None  # nats that may lie between the losses of the worst and the best slice
    slice_accuracy: float | None = None  # lowest accuracy that a slice may have (classification)
    slice_rows: int = 30  # slices of fewer rows count for none of these: their numbers are mostly noise

    def __post_init__(self) -> None:
        for name in ("kl", "slice_loss", "slice_gap"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"selection.limits.{name}: must be above 0, got {value}")
        if self.forgetting is not None and not math.isfinite(self.forgetting):
            raise ValueError(f"selection.limits.forgetting: must be a finite number, got {self.forgetting}")
        if self.slice_accuracy is not None and not 0 < self.slice_accuracy <= 1:
            raise ValueError(
                f"selection.limits.slice_accuracy: must be above 0 and at most 1, got {self.slice_accuracy}"
            )
        if self.slice_rows < 1:
            raise ValueError(f"selection.limits.slice_rows: must be at least 1, got {self.slice_rows}")

    @property
    def of_forgetting(self) -> bool:
        return self.forgetting is not None or self.kl is not None

    @property
    def of_slices(self) -> bool:
        return any(limit is not None for limit in (self.slice_loss, self.slice_gap, self.slice_accuracy))


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Thresholds of the verdicts; relative numbers are shares (0.02 = 2%)."""

    overfit_rise: float = (
        0.02  # validation loss above the trial's minimum, while probe loss fell: Prechelt's generalisation loss
    )
    noise: float = 4.0  # a rise must also exceed so many standard deviations of the noise that the curve itself shows
    overfit_gap: float = 0.9  # (validation - probe) / validation above this is told: the training rows are memorised
    improving: float = 0.01  # a last evaluation that is the best by more than this is still improving
    underfit: float = (
        0.02  # a best loss less than this below the untuned model's (and the label prior's) has learnt nothing
    )
    one_answer: float = 0.99  # the same class for so large a share of the validation rows is no answer to the input
    diverge_ratio: float = 2.0  # validation and probe loss above so many times the untuned model's
    tie_standard_errors: float = 1.0  # a candidate closer to the best than this, paired per example, is tied with it
    prefer: Literal["lowest", "cheapest"] = (
        "lowest"  # of the tied: the lowest validation loss, or what costs least to use
    )
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    general_text: str | None = None  # file on which forgetting is measured (language models); None: Python's manual
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    pareto: Literal["trainable_parameters", "inference_cost"] | None = (
        None  # also show which trials none beats in validation loss and in this at once
    )
    baselines: bool = True  # measure other ways than fine-tuning too: embeddings, examples in the prompt
    baseline_minutes: float = 10.0  # for that, on each split; what is not done by then is left out

    def __post_init__(self) -> None:
        for name in ("overfit_rise", "noise", "improving", "underfit", "tie_standard_errors"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"selection.{name}: must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.overfit_gap <= 1:
            raise ValueError(f"selection.overfit_gap: must be above 0 and at most 1, got {self.overfit_gap}")
        if not self.diverge_ratio > 1:
            raise ValueError(f"selection.diverge_ratio: must be above 1, got {self.diverge_ratio}")
        if not 0.5 < self.one_answer <= 1:
            raise ValueError(f"selection.one_answer: must be above 0.5 and at most 1, got {self.one_answer}")
        if not self.baseline_minutes > 0:
            raise ValueError(f"selection.baseline_minutes: must be above 0, got {self.baseline_minutes}")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a trial, as selection sees it. None stands for a number that was not finite."""

    step: int
    samples_seen: int
    epoch: float
    val_loss: float | None
    probe_loss: float | None
    train_loss: float | None = None  # mean in training mode since the evaluation before
    majority_share: float | None = None  # of the validation rows that got the commonest answer (classification)
    metrics: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # rows, loss and metrics, by value
    forgetting: float | None = None  # rise of the loss on general text over the base's; None: not measured
    kl: float | None = None  # divergence of its predictions on the task's prompts from the base's
    trainable_parameters: int = 0
    inference_cost: float = 1.0  # arithmetic of a request over that of the untuned base
    checkpoint_bytes: int = 0  # what the checkpoint takes on disk: an adapter, or a whole model
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
    finalist_of: str | None = None  # the trial whose configuration this one repeats with another seed


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Losses of not fine-tuning: the untuned model's and, for classification, the label prior's (validation).

    achieved: the lowest validation loss of any trial; it tells what could be learnt where nothing else does.
    """

    val_loss: float | None = None
    probe_loss: float | None = None
    prior_loss: float | None = None
    achieved: float | None = None

    def best(self) -> float | None:
        return min((loss for loss in (self.val_loss, self.prior_loss) if loss is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    word: str
    reason: str
    later: str | None = None  # what befell the trial after the checkpoint that this is the verdict of

    @property
    def shown(self) -> str:
        return f"{self.word}, later {self.later}" if self.later else self.word


@dataclass(frozen=True, kw_only=True)
class Final:
    """A configuration that was trained again: its new seeds, each with its best validation loss that may win.

    The loss of the first seed does not count: it is why the configuration was chosen, and so too good on average.
    """

    trial: str  # which had it first
    seeds: Mapping[str, float]  # validation loss, by the trial of each new seed
    failed: tuple[str, ...] = ()  # new seeds that ended without a checkpoint that may win
    mean: float
    spread: float | None  # standard deviation over the new seeds; None for a single one, of which it is not known

    @property
    def median(self) -> str:
        """The trial whose checkpoint stands for the configuration: neither a lucky seed nor an unlucky one. Of an even
        number the better of the middle two.
        """
        return sorted(self.seeds, key=lambda trial: (self.seeds[trial], trial))[(len(self.seeds) - 1) // 2]


@dataclass(frozen=True, kw_only=True)
class Winner:
    trial: str
    point: Point
    reason: str
    tied: tuple[str, ...] = ()
    expected: Final | None = None  # where it ran again with new seeds: their mean is what to expect of it
    lowest: str = ""  # folder of the evaluation with the lowest loss
    differences: Mapping[str, Difference] = field(default_factory=dict)  # of the other candidates, to the lowest loss


def overfit_reason(points: Sequence[Point], index: int, config: SelectionConfig) -> str | None:
    """Why the evaluation `points[index]` is overfit, or None when it is not.

    Overfit: its validation loss lies more than `overfit_rise` above the lowest before it (Prechelt 1998, "Early stopping
    - but when?", generalisation loss), and by more than the curve's own noise explains, while the probe loss fell since
    then. A gap between the two alone is no harm: on an easy task every good model has one.
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
        if (
            rise > config.overfit_rise
            and point.probe_loss < lowest.probe_loss
            and _rises_out_of_noise(points, index, config)
        ):
            return (
                f"validation loss rose {rise:.1%} above its minimum ({lowest.val_loss:.4f} at {lowest.samples_seen} samples "
                f"to {point.val_loss:.4f} at {point.samples_seen}) while probe loss fell from {lowest.probe_loss:.4f} "
                f"to {point.probe_loss:.4f}"
            )
    return None


def memorised(point: Point, config: SelectionConfig) -> str | None:
    """What is told of an evaluation whose probe loss lies more than `overfit_gap` below its validation loss; else None."""
    if point.val_loss is None or point.probe_loss is None or point.val_loss <= 0:
        return None
    gap = (point.val_loss - point.probe_loss) / point.val_loss
    if gap <= config.overfit_gap:
        return None
    return (
        f"the training rows are memorised: probe loss {point.probe_loss:.4f} is {gap:.1%} below validation loss "
        f"{point.val_loss:.4f}"
    )


def limit_reason(point: Point, limits: LimitsConfig) -> str | None:
    """Which limit the evaluation goes beyond, or None. What a limit needs and was not measured is beyond it."""
    lost = (
        ("forgetting", "its loss on general text rose by", point.forgetting, limits.forgetting),
        ("KL", "its predictions on the task's prompts are from the base's by a KL of", point.kl, limits.kl),
    )
    for what, words, value, limit in lost:
        if limit is not None and value is None:
            return f"its {what} was not measured, and has a limit of {limit:g}"
        if limit is not None and value > limit:
            return f"{words} {value:.4f} nats (limit {limit:g})"
    if not limits.of_slices:
        return None
    slices = {value: each for value, each in point.slices.items() if each["rows"] >= limits.slice_rows}
    if not slices:
        return f"no slice has the {limits.slice_rows} rows that its limit asks for"

    def number(each: Mapping[str, float], name: str, absent: float) -> float:
        return absent if each.get(name) is None else each[name]

    by_loss = sorted((number(each, "loss", math.inf), value) for value, each in slices.items())
    (best, easy), (worst, hard) = by_loss[0], by_loss[-1]
    if limits.slice_loss is not None and worst > limits.slice_loss:
        return f"its loss on the slice {hard!r} is {worst:.4f} (limit {limits.slice_loss:g})"
    if limits.slice_gap is not None and not worst - best <= limits.slice_gap:
        return (
            f"its losses on the slices {hard!r} and {easy!r} are {worst - best:.4f} apart, {worst:.4f} and {best:.4f} "
            f"(limit {limits.slice_gap:g})"
        )
    accuracy, lowest = min((number(each, "accuracy", 0.0), value) for value, each in slices.items())
    if limits.slice_accuracy is not None and accuracy < limits.slice_accuracy:
        return f"its accuracy on the slice {lowest!r} is {accuracy:.4f} (at least {limits.slice_accuracy:g} is asked)"
    return None


def excluded_reason(points: Sequence[Point], index: int, config: SelectionConfig) -> str | None:
    """Why the evaluation `points[index]` may not win, or None: overfit, or beyond a limit."""
    return overfit_reason(points, index, config) or limit_reason(points[index], config.limits)


def _rises_out_of_noise(points: Sequence[Point], index: int, config: SelectionConfig) -> bool:
    """Whether `points[index]` lies above the valley before it by more than the tolerance and the noise: not above one
    evaluation that happened to be low. A curve of fewer than about ten evaluations seldom shows its noise; there
    the valley is all that guards.
    """
    losses = [p.val_loss for p in points[: index + 1] if p.val_loss is not None]
    if len(losses) < 5:
        return True
    lowest = min(statistics.median(losses[i : i + 3]) for i in range(len(losses) - 2))
    return losses[-1] - lowest > max(config.overfit_rise * lowest, config.noise * curve_noise(points))


def curve_noise(points: Sequence[Point]) -> float:
    """Standard deviation of the noise in a trial's validation losses, in nats; 0 where there are too few to tell.

    Without noise a curve falls to its minimum and rises after it, whatever its shape. So noise is what is left after the
    best fit of a falling and then a rising curve (isotonic regression by pooling adjacent violators, Barlow et al. 1972).
    """
    return _noise(tuple(p.val_loss for p in points if p.val_loss is not None))


@lru_cache(maxsize=4096)
def _noise(losses: tuple[float, ...]) -> float:
    falling, rising = _falls(losses), _falls(losses[::-1])[::-1]
    squares, levels = min(
        (left + right, levels + more) for (left, levels), (right, more) in zip(falling, rising, strict=True)
    )
    free = len(losses) - levels
    return math.sqrt(squares / free) if free >= 2 else 0.0


def _falls(losses: Sequence[float]) -> list[tuple[float, int]]:
    """Squared residuals and levels of the best falling fit to each beginning of `losses`, the empty one first."""
    blocks: list[tuple[float, int, float]] = []  # mean, length, squared residuals
    found = [(0.0, 0)]
    for loss in losses:
        mean, length, squares = loss, 1, 0.0
        while blocks and blocks[-1][0] <= mean:
            other, more, left = blocks.pop()
            squares += left + (mean - other) ** 2 * length * more / (length + more)
            mean = (mean * length + other * more) / (length + more)
            length += more
        blocks.append((mean, length, squares))
        found.append((math.fsum(block[2] for block in blocks), len(blocks)))
    return found


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


def _diverged(points: Sequence[Point], reference: Reference, config: SelectionConfig) -> str | None:
    """`diverged_reason` of the last evaluation; where nothing is known of not fine-tuning, beside the trial's own best."""
    last, earlier = points[-1], [p for p in points[:-1] if p.val_loss is not None and p.probe_loss is not None]
    if (reason := diverged_reason(last, reference, config)) or reference.best() is not None or not earlier:
        return reason
    best = min(earlier, key=lambda p: p.val_loss)
    limit = config.diverge_ratio
    if last.val_loss > limit * best.val_loss and last.probe_loss > limit * best.probe_loss:
        return (
            f"validation loss {last.val_loss:.4f} and probe loss {last.probe_loss:.4f} are above {limit:g} times those at "
            f"{best.samples_seen} samples ({best.val_loss:.4f} and {best.probe_loss:.4f})"
        )
    return None


def collapsed_reason(points: Sequence[Point], reference: Reference, config: SelectionConfig) -> str | None:
    """Why a trial has collapsed: it has moved, and now gives one answer whatever the input is. None when it has not.

    With the label prior known: as good as the prior at best, and the same class for `one_answer` of the rows, or the
    prior's very loss on both splits. Without it: what it had learnt is lost on both splits; or its losses stay
    where they are though training began elsewhere, while other trials learnt (all margins are `underfit`).
    """
    last, margin = points[-1], config.underfit
    prior, untuned = reference.prior_loss, reference.val_loss
    if last.val_loss is None or last.probe_loss is None:
        return None
    earlier = [p for p in points[:-1] if p.val_loss is not None and p.probe_loss is not None]
    if prior is not None:
        seen = [loss for p in points for loss in (p.val_loss, p.probe_loss, p.train_loss) if loss is not None]
        moved = untuned is None or any(abs(loss / untuned - 1) > margin / 4 for loss in seen)
        if not moved or last.val_loss < prior * (1 - margin):
            return None
        if last.majority_share is not None:
            if last.majority_share >= config.one_answer:
                return (
                    f"it answers {last.majority_share:.1%} of the validation rows with one class, at a loss of "
                    f"{last.val_loss:.4f}; the label shares alone give {prior:.4f}"
                )
            return None
        if max(abs(last.val_loss / prior - 1), abs(last.probe_loss / prior - 1)) < margin:
            return (
                f"validation loss {last.val_loss:.4f} and probe loss {last.probe_loss:.4f} are those of the label shares "
                f"alone ({prior:.4f})"
            )
        return None
    if earlier:
        best = min(earlier, key=lambda p: p.val_loss)
        lost = [last.val_loss / best.val_loss - 1, last.probe_loss / best.probe_loss - 1]
        if min(lost) > 5 * margin:
            return (
                f"what it had learnt at {best.samples_seen} samples is lost: validation loss rose from {best.val_loss:.4f} "
                f"to {last.val_loss:.4f}, and probe loss from {best.probe_loss:.4f} to {last.probe_loss:.4f}"
            )
    others = reference.achieved
    stays = _is_flat(points, "val_loss", margin) and _is_flat(points, "probe_loss", margin)
    if untuned is None and others is not None and stays and not _is_flat(points, "train_loss", margin):
        if others < last.val_loss * (1 - 5 * margin):
            return (
                f"validation loss stays at {last.val_loss:.4f} and probe loss at {last.probe_loss:.4f} whatever it trains on, "
                f"where other trials reached {others:.4f}"
            )
    return None


def _is_flat(points: Sequence[Point], name: str, margin: float) -> bool:
    """Whether a loss stays on one level; what was never measured does."""
    losses = [loss for point in points if (loss := getattr(point, name)) is not None]
    return not losses or max(losses) < min(losses) * (1 + margin)


def _underfit(points: Sequence[Point], best: Point, reference: Reference, config: SelectionConfig) -> str | None:
    untuned = reference.best()
    if untuned is not None:
        if best.val_loss > untuned * (1 - config.underfit):
            return (
                f"best validation loss {best.val_loss:.4f} is not {config.underfit:.0%} below that of not fine-tuning "
                f"({untuned:.4f})"
            )
        return None
    # nothing is known of not fine-tuning: losses that stay where they are, from the first steps of training on, learnt nothing
    trained = [p.train_loss for p in points if p.train_loss is not None]
    if len(trained) > 1 and all(
        _is_flat(points, name, config.underfit) for name in ("val_loss", "probe_loss", "train_loss")
    ):
        return f"training loss stays at {trained[0]:.4f} and validation loss at {best.val_loss:.4f}: it learnt nothing"
    return None


def verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """What a trial did, from its evaluations."""
    if curve.status == "failed":
        return Verdict(word="failed", reason=curve.reason or "it failed")
    points = list(curve.points)
    if curve.reason and curve.reason.startswith("diverged"):
        return Verdict(word="diverged", reason=curve.reason.removeprefix("diverged: "))
    if not points:
        why = (
            f"it ended before its first evaluation: {curve.reason}"
            if curve.reason
            else "it ended without an evaluation"
        )
        return Verdict(word=TOO_EARLY, reason="no evaluation yet" if curve.status == "running" else why)
    word, reason = _judge(points, reference, config)
    if len(points) < 2 and word != "diverged":  # one evaluation shows what there is, and not where it goes
        word, reason = TOO_EARLY, _one(points[0]) + ("" if word == "healthy" else f": {reason}")
    told = memorised(points[-1], config)
    return Verdict(word=word, reason=f"{reason}; {told}" if told else reason)


def _judge(points: Sequence[Point], reference: Reference, config: SelectionConfig) -> tuple[str, str]:
    """Word and reason from a trial's evaluations, at least one."""
    last = points[-1]
    if reason := _diverged(points, reference, config):
        return "diverged", reason
    finite = [p for p in points if p.val_loss is not None]
    best = min(finite, key=lambda p: p.val_loss)
    kept = "" if best is last else f"; its evaluation at {best.samples_seen} samples is judged by itself"
    if reason := overfit_reason(points, len(points) - 1, config):
        return "overfit", reason + kept
    if reason := collapsed_reason(points, reference, config):
        return "collapsed", reason + kept
    if reason := _underfit(points, best, reference, config):
        return "underfit", reason
    if len(finite) > 1 and best is last:
        earlier = min(p.val_loss for p in finite[:-1])
        gain = 1 - last.val_loss / earlier if earlier > 0 else 0.0
        if gain > config.improving:
            return "still improving", (
                f"the last evaluation is the best, {gain:.1%} below the one before ({earlier:.4f} to {last.val_loss:.4f}); "
                "more training may help"
            )
    return "healthy", _lowest(best)


def _one(point: Point) -> str:
    return f"one evaluation, validation loss {point.val_loss:.4f} at {point.samples_seen} samples"


def _lowest(best: Point) -> str:
    gap = f", probe {best.probe_loss:.4f}" if best.probe_loss is not None else ""
    return f"lowest validation loss {best.val_loss:.4f}{gap} at {best.samples_seen} samples"


def standing_verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """The verdict of the checkpoint that stands for a trial: what befell the trial after it is told, and is not its name."""
    judged, point = verdict(curve, reference, config), best_point(curve, config)
    if judged.word not in LOST_LATER or point is None:
        return judged
    word, reason = _judge(curve.points[: curve.points.index(point) + 1], reference, config)
    if word in LOST_LATER:
        return judged
    if len(curve.points) < 2:
        word, reason = TOO_EARLY, _one(point)
    elif word != "underfit":  # the last of a shortened curve would always be still improving
        word, reason = "healthy", _lowest(point)
    return Verdict(word=word, reason=f"{reason}; later it {judged.word}: {judged.reason}", later=judged.word)


def candidates(curve: Curve, config: SelectionConfig) -> list[Point]:
    """The evaluations of a trial that may win: finite, not overfit, and within the limits."""
    if curve.status == "failed":
        return []
    points = list(curve.points)
    return [
        p
        for i, p in enumerate(points)
        if p.val_loss is not None and p.probe_loss is not None and excluded_reason(points, i, config) is None
    ]


def best_point(curve: Curve, config: SelectionConfig) -> Point | None:
    """The trial's best evaluation that may win; this is also what the search is told."""
    return min(candidates(curve, config), key=lambda p: (p.val_loss, p.samples_seen), default=None)


def finalists(curves: Sequence[Curve], config: SelectionConfig) -> list[str]:
    """The trials whose configurations are to be trained again: the best, one for each trial of the search."""
    first = [curve for curve in curves if curve.finalist_of is None]
    return [curve.id for curve, _ in _standing(first, config)[: config.finalists.top]]


def pareto(curves: Sequence[Curve], config: SelectionConfig) -> list[tuple[Curve, Point]]:
    """The trials that none beats in validation loss without being worse in `config.pareto`; the lowest loss first."""
    front: list[tuple[Curve, Point]] = []
    if config.pareto is None:
        return front
    standing = _standing(curves, config)
    for curve, point in sorted(standing, key=lambda each: (each[1].val_loss, getattr(each[1], config.pareto))):
        if not front or getattr(point, config.pareto) < getattr(front[-1][1], config.pareto):
            front.append((curve, point))
    return front


def final_ranking(curves: Sequence[Curve], config: SelectionConfig) -> list[Final]:
    """The configurations that were trained again: fewest failed seeds first, then the lowest mean; those of which no new
    seed may win are left out.
    """
    by_first: dict[str, dict[str, float]] = {}
    for curve, point in _standing([curve for curve in curves if curve.finalist_of is not None], config):
        by_first.setdefault(curve.finalist_of, {})[curve.id] = point.val_loss
    failed = failed_seeds(curves, config)
    found = [
        Final(
            trial=trial,
            seeds=dict(sorted(losses.items())),
            failed=failed.get(trial, ()),
            mean=statistics.fmean(losses.values()),
            spread=statistics.stdev(losses.values()) if len(losses) > 1 else None,
        )
        for trial, losses in by_first.items()
    ]
    return sorted(found, key=lambda final: (len(final.failed), final.mean, final.trial))


def failed_seeds(curves: Sequence[Curve], config: SelectionConfig) -> dict[str, tuple[str, ...]]:
    """New seeds that ended without a checkpoint that may win, by the trial whose configuration they repeat."""
    again = [curve for curve in curves if curve.finalist_of is not None and curve.status != "running"]
    standing = {curve.id for curve, _ in _standing(again, config)}
    found: dict[str, tuple[str, ...]] = {}
    for curve in sorted(again, key=lambda curve: curve.id):
        if curve.id not in standing:
            found[curve.finalist_of] = (*found.get(curve.finalist_of, ()), curve.id)
    return found


def select(
    curves: Sequence[Curve],
    config: SelectionConfig,
    losses: Callable[[str], np.ndarray | None],
    reference: Reference | None = None,
) -> tuple[Winner | None, str]:
    """The winner, and the reason in words (also when there is none).

    Each trial stands with its best evaluation that is not overfit. The lowest validation loss wins; those within
    `tie_standard_errors` of it, paired by unit, are tied with it, and `prefer: cheapest` lets the one of these win that
    costs least to use. Where configurations ran again with new seeds, these decide. `losses(folder)` gives the losses
    [N, 2] of the units of an evaluation (see sweeps.intervals); `reference` is what the reason compares with.
    """
    standing = _standing(curves, config)
    if not standing:
        return None, _nothing(curves, config)
    finals, failed = final_ranking(curves, config), failed_seeds(curves, config)
    if not finals:  # what never ran again leaves behind what ran again and failed each time
        standing = [each for each in standing if each[0].id not in failed] or standing
    leader, differences = standing[0][0], _differences(standing, config, losses)
    if finals:
        tied, expected, why = _choose_final(standing, finals, config)
    else:
        tied = [(c, p) for c, p in standing if c is leader or (c.id in differences and differences[c.id].tied)]
        tied, expected = _preferred_first(tied, config), None
        why = _why_chosen(standing, tied, differences, config)
    chosen, point = tied[0]
    sentences = [
        *why,
        *_failed_words(finals, failed),
        *_why_not_others(chosen, point, curves, config),
        *_against_not_tuning(point, reference, config),
    ]
    reason = "; ".join(sentences) + "."
    return Winner(
        trial=chosen.id,
        point=point,
        reason=reason,
        tied=tuple(curve.id for curve, _ in tied[1:]),
        expected=expected,
        lowest=standing[0][1].folder,
        differences=differences,
    ), reason


Standing = Sequence[tuple[Curve, Point]]


def _standing(curves: Sequence[Curve], config: SelectionConfig) -> list[tuple[Curve, Point]]:
    """Each trial that may win, with its best evaluation that may; the lowest loss first."""
    found = [
        (curve, point)
        for curve in curves
        if (point := best_point(curve, config)) is not None and point.checkpoint is not None
    ]
    return sorted(found, key=lambda item: (item[1].val_loss, *_cost(item)))


def _cost(item: tuple[Curve, Point]) -> tuple[Any, ...]:
    """What a checkpoint costs whoever uses it, and last what it cost to train. The number of trained parameters is no part
    of it: after training they cost nothing.
    """
    curve, point = item
    return point.inference_cost, point.checkpoint_bytes, point.samples_seen, curve.id


def _preferred_first(tied: Standing, config: SelectionConfig) -> list[tuple[Curve, Point]]:
    return sorted(tied, key=_cost) if config.prefer == "cheapest" else list(tied)


def _choose_final(
    standing: Standing, finals: Sequence[Final], config: SelectionConfig
) -> tuple[list[tuple[Curve, Point]], Final, list[str]]:
    """The checkpoint that stands for each configuration tied for the lowest mean, the chosen first; that one's new seeds; and
    why it wins.
    """
    best, by_trial = finals[0], {curve.id: (curve, point) for curve, point in standing}
    final_of = {final.median: final for final in finals if final is best or _is_tied(final, best, finals, config)}
    tied = _preferred_first([by_trial[median] for median in final_of], config)
    final = final_of[tied[0][0].id]
    seeds = f"{len(final.seeds)} new seed{'s' if len(final.seeds) > 1 else ''}"
    sentences = [f"{len(finals)} configuration{'s' if len(finals) > 1 else ''} ran again with new seeds"]
    if final is best:
        sentences.append(
            f"that of {final.trial} has the lowest mean validation loss over {seeds}, {_mean_words(final)}"
        )
        if len(finals) > 1 and len(tied) == 1:
            sentences.append(f"the next, that of {finals[1].trial}, has {_mean_words(finals[1])}")
    else:
        sentences.append(
            f"that of {final.trial}, {_mean_words(final)} over {seeds}, is tied with the lowest, {_mean_words(best)} of "
            f"{best.trial}, and cheaper to use"
        )
    others = [final_of[curve.id].trial for curve, _ in tied[1:] if final_of[curve.id] is not best]
    if others:
        sentences.append(f"also within {config.tie_standard_errors:g} standard error: {', '.join(others)}")
    sentences += _cheaper_words(tied, config)
    which = "the median of its new seeds" if len(final.seeds) > 1 else "its new seed"
    (curve, point) = tied[0]
    sentences.append(f"what is handed over is {which}, {curve.id} with {point.val_loss:.4f}; to expect is the mean")
    return tied, final, sentences


def _is_tied(final: Final, best: Final, finals: Sequence[Final], config: SelectionConfig) -> bool:
    """Whether two means are closer than their standard errors; of a single seed the spread is taken to be that of the other
    configurations, and without any it is unknown, so that nothing is tied.
    """
    known = [(each.spread, len(each.seeds) - 1) for each in finals if each.spread is not None]
    if not known or len(final.failed) != len(best.failed):
        return False
    pooled = math.sqrt(sum(spread**2 * free for spread, free in known) / sum(free for _, free in known))
    spreads = [(pooled if each.spread is None else each.spread, len(each.seeds)) for each in (final, best)]
    error = math.sqrt(sum(spread**2 / seeds for spread, seeds in spreads))
    return final.mean - best.mean <= config.tie_standard_errors * error


def _mean_words(final: Final) -> str:
    return f"{final.mean:.4f} (one seed)" if final.spread is None else f"{final.mean:.4f} ± {final.spread:.4f}"


def _failed_words(finals: Sequence[Final], failed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """That new seeds failed, and what follows from it."""
    ran = {final.trial: len(final.seeds) for final in finals}
    sentences = []
    for trial, seeds in sorted(failed.items()):
        count = f"{len(seeds)} of {len(seeds) + ran.get(trial, 0)}"
        follows = (
            "so it wins over none whose seeds all ran" if finals else "so nothing else is known of it than its first"
        )
        sentences.append(
            f"{count} new seeds of {trial} gave no checkpoint that may win ({', '.join(seeds)}), {follows}"
        )
    return sentences


def _differences(
    standing: Standing, config: SelectionConfig, losses: Callable[[str], np.ndarray | None]
) -> dict[str, Difference]:
    """Of all but the first, to the first; those without losses over the same units have none."""
    of_leader = losses(standing[0][1].folder)
    others = {curve.id: losses(point.folder) for curve, point in standing[1:]} if of_leader is not None else {}
    others = {trial: other for trial, other in others.items() if other is not None and other.shape == of_leader.shape}
    if not others:
        return {}
    found = compare_all(of_leader, list(others.values()), config.tie_standard_errors)
    return dict(zip(others, found, strict=True))


def _why_chosen(
    standing: Standing, tied: Standing, differences: Mapping[str, Difference], config: SelectionConfig
) -> list[str]:
    (chosen, point), (leader, lead_point) = tied[0], standing[0]
    if chosen is leader:
        keeps = "" if config.limits == LimitsConfig() else " and keeps to the limits"
        sentences = [
            f"{chosen.id} has the lowest validation loss, {point.val_loss:.4f}, of {len(standing)} trials with a checkpoint "
            f"that is not overfit{keeps}"
        ]
    else:
        found = differences[chosen.id]
        sentences = [
            f"{chosen.id} is tied with {leader.id}, which has the lowest validation loss ({lead_point.val_loss:.4f}): its "
            f"{point.val_loss:.4f} is {found.mean:.4f} ± {found.standard_error:.4f} above, paired per example",
            f"of the tied it is the cheapest to use ({_cost_words(point)}, against {_cost_words(lead_point)})",
        ]
    others = [curve.id for curve, _ in tied if curve.id not in (chosen.id, leader.id)]
    if others:
        also = "also within" if chosen is not leader else "within"
        sentences.append(f"{also} {config.tie_standard_errors:g} standard error of it: {', '.join(others)}")
        sentences += _cheaper_words(tied, config)
    elif len(tied) == 1 and len(standing) > 1 and standing[1][0].id in differences:
        found = differences[standing[1][0].id]
        how_far = f"the next, {standing[1][0].id}, is {found.mean:.4f}"
        if found.standard_error is None:
            sentences.append(
                f"{how_far} above: whether beyond noise cannot be told from fewer than {MIN_UNITS} groups of rows"
            )
        else:
            sentences.append(
                f"{how_far} ± {found.standard_error:.4f} above, paired per example (95% interval {found.low:+.4f} to "
                f"{found.high:+.4f})"
            )
    return sentences


def _cheaper_words(tied: Standing, config: SelectionConfig) -> list[str]:
    """Which of the tied would cost less in every request, where the winner was not chosen by that."""
    (_, point), (other, cheaper) = tied[0], min(tied, key=_cost)
    if config.prefer == "cheapest" or not cheaper.inference_cost < point.inference_cost - 5e-4:
        return []
    return [
        f"of these {other.id} costs less in use ({cheaper.inference_cost:.3f} against {point.inference_cost:.3f} times the "
        "arithmetic of the untuned model): selection.prefer=cheapest would choose it"
    ]


def _cost_words(point: Point) -> str:
    return (
        f"{point.inference_cost:.3f} times the untuned model's arithmetic, {point.checkpoint_bytes / 1e6:,.1f} MB on disk, "
        f"{point.samples_seen} samples"
    )


def _why_not_others(chosen: Curve, point: Point, curves: Sequence[Curve], config: SelectionConfig) -> list[str]:
    sentences = []
    later = [p for p in chosen.points if p.step > point.step and p.val_loss is not None]
    if later:
        sentences.append(
            f"its checkpoint is that of step {point.step} (epoch {point.epoch:g}), not the trial's last, whose validation loss "
            f"is {later[-1].val_loss:.4f}"
        )
    for reason, what in (
        (lambda points, i: overfit_reason(points, i, config), "overfit"),
        (lambda points, i: limit_reason(points[i], config.limits), "beyond a limit"),
    ):
        barred = {c.id: [p.step for i, p in enumerate(c.points) if reason(list(c.points), i)] for c in curves}
        if own := barred.pop(chosen.id):
            which = "later" if min(own) > point.step else "earlier" if max(own) < point.step else "other"
            sentences.append(f"{which} checkpoints of {chosen.id} are {what}, and could not win")
        if others := [trial for trial, steps in barred.items() if steps]:
            other = "other " if own else ""
            count = f"1 {other}trial" if len(others) == 1 else f"{len(others)} {other}trials"
            of_these = "overfit checkpoints" if what == "overfit" else f"checkpoints {what}"
            sentences.append(f"{count} had {of_these}, which could not win: {', '.join(others)}")
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
    barred = [c for c in curves if c.id not in failed and c.points and not candidates(c, config)]
    beyond = [c.id for c in barred if any(limit_reason(point, config.limits) for point in c.points)]
    overfit = [c.id for c in barred if c.id not in beyond]
    without = [c.id for c in curves if c.id not in failed and not c.points]
    parts = [
        f"{len(ids)} {word} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for ids, word in (
            (failed, "failed"),
            (beyond, "beyond a limit wherever not overfit"),
            (overfit, "overfit or not finite at every evaluation"),
            (without, "without an evaluation"),
        )
        if ids
    ]
    near = [p for c in curves if c.id in beyond for p in c.points if p.val_loss is not None]
    best = min((p for p in near if limit_reason(p, config.limits)), key=lambda p: p.val_loss, default=None)
    count = "1 trial" if len(curves) == 1 else f"{len(curves)} trials"
    why = "" if best is None else f" Of those, {best.val_loss:.4f} is out because {limit_reason(best, config.limits)}."
    return f"Nothing may win: of {count}, {'; '.join(parts) or 'none has a checkpoint'}.{why}"
