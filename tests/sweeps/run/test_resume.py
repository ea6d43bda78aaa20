"""A sweep that goes on: with another configuration, and with another winner. Without Ray: what is decided before it starts."""

import io

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from sweeps.config.loading import dump, from_tree
from sweeps.ledger.folder import Ledger
from sweeps.run.folder import amend, write_configuration
from sweeps.run.sweep import Sweep
from trainables.errors import InputError
from trainables.evaluation.record import MeasuredForgetting, ScoredTest
from trainables.storage.checkpoints import CHECKPOINT, EVALUATION, read_evaluation
from trainables.storage.records import from_json

SPLIT = {"rows": 4, "fingerprint": "f"}
SCORE = {"scores": {"winner": {"loss": 1.0, "metrics": {}}}, "split": SPLIT}


def configuration(*overrides, **more):
    space = {"method": "lora", "learning_rate": {"log_uniform": [1e-4, 1e-2]}, "batch_size": 2}
    tree = {
        "name": "quick",
        "task": "causal_lm",
        "model": {"name": "tiny"},
        "data": {"train": "rows.txt"},
        "search": {"space": space, "trials": 2},
        "train": {"epochs": 2},
        "tracking": {"wandb": "off"},
    }
    return from_tree(OmegaConf.create(tree | more), overrides, "sweep.yaml")


@pytest.fixture
def begun(tmp_path):
    """The folder of a sweep of two trials, which has ended."""
    ledger = Ledger(str(tmp_path / "quick"))
    write_configuration(ledger, configuration())
    splits = {
        "train": {"rows": 10},
        "validation": SPLIT,
        "test": {"raw_fingerprint": "f" * 64, "read": 4},
    }
    manifest = {"task": "causal_lm", "data": {}, "encoding": {}, "notes": [], "splits": splits}
    manifest["sources"] = {name: {"source": f"{name}.txt"} for name in splits}
    ledger.store.write_json("data/manifest.json", manifest)
    for trial, loss in (("t0001", 3.0), ("t0002", 2.0)):
        run(ledger, trial, loss)
    return ledger


def run(ledger, trial, loss):
    ledger.begin(trial, {"method": "lora", "learning_rate": loss / 1000, "batch_size": 2})
    folder = f"trials/{trial}/attempt-1/step-00000010"
    evaluation = {
        "step": 10,
        "samples_seen": 20,
        "epoch": 2.0,
        "val_loss": loss,
        "probe_loss": loss,
        "metrics": {},
    }
    evaluation |= {"trainable_parameters": 1, "folder": folder}
    ledger.store.write_bytes(f"{folder}/{CHECKPOINT}/adapter_model.safetensors", b"")
    ledger.store.write_json(f"{folder}/{EVALUATION}", evaluation)
    ledger.record(trial, read_evaluation(ledger.store, folder))
    ledger.finish(trial, "complete", None)


def measured(ledger, config):
    """What a process would still measure."""
    sweep = Sweep(config, ledger, Console(file=io.StringIO()), 0.0)
    found = sweep.jobs.left()
    sweep.close()
    return found


def test_a_better_trial_of_a_resumed_sweep_is_scored_again(begun):
    config = configuration()
    assert set(measured(begun, config)) == {"test", "forgetting"}
    for name in ("before", "after"):
        stream = io.BytesIO()
        np.save(stream, np.ones((4, 2), np.float32))
        begun.store.write_bytes(f"baselines/general/{name}.npy", stream.getvalue())
    for trial in ("t0002", "t0003"):
        stream = io.BytesIO()
        np.save(stream, np.ones((4, 2), np.float32))
        begun.store.write_bytes("baselines/test/winner.npy", stream.getvalue())
        begun.write_test(from_json(ScoredTest, SCORE, "test"), config.selection)
        begun.write_forgetting(MeasuredForgetting(before=1.0, after=1.1, kl=0.1), config.selection)
        assert measured(begun, config) == {}
        if trial == "t0002":
            run(begun, "t0003", 1.0)
            wanted = measured(begun, config)
            assert set(wanted) == {"test", "forgetting"}
            assert (
                wanted["test"].winner.checkpoint
                == "trials/t0003/attempt-1/step-00000010/checkpoint"
            )
    assert [each["trial"] for each in begun.store.read_json("test.json")["scored_before"]] == [
        "t0002"
    ]


def test_a_sweep_is_extended_and_every_configuration_is_kept(begun):
    assert amend(begun, configuration()) == []
    longer = configuration("search.trials=50", "search.time_budget=4h")
    assert amend(begun, longer) == [
        "Changed: search.trials: 2 to 50",
        "Changed: search.time_budget: null to '4h'",
    ]
    assert begun.store.find("configurations") == [
        "configurations/001.yaml",
        "configurations/002.yaml",
    ]
    assert begun.store.read_bytes("sweep.yaml").decode() == dump(longer)
    assert amend(begun, longer) == []


def test_a_sweep_yaml_that_was_edited_is_held_against_what_trials_ran_with(begun):
    edited = configuration("search.space.learning_rate={log_uniform: [1e-3, 1e-2]}")
    begun.store.write_bytes("sweep.yaml", dump(edited).encode())
    assert amend(begun, edited) == ["Changed: search.space"]
    wrong = configuration("data.rows=9")
    begun.store.write_bytes("sweep.yaml", dump(wrong).encode())
    with pytest.raises(
        InputError, match=r"^data\.rows: cannot change when a sweep is resumed \(null to 9\)"
    ):
        amend(begun, wrong)
    assert len(begun.store.find("configurations")) == 2


def test_trials_keep_what_was_fixed_when_they_were_trained(begun):
    former, now = (
        configuration(),
        configuration("train.epochs=null", "search.space.epochs={int: [1, 6]}"),
    )
    before = [former.hyperparameters(curve.params) for curve in begun.curves()]
    assert amend(begun, now) == ["Changed: search.space", "Changed: train.epochs: 2.0 to null"]
    again = Ledger(begun.store.url).load()
    assert [now.hyperparameters(curve.params) for curve in again.curves()] == before
    assert again.curves() == begun.curves() and again.curves()[0].params["epochs"] == 2
