"""Why the winner wins, in words."""

from collections.abc import Mapping, Sequence

from sweeps.selection.config import LimitsConfig, SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.limits import limit_reason
from sweeps.selection.results import Final, Standing, cost_in_use
from sweeps.selection.statistics import MIN_UNITS, Difference
from sweeps.selection.verdicts import candidates, overfit_reason
from trainables.evaluation.record import Evaluation

FAILED = "failed"
BEYOND_A_LIMIT = "beyond a limit wherever not overfit"
NONE_IS_SOUND = "overfit or not finite at every evaluation"
UNMEASURED = "without an evaluation"
OBSTACLES = (FAILED, BEYOND_A_LIMIT, NONE_IS_SOUND, UNMEASURED)


def mean_words(final: Final) -> str:
    return (
        f"{final.mean:.4f} (one seed)"
        if final.spread is None
        else f"{final.mean:.4f} ± {final.spread:.4f}"
    )


def failed_words(finals: Sequence[Final], failed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """That new seeds failed, and what follows from it."""
    ran = {final.trial: len(final.seeds) for final in finals}
    sentences = []
    for trial, seeds in sorted(failed.items()):
        count = f"{len(seeds)} of {len(seeds) + ran.get(trial, 0)}"
        follows = (
            "so it wins over none whose seeds all ran"
            if finals
            else "so nothing else is known of it than its first"
        )
        sentences.append(
            f"{count} new seeds of {trial} gave no checkpoint that may win ({', '.join(seeds)}),"
            f" {follows}"
        )
    return sentences


def why_chosen(
    standing: Standing,
    tied: Standing,
    differences: Mapping[str, Difference],
    config: SelectionConfig,
) -> list[str]:
    (chosen, point), (leader, lead_point) = tied[0], standing[0]
    if chosen is leader:
        keeps = "" if config.limits == LimitsConfig() else " and keeps to the limits"
        sentences = [
            f"{chosen.id} has the lowest validation loss, {point.val_loss:.4f}, of {len(standing)}"
            f" trials with a checkpoint that is not overfit{keeps}"
        ]
    else:
        found = differences[chosen.id]
        sentences = [
            (
                f"{chosen.id} is tied with {leader.id}, which has the lowest validation loss"
                f" ({lead_point.val_loss:.4f}): its {point.val_loss:.4f} is {found.mean:.4f} ±"
                f" {found.standard_error:.4f} above, paired per example"
            ),
            (
                f"of the tied it is the cheapest to use ({_cost_words(point)}, against"
                f" {_cost_words(lead_point)})"
            ),
        ]
    others = [curve.id for curve, _ in tied if curve.id not in (chosen.id, leader.id)]
    if others:
        also = "also within" if chosen is not leader else "within"
        sentences.append(
            f"{also} {config.tie_standard_errors:g} standard error of it: {', '.join(others)}"
        )
        sentences += cheaper_words(tied, config)
    elif len(tied) == 1 and len(standing) > 1 and standing[1][0].id in differences:
        sentences.append(_next_words(standing[1][0].id, differences[standing[1][0].id]))
    return sentences


def why_final(
    final: Final,
    finals: Sequence[Final],
    others: Sequence[Final],
    config: SelectionConfig,
    *,
    alone: bool,
) -> list[str]:
    """Why one of the configurations that ran again was chosen. finals: the lowest mean first;
    others: those also tied with it; alone: none is tied with the chosen one.
    """
    best, seeds = finals[0], f"{len(final.seeds)} new seed{'s' if len(final.seeds) > 1 else ''}"
    sentences = [
        f"{len(finals)} configuration{'s' if len(finals) > 1 else ''} ran again with new seeds"
    ]
    if final is best:
        sentences.append(
            f"that of {final.trial} has the lowest mean validation loss over {seeds},"
            f" {mean_words(final)}"
        )
        if len(finals) > 1 and alone:
            sentences.append(f"the next, that of {finals[1].trial}, has {mean_words(finals[1])}")
    else:
        sentences.append(
            f"that of {final.trial}, {mean_words(final)} over {seeds}, is tied with the lowest,"
            f" {mean_words(best)} of {best.trial}, and cheaper to use"
        )
    if others:
        sentences.append(
            f"also within {config.tie_standard_errors:g} standard error:"
            f" {', '.join(other.trial for other in others)}"
        )
    return sentences


def handed_over_words(final: Final, curve: Curve, point: Evaluation) -> str:
    which = "the median of its new seeds" if len(final.seeds) > 1 else "its new seed"
    return (
        f"what is handed over is {which}, {curve.id} with {point.val_loss:.4f}; to expect is the"
        " mean"
    )


def _next_words(trial: str, found: Difference) -> str:
    """How far the second lies above the winner."""
    how_far = f"the next, {trial}, is {found.mean:.4f}"
    if found.standard_error is None:
        return (
            f"{how_far} above: whether beyond noise cannot be told from fewer than {MIN_UNITS}"
            " groups of rows"
        )
    return (
        f"{how_far} ± {found.standard_error:.4f} above, paired per example (95% interval"
        f" {found.low:+.4f} to {found.high:+.4f})"
    )


def cheaper_words(tied: Standing, config: SelectionConfig) -> list[str]:
    """Which of the tied would cost less in every request, where the winner was not chosen by
    that.
    """
    (_, point), (other, cheaper) = tied[0], min(tied, key=cost_in_use)
    if config.prefer == "cheapest" or not cheaper.inference_cost < point.inference_cost - 5e-4:
        return []
    return [
        f"of these {other.id} costs less in use ({cheaper.inference_cost:.3f} against"
        f" {point.inference_cost:.3f} times the arithmetic of the untuned model):"
        " selection.prefer=cheapest would choose it"
    ]


def _cost_words(point: Evaluation) -> str:
    return (
        f"{point.inference_cost:.3f} times the untuned model's arithmetic,"
        f" {point.checkpoint_bytes / 1e6:,.1f} MB on disk, {point.samples_seen} samples"
    )


def why_not_others(
    chosen: Curve, point: Evaluation, curves: Sequence[Curve], config: SelectionConfig
) -> list[str]:
    """Which checkpoints could not win, of the winner's trial and of others."""
    overfit = {
        c.id: [p.step for i, p in enumerate(c.points) if overfit_reason(c.points, i, config)]
        for c in curves
    }
    beyond = {c.id: [p.step for p in c.points if limit_reason(p, config.limits)] for c in curves}
    return [
        *_later_words(chosen, point),
        *_barred_words(chosen.id, point.step, overfit, "overfit", "overfit checkpoints"),
        *_barred_words(
            chosen.id, point.step, beyond, "beyond a limit", "checkpoints beyond a limit"
        ),
    ]


def _later_words(chosen: Curve, point: Evaluation) -> list[str]:
    """That the winner is not what its trial came to last in training."""
    if point.averaged:
        return [
            "its checkpoint is the average of the weights at its trial's last"
            f" {point.averaged} evaluations"
        ]
    later = [p.val_loss for p in chosen.points if p.step > point.step and p.val_loss is not None]
    if not later:
        return []
    return [
        f"its checkpoint is that of step {point.step} (epoch {point.epoch:g}), not the trial's"
        f" last, whose validation loss is {later[-1]:.4f}"
    ]


def _barred_words(
    chosen: str, step: int, barred: Mapping[str, Sequence[int]], what: str, such: str
) -> list[str]:
    """barred: by trial, the steps of the checkpoints that are `what`; step: of the winner."""
    sentences, own = [], barred[chosen]
    if own:
        which = "later" if min(own) > step else "earlier" if max(own) < step else "other"
        sentences.append(f"{which} checkpoints of {chosen} are {what}, and could not win")
    others = [trial for trial, steps in barred.items() if steps and trial != chosen]
    if others:
        other = "other " if own else ""
        count = f"1 {other}trial" if len(others) == 1 else f"{len(others)} {other}trials"
        sentences.append(f"{count} had {such}, which could not win: {', '.join(others)}")
    return sentences


def against_not_tuning(
    point: Evaluation, reference: Reference | None, config: SelectionConfig
) -> list[str]:
    untuned = None if reference is None else reference.best()
    if reference is None or untuned is None or point.val_loss is None:
        return []
    name = (
        "the untuned model"
        if untuned == reference.val_loss
        else f"always answering with {reference.prior}"
    )
    if point.val_loss >= untuned:
        return [f"but it is no better than {name}, which has {untuned:.4f}"]
    if point.val_loss > untuned * (1 - config.underfit):
        return [f"but it is hardly better than {name}, which has {untuned:.4f}"]
    return [f"{name} has {untuned:.4f}"]


def nothing_may_win(curves: Sequence[Curve], config: SelectionConfig) -> str:
    """Why there is no winner."""
    if not curves:
        return "Nothing may win: no trial has started."
    groups: dict[str, list[Curve]] = {word: [] for word in OBSTACLES}
    for curve in curves:
        if (word := _obstacle(curve, config)) is not None:
            groups[word].append(curve)
    parts = [
        f"{len(group)} {word} ({_some([c.id for c in group])})"
        for word, group in groups.items()
        if group
    ]
    count = "1 trial" if len(curves) == 1 else f"{len(curves)} trials"
    said = "; ".join(parts) or "none has a checkpoint"
    nearest = _nearest_words(groups[BEYOND_A_LIMIT], config)
    return f"Nothing may win: of {count}, {said}.{nearest}"


def _obstacle(curve: Curve, config: SelectionConfig) -> str | None:
    """Why no checkpoint of a trial may win; None where one may, but for its files."""
    if curve.status == "failed":
        return FAILED
    if not curve.points:
        return UNMEASURED
    if candidates(curve, config):
        return None
    if any(limit_reason(p, config.limits) for p in curve.points):
        return BEYOND_A_LIMIT
    return NONE_IS_SOUND


def _some(trials: Sequence[str]) -> str:
    return ", ".join(trials[:5]) + (", …" if len(trials) > 5 else "")


def _nearest_words(beyond: Sequence[Curve], config: SelectionConfig) -> str:
    """Which limit the lowest of the losses that are beyond one goes beyond."""
    near = [
        (p.val_loss, why)
        for c in beyond
        for p in c.points
        if p.val_loss is not None and (why := limit_reason(p, config.limits))
    ]
    if not near:
        return ""
    loss, why = min(near, key=lambda each: each[0])
    return f" Of those, {loss:.4f} is out because {why}."
