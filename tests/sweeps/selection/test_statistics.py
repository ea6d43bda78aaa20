"""How far one loss lies above another, where the two count their targets otherwise."""

import numpy as np
import pytest

from sweeps.selection.statistics import compare_all, gain_interval, paired_difference


def test_targets_that_tokenizers_count_otherwise_change_no_comparison():
    """Of blocks of tokens the first is no target, so that of one text not quite as much is counted."""
    random = np.random.default_rng(0)
    a = np.stack([np.full(40, 90.0), np.full(40, 90.0)], axis=1)
    a[:, 0] *= 1 + 0.05 * random.normal(size=40)
    fewer = a * (85 / 90)  # the same loss of each unit, over fewer bytes
    (found,) = compare_all(a, [fewer], tie_standard_errors=1.0)
    assert found.mean == pytest.approx(0, abs=1e-6) and found.tied
    assert paired_difference(a, a * [1.1, 1])[0] == pytest.approx(0.1 * a[:, 0].sum() / 3600)
    low, high = gain_interval(a, [a, fewer], [fewer * [1.5, 1]])
    assert low == pytest.approx(0.5, abs=0.1) and high == pytest.approx(0.5, abs=0.1)


def test_what_lies_far_below_is_not_tied():
    """A trial cannot lie below the winner by more than noise, but another way than fine-tuning can."""
    random = np.random.default_rng(0)
    a = np.stack([1 + 0.1 * random.normal(size=100), np.ones(100)], axis=1)
    below, near, above = (a + [[shift, 0]] * random.random((100, 1)) for shift in (-1, 0, 1))
    assert [each.tied for each in compare_all(a, [below, near, above], 1.0)] == [False, True, False]
