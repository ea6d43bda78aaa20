"""Whole sweeps whose processes are interrupted and killed."""

import contextlib
import json
import os
import signal
from pathlib import Path

import optuna
import psutil
import pytest

from sweeps.ledger.folder import Ledger
from tests.sweeps.run.killing import evaluations, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]


def commands_below(process):
    """The command lines of what it has started and what is still there."""
    commands = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            commands[child] = child.cmdline() or [""]
    return commands


def folder_of(storage: Path) -> Path | None:
    return next(iter(sorted(storage.glob("*-*"))), None) if storage.is_dir() else None


def test_ctrl_c_and_kill_9_then_resume_lose_nothing_and_repeat_nothing(
    start_sweeps, sweeps, shakespeare, tmp_path: Path
) -> None:
    file = shakespeare("""
search:
  trials: 4
  scheduler: none
  space:
    method:
      full: {learning_rate: {log_uniform: [3e-4, 3e-3]}}
      lora: {learning_rate: {log_uniform: [2e-3, 2e-2]}, rank: {choice: [4, 8]}, alpha: 2 * rank}
    batch_size: 16
    epochs: 3
""")
    process = start_sweeps(tmp_path / "log", "run", file)

    def evaluated() -> Path | None:
        folder = folder_of(tmp_path / "runs")
        return folder if folder and [*folder.glob("trials/*/attempt-*/step-*")] else None

    folder = wait_for(evaluated, process, tmp_path / "log")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1
    log = (tmp_path / "log").read_text()
    assert f"python -m sweeps resume {folder}" in log and "Traceback" not in log, log
    assert json.loads(sweeps("best", folder, "--json").out)["status"] == "interrupted"

    process = start_sweeps(tmp_path / "log2", "resume", folder)

    def two_ended_and_one_under_way() -> bool:
        open_trials = [p for p in folder.glob("trials/*") if not (p / "outcome.json").exists()]
        ended = len([*folder.glob("trials/*/outcome.json")])
        return ended >= 2 and any([*p.glob("attempt-*/step-*")] for p in open_trials)

    wait_for(two_ended_and_one_under_way, process, tmp_path / "log2")
    ended = {
        p.parent.name: (p.read_bytes(), sorted(p.parent.rglob("evaluation.json")))
        for p in folder.glob("trials/*/outcome.json")
    }
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(sweeps("best", folder, "--json").out)["status"] == "interrupted"
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", folder, "--json").out)
    assert sorted(t["id"] for t in board["trials"]) == [f"t{n:04d}" for n in range(1, 5)]
    assert {t["status"] for t in board["trials"]} == {"complete"}
    for trial in board["trials"]:
        assert [e["epoch"] for e in trial["evaluations"]] == [1, 2, 3]
    for name, (outcome, evaluated_before) in ended.items():
        assert (folder / "trials" / name / "outcome.json").read_bytes() == outcome
        assert sorted((folder / "trials" / name).rglob("evaluation.json")) == evaluated_before
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.load_study(
        study_name=folder.name, storage=optuna.storages.JournalStorage(journal)
    )
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert len({str(sorted(t["params"].items())) for t in board["trials"]}) == 4


@pytest.mark.long
def test_a_killed_worker_costs_no_more_than_the_work_since_the_last_checkpoints(
    start_sweeps, sweeps, shakespeare, tmp_path: Path
) -> None:
    """Three trials share its base; each goes on from a checkpoint of its own."""
    file = shakespeare("""
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 2}
cluster: {slots: 1, trials_per_slot: 3}
search:
  trials: 3
  scheduler: none
  space: {learning_rate: {choice: [0.001, 0.002, 0.004]}}
""")
    process = start_sweeps(tmp_path / "log", "run", file)

    def evaluated() -> Path | None:
        folder = folder_of(tmp_path / "runs")
        trials = [*folder.glob("trials/*")] if folder else []
        enough = len(trials) == 3 and all(
            len([*trial.glob("attempt-1/step-*")]) >= 2 for trial in trials
        )
        return folder if enough else None

    folder = wait_for(evaluated, process, tmp_path / "log")
    commands = commands_below(process)
    workers = [
        p
        for p, (name, *rest) in commands.items()
        if ("ray::" in name and "Slot" in " ".join([name, *rest])) or f"{folder.name}-slot0" in name
    ]
    assert workers, commands
    workers[0].kill()
    assert process.wait() == 0, (tmp_path / "log").read_text()
    board = json.loads(sweeps("best", folder, "--json").out)
    assert {t["status"] for t in board["trials"]} == {"complete"}
    for trial in board["trials"]:
        attempt = json.loads((folder / f"trials/{trial['id']}/attempt-2/attempt.json").read_text())
        assert attempt["from"].startswith(f"trials/{trial['id']}/attempt-1/step-"), (
            "it goes on from a checkpoint"
        )
        steps = [e["step"] for e in trial["evaluations"]]
        assert steps == sorted(set(steps)) and steps[-1] == 80 and len(steps) == 10


@pytest.mark.long
def test_an_interrupted_trial_goes_on_from_the_step_at_which_it_was(
    start_sweeps, sweeps, shakespeare, tmp_path: Path
) -> None:
    """Also where it is interrupted before its first evaluation."""
    file = shakespeare("""
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 1600, probe_rows: 64, epochs: 10}
search:
  trials: 1
  scheduler: none
  early_stopping: {overfit: false}
  space: {learning_rate: {choice: [0.001, 0.002]}}
selection: {baselines: false}
""")
    undisturbed = sweeps("run", file, f"storage={tmp_path}/undisturbed")
    assert undisturbed.code == 0, undisturbed.out + undisturbed.err
    process = start_sweeps(tmp_path / "log", "run", file)

    def trains() -> Path | None:
        folder = folder_of(tmp_path / "runs")
        progress = folder and Ledger(str(folder)).progress()
        samples = [trial.samples_seen for trial in progress.running.values()] if progress else []
        return folder if samples and 0 < samples[0] < 1600 else None

    folder = wait_for(trains, process, tmp_path / "log")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1
    (paused,) = folder.glob("trials/t0001/attempt-1/paused/step-*")
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    attempt = json.loads((folder / "trials/t0001/attempt-2/attempt.json").read_text())
    assert attempt["from"] == f"trials/t0001/attempt-1/paused/{paused.name}"
    ours, theirs = (evaluations(each) for each in (folder, folder_of(tmp_path / "undisturbed")))
    assert ours == theirs and [len(records) for records in ours.values()] == [2]
