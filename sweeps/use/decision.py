"""Whether a winner is better than every rival beyond noise. Pure: gains in, a decision out.

What is asked is whether all rivals are beaten at once, the best of them too, whichever that is. So
each is held to the same level and none is corrected for the number of rivals: the chance that a
winner is called better that is no better than one of them is at most that of this one comparison
(intersection-union test, Berger 1982). What does multiply the chances is looking again at the same
rows with another winner; the k-th look has 1 / (k (k + 1)) of the level, which sums to it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from sweeps.selection.measure import Measure
from sweeps.selection.statistics import MIN_UNITS
from sweeps.use.gains import Gains

POWER = 0.8  # chance at which a gain counts as one that would be seen
FINE = 20  # steps of a usual gain, in which gains are counted that have no unit of their own
MOST_STEPS = 1000  # of a gain that has one
NOTHING = 1e-9  # of the largest gain: what is less is rounding


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the winner is better than a rival, over the same units."""

    rival: str
    by: Measure
    """In what."""
    gain: float
    standard_error: float | None
    """None: too few units to tell."""
    p_value: float | None
    """Of so large a gain where there is none, one-sided."""
    is_beaten: bool
    """Whether the gain is beyond noise at the decision's level."""
    units: int
    """That can be told apart: rows, or groups of them."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Of all comparisons."""

    level: float
    """At which each was made."""
    comparisons: tuple[Comparison, ...]
    """The hardest rival first (see `Gains.hardness`)."""

    @property
    def is_better(self) -> bool:
        """Than every rival."""
        return bool(self.comparisons) and all(each.is_beaten for each in self.comparisons)


def decide(rivals: Mapping[str, Gains], *, level: float = 0.01, looks: int = 1) -> Decision:
    """Whether the winner beats every rival, on rows that chose none of them.

    rivals: what it gains over each, by name; level: chance of calling some winner better that is
    not, over all looks at these rows; looks: how many winners were held against them, this one
    included.
    """
    level /= looks * (looks + 1)
    ordered = sorted(rivals.items(), key=lambda each: each[1].hardness)
    found = (_compared(name, gains, level) for name, gains in ordered)
    return Decision(level=level, comparisons=tuple(found))


def _compared(rival: str, gains: Gains, level: float) -> Comparison:
    units = len(gains.units)
    is_told = units >= MIN_UNITS
    p_value = gain_p_value(gains) if is_told else None
    return Comparison(
        rival=rival,
        by=gains.by,
        gain=gains.mean,
        standard_error=gains.standard_error if is_told else None,
        p_value=p_value,
        is_beaten=p_value is not None and p_value < level,
        units=units,
    )


def gain_p_value(gains: Gains) -> float:
    """Chance of so large a gain where the true one is 0.

    A metric must hold in two tests: right and wrong differ on few rows, which are too few for the
    first (see `_t_p_value`) and what the second (`_signs_p_value`) is exact of.
    """
    by_size = _t_p_value(gains)
    return by_size if gains.by.is_loss else max(by_size, _signs_p_value(gains.units[:, 0]))


def _t_p_value(gains: Gains) -> float:
    """By Student's t of the ratio estimator, its skewness removed by Hall's transformation (Hall
    1992, "On the removal of skewness by transformation"): losses of an overconfident model are
    small on most rows and very large on a few, of which a sample may have none, and the plain t
    then finds gains that are none.
    """
    from scipy.stats import t as student

    gain, error, units = gains.mean, gains.standard_error, len(gains.units)
    if error == 0:
        return 0.0 if gain > 0 else 1.0
    residuals = gains.units[:, 0] - gain * gains.units[:, 1]
    skewness = float((residuals**3).mean() / (residuals**2).mean() ** 1.5)
    w = gain / error / math.sqrt(units)
    straight = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * units)
    return float(student.sf(math.sqrt(units) * straight, units - 1))


def _signs_p_value(gained: np.ndarray) -> float:
    """Chance of so large a sum of gains [G] if a coin had thrown each one's sign (Fisher 1935). Of
    rows that are right or wrong this is McNemar's test in its exact form.
    """
    steps = _in_steps(gained)
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    most = int(np.abs(steps).sum())
    period = 2 * most + 1  # of all sums that there may be
    angles = 2 * np.pi / period * np.arange(period)
    transform = np.ones(period)
    for size, count in zip(sizes, counts, strict=True):
        transform *= np.cos(size * angles) ** count
    chances = np.fft.fft(transform).real / period
    return float(min(1.0, max(0.0, chances[np.arange(steps.sum(), most + 1) % period].sum())))


def _in_steps(gained: np.ndarray) -> np.ndarray:
    """Gains as whole numbers, int64: of the least of them where all are, else of a share of a usual
    one.
    """
    largest = np.abs(gained).max(initial=0.0)
    some = gained[np.abs(gained) > NOTHING * largest]
    if not len(some):
        return np.zeros(0, dtype=np.int64)
    steps = some / np.abs(some).min()
    if np.abs(steps).max() > MOST_STEPS or not np.allclose(steps, np.rint(steps), atol=1e-6):
        steps = FINE * some / math.sqrt(float((some**2).mean()))
    return np.rint(steps).astype(np.int64)


def visible_gain(standard_error: float, level: float, power: float = POWER) -> float:
    """The smallest gain that is called one with this chance, where gains have this error."""
    return (_quantile(1 - level) + _quantile(power)) * standard_error


def rows_needed(deviation: float, gain: float, level: float, power: float = POWER) -> int:
    """Units of which a gain is called one with this chance, where the differences of single units
    have this standard deviation.
    """
    return math.ceil(((_quantile(1 - level) + _quantile(power)) * deviation / gain) ** 2)


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
