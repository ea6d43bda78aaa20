"""How sure metrics are that are no means over rows: by resampling the rows. Pure functions.

Letters of shapes: N rows, M numbers that are kept of a row (its outcomes), R resamples.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

RESAMPLES = 500  # enough for a standard error
LEVEL = 0.95
CELLS = 1 << 23  # resamples times outcomes, at most, but for 100 resamples


def resampled_metrics(
    answers: Mapping[str, np.ndarray],
    metrics: Callable[[np.ndarray], dict[str, float]],
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Each metric of each model over resamples of the rows, the same for all models [R] (bootstrap,
    Efron 1979).

    answers: outcomes of the rows, the same rows for all [N, M]; metrics: of such rows; groups: the
    group of each row [N], 0 to G - 1: rows of one group are drawn together. Rows or groups are
    drawn by Poisson counts (Hanley & MacGibbon 2006).
    """
    random = np.random.Generator(np.random.PCG64(seed))
    first = next(iter(answers.values()))
    rows = len(first)
    units = rows if groups is None else int(groups.max()) + 1
    found: dict[str, dict[str, list[float]]] = {name: {} for name in answers}
    for _ in range(max(100, min(RESAMPLES, CELLS // max(1, first.size)))):
        drawn = random.poisson(1.0, units)
        chosen = np.repeat(np.arange(rows), drawn if groups is None else drawn[groups])
        if not len(chosen):
            continue  # of a handful of rows a resample may have none
        for name, each in answers.items():
            for metric, value in metrics(each[chosen]).items():
                found[name].setdefault(metric, []).append(value)
    return {
        name: {metric: np.array(values) for metric, values in each.items()}
        for name, each in found.items()
    }


def half_width(error: float, comparisons: int) -> float:
    """Of an interval about what has this standard error, for one of so many comparisons that shall
    hold at once (95%, Bonferroni).
    """
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / comparisons) * error


def paired(
    leader: np.ndarray,
    others: Mapping[str, np.ndarray],
    metrics: Callable[[np.ndarray], dict[str, float]],
    metric: str,
    groups: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """How far `metric` of each of the others lies above the leader's, and the standard error of
    that; infinite where resamples do not tell. Outcomes are of the same rows [N, M].
    """
    own = metrics(leader)[metric]
    names = {f"other {number}": name for number, name in enumerate(others)}
    answers = {"leader": leader, **{key: others[name] for key, name in names.items()}}
    drawn = resampled_metrics(answers, metrics, groups)
    found = {}
    for key, name in names.items():
        differences = drawn[key][metric] - drawn["leader"][metric]
        known = differences[np.isfinite(differences)]
        error = float(known.std()) if len(known) > 1 else np.inf
        found[name] = metrics(others[name])[metric] - own, error
    return found
