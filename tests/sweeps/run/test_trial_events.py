"""What is told of a trial that begins."""

from types import SimpleNamespace

import ray

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.run.tune import TrialEvents

LORA = {"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}


def test_trackers_are_told_whose_new_seed_a_trial_is_and_who_asked_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    file = tmp_path / "s.yaml"
    file.write_text(f"""
name: s
task: causal_lm
model: {{name: nobody/knows}}
data: {{train: a.txt, validation: 0.1}}
search: {{trials: 1, space: {LORA}}}
""")
    ledger, told = Ledger(str(tmp_path / "s-1")), {}
    expected = SimpleNamespace(remote=lambda trial, params: (trial, params))
    events = TrialEvents(
        load(file),
        ledger,
        coordinator=SimpleNamespace(expect=expected),
        lifetime=None,
        baseline=None,
        tracker=SimpleNamespace(trial_started=lambda trial, params: told.update({trial: params})),
        say=lambda line: None,
        failures=[],
        disk=None,
    )
    ledger.begin("t0001", LORA)
    ledger.begin("t0002", {**LORA, "seed": 8}, finalist_of="t0001")
    ledger.begin("t0003", {**LORA, "batch_size": 4}, by_hand="added by ann@desk")
    for curve in ledger.curves():
        events.started(curve.id, curve.params, resumed=False)
    assert "finalist_of" not in told["t0001"]
    assert told["t0002"] == told["t0001"] | {"seed": 8, "finalist_of": "t0001"}
    assert told["t0003"] == told["t0001"] | {"batch_size": 4, "by_hand": "added by ann@desk"}
