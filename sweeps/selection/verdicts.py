"""What a trial did, in a word and with the numbers behind it. Pure functions over evaluations.

Losses are means in nats per example (classification) or per target token (language models).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.limits import limit_reason
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
    1998, "Early stopping
    - but when?", generalisation loss), and by more than the curve's own noise explains, while the
      probe loss fell since
    then. A gap between the two alone is no harm: on an easy task every good model has one.
    """
    point = points[index]
    if point.val_loss is None or point.probe_loss is None:
        return None
    before = [p for p in points[:index] if p.val_loss is not None and p.probe_loss is not None]
    if before:
        lowest = min(before, key=lambda p: p.val_loss)
        rise = (
            point.val_loss / lowest.val_loss - 1
            if lowest.val_loss > 0
            else (math.inf if point.val_loss > 0 else 0.0)
        )
        if (
            rise > config.overfit_rise
            and point.probe_loss < lowest.probe_loss
            and _rises_out_of_noise(points, index, config)
        ):
            return (
                f"validation loss rose {rise:.1%} above its minimum ({lowest.val_loss:.4f} at"
                f" {lowest.samples_seen} samples to {point.val_loss:.4f} at {point.samples_seen})"
                f" while probe loss fell from {lowest.probe_loss:.4f} to {point.probe_loss:.4f}"
            )
    return None


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
    untuned = reference.best()
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
    last, earlier = (
        points[-1],
        [p for p in points[:-1] if p.val_loss is not None and p.probe_loss is not None],
    )
    if (
        (reason := diverged_reason(last, reference, config))
        or reference.best() is not None
        or not earlier
    ):
        return reason
    best = min(earlier, key=lambda p: p.val_loss)
    limit = config.diverge_ratio
    if last.val_loss > limit * best.val_loss and last.probe_loss > limit * best.probe_loss:
        return (
            f"validation loss {last.val_loss:.4f} and probe loss {last.probe_loss:.4f} are above"
            f" {limit:g} times those at {best.samples_seen} samples ({best.val_loss:.4f} and"
            f" {best.probe_loss:.4f})"
        )
    return None


def collapsed_reason(
    points: Sequence[Evaluation], reference: Reference, config: SelectionConfig
) -> str | None:
    """Why a trial has collapsed: it has moved, and now gives one answer whatever the input is. None
    when it has not.

    With the label prior known: as good as the prior at best, and the same class for `one_answer` of
    the rows, or the prior's very loss on both splits. Without it: what it had learnt is lost on
    both splits; or its losses stay where they are though training began elsewhere, while other
    trials learnt (all margins are `underfit`).
    """
    last, margin = points[-1], config.underfit
    prior, untuned = reference.prior_loss, reference.val_loss
    if last.val_loss is None or last.probe_loss is None:
        return None
    earlier = [p for p in points[:-1] if p.val_loss is not None and p.probe_loss is not None]
    if prior is not None:
        seen = [
            loss
            for p in points
            for loss in (p.val_loss, p.probe_loss, p.train_loss)
            if loss is not None
        ]
        moved = untuned is None or any(abs(loss / untuned - 1) > margin / 4 for loss in seen)
        if not moved or last.val_loss < prior * (1 - margin):
            return None
        if last.majority_share is not None:
            if last.majority_share >= config.one_answer:
                return (
                    f"it answers {last.majority_share:.1%} of the validation rows with one class,"
                    f" at a loss of {last.val_loss:.4f}; the label shares alone give {prior:.4f}"
                )
            return None
        if max(abs(last.val_loss / prior - 1), abs(last.probe_loss / prior - 1)) < margin:
            return (
                f"validation loss {last.val_loss:.4f} and probe loss {last.probe_loss:.4f} are"
                f" those of the label shares alone ({prior:.4f})"
            )
        return None
    if earlier:
        best = min(earlier, key=lambda p: p.val_loss)
        lost = [last.val_loss / best.val_loss - 1, last.probe_loss / best.probe_loss - 1]
        if min(lost) > 5 * margin:
            return (
                f"what it had learnt at {best.samples_seen} samples is lost: validation loss rose"
                f" from {best.val_loss:.4f} to {last.val_loss:.4f}, and probe loss from"
                f" {best.probe_loss:.4f} to {last.probe_loss:.4f}"
            )
    others = reference.achieved
    stays = _is_flat(points, "val_loss", margin) and _is_flat(points, "probe_loss", margin)
    if (
        untuned is None
        and others is not None
        and stays
        and not _is_flat(points, "train_loss", margin)
    ):
        if others < last.val_loss * (1 - 5 * margin):
            return (
                f"validation loss stays at {last.val_loss:.4f} and probe loss at"
                f" {last.probe_loss:.4f} whatever it trains on, where other trials reached"
                f" {others:.4f}"
            )
    return None


def _is_flat(points: Sequence[Evaluation], name: str, margin: float) -> bool:
    """Whether a loss stays on one level; what was never measured does."""
    losses = [loss for point in points if (loss := getattr(point, name)) is not None]
    return not losses or max(losses) < min(losses) * (1 + margin)


def _underfit(
    points: Sequence[Evaluation], best: Evaluation, reference: Reference, config: SelectionConfig
) -> str | None:
    untuned = reference.best()
    if untuned is not None:
        if best.val_loss > untuned * (1 - config.underfit):
            return (
                f"best validation loss {best.val_loss:.4f} is not {config.underfit:.0%} below that"
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
            f"training loss stays at {trained[0]:.4f} and validation loss at {best.val_loss:.4f}:"
            " it learnt nothing"
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
        why = (
            f"it ended before its first evaluation: {curve.reason}"
            if curve.reason
            else "it ended without an evaluation"
        )
        return Verdict(
            word=TOO_EARLY, reason="no evaluation yet" if curve.status == "running" else why
        )
    word, reason = _judge(points, reference, config)
    if (
        len(points) < 2 and word != "diverged"
    ):  # one evaluation shows what there is, and not where it goes
        word, reason = TOO_EARLY, _one(points[0]) + ("" if word == "healthy" else f": {reason}")
    told = memorised(points[-1], config)
    return Verdict(word=word, reason=f"{reason}; {told}" if told else reason)


def _judge(
    points: Sequence[Evaluation], reference: Reference, config: SelectionConfig
) -> tuple[str, str]:
    """Word and reason from a trial's evaluations, at least one."""
    last = points[-1]
    if reason := _diverged(points, reference, config):
        return "diverged", reason
    finite = [p for p in points if p.val_loss is not None]
    best = min(finite, key=lambda p: p.val_loss)
    kept = (
        ""
        if best is last
        else f"; its evaluation at {best.samples_seen} samples is judged by itself"
    )
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
            return (
                "still improving",
                (
                    f"the last evaluation is the best, {gain:.1%} below the one before"
                    f" ({earlier:.4f} to {last.val_loss:.4f}); more training may help"
                ),
            )
    return "healthy", _lowest(best)


def _one(point: Evaluation) -> str:
    return f"one evaluation, validation loss {point.val_loss:.4f} at {point.samples_seen} samples"


def _lowest(best: Evaluation) -> str:
    gap = f", probe {best.probe_loss:.4f}" if best.probe_loss is not None else ""
    return f"lowest validation loss {best.val_loss:.4f}{gap} at {best.samples_seen} samples"


def standing_verdict(curve: Curve, reference: Reference, config: SelectionConfig) -> Verdict:
    """The verdict of the checkpoint that stands for a trial: what befell the trial after it is
    told, and is not its name.
    """
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
    """The trial's best evaluation that may win; this is also what the search is told."""
    return min(candidates(curve, config), key=lambda p: (p.val_loss, p.samples_seen), default=None)
