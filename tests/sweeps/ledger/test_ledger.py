"""The sweep's folder: what is read back is what was there, and only what may still be needed is kept."""

import dataclasses
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from sweeps.cli.json_output import result_schema
from sweeps.ledger.folder import Ledger, label_prior
from sweeps.ledger.leaderboard import BaselineRow, TestScores
from sweeps.ledger.status import DEAD_AFTER_S
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.words import test_words as spoken
from sweeps.selection.config import LimitsConfig, SelectionConfig
from sweeps.selection.statistics import compare, mean_interval
from trainables.data.manifest import Manifest, SplitSummary, manifest_json
from trainables.evaluation.record import MeasuredEvaluation, MeasuredForgetting, ScoredTest
from trainables.storage.checkpoints import (
    CHECKPOINT,
    EVALUATION,
    LOSSES,
    STATE,
    begin_attempt,
    write_evaluation,
    write_rows,
)
from trainables.storage.records import from_json, to_json

ROOT = Path(__file__).resolve().parents[3]
CONFIG = SelectionConfig(overfit_rise=0.25, overfit_gap=0.5)


BOARD = Draft202012Validator(result_schema("board"))


def board_of(ledger, name, config):
    """What `best --json` prints, which is as its schema says."""
    found = to_json(leaderboard(ledger, name, config))
    assert [error.message for error in BOARD.iter_errors(found)] == []
    return found


def measured(step, val, probe, *, metrics=None, **more):
    """What a slot measures, without a slot."""
    more = {"samples_seen": 0, "epoch": 0.0, "trainable_parameters": 100, "losses": None} | more
    metrics = {"accuracy": 0.5} if metrics is None else metrics
    return MeasuredEvaluation(step=step, val_loss=val, probe_loss=probe, metrics=metrics, **more)


def scored_test(content):
    return from_json(ScoredTest, content, "test")


def write(ledger, trial, step, val, probe=None, *, attempt=1, **more):
    """An evaluation as a slot publishes it: losses, checkpoint and training state; returns evaluation.json."""

    def save(folder):
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / STATE).write_bytes(b"moments")

    more.setdefault("losses", np.array([[val, 1]] * 4, np.float32))
    made = measured(
        step, val, val if probe is None else probe, samples_seen=10 * step, epoch=step / 2, **more
    )
    return write_evaluation(ledger.store, trial, attempt, made, save)


def run(ledger, trial, *losses, ended="complete", reason=None, params=None):
    """A whole trial as a sweep runs it: every evaluation is recorded and pruned, then the trial ends (or not)."""
    ledger.begin(trial, params or {"method": "lora", "learning_rate": 1e-3})
    begin_attempt(ledger.store, trial)
    for step, loss in enumerate(losses, start=1):
        val, probe = loss if isinstance(loss, tuple) else (loss, loss)
        ledger.record(trial, write(ledger, trial, step, val, probe))
        ledger.prune(trial, CONFIG)
    if ended is not None:
        ledger.finish(trial, ended, reason)
        ledger.prune(trial, CONFIG)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "quick-20260101-120000"))


def again(ledger):
    return Ledger(ledger.store.url).load()


def on_disk(ledger, trial, what):
    """Steps of a trial whose folders have `what`."""
    folder = ledger.store.local / "trials" / trial
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.rglob(what))


# --- reading back ---


def test_what_is_read_back_is_what_was_there(ledger):
    run(ledger, "t0001", 3.0, 2.0, 1.0)
    run(ledger, "t0002", 3.0, (2.0, 1.9), (2.9, 1.5), ended="pruned", reason="overfit: so it is")
    run(ledger, "t0003", 3.0, math.nan, ended="failed", reason="out of memory")
    run(ledger, "t0004", 3.0, 2.0, ended=None)
    run(
        ledger,
        "t0005",
        ended=None,
        params={"method": "full", "targets": ["q_proj", "v_proj"], "epochs": 3},
    )
    read = again(ledger)
    assert read.curves() == ledger.curves()
    assert read.unfinished() == ledger.unfinished() == ["t0004", "t0005"]
    assert [curve.status for curve in read.curves()] == [
        "complete",
        "pruned",
        "failed",
        "running",
        "running",
    ]
    assert read.curve("t0003").points[1].val_loss is None
    assert read.curve("t0002").reason == "overfit: so it is"
    assert read.name == "quick-20260101-120000"


def test_the_same_holds_on_a_file_system_that_is_no_folder():
    ledger = Ledger("memory://bucket/quick")
    run(ledger, "t0001", 3.0, 2.0, 2.5)
    run(ledger, "t0002", 3.0, ended=None)
    assert again(ledger).curves() == ledger.curves()
    assert (
        ledger.curve("t0001").points[1].checkpoint.startswith("memory://bucket/quick/trials/t0001/")
    )


def test_an_evaluation_counts_once(ledger):
    ledger.begin("t0001", {})
    record = write(ledger, "t0001", 1, 2.0)
    assert ledger.record("t0001", record)
    assert not ledger.record("t0001", record)
    assert len(ledger.curve("t0001").points) == 1


def test_a_trial_that_went_on_from_an_earlier_step_reads_without_what_became_void(ledger):
    ledger.begin("t0001", {})
    begin_attempt(ledger.store, "t0001")
    for step in (1, 2):
        ledger.record("t0001", write(ledger, "t0001", step, 3.0 - step))
    assert begin_attempt(ledger.store, "t0001") == (2, "trials/t0001/attempt-1/step-00000002")
    write(ledger, "t0001", 3, 0.9, attempt=1)  # the cut-off host goes on writing
    write(ledger, "t0001", 3, 0.8, attempt=2)
    points = again(ledger).curve("t0001").points
    assert [(point.step, point.val_loss) for point in points] == [(1, 2.0), (2, 1.0), (3, 0.8)]


def test_half_written_things_are_not_read(ledger):
    run(ledger, "t0001", 2.0, ended=None)
    trials = ledger.store.local / "trials"
    (trials / "t0002" / "attempt-1").mkdir(parents=True)  # no trial.json: it was never begun
    (trials / "t0002" / "attempt-1" / "attempt.json").write_text('{"from": null}')
    half = trials / "t0001" / "attempt-1" / "step-00000002"
    half.mkdir()
    (half / LOSSES).write_bytes(b"")  # no evaluation.json
    (ledger.store.local / ".partial-x").mkdir()
    assert again(ledger).curves() == ledger.curves()


def test_what_is_measured_beside_the_loss_is_read_back(ledger):
    ledger.begin("t0001", {})
    slices = {"de": {"rows": 3, "loss": 1.5, "accuracy": 0.25}, "": {"rows": 1, "loss": math.nan}}
    more = {"forgetting": 0.125, "kl": -0.5, "inference_cost": 1.25, "slices": slices}
    ledger.record("t0001", write(ledger, "t0001", 1, 2.0, **more))
    read = again(ledger)
    assert read.curves() == ledger.curves()
    (point,) = read.curve("t0001").points
    assert (point.forgetting, point.kl, point.inference_cost) == (0.125, -0.5, 1.25)
    assert point.slices == {"de": slices["de"], "": {"rows": 1, "loss": None}}


NEW_KEYS = ("slices", "forgetting", "kl", "inference_cost")


def test_a_folder_of_before_they_were_measured_is_still_read(ledger):
    run(ledger, "t0001", 3.0, 1.0)
    for file in ledger.store.local.rglob(EVALUATION):
        kept = {
            key: value for key, value in json.loads(file.read_text()).items() if key not in NEW_KEYS
        }
        file.write_text(json.dumps(kept))
    read = again(ledger)
    assert read.curves() == ledger.curves()
    board = board_of(read, "quick", dataclasses.replace(CONFIG, pareto="inference_cost"))
    assert {key: board["winner"][key] for key in NEW_KEYS} == (
        {"slices": {}, "forgetting": None, "kl": None, "inference_cost": 1.0}
    )
    assert board["pareto"]["front"][0]["inference_cost"] == 1.0
    limits = dataclasses.replace(CONFIG, limits=LimitsConfig(kl=1.0))
    assert board_of(read, "quick", limits)["trials"][0]["evaluations"][0]["excluded"] == (
        "its KL was not measured, and has a limit of 1"
    )


def test_per_example_losses(ledger):
    losses = np.arange(6, dtype=np.float32).reshape(3, 2)
    record = write(ledger, "t0001", 1, 2.0, losses=losses)
    np.testing.assert_array_equal(ledger.losses(record.folder), losses)
    assert ledger.losses("trials/t0001/attempt-9/step-00000001") is None


# --- what is kept ---


def test_a_running_trial_keeps_its_best_and_its_last_checkpoint(ledger):
    run(ledger, "t0001", 3.0, 1.0, 1.1, 1.2, ended=None)
    assert on_disk(ledger, "t0001", CHECKPOINT) == [2, 4]
    assert on_disk(ledger, "t0001", STATE) == [4]  # only the last is trained on
    assert [point.checkpoint is not None for point in ledger.curve("t0001").points] == [
        False,
        True,
        False,
        True,
    ]


def test_an_ended_trial_keeps_its_best_checkpoint_alone(ledger):
    run(ledger, "t0001", 3.0, 1.0, 1.1)
    assert on_disk(ledger, "t0001", CHECKPOINT) == [2]
    assert on_disk(ledger, "t0001", STATE) == []
    assert on_disk(ledger, "t0001", EVALUATION) == on_disk(ledger, "t0001", LOSSES) == [1, 2, 3]


def test_the_best_is_the_best_that_may_win(ledger):
    """The last is overfit: the one kept is that of the lowest loss before it."""
    run(ledger, "t0001", (3.0, 2.9), (2.0, 1.9), (2.6, 0.1), (2.7, 0.05))
    assert on_disk(ledger, "t0001", CHECKPOINT) == [2]
    winner = board_of(ledger, "quick", CONFIG)["winner"]
    assert (winner["step"], winner["val_loss"]) == (2, 2.0)
    assert Path(winner["checkpoint"]).is_dir()


def test_the_best_is_the_best_within_the_limits(ledger):
    """The lowest losses are those of checkpoints that forget too much; also while the trial runs, and after a kill."""
    limits = dataclasses.replace(CONFIG, limits=LimitsConfig(forgetting=0.5))
    ledger.begin("t0001", {"method": "lora"})
    begin_attempt(ledger.store, "t0001")
    for step, (loss, forgetting) in enumerate(
        [(3.0, 0.1), (2.0, 0.5), (1.5, 0.6), (1.0, None)], start=1
    ):
        ledger.record("t0001", write(ledger, "t0001", step, loss, forgetting=forgetting))
        ledger.prune("t0001", limits)
    assert on_disk(ledger, "t0001", CHECKPOINT) == [2, 4]  # the last is what it goes on from
    ledger.finish("t0001", "complete", None)
    ledger.prune("t0001", limits)
    assert on_disk(ledger, "t0001", CHECKPOINT) == [2]
    winner = board_of(again(ledger), "quick", limits)["winner"]
    assert (winner["step"], winner["val_loss"], winner["forgetting"]) == (2, 2.0, 0.5)
    assert Path(winner["checkpoint"]).is_dir()


def test_where_nothing_keeps_to_the_limits_no_checkpoint_is_kept(ledger):
    limits = dataclasses.replace(CONFIG, limits=LimitsConfig(kl=0.5))
    ledger.begin("t0001", {"method": "lora"})
    for step, kl in ((1, 0.6), (2, None)):
        ledger.record("t0001", write(ledger, "t0001", step, 2.0, kl=kl))
    ledger.finish("t0001", "complete", None)
    ledger.prune("t0001", limits)
    assert on_disk(ledger, "t0001", CHECKPOINT) == []
    board = board_of(ledger, "quick", limits)
    assert board["winner"] is None
    assert board["reason"] == (
        "Nothing may win: of 1 trial, 1 beyond a limit wherever not overfit (t0001). Of those, 2.0000 is out because "
        "its predictions on the task's prompts are from the base's by a KL of 0.6000 nats (limit 0.5)."
    )
    assert [e["excluded"] for e in board["trials"][0]["evaluations"]] == [
        "its predictions on the task's prompts are from the base's by a KL of 0.6000 nats (limit 0.5)",
        "its KL was not measured, and has a limit of 0.5",
    ]


def test_where_nothing_may_win_nothing_is_kept_but_what_a_running_trial_goes_on_from(ledger):
    run(ledger, "t0001", (3.0, math.nan), math.nan, ended=None)
    assert on_disk(ledger, "t0001", CHECKPOINT) == on_disk(ledger, "t0001", STATE) == [2]
    run(ledger, "t0002", (3.0, math.nan), math.nan)
    assert on_disk(ledger, "t0002", CHECKPOINT) == []


def test_what_a_kill_left_unpruned_is_pruned_later(ledger):
    ledger.begin("t0001", {})
    begin_attempt(ledger.store, "t0001")
    for step, loss in enumerate([3.0, 2.0, 1.0, 1.5], start=1):
        write(ledger, "t0001", step, loss)
    read = again(ledger)
    assert on_disk(read, "t0001", CHECKPOINT) == [1, 2, 3, 4]
    read.prune("t0001", CONFIG)
    assert on_disk(read, "t0001", CHECKPOINT) == [3, 4]
    assert read.curves() == again(ledger).curves()


# --- the sweep's status ---


def rewrite_status(ledger, **changes):
    file = ledger.store.local / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_sweep_that_never_began_is_interrupted(ledger):
    assert ledger.status() == ("interrupted", 0.0)


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed", "running"])
def test_the_status_that_a_living_process_wrote(ledger, status):
    ledger.set_status(status, 12.5)
    assert ledger.status() == (status, 12.5)
    assert json.loads((ledger.store.local / "status.json").read_text())["pid"] == os.getpid()


def test_a_sweep_whose_process_is_gone_is_interrupted(ledger):
    ledger.set_status("running", 12.5)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # ended, and still listed: a zombie
        rewrite_status(ledger, pid=process.pid)
        assert ledger.status() == ("interrupted", 12.5)
    assert ledger.status() == ("interrupted", 12.5)  # waited for, so it is gone
    rewrite_status(ledger, status="finished")
    assert ledger.status() == ("finished", 12.5)


def test_a_sweep_that_is_ending_runs_while_its_process_does_and_is_interrupted_for_other_machines(
    ledger,
):
    """Its process may be killed at once, and nobody may then have to wait for a heartbeat that has stopped."""
    ledger.set_status("interrupted", 12.5, ending=True)
    assert ledger.status() == ("running", 12.5)
    rewrite_status(ledger, host="another")
    assert ledger.status() == ("interrupted", 12.5)
    ledger.set_status("interrupted", 12.5, ending=True)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        rewrite_status(ledger, pid=process.pid)
        assert ledger.status() == ("interrupted", 12.5)
    ledger.set_status("interrupted", 12.5)  # it has come to its end
    assert ledger.status() == ("interrupted", 12.5)


def test_a_sweep_whose_process_number_was_given_to_another_is_interrupted(ledger):
    """In a container the next process often has the same number, and the host the same name."""
    ledger.set_status("running", 12.5)
    rewrite_status(ledger, began="1")
    assert ledger.status() == ("interrupted", 12.5)


def test_a_sweep_of_another_machine_runs_as_long_as_its_heart_beats(ledger):
    ledger.set_status("running", 12.5)
    rewrite_status(ledger, host=f"not-{socket.gethostname()}", pid=1)
    assert ledger.status()[0] == "running"
    rewrite_status(ledger, time=time.time() - DEAD_AFTER_S - 1)
    assert ledger.status()[0] == "interrupted"


# --- not fine-tuning ---


def manifest(train, validation):
    counts = {"train": train, "validation": validation}
    return Manifest(
        task="classification",
        splits={name: SplitSummary(label_counts=of) for name, of in counts.items()},
    )


def test_the_label_prior():
    prior = label_prior(manifest({"good": 75, "bad": 25}, {"good": 2, "bad": 2}))
    assert prior.label == "good"
    assert prior.metrics == {"accuracy": 0.5}
    assert prior.val_loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    even = label_prior(manifest({"a": 10, "b": 10}, {"a": 7}))
    assert even.val_loss == pytest.approx(math.log(2))
    assert label_prior(manifest(None, None)) is None


def test_baselines(ledger):
    assert ledger.baselines() == {}
    assert ledger.reference().best() is None
    ledger.store.write_json("baseline.json", {"error": "it does not fit"})
    assert ledger.baselines() == {}
    untuned = {"val_loss": 0.7, "probe_loss": 0.6, "metrics": {"accuracy": 0.4}}
    ledger.store.write_json("baseline.json", untuned)
    ledger.store.write_json(
        "data/manifest.json",
        manifest_json(manifest({"a": 9, "b": 1}, {"a": 9, "b": 1})),
    )
    assert list(ledger.baselines()) == ["untuned", "prior"]
    assert ledger.baselines()["untuned"] == BaselineRow(**untuned, words="the untuned model")
    reference = ledger.reference()
    assert (reference.val_loss, reference.probe_loss) == (0.7, 0.6)
    assert reference.best() == reference.prior_loss == pytest.approx(0.3251, abs=1e-4)


# --- the board ---

EVALUATION_KEYS = {
    "step",
    "samples_seen",
    "epoch",
    "val_loss",
    "probe_loss",
    "train_loss",
    "metrics",
    "slices",
    "forgetting",
    "kl",
    "inference_cost",
    "trainable_parameters",
    "checkpoint_bytes",
    "checkpoint",
    "folder",
}


def test_the_board_has_the_documented_keys_and_is_strict_json(ledger):
    run(ledger, "t0001", 3.0, 1.0, params={"method": "lora", "targets": ["q_proj"], "rank": 8})
    run(ledger, "t0002", (2.0, 2.0), (3.0, 1.0), math.nan, ended="pruned", reason="diverged: nan")
    run(ledger, "t0003", ended="failed", reason="out of memory")
    ledger.store.write_json("baseline.json", {"val_loss": 2.0, "probe_loss": 2.0, "metrics": {}})
    ledger.set_status("finished", 1.0)
    text = json.dumps(board_of(again(ledger), "quick", CONFIG), allow_nan=False)
    board = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    measured = {
        "baselines",
        "test",
        "cost",
        "forgetting",
        "earlier_forgetting",
        "harness",
        "lineage",
        "steered",
        "slices",
        "tokens_per_request",
        "worth",
        "metrics",
    }
    measured.add("not_measured")
    assert set(board) == {
        "sweep",
        "folder",
        "status",
        "metric",
        "metric_mode",
        "winner",
        "winner_folder",
        "trials",
        "finalists",
        "pareto",
        *measured,
    }
    assert (board["sweep"], board["status"], board["metric"]) == ("quick", "finished", "val_loss")
    assert board["folder"] == str(ledger.store.local)
    assert set(board["winner"]) == {
        "trial",
        "params",
        "reason",
        "tied",
        "expected",
        *EVALUATION_KEYS,
    }
    assert board["winner"]["trial"] == "t0001"
    assert board["winner"]["params"] == {"method": "lora", "targets": ["q_proj"], "rank": 8}
    trial_keys = {
        "id",
        "status",
        "status_reason",
        "verdict",
        "verdict_reason",
        "params",
        "evaluations",
    }
    trial_keys |= {"default", "finalist_of", "difference", "rank", "verdict_later"}
    assert all(set(trial) == trial_keys for trial in board["trials"])
    evaluations = [evaluation for trial in board["trials"] for evaluation in trial["evaluations"]]
    assert all(set(evaluation) == {*EVALUATION_KEYS, "excluded"} for evaluation in evaluations)
    assert [
        (t["status"], t["verdict"], t["verdict_later"], t["rank"]) for t in board["trials"]
    ] == [
        ("complete", "still improving", None, 1),
        (
            "pruned",
            "underfit",
            "diverged",
            2,
        ),  # the checkpoint that stands for it is no better than the untuned model
        ("failed", "failed", None, None),
    ]
    second = board["trials"][1]
    assert [e["val_loss"] for e in second["evaluations"]] == [2.0, 3.0, None]
    assert second["evaluations"][1]["excluded"].startswith(
        "validation loss rose 50.0% above its minimum"
    )
    assert [e["checkpoint"] is None for e in second["evaluations"]] == [False, True, True]
    assert second["evaluations"][0]["excluded"] is second["evaluations"][2]["excluded"] is None


def test_whether_it_was_worth_it_waits_for_the_baselines(ledger):
    run(ledger, "t0001", 3.0, 1.0)
    ledger.store.write_json("baseline.json", {"val_loss": 2.0, "probe_loss": 2.0, "metrics": {}})
    ledger.set_status("running", 1.0)
    assert board_of(ledger, "quick", CONFIG)["worth"] is None
    assert (
        board_of(ledger, "quick", dataclasses.replace(CONFIG, baselines=False))["worth"] is not None
    )
    ledger.store.write_json("baselines.json", {})
    assert board_of(ledger, "quick", CONFIG)["worth"] is not None


def test_without_a_winner_the_board_says_why(ledger):
    board = board_of(ledger, "quick", CONFIG)
    assert board["winner"] is None
    assert board["reason"] == "Nothing may win: no trial has started."
    assert board["status"] == "interrupted"
    assert board["trials"] == []


def test_the_board_names_the_tied(ledger):
    losses = np.stack([np.linspace(0, 2, 50), np.ones(50)], 1)
    for trial, shift in (("t0001", 0.0), ("t0002", 0.01)):
        ledger.begin(trial, {})
        moved = (
            losses
            + np.array([shift, 0])
            + (0.2 * np.sin(np.arange(50))[:, None] if shift else 0) * np.array([1, 0])
        )
        cost = 1.0 if shift else 1.25
        made = write(ledger, trial, 1, float(moved[:, 0].mean()), losses=moved, inference_cost=cost)
        ledger.record(trial, made)
        ledger.finish(trial, "complete", None)
    board = board_of(ledger, "quick", CONFIG)
    assert (board["winner"]["trial"], board["winner"]["tied"]) == ("t0001", ["t0002"])
    assert "of these t0002 costs less in use (1.000 against 1.250" in board["winner"]["reason"]
    assert [(trial["id"], trial["rank"]) for trial in board["trials"]] == [
        ("t0001", 1),
        ("t0002", 2),
    ]
    board = board_of(ledger, "quick", dataclasses.replace(CONFIG, prefer="cheapest"))
    assert (board["winner"]["trial"], board["winner"]["tied"]) == ("t0002", ["t0001"])
    assert board["winner"]["reason"].startswith("t0002 is tied with t0001")
    assert [(trial["id"], trial["rank"]) for trial in board["trials"]] == [
        ("t0002", 1),
        ("t0001", 2),
    ]


def test_the_board_says_what_to_expect_where_the_winner_ran_again(ledger):
    run(ledger, "t0001", 1.0)
    for trial, loss in (("t0002", 1.1), ("t0003", 1.3), ("t0004", 1.15)):
        run(ledger, trial, loss)
        begun = ledger.store.local / f"trials/{trial}/trial.json"
        begun.write_text(json.dumps(json.loads(begun.read_text()) | {"finalist_of": "t0001"}))
    board = json.loads(json.dumps(board_of(again(ledger), "quick", CONFIG), allow_nan=False))
    assert (board["winner"]["trial"], board["winner"]["val_loss"]) == ("t0004", pytest.approx(1.15))
    assert board["winner"]["expected"] == board["finalists"][0]
    assert (
        board["finalists"][0]["mean"] == pytest.approx(3.55 / 3)
        and board["finalists"][0]["failed"] == []
    )
    assert [trial["id"] for trial in board["trials"]] == ["t0004", "t0001", "t0002", "t0003"]


def rows_of(mean, seed=0, rows=200):
    """Losses of rows [rows, 2] whose mean is `mean`, one target each."""
    noise = np.random.default_rng(seed).normal(0, 0.3, rows)
    return np.stack([mean + noise - noise.mean(), np.ones(rows)], 1).astype(np.float32)


def put(ledger, name, array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    ledger.store.write_bytes(name, buffer.getvalue())


def test_baselines_stand_with_their_difference_to_the_lowest_loss(ledger):
    """The winner is tied with the lowest and cheaper: what is compared with is the lowest, as for the trials."""
    losses = {"t0001": rows_of(1.0, seed=1), "t0002": rows_of(1.001, seed=2)}
    for trial, cost in (("t0001", 1.5), ("t0002", 1.0)):
        ledger.begin(trial, {})
        loss = float(losses[trial][:, 0].mean())
        ledger.record(
            trial, write(ledger, trial, 1, loss, losses=losses[trial], inference_cost=cost)
        )
        ledger.finish(trial, "complete", None)
    ways = {
        name: {"val_loss": loss, "metrics": {}, "words": f"the {name} way", "seconds": 1.5}
        for name, loss in (("few_shot", 1.4), ("other_rows", 1.3), ("without_losses", 1.2))
    }
    ledger.store.write_json(
        "baselines.json", ways | {"broken": {"error": "out of memory", "words": "it"}}
    )
    put(ledger, "baselines/validation/few_shot.npy", rows_of(1.4, seed=3))
    put(ledger, "baselines/validation/other_rows.npy", rows_of(1.3, seed=3, rows=150))
    cheapest = dataclasses.replace(CONFIG, prefer="cheapest")
    board = json.loads(json.dumps(board_of(ledger, "quick", cheapest), allow_nan=False))
    assert board["winner"]["trial"] == "t0002"
    assert set(board["baselines"]) == set(ways)
    found = board["baselines"]["few_shot"]["difference"]
    assert found == dataclasses.asdict(compare(losses["t0001"], rows_of(1.4, seed=3)))
    assert (
        found["mean"] == pytest.approx(0.4, abs=1e-5)
        and found["low"] < 0.4 < found["high"]
        and not found["tied"]
    )
    assert board["baselines"]["other_rows"]["difference"] is None
    assert board["baselines"]["without_losses"]["difference"] is None
    assert board["baselines"]["few_shot"]["seconds"] == 1.5


def answers(right, rows=200, classes=2):
    """Predicted and true class of rows: `right` of them are answered rightly, the others with the next class."""
    true = np.arange(rows) % classes
    return np.stack(
        [np.where(np.arange(rows) < right, true, (true + 1) % classes), true], 1
    ).astype(np.int32)


def classified(ledger):
    """A sweep of two trials, the default and the winner, with baselines and a scored test, as slots leave it."""
    counts = {"rows": 200, "tokens": 2000, "label_counts": {"a": 100, "b": 100}}
    splits = {
        "train": counts,
        "validation": counts,
        "test": {**counts, "raw_fingerprint": "f" * 64},
    }
    ledger.store.write_json(
        "data/manifest.json",
        {"task": "classification", "labels": ["a", "b"], "data": {}, "splits": splits},
    )
    for trial, loss, right in (("t0001", 0.6, 150), ("t0002", 0.5, 140)):
        ledger.begin(trial, {"method": "lora"}, default=trial == "t0001")
        more = {
            "losses": rows_of(loss),
            "outcomes": answers(right),
            "metrics": {"accuracy": right / 200},
        }
        ledger.record(trial, write(ledger, trial, 1, loss, **more))
        ledger.finish(trial, "complete", None)
    way = {"metrics": {"accuracy": 0.9}, "words": "logistic regression"}
    nothing = {"error": "no example fits", "words": "prompt with 4 examples"}
    ledger.store.write_json(
        "baselines.json", {"logistic": {**way, "val_loss": 0.7}, "few_shot": nothing}
    )
    scores = {"winner": 0.55, "default": 0.65, "logistic": 0.75}
    for split, found in (("validation", {"logistic": 0.7}), ("test", scores)):
        for name, loss in found.items():
            write_rows(
                ledger.store,
                f"baselines/{split}/{name}",
                rows_of(loss),
                answers(180 if name == "logistic" else 140),
            )
    scored = {
        name: {
            "loss": loss,
            "metrics": {},
            **({"words": way["words"]} if name == "logistic" else {}),
        }
        for name, loss in scores.items()
    }
    ledger.write_test(
        scored_test({"split": counts, "scores": {**scored, "few_shot": nothing}}), CONFIG
    )


def test_the_board_has_the_metrics_of_all_that_is_compared(ledger):
    classified(ledger)
    board = json.loads(json.dumps(board_of(again(ledger), "quick", CONFIG), allow_nan=False))
    found = {each["name"]: each for each in board["metrics"]["alternatives"]}
    assert list(found) == ["winner", "default", "prior", "logistic"]
    accuracies = [
        [found[name][split]["metrics"]["accuracy"] for name in found]
        for split in ("validation", "test")
    ]
    assert accuracies == [[0.7, 0.75, 0.5, 0.9], [0.7, 0.7, 0.5, 0.9]]
    assert found["default"]["words"] == "the default configuration, t0001"
    by_class = board["metrics"]["classes"]["test"]
    assert by_class["confusion"] == [[70, 30], [30, 70]] and [
        each["recall"] for each in by_class["classes"]
    ] == [
        0.7,
        0.7,
    ]
    assert (
        "But by accuracy logistic regression is better: 0.900 against 0.700 (95% interval +0."
        in board["worth"]["words"]
    )
    left_out = {"words": "prompt with 4 examples", "error": "no example fits"}
    assert board["not_measured"] == [
        {"split": split, **left_out} for split in ("validation", "test")
    ]
    assert "few_shot" not in board["baselines"]


def test_groups_of_rows_make_the_intervals_of_metrics_wider(ledger):
    def width(made):
        (found,) = [
            each
            for each in made["metrics"]["compared"]["test"]
            if (each["name"], each["metric"]) == ("logistic", "accuracy")
        ]
        return found["high"] - found["low"]

    classified(ledger)
    alone = width(board_of(again(ledger), "quick", CONFIG))
    put(ledger, "data/test.groups.npy", np.arange(200) // 40)
    assert width(board_of(again(ledger), "quick", CONFIG)) > 2 * alone


def test_without_a_winner_baselines_have_no_difference(ledger):
    ledger.store.write_json(
        "baselines.json", {"few_shot": {"val_loss": 1.4, "metrics": {}, "words": "so"}}
    )
    put(ledger, "baselines/validation/few_shot.npy", rows_of(1.4))
    assert board_of(ledger, "quick", CONFIG)["baselines"]["few_shot"]["difference"] is None


def sliced(ledger, *, test=False):
    """A sweep whose winner was measured by language, as a slot leaves it."""
    values, of_rows = ["de", "en", "fr"], np.repeat([0, 1, 2], [60, 80, 60])
    counts = {"rows": 200, "tokens": 2000}
    splits = {"train": {"rows": 900}, "validation": counts}
    if test:
        splits["test"] = {"raw_fingerprint": "f" * 64, "read": 200}
    ledger.store.write_json(
        "data/manifest.json",
        {
            "task": "classification",
            "data": {"slice": "language"},
            "encoding": {"slices": values},
            "splits": splits,
        },
    )

    def by_slice(losses):
        found = {}
        for i, value in enumerate(values):
            of = losses[of_rows == i]
            found[value] = {
                "rows": len(of),
                "loss": float(of[:, 0].mean()),
                "accuracy": 0.25 * (i + 1),
            }
        return found

    level = np.array([0.5, 2.0, 1.0])[of_rows][:, None] * [1, 0]
    losses = (rows_of(0.0, seed=5) + level).astype(np.float32)
    put(ledger, "data/validation.slices.npy", of_rows)
    ledger.begin("t0001", {"method": "lora"})
    begin_attempt(ledger.store, "t0001")
    ledger.record(
        "t0001", write(ledger, "t0001", 1, 3.0, losses=losses + 1, slices=by_slice(losses + [1, 0]))
    )
    mean = float(losses[:, 0].mean())
    ledger.record("t0001", write(ledger, "t0001", 2, mean, losses=losses, slices=by_slice(losses)))
    ledger.finish("t0001", "complete", None)
    if test:
        of_test = losses[::-1] + np.array([0.5, 0], np.float32)
        put(ledger, "data/test.slices.npy", of_rows)
        put(ledger, "baselines/test/winner.npy", of_test)
        score = {"loss": float(of_test[:, 0].mean()), "metrics": {}, "slices": by_slice(of_test)}
        score["slices"]["en"]["loss"] = None  # it was not finite
        ledger.write_test(scored_test({"split": counts, "scores": {"winner": score}}), CONFIG)
        return losses, of_test, of_rows
    return losses, None, of_rows


def test_the_board_has_the_winner_by_slice_with_intervals_and_the_worst_first(ledger):
    losses, _, of_rows = sliced(ledger)
    board = json.loads(json.dumps(board_of(again(ledger), "quick", CONFIG), allow_nan=False))
    found = board["slices"]
    assert set(found) == {"column", "validation"} and found["column"] == "language"
    assert [(each["value"], each["rows"], each["accuracy"]) for each in found["validation"]] == [
        ("en", 80, 0.5),
        ("fr", 60, 0.75),
        ("de", 60, 0.25),
    ]
    for each in found["validation"]:
        own = losses[of_rows == ["de", "en", "fr"].index(each["value"])]
        assert each["loss"] == pytest.approx(own[:, 0].mean(), rel=1e-6)
        assert (each["low"], each["high"]) == mean_interval(own)
        assert each["low"] < each["loss"] < each["high"]
    assert board["winner"]["slices"]["de"]["loss"] == found["validation"][-1]["loss"]


def test_slices_of_the_test_split_stand_beside_and_one_without_a_loss_comes_first(ledger):
    _, losses, of_rows = sliced(ledger, test=True)
    board = json.loads(json.dumps(board_of(again(ledger), "quick", CONFIG), allow_nan=False))
    assert [each["value"] for each in board["slices"]["validation"]] == ["en", "fr", "de"]
    found = {each["value"]: each for each in board["slices"]["test"]}
    assert list(found)[0] == "en" and found["en"]["loss"] is None
    assert found["de"]["loss"] != found["fr"]["loss"] and list(found)[1] == max(
        ("de", "fr"), key=lambda value: found[value]["loss"]
    )
    for value in ("de", "fr"):
        own = losses[of_rows == ["de", "en", "fr"].index(value)]
        assert (found[value]["low"], found[value]["high"]) == mean_interval(own)


def test_slices_without_the_rows_of_each_have_no_intervals(ledger):
    sliced(ledger)
    (ledger.store.local / "data" / "validation.slices.npy").unlink()
    found = board_of(again(ledger), "quick", CONFIG)["slices"]["validation"]
    assert [(each["value"], each["low"], each["high"]) for each in found] == [
        ("en", None, None),
        ("fr", None, None),
        ("de", None, None),
    ]


def test_without_a_column_or_a_winner_there_are_no_slices(ledger):
    sliced(ledger)
    manifest = ledger.store.read_json("data/manifest.json")
    beyond = dataclasses.replace(CONFIG, limits=LimitsConfig(slice_loss=0.5))
    assert board_of(ledger, "quick", beyond)["slices"] is None
    ledger.store.write_json("data/manifest.json", manifest | {"data": {"slice": None}})
    assert board_of(ledger, "quick", CONFIG)["slices"] is None


def test_where_the_slices_of_rows_were_not_measured_there_are_none(ledger):
    """A folder of before: it names the column, and knows of no slice."""
    run(ledger, "t0001", 3.0, 1.0)
    splits = {"train": {"rows": 9}, "validation": {"rows": 4, "tokens": 40}}
    manifest = {
        "task": "classification",
        "data": {"slice": "language"},
        "encoding": {},
        "splits": splits,
    }
    ledger.store.write_json("data/manifest.json", manifest)
    assert board_of(again(ledger), "quick", CONFIG)["slices"] is None


@pytest.mark.parametrize(
    ("cost", "front"),
    [("trainable_parameters", ["t0002", "t0001"]), ("inference_cost", ["t0002"]), (None, None)],
)
def test_the_board_has_the_pareto_front(ledger, cost, front):
    for trial, loss, size, times in (
        ("t0001", 1.5, 10, 1.5),
        ("t0002", 1.0, 100, 1.25),
        ("t0003", 2.0, 50, 1.5),
    ):
        ledger.begin(trial, {})
        made = write(ledger, trial, 1, loss, trainable_parameters=size, inference_cost=times)
        ledger.record(trial, made)
        ledger.finish(trial, "complete", None)
    found = board_of(ledger, "quick", dataclasses.replace(CONFIG, pareto=cost))["pareto"]
    if cost is None:
        assert found is None
        return
    assert found["cost"] == cost
    assert [point["trial"] for point in found["front"]] == front
    assert set(found["front"][0]) == {"trial", *EVALUATION_KEYS}
    assert (found["front"][0]["trainable_parameters"], found["front"][0]["inference_cost"]) == (
        100,
        1.25,
    )


# --- rows that belong together ---


def grouped(ledger, groups, *losses):
    """Trials with these losses of rows [N], and which rows belong together [N]."""
    for number, of_rows in enumerate(losses, start=1):
        trial = f"t{number:04d}"
        ledger.begin(trial, {})
        both = np.stack([of_rows, np.ones(len(of_rows))], 1)
        ledger.record(trial, write(ledger, trial, 1, float(of_rows.mean()), losses=both))
        ledger.finish(trial, "complete", None)
    if groups is not None:
        put(ledger, "data/validation.groups.npy", groups)
    return {
        trial["id"]: trial["difference"]
        for trial in board_of(Ledger(ledger.store.url).load(), "quick", CONFIG)["trials"]
    }


def test_rows_of_one_group_count_as_one_observation(ledger, tmp_path):
    """Twenty rows of a group that are all alike say no more than one of them."""
    rng = np.random.default_rng(0)
    once = 1.0 + rng.normal(0, 0.3, (2, 40)) + [[0.0], [0.1]]
    alone = grouped(Ledger(str(tmp_path / "alone")), None, *once)["t0002"]
    of_groups = grouped(ledger, np.repeat(np.arange(40), 20), *np.repeat(once, 20, axis=1))["t0002"]
    assert of_groups == pytest.approx(alone, rel=1e-5)
    blind = grouped(Ledger(str(tmp_path / "blind")), None, *np.repeat(once, 20, axis=1))["t0002"]
    assert blind["standard_error"] < 0.3 * of_groups["standard_error"]


def test_too_few_groups_have_no_interval_and_no_tie_and_that_is_said(ledger):
    rows = 1.0 + np.random.default_rng(0).normal(0, 0.3, (2, 90)) + [[0.0], [0.1]]
    found = grouped(ledger, np.repeat(np.arange(9), 10), *rows)["t0002"]
    assert (
        found["mean"] == pytest.approx(rows[1].mean() - rows[0].mean(), rel=1e-5)
        and not found["tied"]
    )
    assert found["standard_error"] is found["low"] is found["high"] is None
    ledger.store.write_json(
        "baselines.json", {"few_shot": {"val_loss": 1.4, "metrics": {}, "words": "a prompt"}}
    )
    put(ledger, "baselines/validation/few_shot.npy", np.stack([rows[0] + 0.4, np.ones(90)], 1))
    board = json.loads(json.dumps(board_of(ledger, "quick", CONFIG), allow_nan=False))
    assert (
        "whether beyond noise cannot be told from fewer than 10 groups of rows"
        in board["winner"]["reason"]
    )
    assert board["worth"]["verdict"] == "unknown" and board["worth"]["interval"] is None
    assert (
        "cannot be told from noise, as validation has fewer than 10 groups of rows"
        in board["worth"]["words"]
    )


# --- `best`, of a folder that was carried elsewhere ---

SWEEP = """\
name: quick
model: {name: tiny}
task: classification
data: {train: rows.csv, slice: language}
search: {space: {method: lora, learning_rate: {log_uniform: [1e-5, 1e-2]}, batch_size: 8, epochs: 2}}
selection: {pareto: inference_cost, limits: {slice_accuracy: 0.1}}
"""


def test_best_needs_neither_ray_nor_torch_and_says_the_same_wherever_the_folder_lies(
    ledger, tmp_path
):
    sliced(ledger, test=True)
    classes = {"labels": ["a", "b"]}
    ledger.store.write_json(
        "data/manifest.json", {**ledger.store.read_json("data/manifest.json"), **classes}
    )
    write_rows(
        ledger.store, "baselines/test/winner", ledger.losses("baselines/test/winner"), answers(140)
    )
    ledger.store.write_bytes("sweep.yaml", SWEEP.encode())
    ledger.store.write_json(
        "baselines.json", {"few_shot": {"val_loss": 1.4, "metrics": {}, "words": "a prompt"}}
    )
    ledger.set_status("finished", 1.0)
    copied = tmp_path / "elsewhere" / "under-another-name"
    shutil.copytree(ledger.store.local, copied)
    code = "\n".join(
        [
            "import sys",
            "from sweeps.cli.app import app",
            "heavy = {'ray', 'torch', 'transformers', 'peft', 'datasets', 'optuna', 'wandb'}",
            "app(sys.argv[1:], standalone_mode=False)",
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)",
        ]
    )

    def best(folder, *options):
        command = [sys.executable, "-c", code, "best", str(folder), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr.strip()) == (0, "[]")
        return done.stdout

    words = best(ledger.store.local)
    assert (
        "Winner: t0001, step 2 (epoch 1): lora" in words
        and "Slices: test loss by language: en - (" in words
    )
    assert "Pareto front of validation loss and inference cost:" in words
    assert "The winner's answers on test, by class:" in words and "b 70, a 30" in words
    assert best(copied) == words
    here, there = (json.loads(best(folder, "--json")) for folder in (ledger.store.local, copied))
    assert there["folder"] == str(copied) != here["folder"]
    assert there["winner"]["checkpoint"] == here["winner"]["checkpoint"].replace(
        here["folder"], there["folder"]
    )
    assert json.dumps(there) == json.dumps(here).replace(here["folder"], there["folder"])


def test_a_moved_folder_still_names_its_checkpoints(ledger, tmp_path):
    run(ledger, "t0001", 3.0, 1.0)
    moved = tmp_path / "elsewhere"
    ledger.store.local.rename(moved)
    winner = board_of(Ledger(str(moved)).load(), "quick", CONFIG)["winner"]
    assert Path(winner["checkpoint"]).is_relative_to(moved) and Path(winner["checkpoint"]).is_dir()


def test_reading_and_selecting_many_trials(tmp_path, capsys):
    """Prints what it costs; 1,000 trials take five times as much (0.5 s of CPU)."""
    buffer = io.BytesIO()
    exponential = np.random.default_rng(0).exponential(1, 500)
    np.save(buffer, np.stack([exponential, np.ones(500)], 1).astype(np.float32))
    folder = tmp_path / "many"
    for number in range(200):
        trial = folder / "trials" / f"t{number:04d}"
        for step in range(1, 6):
            at = trial / "attempt-1" / f"step-{step:08d}"
            at.mkdir(parents=True)
            record = dataclasses.asdict(
                measured(step, 2 - step / 10 + number / 1e4, 1.5, samples_seen=step)
            )
            record["folder"] = f"trials/{trial.name}/attempt-1/{at.name}"
            (at / EVALUATION).write_text(json.dumps(record))
            (at / LOSSES).write_bytes(buffer.getvalue())
        (at / CHECKPOINT).mkdir()
        (at / CHECKPOINT / "adapter_model.safetensors").write_bytes(b"")
        (trial / "trial.json").write_text(
            json.dumps({"id": trial.name, "params": {"method": "lora"}})
        )
        (trial / "outcome.json").write_text('{"status": "complete", "reason": null}')
    began = time.process_time()
    read = Ledger(str(folder)).load()
    loaded = time.process_time()
    board = board_of(read, "many", CONFIG)
    done = time.process_time()
    with capsys.disabled():
        print(
            f"\n200 trials x 5 evaluations: read {loaded - began:.2f} s, board {done - loaded:.2f} s of CPU"
        )
    assert len(board["trials"]) == 200
    assert board["winner"]["trial"] == "t0000"


# --- what is measured of the winner alone ---


@pytest.fixture
def sealed(ledger):
    """A sweep with a test split."""
    splits = {
        "train": {"rows": 9},
        "validation": {"rows": 4},
        "test": {"raw_fingerprint": "f" * 64, "read": 4},
    }
    manifest = {"task": "causal_lm", "data": {}, "encoding": {}, "splits": splits}
    ledger.store.write_json("data/manifest.json", manifest)
    return ledger


def scored(ledger, loss):
    """The board after the winner's test split and what it has forgotten were measured."""
    score = {"loss": loss, "metrics": {}}
    put(ledger, "baselines/test/winner.npy", rows_of(loss))
    ledger.write_test(
        scored_test({"split": {"rows": 4, "fingerprint": "f"}, "scores": {"winner": score}}),
        CONFIG,
    )
    ledger.write_forgetting(MeasuredForgetting(before=1.0, after=loss, kl=0.1), CONFIG)
    return board_of(again(ledger), "quick", CONFIG)


def test_what_was_measured_of_a_former_winner_is_not_shown_with_a_better_trial(sealed):
    run(sealed, "t0001", 2.0, 1.0)
    board = scored(sealed, 1.1)
    assert (board["test"]["scores"]["winner"]["loss"], board["forgetting"]["after"]) == (1.1, 1.1)
    assert board["test"]["scored_before"] == []
    run(sealed, "t0002", 0.5)
    board = board_of(again(sealed), "quick", CONFIG)
    assert board["winner"]["trial"] == "t0002"
    assert (board["test"], board["forgetting"]) == (None, None)


def test_a_second_look_of_the_same_sweep_counts_and_measuring_one_checkpoint_again_does_not(sealed):
    run(sealed, "t0001", 2.0, 1.0)
    scored(sealed, 1.1)
    assert scored(sealed, 1.1)["test"]["scored_before"] == []  # after a kill
    run(sealed, "t0002", 0.5)
    board = scored(sealed, 0.6)
    assert board["test"]["scores"]["winner"]["loss"] == 0.6
    (before,) = board["test"]["scored_before"]
    assert (before["sweep"], before["trial"], before["step"]) == (sealed.name, "t0001", 2)
    assert f"has now been scored 2 times (before by {sealed.name})" in spoken(
        from_json(TestScores, board["test"], "test")
    )
