"""The benchmark runs; what it measures is never asserted."""

import telling_metrics  # pytest puts this folder on sys.path


def test_series_do_not_grow_with_trials() -> None:
    few, many = (telling_metrics.rounds(trials, 2, 4, 2)[1] for trials in (150, 300))
    assert len(few) == len(many)
