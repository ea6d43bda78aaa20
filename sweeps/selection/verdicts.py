"""What a trial did, in a word and with the numbers behind it. Pure functions over evaluations.

Losses are means over targets, in the unit that the task declares.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Losses, Reference, losses_of, lowest_of
from sweeps.selection.limits import limit_reason
from sweeps.selection.measure import Measure
from sweeps.selection.noise import curve_noise
from trainables.evaluation.record import Evaluation

TOO_EARLY = "too early to tell"

LOST_LATER = (
    "overfit",
    "diverged",
    "collapsed",
)  # what is said of a trial's last evaluation, and not of those before


@dataclass(frozen=True, kw_only=True)
class Verdict:
    word: str
    reason: str
    # what befell the trial after the checkpoint that this is the verdict of
    later: str | None = None

    @property
    def shown(self) -> str:
        return f"{self.word}, later {self.later}" if self.later else self.word


def overfit_reason(points: Sequence[Evaluation], index: int, config: SelectionConfig) -> str | None:
    """Why the evaluation `points[index]` is overfit, or None when it is not.

    Overfit: its validation loss lies more than `overfit_rise` above the lowest before it (Prechelt
    1998, "Early stopping - but when?", generalisation loss), and by more than the curve's own noise
    explains, while the probe loss fell since then. A gap between the two alone is no harm: on an
    easy task every good model has one.
    """
    now, lowest = losses_of(points[index]), lowest_of(points[:index])
    if now is None or lowest is None:
        return None
    rise = _rise(now.val, lowest.val)
    if (
        rise <= config.overfit_rise
        or now.probe >= lowest.probe
        or not _rises_out_of_noise(points, index, config)
    ):
        return None
    return (
        f"validation loss rose {rise:.1%} above its minimum ({lowest.val:.4f} at"
        f" {lowest.point.samples_seen} samples to {now.val:.4f} at {now.point.samples_seen})"
        f" while probe loss fell from {lowest.probe:.4f} to {now.probe:.4f}"
    )


def _rise(loss: float, lowest: float) -> float:
    """How far a loss lies above the lowest, as a share of that."""
    if lowest > 0:
        return loss / lowest - 1
    return math.inf if loss > 0 else 0.0


def memorised(point: Evaluation, config: SelectionConfig) -> str | None:
    """What is told of an evaluation whose probe loss lies more than `overfit_gap` below its
    validation loss; else None.
    """
    if point.val_loss is None or point.probe_loss is None or point.val_loss <= 0:
        return None
    gap = (point.val_loss - point.probe_loss) / point.val_loss
    if gap <= config.overfit_gap:
        return None
    return (
        f"the training rows are memorised: probe loss {point.probe_loss:.4f} is {gap:.1%} below"
        f" validation loss {point.val_loss:.4f}"
    )


def excluded_reason(
    points: Sequence[Evaluation], index: int, config: SelectionConfig
) -> str | None:
    """Why the evaluation `points[index]` may not win, or None: overfit, or beyond a limit."""
    return overfit_reason(points, index, config) or limit_reason(points[index], config.limits)


def _rises_out_of_noise(points: Sequence[Evaluation], index: int, config: SelectionConfig) -> bool:
    """Whether `points[index]` lies above the valley before it by more than the tolerance and the
    noise: not above one evaluation that happened to be low. A curve of fewer than about ten
    evaluations seldom shows its noise; there the valley is all that guards.
    """
    losses = [p.val_loss for p in points[: index + 1] if p.val_loss is not None]
    if len(losses) < 5:
        return True
    lowest = min(statistics.median(losses[i : i + 3]) for i in range(len(losses) - 2))
    return losses[-1] - lowest > max(
        config.overfit_rise * lowest, config.noise * curve_noise(points)
    )


def diverged_reason(point: Evaluation, reference: Reference, config: SelectionConfig) -> str | None:
    """Why `point` has diverged: a loss that is no number, or validation and probe loss far above
    the untuned model's.
    """
    if point.val_loss is None or point.probe_loss is None:
        return f"a loss was not finite at {point.samples_seen} samples"
    untuned = reference.start()
    if (
        untuned is not None
        and min(point.val_loss, point.probe_loss) > config.diverge_ratio * untuned
    ):
        return (
            f"validation loss {point.val_loss:.4f} and probe loss {point.probe_loss:.4f} are above "
            f"{config.diverge_ratio:g} times that of not fine-tuning ({untuned:.4f})"
        )
    return None


def _diverged(
    points: Sequence[Evaluation], reference: Reference, config: SelectionConfig
) -> str | None:
    """`diverged_reason` of the last evaluation; where nothing is known of not fine-tuning, beside
    the trial's own best.
    """
    last, best = losses_of(points[-1]), lowest_of(points[:-1])
    reason = diverged_reason(points[-1], reference, config)
    if reason or reference.best() is not None or last is None or best is None:
        return reason
    limit = config.diverge_ratio
    if last.val > limit * best.val and last.probe > limit * best.probe:
        return (
            f"validation loss {last.val:.4f} and probe loss {last.probe:.4f} are above"
            f" {limit:g} times those at {best.point.samples_seen} samples ({best.val:.4f} and"
            f" {best.probe:.4f})"
        )
    return None


def collapsed_reason(
    points: Sequence[Evaluation], reference: Reference, config: SelectionConfig
) -> str | None:
    """Why a trial has collapsed: it has moved, and now gives one answer whatever the input is. None
    when it has not.

    With the prior known (the best single answer): no better than it, and the same class for
    `one_answer` of the rows, or its very loss on both splits. Without it: what it had learnt is
    lost on both splits; or its losses stay where they are though training began elsewhere, while
    other trials learnt (all margins are `underfit`).
    """
    last = losses_of(points[-1])
    if last is None:
        return None
    if reference.prior_loss:  # one of 0 has nothing in its likeness
        return _answers_like_prior(points, last, reference.prior_loss, reference, config)
    return _lost_what_it_learnt(points, last, config) or _stays(points, last, reference, config)


def _answers_like_prior(
    points: Sequence[Evaluation],
    last: Losses,
    prior: float,
    reference: Reference,
    config: SelectionConfig,
) -> str | None:
    margin, majority = config.underfit, last.point.majority_share
    if not _has_moved(points, reference, margin) or last.val < prior * (1 - margin):
        return None
    if majority is not None:
        if majority < config.one_answer:
            return None
        return (
            f"it answers {majority:.1%} of the validation rows with one class,"
            f" at a loss of {last.val:.4f}; {reference.prior} alone give {prior:.4f}"
        )
    if max(abs(last.val / prior - 1), abs(last.probe / prior - 1)) < margin:
        return (
            f"validation loss {last.val:.4f} and probe loss {last.probe:.4f} are"
            f" those of {reference.prior} alone ({prior:.4f})"
        )
    return None


def _has_moved(points: Sequence[Evaluation], reference: Reference, margin: float) -> bool:
    """Whether any loss is another than the untuned model's, where that is known."""
    untuned = reference.val_loss
    seen = [loss for p in points for loss in (p.val_loss, p.probe_loss, p.train_loss)]
    return untuned is None or any(
        abs(loss / untuned - 1) > margin / 4 for loss in seen if loss is not None
    )


def _lost_what_it_learnt(
    points: Sequence[Evaluation], last: Losses, config: SelectionConfig
) -> str | None:
    best = lowest_of(points[:-1])
    if best is None:
        return None
    if min(last.val / best.val - 1, last.probe / best.probe - 1) <= 5 * config.underfit:
        return None
    return (
        f"what it had learnt at {best.point.samples_seen} samples is lost: validation loss rose"
        f" from {best.val:.4f} to {last.val:.4f}, and probe loss from"
        f" {best.probe:.4f} to {last.probe:.4f}"
    )


def _stays(
    points: Sequence[Evaluation], last: Losses, reference: Reference, config: SelectionConfig
) -> str | None:
    """Losses that never move though training began elsewhere, while other trials learnt."""
    others, margin = reference.achieved, config.underfit
    if reference.val_loss is not None or others is None:
        return None
    stays = _is_flat(points, "val_loss", margin) and _is_flat(points, "probe_loss", margin)
    if not stays or _is_flat(points, "train_loss", margin) or others >= last.val * (1 - 5 * margin):
        return None
    return (
        f"validation loss stays at {last.val:.4f} and probe loss at"
        f" {last.probe:.4f} whatever it trains on, where other trials reached"
        f" {others:.4f}"
    )


def _is_flat(points: Sequence[Evaluation], name: str, margin: float) -> bool:
    """Whether a loss stays on one level; what was never measured does."""
    losses = [loss for point in points if (loss := getattr(point, name)) is not None]
    return not losses or max(losses) < min(losses) * (1 + margin)


def _underfit(
    points: Sequence[Evaluation], best: float, reference: Reference, config: SelectionConfig
) -> str | None:
    """best: the trial's lowest validation loss."""
    untuned = reference.best()
    if untuned is not None:
        if best > untuned * (1 - config.underfit):
            return (
                f"best validation loss {best:.4f} is not {config.underfit:.0%} below that"
                f" of not fine-tuning ({untuned:.4f})"
            )
        return None
    # nothing is known of not fine-tuning: losses that stay where they are, from the first steps of
    # training on, learnt nothing
    trained = [p.train_loss for p in points if p.train_loss is not None]
    if len(trained) > 1 and all(
        _is_flat(points, name, config.underfit) for name in ("val_loss", "probe_loss", "train_loss")
    ):
        return (
            f"training loss stays at {trained[0]:.4f} and validation loss at {best:.4f}:"
            " it learnt nothing"
        )
    return None


def verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """What a trial did, from its evaluations; that of an average says nothing of its training."""
    if curve.status == "failed":
        return Verdict(word="failed", reason=curve.reason or "it failed")
    points = curve.trained
    if curve.reason and curve.reason.startswith("diverged"):
        return Verdict(word="diverged", reason=curve.reason.removeprefix("diverged: "))
    if not points:
        return Verdict(word=TOO_EARLY, reason=_why_no_evaluation(curve))
    word, reason = _judge(points, reference.of(curve.params), config)
    if len(points) < 2 and word != "diverged":
        # one evaluation shows what there is, and not where it goes
        word, reason = TOO_EARLY, _one(points[0]) + ("" if word == "healthy" else f": {reason}")
    told = [reason, memorised(points[-1], config), _averaged(curve.points[-1])]
    return Verdict(word=word, reason="; ".join(filter(None, told)))


def _averaged(last: Evaluation) -> str | None:
    if not last.averaged or last.val_loss is None:
        return None
    return (
        f"the average of the weights at its last {last.averaged} evaluations has validation loss"
        f" {last.val_loss:.4f}"
    )


def _why_no_evaluation(curve: Curve) -> str:
    if curve.status == "running":
        return "no evaluation yet"
    if curve.reason:
        return f"it ended before its first evaluation: {curve.reason}"
    return "it ended without an evaluation"


def _judge(
    points: Sequence[Evaluation], reference: Reference, config: SelectionConfig
) -> tuple[str, str]:
    """Word and reason from a trial's evaluations, at least one."""
    last = points[-1]
    if reason := _diverged(points, reference, config):
        return "diverged", reason
    finite = [(p.val_loss, p) for p in points if p.val_loss is not None]
    loss, best = min(finite, key=lambda each: each[0])
    kept = _best_by_itself(best, last)
    if reason := overfit_reason(points, len(points) - 1, config):
        return "overfit", reason + kept
    if reason := collapsed_reason(points, reference, config):
        return "collapsed", reason + kept
    if reason := _underfit(points, loss, reference, config):
        return "underfit", reason
    if best is last and (reason := _improving(loss, [each for each, _ in finite[:-1]], config)):
        return "still improving", reason
    return "healthy", _lowest(best)


def _best_by_itself(best: Evaluation, last: Evaluation) -> str:
    if best is last:
        return ""
    return f"; its evaluation at {best.samples_seen} samples is judged by itself"


def _improving(last: float, before: Sequence[float], config: SelectionConfig) -> str | None:
    """Why the last evaluation, which is the best, shows that more training may help."""
    if not before:
        return None
    earlier = min(before)
    gain = 1 - last / earlier if earlier > 0 else 0.0
    if gain <= config.improving:
        return None
    return (
        f"the last evaluation is the best, {gain:.1%} below the one before"
        f" ({earlier:.4f} to {last:.4f}); more training may help"
    )


def _one(point: Evaluation) -> str:
    return f"one evaluation, validation loss {point.val_loss:.4f} at {point.samples_seen} samples"


def _lowest(best: Evaluation) -> str:
    gap = f", probe {best.probe_loss:.4f}" if best.probe_loss is not None else ""
    return f"lowest validation loss {best.val_loss:.4f}{gap} at {best.samples_seen} samples"


def _standing_words(point: Evaluation, measure: Measure) -> str:
    value = measure.of(point)
    if measure.is_loss or value is None:
        return _lowest(point)
    of_loss = f"validation loss {point.val_loss:.4f}"
    return f"{measure.best_words} {value:.4f}, {of_loss} at {point.samples_seen} samples"


def standing_verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """The verdict of the checkpoint that stands for a trial: what befell the trial after it is
    told, and is not its name.
    """
    judged, point = verdict(curve, reference, config), best_point(curve, config)
    if judged.word not in LOST_LATER or point is None:
        return judged
    seen = curve.points[: curve.points.index(point) + 1]
    word, reason = _judge(seen, reference.of(curve.params), config)
    if word in LOST_LATER:
        return judged
    if len(curve.points) < 2:
        word, reason = TOO_EARLY, _one(point)
    elif word != "underfit":  # the last of a shortened curve would always be still improving
        word, reason = "healthy", _standing_words(point, config.measure)
    if point.averaged:  # nothing came after it
        return Verdict(word=word, reason=f"{reason}; in training it {judged.word}: {judged.reason}")
    return Verdict(
        word=word, reason=f"{reason}; later it {judged.word}: {judged.reason}", later=judged.word
    )


def candidates(curve: Curve, config: SelectionConfig) -> list[Evaluation]:
    """The evaluations of a trial that may win: finite, not overfit, and within the limits."""
    if curve.status == "failed":
        return []
    points = list(curve.points)
    return [
        p
        for i, p in enumerate(points)
        if p.val_loss is not None
        and p.probe_loss is not None
        and excluded_reason(points, i, config) is None
    ]


def best_point(curve: Curve, config: SelectionConfig) -> Evaluation | None:
    """The trial's best evaluation that may win, by what the winner is chosen by; this is also what
    the search is told.
    """
    return _first(candidates(curve, config), config.measure)


def best_trial(curves: Sequence[Curve], config: SelectionConfig) -> tuple[str, float | None] | None:
    """The trial that is ahead, and its validation loss; None where none has a candidate."""
    found = [(point, curve.id) for curve in curves if (point := best_point(curve, config))]
    if not found:
        return None
    point, trial = min(found, key=lambda each: config.measure.key(each[0]))
    return trial, point.val_loss


def kept_points(curve: Curve, config: SelectionConfig) -> list[Evaluation]:
    """Those whose checkpoints are kept: the best, and where a metric chooses that of the lowest
    loss too, which wins where the metric does not tell them apart.
    """
    found = candidates(curve, config)
    return [p for m in (config.measure, Measure()) if (p := _first(found, m)) is not None]


def _first(points: Sequence[Evaluation], measure: Measure) -> Evaluation | None:
    return min(points, key=lambda p: (*measure.key(p), p.samples_seen), default=None)
