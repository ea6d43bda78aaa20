"""Whether new rows are distributed as those that a model was measured on. Pure: numbers in,
p-values out.

All of it is of independent units: where rows belong together (of one author, one document), of
their mean. Letters of shapes: N rows, G units of the reference, M units of the new rows, D width of
an embedding, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainables.streams import stream

MIN_UNITS = 20  # of either side, of which a test can tell anything
PENALTY = 0.1  # of half the squared weights, against the mean loss of a unit


@dataclass(frozen=True, kw_only=True)
class TwoSample:
    """A test of whether two samples have one distribution."""

    what: str
    """What was compared, in words."""
    p_value: float
    effect: float
    """How far the two are apart."""
    words: str
    """What was found, and what the effect is."""


def unit_means(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Means [G, ...] of the rows of each unit, of values [N, ...]; `groups` [N] says which rows are
    one; None: every row is.
    """
    if groups is None:
        return values
    names, of_rows, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, of_rows, values)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def classifier_two_sample(
    reference: np.ndarray, new: np.ndarray, seed: int, what: str
) -> TwoSample:
    """Whether a classifier can tell embeddings [G, D] and [M, D] apart (Lopez-Paz & Oquab 2017,
    "Revisiting classifier two-sample tests").

    A logistic regression is fitted to a half of each, drawn by the seed, and gives scores to the
    other halves, which nothing was fitted to; the p-value is that of a one-sided Mann-Whitney test
    of these scores. It holds for any number of units on either side, and where the two are alike
    the chance of a p-value below a is at most a, whatever was fitted. The effect is the area under
    the ROC curve: one half is chance.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (fit_old, old), (fit_new, fresh) = (_halves(each, seed) for each in (reference, new))
    x = np.concatenate([fit_old, fit_new]).astype(np.float64)
    y = np.repeat([0, 1], [len(fit_old), len(fit_new)])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (PENALTY * len(x)), class_weight="balanced", max_iter=1000)
    model.fit(scaler.transform(x), y)
    scores = [
        model.decision_function(scaler.transform(each.astype(float))) for each in (old, fresh)
    ]
    found = mannwhitneyu(scores[1], scores[0], alternative="greater")
    area = float(found.statistic) / (len(old) * len(fresh))
    return TwoSample(
        what=what,
        p_value=float(found.pvalue),
        effect=area,
        words=f"a classifier tells a new row from an old one in {area:.1%} of pairs (chance 50%)",
    )


def _halves(units: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = stream("drift: halves", seed).permutation(len(units))
    return units[order[: len(units) // 2]], units[order[len(units) // 2 :]]


def kolmogorov_smirnov(reference: np.ndarray, new: np.ndarray, what: str) -> TwoSample:
    """Of one number of each unit [G] and [M]. The effect is the largest distance between the two
    distribution functions.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(reference, new)
    old, fresh = float(np.median(reference)), float(np.median(new))
    return TwoSample(
        what=what,
        p_value=float(found.pvalue),  # type: ignore[attr-defined]
        effect=float(found.statistic),  # type: ignore[attr-defined]
        words=f"median {fresh:.4f}, before {old:.4f}",
    )


def shares(reference: np.ndarray, new: np.ndarray, names: Sequence[str], what: str) -> TwoSample:
    """Whether classes are as common [G, C] and [M, C] (1 where a unit has the class): for each a
    Mann-Whitney test, whose smallest p-value counts, times the number of classes (Bonferroni). The
    effect is the largest difference of two shares.
    """
    from scipy.stats import mannwhitneyu

    before, after = reference.mean(axis=0), new.mean(axis=0)
    seen = np.flatnonzero(reference.std(axis=0) + new.std(axis=0) + abs(after - before) > 0)
    p_values = {int(c): float(mannwhitneyu(reference[:, c], new[:, c]).pvalue) for c in seen} or {
        0: 1.0
    }
    least = min(p_values, key=lambda c: p_values[c])
    return TwoSample(
        what=what,
        p_value=min(1.0, len(p_values) * p_values[least]),
        effect=float(np.abs(after - before).max()),
        words=f"{names[least]} is {after[least]:.1%} of them, before {before[least]:.1%}",
    )


def higher_loss(reference: np.ndarray, new: np.ndarray, what: str) -> TwoSample:
    """Whether the mean loss of new units [M, 2] (summed loss and targets) lies above that of the
    reference [G, 2], one-sided: Welch's test of two ratio estimators. The effect is the difference.
    """
    from scipy.stats import t as student

    (old, old_error), (fresh, fresh_error) = (_ratio(each) for each in (reference, new))
    error = float(np.hypot(old_error, fresh_error))
    free = error**4 / (old_error**4 / (len(reference) - 1) + fresh_error**4 / (len(new) - 1) or 1.0)
    rise = fresh - old
    p_value = float(student.sf(rise / error, free)) if error else float(rise <= 0)
    return TwoSample(
        what=what,
        p_value=p_value,
        effect=rise,
        words=f"{fresh:.4f} ± {fresh_error:.4f}, before {old:.4f} ± {old_error:.4f}",
    )


def _ratio(losses: np.ndarray) -> tuple[float, float]:
    """Mean over targets, and its standard error."""
    total, units = losses[:, 1].sum(), len(losses)
    mean = losses[:, 0].sum() / total
    residuals = losses[:, 0] - mean * losses[:, 1]
    return float(mean), float(np.sqrt(units / (units - 1) * (residuals**2).sum()) / total)
