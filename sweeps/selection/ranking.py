"""Verdicts and the winner: pure functions over evaluations. No Ray, torch or network; numbers in,
words out.

Losses are means over targets, in the unit that the task declares.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sweeps.selection.choosing import Compare, choice_words, choose
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.results import Final, Standing, Winner, cost_in_use
from sweeps.selection.statistics import Difference, compare_all
from sweeps.selection.verdicts import best_point
from sweeps.selection.words import (
    against_not_tuning,
    cheaper_words,
    failed_words,
    handed_over_words,
    nothing_may_win,
    why_chosen,
    why_final,
    why_not_others,
)
from trainables.evaluation.record import Evaluation


def finalists(curves: Sequence[Curve], config: SelectionConfig) -> list[str]:
    """The trials whose configurations are to be trained again: the best, one for each trial of the
    search.
    """
    first = [curve for curve in curves if curve.finalist_of is None]
    return [curve.id for curve, _ in _standing(first, config)[: config.finalists.top]]


def nearest(
    curves: Sequence[Curve], config: SelectionConfig, count: int
) -> list[tuple[Curve, Evaluation]]:
    """The trials of the lowest validation losses that may win."""
    return _standing(curves, replace(config, metric=None))[:count]


def pareto(curves: Sequence[Curve], config: SelectionConfig) -> list[tuple[Curve, Evaluation]]:
    """The trials that none beats in validation loss without being worse in `config.pareto`; the
    lowest loss first.
    """
    front: list[tuple[Curve, Evaluation]] = []
    if config.pareto is None:
        return front
    cost = "request_cost" if config.pareto == "inference_cost" else config.pareto
    standing = _standing(curves, replace(config, metric=None))
    for curve, point in sorted(standing, key=lambda each: (_loss(each[1]), getattr(each[1], cost))):
        if not front or getattr(point, cost) < getattr(front[-1][1], cost):
            front.append((curve, point))
    return front


def final_ranking(curves: Sequence[Curve], config: SelectionConfig) -> list[Final]:
    """The configurations that were trained again: fewest failed seeds first, then the lowest mean;
    those of which no new seed may win are left out.
    """
    by_first: dict[str, dict[str, float]] = {}
    for curve, point in _standing(curves, config):
        if curve.finalist_of is not None:
            by_first.setdefault(curve.finalist_of, {})[curve.id] = _loss(point)
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
    """New seeds that ended without a checkpoint that may win, by the trial whose configuration they
    repeat.
    """
    standing = {curve.id for curve, _ in _standing(curves, config)}
    found: dict[str, tuple[str, ...]] = {}
    for curve in sorted(curves, key=lambda curve: curve.id):
        first = curve.finalist_of
        if first is not None and curve.status != "running" and curve.id not in standing:
            found[first] = (*found.get(first, ()), curve.id)
    return found


def select(
    curves: Sequence[Curve],
    config: SelectionConfig,
    losses: Callable[[str], np.ndarray | None],
    reference: Reference | None = None,
    metric: Compare | None = None,
) -> tuple[Winner | None, str]:
    """The winner, and the reason in words (also when there is none).

    Each trial stands with its best evaluation that is not overfit. The lowest validation loss wins;
    those within `tie_standard_errors` of it, paired by unit, are tied with it, and `prefer:
    cheapest` lets the one of these win that costs least to use. Where configurations ran again with
    new seeds, these decide. `losses(folder)` gives the losses [N, 2] of the units of an evaluation
    (see sweeps.selection.statistics); `reference` is what the reason compares with; `metric`
    compares evaluations by the metric that chooses, where `config` names one.
    """
    standing = _standing(curves, config)
    if not standing:
        return None, nothing_may_win(curves, config)
    finals, failed = final_ranking(curves, config), failed_seeds(curves, config)
    if not finals:
        standing = _without_failed_again(standing, failed)
    differences = _differences(standing, config, losses)
    expected = None
    if finals:
        tied, expected, why = _choose_final(standing, finals, config)
    else:
        tied, why = _choose(curves, standing, differences, config, metric)
    chosen, point = tied[0]
    sentences = [
        *why,
        *failed_words(finals, failed),
        *why_not_others(chosen, point, curves, config),
        *against_not_tuning(point, reference and reference.of(chosen.params), config),
    ]
    winner = Winner(
        trial=chosen.id,
        point=point,
        reason="; ".join(sentences) + ".",
        tied=tuple(dict.fromkeys(curve.id for curve, _ in tied if curve.id != chosen.id)),
        expected=expected,
        lowest=standing[0][1].folder,
        differences=differences,
    )
    return winner, winner.reason


def _choose(
    curves: Sequence[Curve],
    standing: Standing,
    differences: Mapping[str, Difference],
    config: SelectionConfig,
    metric: Compare | None,
) -> tuple[Standing, list[str]]:
    """The tied, the chosen first, and why: by the metric where there is one, else by the loss."""
    unknown: list[str] = []
    if not config.measure.is_loss and metric is not None:
        if (choice := choose(curves, config, metric)) is not None:
            return choice.equals, choice_words(choice, config)
        unknown = [f"no checkpoint that may win has {config.metric}, so the loss chooses"]
    tied = _tied_with_first(standing, differences, config)
    return tied, [*why_chosen(standing, tied, differences, config), *unknown]


def _without_failed_again(standing: Standing, failed: Collection[str]) -> Standing:
    """What never ran again leaves behind what ran again and failed each time."""
    return [each for each in standing if each[0].id not in failed] or standing


def _tied_with_first(
    standing: Standing, differences: Mapping[str, Difference], config: SelectionConfig
) -> list[tuple[Curve, Evaluation]]:
    """The first and those within noise of it, the preferred one first."""
    first, *others = standing
    tied = [
        (curve, point)
        for curve, point in others
        if curve.id in differences and differences[curve.id].tied
    ]
    return _preferred_first([first, *tied], config)


def _standing(curves: Sequence[Curve], config: SelectionConfig) -> list[tuple[Curve, Evaluation]]:
    """Each trial that may win, with its best evaluation that may; the lowest loss first."""
    found = [
        (curve, point)
        for curve in curves
        if (point := best_point(curve, config)) is not None and point.checkpoint is not None
    ]
    return sorted(found, key=lambda item: (_loss(item[1]), *cost_in_use(item)))


def _loss(point: Evaluation) -> float:
    return math.inf if point.val_loss is None else point.val_loss


def _preferred_first(tied: Standing, config: SelectionConfig) -> list[tuple[Curve, Evaluation]]:
    return sorted(tied, key=cost_in_use) if config.prefer == "cheapest" else list(tied)


def _choose_final(
    standing: Standing, finals: Sequence[Final], config: SelectionConfig
) -> tuple[list[tuple[Curve, Evaluation]], Final, list[str]]:
    """The checkpoint that stands for each configuration tied for the lowest mean, the chosen first;
    that one's new seeds; and why it wins.
    """
    best, by_trial = finals[0], {curve.id: (curve, point) for curve, point in standing}
    final_of = {
        final.median: final
        for final in finals
        if final is best or _is_tied(final, best, finals, config)
    }
    tied = _preferred_first([by_trial[median] for median in final_of], config)
    final = final_of[tied[0][0].id]
    others = [each for curve, _ in tied[1:] if (each := final_of[curve.id]) is not best]
    sentences = [
        *why_final(final, finals, others, config, alone=len(tied) == 1),
        *cheaper_words(tied, config),
        handed_over_words(final, *tied[0]),
    ]
    return tied, final, sentences


def _is_tied(final: Final, best: Final, finals: Sequence[Final], config: SelectionConfig) -> bool:
    """Whether two means are closer than their standard errors; of a single seed the spread is taken
    to be that of the other configurations, and without any it is unknown, so that nothing is tied.
    """
    known = [(each.spread, len(each.seeds) - 1) for each in finals if each.spread is not None]
    if not known or len(final.failed) != len(best.failed):
        return False
    pooled = math.sqrt(
        sum(spread**2 * free for spread, free in known) / sum(free for _, free in known)
    )
    spreads = [
        (pooled if each.spread is None else each.spread, len(each.seeds)) for each in (final, best)
    ]
    error = math.sqrt(sum(spread**2 / seeds for spread, seeds in spreads))
    return final.mean - best.mean <= config.tie_standard_errors * error


def _differences(
    standing: Standing, config: SelectionConfig, losses: Callable[[str], np.ndarray | None]
) -> dict[str, Difference]:
    """Of all but the first, to the first; those without losses over the same units have none."""
    of_leader = losses(standing[0][1].folder)
    if of_leader is None:
        return {}
    found = {curve.id: losses(point.folder) for curve, point in standing[1:]}
    others = {
        trial: other
        for trial, other in found.items()
        if other is not None and other.shape == of_leader.shape
    }
    if not others:
        return {}
    compared = compare_all(of_leader, list(others.values()), config.tie_standard_errors)
    return dict(zip(others, compared, strict=True))
