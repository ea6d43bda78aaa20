"""What the benchmark of early stopping shows, on fewer simulated sweeps; it is deterministic."""

import stopping


def by(lines):
    return {(each["schedule"], each["way"]): each for each in lines}


def test_comparing_like_with_like_costs_no_more_samples_on_recorded_runs():
    found = by(stopping.simulate(stopping.load(stopping.CURVES), 150))
    for schedule in ("constant", "linear"):
        old, new = (found[schedule, way] for way in ("equal samples", "sweeps.search.stopping"))
        assert new["samples"] < old["samples"] + 0.01
        assert new["regret"] < old["regret"] + 0.004


def test_where_the_rate_decides_the_best_long_runs_go_on():
    found = by(stopping.simulate(stopping.toy(), 150))
    old, new = (found["linear", way] for way in ("equal samples", "sweeps.search.stopping"))
    assert new["regret"] < old["regret"] / 5 and new["wrongly"] < old["wrongly"] * 0.7
