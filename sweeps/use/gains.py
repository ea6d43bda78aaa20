"""By how much a winner is better than a rival, unit by unit. Pure.

Letters of shapes: N rows, G units of them (see `sweeps.selection.statistics`), P parts of them that
are left out one after another.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sweeps.ledger.comparing import Rows, only, shared
from sweeps.selection.measure import Measure
from sweeps.selection.statistics import aligned, by_unit, paired_difference

PARTS = 1000  # at most: a metric is computed of what each leaves


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Over the same rows of both."""

    by: Measure
    """What they are gains in."""
    units: np.ndarray
    """Of each unit the gain, summed over its targets, and their number [G, 2]; the targets of a
    metric are rows.
    """
    rows: int
    """Of which both were measured."""

    @cached_property
    def mean(self) -> float:
        """Above 0 where the winner is better."""
        return self._difference[0]

    @cached_property
    def standard_error(self) -> float:
        """Of the mean, a ratio estimator; infinite where there is one unit."""
        return self._difference[1]

    @cached_property
    def _difference(self) -> tuple[float, float]:
        return paired_difference(self.units * [0.0, 1.0], self.units)

    @property
    def hardness(self) -> tuple[bool, float]:
        """The hardest rival has the least; gains in a loss come after those in a metric."""
        return self.by.is_loss, self.mean

    @property
    def worse(self) -> "Gains":
        """Of the rival over the winner."""
        return Gains(by=self.by, units=self.units * [-1.0, 1.0], rows=self.rows)


def loss_gains(own: np.ndarray, other: np.ndarray, rows: int) -> Gains:
    """Of the losses of units [G, 2]; rows: of which they are."""
    gained = aligned(own, other)[:, 0].astype(float) - own[:, 0]
    return Gains(by=Measure(), units=np.stack([gained, own[:, 1]], axis=1), rows=rows)


def metric_gains(own: Rows, other: Rows, by: Measure) -> Gains | None:
    """By a metric, over the rows that it is told of for both; None where there are none.

    To an answer it gives a value. One of all rows at once, such as an F1, gives a row none: in its
    place stands the jackknife's pseudo-value, which says by how much the metric would fall without
    the row. Where the metric is a mean over rows, that is the row's own value.
    """
    mine, theirs = shared(own.of, other.of)
    own, other = only(own, mine), only(other, theirs)
    if not len(own.outcomes) or len(own.outcomes) != len(other.outcomes):
        return None
    if own.of is not None:
        gained, groups = _values(own, by) - _values(other, by), own.groups
    else:
        parts, groups = _parts(own)
        gained = _pseudo_values(own, by, parts) - _pseudo_values(other, by, parts)
    told = np.isfinite(gained)
    if not told.any():
        return None
    rows = np.stack([by.signed(-1.0) * gained[told], np.ones(told.sum())], axis=1)
    return Gains(
        by=by,
        units=by_unit(rows, None if groups is None else groups[told]),
        rows=int(told.sum()) if own.of is not None else len(own.outcomes),
    )


def rows_told(rows: Rows, by: Measure) -> int:
    """Of how many the metric is told."""
    return len(rows.outcomes) if rows.of is None else int(np.isfinite(_values(rows, by)).sum())


def _values(answered: Rows, by: Measure) -> np.ndarray:
    """Of answers [N]; NaN of a row that has none."""
    return answered.outcomes[:, answered.names.index(by.name)]


def _parts(rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
    """The part of each row [N], 0 to P - 1, and the group of each part [P] (None: it is one): each
    row is one, unless they are many, of which a part has several units.
    """
    count = len(rows.outcomes)
    if count <= PARTS:
        return np.arange(count), rows.groups
    units = np.arange(count) if rows.groups is None else rows.groups
    dealt = np.random.Generator(np.random.PCG64(0)).permutation(int(units.max()) + 1) % PARTS
    return np.unique(dealt[units], return_inverse=True)[1], None


def _pseudo_values(rows: Rows, by: Measure, parts: np.ndarray) -> np.ndarray:
    """Of the metric [P], less its bias, so that their mean is the metric itself (Tukey 1958)."""
    whole, count = _value(rows, by, rows.outcomes), int(parts.max()) + 1
    without = np.array([_value(rows, by, rows.outcomes[parts != part]) for part in range(count)])
    without = np.where(np.isfinite(without), without, whole)  # of a class's only row
    return whole + (count - 1) * (without.mean() - without)


def _value(rows: Rows, by: Measure, outcomes: np.ndarray) -> float:
    return rows.metrics(outcomes).get(by.name, math.nan)
