"""A time budget that ends before anything is known, and a sweep that goes on when it is spent."""

import json
from pathlib import Path

import pytest

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.ledger.progress import RunningTrial
from sweeps.run.budget import end_unfinished, too_short
from tests.sweeps.run.failing import IN_ORDER
from trainables.evaluation.record import Evaluation

LORA = {"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}


@pytest.fixture
def begun(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(f"""
name: s
task: causal_lm
model: {{name: nobody/knows}}
data: {{train: a.txt, validation: 0.1}}
train: {{evaluate_every: 100}}
search: {{trials: 2, time_budget: 5m, space: {LORA}}}
""")
    ledger = Ledger(str(tmp_path / "s-1"))
    ledger.begin("t0001", LORA)
    return ledger, load(file)


def words(begun, **trained):
    ledger, config = begun
    return too_short(
        ledger, config, trained=trained, rows={"": 320}, ran_s=301.0, folder=str(ledger.store.url)
    )


def trial(seen, rate):
    return RunningTrial(samples_seen=seen, total_samples=320, samples_per_s=rate, slot="slot0")


def test_by_how_much_a_budget_was_too_short(begun):
    folder = begun[0].store.url
    begins = "search.time_budget: 5m was too short: nothing was evaluated in the 5m01s that the sweep ran"
    assert words(begun, t0001=trial(40, 0.5)) == (
        f"{begins}; t0001 had seen 40 of 100 samples to its first one, about 2m00s more. Go on:"
        f" python -m sweeps resume {folder} search.time_budget=15m"
    )
    assert words(begun) == (
        f"{begins}; no trial had begun to train. Go on: python -m sweeps resume {folder}"
        " search.time_budget=11m"
    )
    assert "seen 0 of 100 samples" in words(begun, t0001=trial(0, 0.0))


def test_a_budget_in_which_something_was_evaluated_was_not_too_short(begun):
    point = Evaluation(step=1, samples_seen=8, epoch=1.0, val_loss=1.0, probe_loss=1.0)
    begun[0].record("t0001", point)
    assert words(begun, t0001=trial(120, 0.5)) is None


def test_trials_of_a_sweep_with_no_time_left_keep_what_they_have_reached(begun):
    ledger, config = begun
    end_unfinished(ledger, config, "the time budget of 5m is spent")
    (curve,) = Ledger(ledger.store.url).load().curves()
    assert (curve.status, curve.reason) == ("pruned", "the time budget of 5m is spent")


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_whose_budget_is_spent_draws_no_trial(sweeps, shakespeare, tmp_path: Path) -> None:
    done = sweeps("run", shakespeare(IN_ORDER), "search.time_budget=1s")
    assert done.code == 1, done.out + done.err
    assert "search.time_budget: 1s was too short: nothing was evaluated" in done.out
    folder = Path(done.last_line)
    before = sorted(each.name for each in (folder / "trials").glob("*"))
    for _ in range(2):
        done = sweeps("resume", folder)
        assert done.code == 1, done.out + done.err
        assert "No trial is drawn, as the time budget of 1s is spent" in done.out
        assert "search.time_budget" in done.out and "starts:" not in done.out
        assert sorted(each.name for each in (folder / "trials").glob("*")) == before
    done = sweeps("resume", folder, "search.time_budget=30m")
    assert done.code == 0, done.out + done.err
    assert json.loads(sweeps("best", folder, "--json").out)["winner"] is not None
