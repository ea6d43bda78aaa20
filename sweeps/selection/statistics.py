"""How sure a loss and a difference of losses are: pure functions over losses [N, 2].

Each line is the summed loss and the targets (how many, or the sum of their weights) of one *unit*:
of a row, or of the rows that belong together (see `by_unit`), since rows of one author, file or
document are not so many independent observations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

BOOTSTRAP_CELLS = 1 << 23  # resamples times units: 4,000 units and fewer are drawn 2,000 times
MIN_UNITS = 10  # of fewer units their spread, and so an interval, cannot be told
ROUNDING = 1e-9  # nats by which equal losses may differ


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one loss lies above another, paired by unit. None: too few units to tell."""

    mean: float
    standard_error: float | None = None
    low: float | None = None  # 95% bootstrap interval
    high: float | None = None
    tied: bool = False  # within `tie_standard_errors`; never where that cannot be told


def by_unit(losses: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Losses [N, 2] of rows as those of units [G, 2]: `groups` [N] says which rows are one; None:
    every row is.
    """
    if groups is None:
        return losses
    _, of_rows = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(of_rows, weights=losses[:, column]) for column in (0, 1)], axis=1)


def aligned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Losses b with the targets of a, unit by unit [N, 2]: as they are, unless tokenizers count a
    text's targets otherwise.
    """
    targets = b[:, 1]
    if np.array_equal(a[:, 1], targets):
        return b
    share = np.divide(a[:, 1], targets, out=np.ones(len(b)), where=targets > 0)
    return np.stack([b[:, 0] * share, a[:, 1]], axis=1)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean loss of b minus that of a over the same units [N, 2], and its standard error.

    With targets t_i and differences d_i the mean is the ratio D = sum d / sum t; its standard error
    sqrt(N / (N - 1) * sum (d_i - D t_i)^2) / sum t (Cochran 1977, ratio estimator; of clusters
    where units are groups).
    """
    differences = aligned(a, b)[:, 0].astype(float) - a[:, 0]
    targets = a[:, 1].astype(float)
    total, units = targets.sum(), len(targets)
    mean = differences.sum() / total
    if units < 2:
        return float(mean), math.inf
    residuals = differences - mean * targets
    return float(mean), float(math.sqrt(units / (units - 1) * (residuals**2).sum()) / total)


def bootstrap_intervals(
    a: np.ndarray, others: Sequence[np.ndarray], *, level: float = 0.95, seed: int = 0
) -> list[tuple[float, float]]:
    """Intervals of `paired_difference(a, b)` for each b of `others`, by resampling units (Efron
    1979, percentile method, expanded for few units after Hesterberg 2015).

    Units are drawn by Poisson counts (Hanley & MacGibbon 2006), the same for all candidates and in
    every call.
    """
    if not others:
        return []
    counts, targets = _resamples(len(a), seed), a[:, 1].astype(np.float32)
    differences = np.stack(
        [(aligned(a, b)[:, 0].astype(float) - a[:, 0]).astype(np.float32) for b in others]
    )
    drawn = counts @ targets
    some = (
        drawn > 0 if drawn.any() else slice(None)
    )  # of a handful of units a resample may have none
    means = (differences @ counts.T)[:, some] / np.where(drawn > 0, drawn, 1)[some]
    tail = NormalDist().cdf(
        -_stretch((1 - level) / 2, len(a)) * NormalDist().inv_cdf((1 + level) / 2)
    )
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


@lru_cache(maxsize=2)  # a board asks for the same again and again
def _resamples(units: int, seed: int) -> np.ndarray:
    """How often each of `units` is drawn in each resample [R, units]."""
    resamples = max(200, min(2000, BOOTSTRAP_CELLS // max(units, 1)))
    return (
        np.random.Generator(np.random.PCG64(seed))
        .poisson(1.0, (resamples, units))
        .astype(np.float32)
    )


def _stretch(tail: float, units: int) -> float:
    """By what an interval from resamples of so many units is too short: they spread as if the units
    were all there are, and the normal distribution's tails are thinner than Student's (whose
    quantile is Cornish and Fisher's expansion).
    """
    z, free = -NormalDist().inv_cdf(tail), max(units - 1, 1)
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return math.sqrt(1 + 1 / free) * student / z


def mean_interval(losses: np.ndarray) -> tuple[float, float] | None:
    """95% bootstrap interval of the mean loss over units [N, 2]; None where they are too few."""
    if len(losses) < MIN_UNITS:
        return None
    nothing = np.stack([np.zeros(len(losses)), losses[:, 1]], 1)
    return bootstrap_intervals(nothing, [losses])[0]


def slice_intervals(
    losses: np.ndarray, of_rows: np.ndarray, values: Sequence[str], groups: np.ndarray | None = None
) -> dict[str, tuple[float, float] | None]:
    """`mean_interval` of the rows of each slice, by its value.

    losses: [N, 2] of rows; of_rows [N]: positions in `values`; groups [N]: see `by_unit`.
    """
    found = {}
    for i in np.unique(of_rows).tolist():
        inside = of_rows == i
        found[values[i]] = mean_interval(
            by_unit(losses[inside], None if groups is None else groups[inside])
        )
    return found


def compare(a: np.ndarray | None, b: np.ndarray | None) -> Difference | None:
    """How far b's loss lies above a's; None where the two were not measured on the same units [N,
    2].
    """
    if a is None or b is None or a.shape != b.shape:
        return None
    return compare_all(a, [b], tie_standard_errors=1.0)[0]


def compare_all(
    a: np.ndarray, others: Sequence[np.ndarray], tie_standard_errors: float
) -> list[Difference]:
    """How far the loss of each of `others` lies above a's, over the same units [N, 2]."""
    pairs = [paired_difference(a, b) for b in others]
    if len(a) < MIN_UNITS:
        return [
            Difference(mean=mean, standard_error=None, low=None, high=None, tied=False)
            for mean, _ in pairs
        ]
    return [
        Difference(
            mean=mean,
            standard_error=error,
            low=low,
            high=high,
            tied=abs(mean) <= tie_standard_errors * error + ROUNDING,
        )
        for (mean, error), (low, high) in zip(pairs, bootstrap_intervals(a, others), strict=True)
    ]


def gain_interval(
    chosen: np.ndarray,
    candidates: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of how far the loss of `chosen` lies below the lowest of `others`, where `chosen` is
    one of `candidates` and was chosen, by whatever rule, on these same units [N, 2]; without bounds
    where they are too few to tell.

    The bounds hold for every pair of a candidate and another at once, so for the pair that was
    looked at too: resampled differences are centred, divided by their standard errors, and the
    bounds lie as many standard errors away as the largest of them (White 2000, "A reality check for
    data snooping"; Romano & Wolf 2005).
    """
    if len(chosen) < MIN_UNITS:
        return -math.inf, math.inf
    counts, targets = _resamples(len(chosen), seed=0), chosen[:, 1].astype(np.float32)
    drawn, total = counts @ targets, targets.sum(dtype=float)
    drawn = np.where(drawn > 0, drawn, 1)  # of a resample without targets, all is 0

    def deviations(losses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What each unit's loss is above its share of the mean [K, N], and means of resamples less
        the mean [R, K].
        """
        summed = np.stack([aligned(chosen, each)[:, 0] for each in losses]).astype(np.float32)
        residuals = (
            summed
            - summed.sum(axis=1, dtype=float)[:, None].astype(np.float32)
            / np.float32(total)
            * targets
        )
        return residuals, (counts @ residuals.T) / drawn[:, None]

    of_candidates, drawn_candidates = deviations(candidates)
    of_others, drawn_others = deviations(others)
    most = least = np.zeros(len(counts), np.float32)
    for residuals, resampled in zip(of_others, drawn_others.T, strict=True):
        errors = np.sqrt(((residuals - of_candidates) ** 2).sum(axis=1)) / total
        unlike = errors > 1e-7  # a candidate that is itself the other differs by nothing
        if unlike.any():
            away = (resampled[:, None] - drawn_candidates[:, unlike]) / errors[unlike]
            most, least = np.maximum(most, away.max(axis=1)), np.minimum(least, away.min(axis=1))
    tail = (1 - level) / 2
    stretch = _stretch(tail, len(chosen))
    below = float(np.quantile(most, 1 - tail)) * stretch
    above = float(np.quantile(-least, 1 - tail)) * stretch
    pairs = [paired_difference(chosen, other) for other in others]
    return min(gain - below * error for gain, error in pairs), min(
        gain + above * error for gain, error in pairs
    )
