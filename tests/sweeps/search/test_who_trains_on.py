"""Freeze and thaw over a sweep: a real searcher, study and ledger; Tune and the slots are played by the tests."""

import math

import pytest

from sweeps.ledger.status import INTERRUPTED
from sweeps.search.choosing import FreezeThawScheduler
from sweeps.search.freeze_thaw import STARTUP
from tests.sweeps.search.test_study import COMPLETE, FIXED, PRUNED, Sweep

CONTINUOUS = FIXED | {"learning_rate": {"log_uniform": [1e-5, 1e-2]}, "epochs": {"int": [1, 4]}}
SEARCH = {"scheduler": "freeze_thaw", "trials": 12, "patience": 0.002}


def loss(params, epoch):
    """Of a job whose best rate is 1e-3."""
    return 0.5 + 0.2 * math.log10(params["learning_rate"] / 1e-3) ** 2 + 0.4 / (1 + epoch)


def evaluated(sweep, asked):
    """The next evaluation of a trial that trains; what comes of it, as Tune tells it."""
    step = len(sweep.ledger.curve(asked.id).points) + 1
    sweep.evaluate(asked, loss(asked.params, step))
    if step == round(asked.params["epochs"]):
        sweep.end(asked, ended="finished")
        return "ends"
    if asked.compared or sweep.searcher.goes_on(asked.tune_id):
        return "goes on"
    sweep.end(asked)
    return "pauses"


def run(folder, *, restart=False, most=1000, **search):
    """A search on one slot, and which evaluations it made. restart: its process is killed after each of them."""
    space = search.pop("space", CONTINUOUS)
    sweep, made = Sweep(folder, space, **SEARCH | search), []
    while len(made) < most and (asked := sweep.ask()) is not None:
        while True:
            made.append((asked.id, asked.params["learning_rate"]))
            if evaluated(sweep, asked) != "goes on":
                break
            if restart:
                sweep = Sweep(folder, space, **SEARCH | search)
                break
        if restart:
            sweep = Sweep(folder, space, **SEARCH | search)
    return sweep, made


def test_what_looks_good_trains_on_and_the_rest_waits_until_the_search_ends(tmp_path):
    sweep, made = run(tmp_path)
    curves = {curve.id: curve for curve in sweep.ledger.curves()}
    paused = [curve for curve in curves.values() if (curve.reason or "").startswith("paused")]
    assert paused and sweep.left, "some wait"
    assert all(curve.status == "pruned" for curve in paused)
    whole = [curve for curve in curves.values() if curve.status == "complete"]
    best = min(curves.values(), key=lambda curve: min(point.val_loss for point in curve.points))
    assert best in whole and abs(math.log10(best.params["learning_rate"] / 1e-3)) < 0.3
    grid = sum(sweep.config.hyperparameters(curve.params).epochs for curve in curves.values())
    assert len(made) < grid, "it trains less than all to their ends"
    states = {frozen.user_attrs["trial"]: frozen.state for frozen in sweep.study.trials}
    assert {states[curve.id] for curve in paused} == {PRUNED}
    assert {states[curve.id] for curve in whole} == {COMPLETE}
    (said,) = [line for line in sweep.said if line.startswith("The search ends")]
    assert said.startswith(f"The search ends, and {len(paused)} trials stay paused: ")
    assert "0m00s so far is expected to improve the best validation loss by" in said
    assert said.endswith("search.patience is 0.002; a smaller one trains longer")


def test_an_interrupted_search_is_the_undisturbed_one(tmp_path):
    _, expected = run(tmp_path / "a")
    _, found = run(tmp_path / "b", restart=True)
    assert found == expected


def test_a_trial_that_pauses_goes_on_where_it_was(tmp_path):
    sweep, made = run(tmp_path, patience=0.0)
    assert all(curve.status == "complete" for curve in sweep.ledger.curves())
    resumed = [trial for trial, _, resumed in sweep.started if resumed]
    assert resumed and sorted(resumed) == sorted(sweep.left)
    wanted = {c.id: round(c.params["epochs"]) for c in sweep.ledger.curves()}
    assert {t: [each for each, _ in made].count(t) for t in wanted} == wanted, "none was made twice"
    assert len(wanted) == SEARCH["trials"]


def test_the_first_are_what_the_search_draws_and_then_the_model_chooses(tmp_path):
    sweep, _ = run(tmp_path, initial=[{"learning_rate": 2e-5, "epochs": 1}])
    rates = [curve.params["learning_rate"] for curve in sweep.ledger.curves()]
    assert rates[0] == 2e-5
    far = [abs(math.log10(rate / 1e-3)) for rate in rates[STARTUP:]]
    assert min(far) < 0.2, "it asks about the best rate"


def test_a_small_space_is_gone_through(tmp_path):
    space = FIXED | {"learning_rate": {"choice": [1e-4, 1e-3, 1e-2]}, "epochs": {"choice": [1, 3]}}
    sweep, _ = run(tmp_path, space=space, patience=0.0)
    assert len(sweep.ledger.curves()) == 6
    assert all(curve.status == "complete" for curve in sweep.ledger.curves())


def test_a_trial_makes_room_for_one_that_fits_nowhere(tmp_path):
    sweep = Sweep(tmp_path, CONTINUOUS | {"epochs": 4}, **SEARCH | {"trials": 2, "patience": 0.0})
    assert sweep.ask().compared, "the default trains to its end"
    other = sweep.ask()
    sweep.evaluate(other, 0.5)
    assert sweep.searcher.goes_on(other.tune_id)
    sweep.evaluate(other, 0.4)
    sweep.wanted.add(other.id)
    assert not sweep.searcher.goes_on(other.tune_id)
    sweep.end(other)
    assert sweep.left == [other.id] and sweep.ledger.curve(other.id).status == "running"


def test_a_trial_that_somebody_asks_for_comes_first(tmp_path):
    sweep, _ = run(tmp_path, most=8)
    trial = sweep.searcher.add("c1", {"learning_rate": 3e-3, "epochs": 2}, "add by a person")
    assert sweep.ask().id == trial


def test_a_paused_trial_is_left_to_resume_where_the_sweep_is_interrupted(tmp_path):
    sweep, _ = run(tmp_path, most=9)
    assert sweep.left
    sweep.stopped = INTERRUPTED
    assert sweep.ask() is None
    assert {curve.status for curve in sweep.ledger.curves()} >= {"running"}
    again, _ = run(tmp_path)
    assert all(curve.status != "running" for curve in again.ledger.curves())


def test_a_spent_budget_ends_those_that_are_paused(tmp_path):
    sweep, _ = run(tmp_path, most=9)
    sweep.stopped = "the time budget of 8h is spent"
    assert sweep.ask() is None
    ended = {curve.reason for curve in sweep.ledger.curves() if curve.status == "pruned"}
    assert ended == {"the time budget of 8h is spent"}


def test_finalists_come_when_the_search_is_over(tmp_path):
    sweep = Sweep(tmp_path, CONTINUOUS, selection={"finalists": {"top": 1, "seeds": 1}}, **SEARCH)
    finalists = []
    while (asked := sweep.ask()) is not None:
        if sweep.ledger.curve(asked.id).finalist_of is not None:
            finalists.append(asked.id)
            assert all(c.status != "running" for c in sweep.ledger.curves() if c.id != asked.id)
        while evaluated(sweep, asked) == "goes on":
            pass
    assert len(finalists) == 1


@pytest.mark.parametrize("compared", [True, False])
def test_tune_is_told_to_end_a_trial_that_pauses(compared, tmp_path):
    sweep = Sweep(tmp_path, CONTINUOUS | {"epochs": 4}, **SEARCH)
    asked = sweep.ask()
    given = {k: v for k, v in vars(asked).items() if k != "tune_id"} | {"compared": compared}
    trial = type("Trial", (), {"trial_id": asked.tune_id, "config": given})()
    said = []
    scheduler = FreezeThawScheduler(lambda trial_id: said.append(trial_id) or False)
    sweep.evaluate(asked, 0.5)
    result = {"id": asked.id, "evaluation": sweep.ledger.curve(asked.id).points[-1]}
    assert scheduler.on_trial_result(None, trial, result) == ("CONTINUE" if compared else "STOP")
    assert said == ([] if compared else [asked.tune_id])
