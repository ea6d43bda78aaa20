"""The winner where a metric chooses it. The loss has said what may win, and decides where the
metric does not tell candidates apart.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from sweeps.selection.measure import Measure, metric_words
from sweeps.selection.resampling import half_width
from sweeps.selection.results import Standing, cost_in_use
from sweeps.selection.statistics import Difference
from sweeps.selection.verdicts import candidates
from trainables.evaluation.record import Evaluation


class Paired(NamedTuple):
    """How far a metric of one evaluation lies above another's, over the same rows."""

    mean: float
    standard_error: float
    """Infinite where the rows are too few to tell."""


Compare = Callable[[str, Sequence[str]], Sequence[Paired | None]]
"""Of a metric: how far the evaluations of some folders lie above that of one. None: they were not
measured on the same rows.
"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of the candidates with the metric."""

    leader: tuple[Curve, Evaluation]
    """That of the best metric."""
    equals: Standing
    """The leader and those that the metric does not tell from it, nor can be compared by it; the
    chosen first.
    """
    differences: Mapping[str, Difference]
    """To the leader, in the metric, by folder; of those that were measured on rows of its."""
    of: int
    """Candidates."""


def choose(curves: Sequence[Curve], config: SelectionConfig, compare: Compare) -> Choice | None:
    """None where no candidate has the metric.

    Intervals hold for all comparisons with the leader at once (Bonferroni): the best of many is the
    likeliest to have been lucky. Where one holds 0, or where there is none as a candidate was
    measured on other rows, the loss, which every row tells more of than right or wrong does,
    decides.
    """
    found = _measured(curves, config)
    if not found:
        return None
    leader, others = found[0], found[1:]
    paired = compare(leader[1].folder, [point.folder for _, point in others])
    differences = {
        point.folder: _difference(each, len(others))
        for (_, point), each in zip(others, paired, strict=True)
        if each is not None
    }
    equals = [leader, *(each for each in others if _is_tied(each[1], differences))]
    by_loss = cost_in_use if config.prefer == "cheapest" else _by_loss
    return Choice(
        leader=leader,
        equals=sorted(equals, key=by_loss),
        differences=differences,
        of=len(found),
    )


def _measured(curves: Sequence[Curve], config: SelectionConfig) -> Standing:
    """The candidates with the metric, the best first."""
    measure = config.measure
    found = [
        (curve, point)
        for curve in curves
        for point in candidates(curve, config)
        if point.checkpoint is not None and measure.of(point) is not None
    ]
    return sorted(found, key=lambda each: (*measure.key(each[1]), each[0].id))


def _by_loss(each: tuple[Curve, Evaluation]) -> tuple[float, float]:
    return Measure().key(each[1])


def _is_tied(point: Evaluation, differences: Mapping[str, Difference]) -> bool:
    return point.folder not in differences or differences[point.folder].tied


def _difference(paired: Paired, comparisons: int) -> Difference:
    mean, error = paired
    if not math.isfinite(error):
        return Difference(mean=mean, tied=True)
    width = half_width(error, comparisons)
    low, high = mean - width, mean + width
    return Difference(mean=mean, standard_error=error, low=low, high=high, tied=low <= 0 <= high)


def choice_words(choice: Choice, config: SelectionConfig) -> list[str]:
    """Why the chosen of them wins."""
    return [*_chosen_words(choice, config), *_unpaired_words(choice, config.measure)]


def _chosen_words(choice: Choice, config: SelectionConfig) -> list[str]:
    measure = config.measure
    (chosen, point), (leader, best) = choice.equals[0], choice.leader
    others = list(dict.fromkeys(curve.id for curve, _ in choice.equals if curve is not chosen))
    if point is best and not others:
        return [_alone(choice, measure), *_next_words(choice)]
    words, value = metric_words(measure.name), measure.of(point)
    decided = (
        "costs least to use" if config.prefer == "cheapest" else "has the lowest validation loss"
    )
    if point is best:
        return [
            f"{_alone(choice, measure)}, and of those that it does not tell from it"
            f" ({', '.join(others)}) it {decided}"
        ]
    found = choice.differences.get(point.folder)
    if found is None:
        apart = "measured on other rows"
    elif found.standard_error is None:
        apart = "too few rows tell"
    else:
        apart = f"95% interval {_interval(found)}, corrected for {choice.of - 1} comparisons"
    return [
        f"{leader.id} has the {measure.best_words}, {measure.of(best):.4f}, but {words} does not"
        f" tell it from {chosen.id}, which has {value:.4f} ({apart}); of those {chosen.id}"
        f" {decided}, {point.val_loss:.4f}"
    ]


def _unpaired_words(choice: Choice, measure: Measure) -> list[str]:
    """Trials with a candidate that cannot be compared with the leader."""
    leader, best = choice.leader
    others = [
        curve.id
        for curve, point in choice.equals
        if point is not best and point.folder not in choice.differences
    ]
    if not others:
        return []
    named = ", ".join(sorted(set(others)))
    return [
        f"by {metric_words(measure.name)} {named} cannot be compared with {leader.id}, which was"
        " measured on other rows"
    ]


def _alone(choice: Choice, measure: Measure) -> str:
    curve, point = choice.leader
    return (
        f"{curve.id} has the {measure.best_words}, {measure.of(point):.4f}, of"
        f" {choice.of} checkpoint{'s' if choice.of > 1 else ''} that may win"
    )


def _next_words(choice: Choice) -> list[str]:
    """How far the nearest of other trials lies from the leader, which it is told from."""
    if not choice.differences:
        return []
    nearest = min(choice.differences.values(), key=lambda each: abs(each.mean))
    if nearest.standard_error is None:
        return []
    return [
        f"the next is {nearest.mean:+.4f} from it (95% interval {_interval(nearest)}, corrected for"
        f" {choice.of - 1} comparisons)"
    ]


def _interval(found: Difference) -> str:
    return f"{found.low:+.4f} to {found.high:+.4f}"
