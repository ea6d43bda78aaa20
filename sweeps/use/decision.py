"""Whether a winner is better than every rival beyond noise. Pure: losses in, a decision out.

Losses are [G, 2] as in `sweeps.selection.statistics`: summed loss and targets of each unit.

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

from sweeps.selection.statistics import MIN_UNITS, aligned, paired_difference

POWER = 0.8  # chance at which a gain counts as one that would be seen


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the winner's loss lies below a rival's, over the same units."""

    rival: str
    gain: float
    standard_error: float | None
    """None: too few units to tell."""
    p_value: float | None
    """Of so large a gain where there is none, one-sided."""
    is_beaten: bool
    """Whether the gain is beyond noise at the decision's level."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Of all comparisons."""

    level: float
    """At which each was made."""
    units: int
    """That can be told apart: rows, or groups of them."""
    comparisons: tuple[Comparison, ...]
    """The hardest rival first: that with the least gain."""

    @property
    def is_better(self) -> bool:
        """Than every rival."""
        return bool(self.comparisons) and all(each.is_beaten for each in self.comparisons)


def decide(
    winner: np.ndarray, rivals: Mapping[str, np.ndarray], *, level: float = 0.01, looks: int = 1
) -> Decision:
    """Whether the winner beats every rival, on rows that chose none of them.

    winner: its losses [G, 2]; rivals: theirs by name, of the same units; level: chance of calling
    some winner better that is not, over all looks at these rows; looks: how many winners were held
    against them, this one included.
    """
    level /= looks * (looks + 1)
    found = [_compared(name, winner, losses, level) for name, losses in rivals.items()]
    found.sort(key=lambda each: each.gain)
    return Decision(level=level, units=len(winner), comparisons=tuple(found))


def _compared(rival: str, winner: np.ndarray, losses: np.ndarray, level: float) -> Comparison:
    gain, error = paired_difference(winner, losses)
    if len(winner) < MIN_UNITS:
        return Comparison(
            rival=rival, gain=gain, standard_error=None, p_value=None, is_beaten=False
        )
    p_value = gain_p_value(winner, losses)
    return Comparison(
        rival=rival, gain=gain, standard_error=error, p_value=p_value, is_beaten=p_value < level
    )


def gain_p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Chance of so large a gain of a over b, paired by unit [G, 2], where the true gain is 0.

    Student's t of the ratio estimator, its skewness removed by Hall's transformation (Hall 1992,
    "On the removal of skewness by transformation"): losses of an overconfident model are small on
    most rows and very large on a few, of which a sample may have none, and the plain t then finds
    gains that are none.
    """
    from scipy.stats import t as student

    gain, error = paired_difference(a, b)
    units = len(a)
    if error == 0:
        return 0.0 if gain > 0 else 1.0
    residuals = aligned(a, b)[:, 0].astype(float) - a[:, 0] - gain * a[:, 1]
    skewness = float((residuals**3).mean() / (residuals**2).mean() ** 1.5)
    w = gain / error / math.sqrt(units)
    straight = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * units)
    return float(student.sf(math.sqrt(units) * straight, units - 1))


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
