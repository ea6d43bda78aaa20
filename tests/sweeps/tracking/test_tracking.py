"""Tracks with the real wandb: offline into a folder, and online against a small W&B server on this machine."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from omegaconf import OmegaConf

from sweeps.tracking import online
from sweeps.tracking import wandb as tracking
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import BaseSource, SweepEnd
from sweeps.tracking.wandb import WandbTracker, run_id
from trainables.evaluation.record import Evaluation

PARAMS = {"method": "lora", "learning_rate": 0.001, "batch_size": 16, "rank": 8}
FINISHED = {
    "status": "complete",
    "verdict": "healthy",
    "verdict_reason": "validation loss fell to the end",
}


pytestmark = pytest.mark.usefixtures("wandb_environment")


@pytest.fixture
def lines():
    return []


@pytest.fixture
def track(tmp_path, lines, monkeypatch):
    """Starts trackers of the sweep "my-sweep", all on one folder, as one process after the other would. Nothing that
    answers is given up for being slow.
    """
    trackers = []
    monkeypatch.setattr(online, "PROBE_TIMEOUT_S", 120.0)
    for limit in ("INIT_TIMEOUT_S", "FINISH_TIMEOUT_S"):
        monkeypatch.setattr(tracking, limit, 120.0)

    def start(wandb="offline", folder=tmp_path / "tracking", **config):
        config = TrackingConfig(wandb=wandb, project="a-project", **config)
        trackers.append(WandbTracker(config, "my-sweep", folder, lines.append))
        return trackers[-1]

    yield start
    for tracker in trackers:
        tracker.close(5)


def evaluation(step, val_loss=1.0, **more):
    found = {"step": step, "samples_seen": step * 16, "epoch": step / 10, "val_loss": val_loss, "probe_loss": 0.9,
             "metrics": {"accuracy": 0.5}}  # fmt: skip
    return Evaluation(**found | more)


def ended(trial, reason="lowest", checkpoint="/a", **more):
    base = BaseSource(name="org/encoder", revision="abc")
    told = {"summary": {"val_loss": 1.0}, "paragraph": f"**The winner is {trial}**", "base": base}
    return SweepEnd(trial=trial, reason=reason, checkpoint=str(checkpoint), **told | more)


def winner(folder):
    """A folder that was handed over."""
    folder.mkdir()
    (folder / "winner.json").write_text("{}")
    return folder


def track_trial(tracker, trial, losses, **outcome):
    tracker.trial_started(trial, PARAMS)
    for index, loss in enumerate(losses, start=1):
        tracker.evaluation(trial, evaluation(index * 10, loss))
    best = evaluation(losses.index(min(losses)) * 10 + 10, min(losses)) if losses else None
    tracker.trial_finished(trial, **FINISHED | outcome, best=best)


def folders(tmp_path, trial="t", kind="offline-run"):
    """Folders of a trial's run (or of all), in order of their start."""
    return sorted((tmp_path / "tracking" / "wandb").glob(f"{kind}-*-my-sweep-{trial}*"))


def inspect(folder, *flags):
    """A run's log, read back by wandb's own reader."""
    from wandb.util import get_core_path

    (log,) = folder.glob("*.wandb")
    command = [
        get_core_path(),
        "leet",
        "inspect",
        "--no-observability",
        "--json",
        *flags,
        "--run-file",
        str(log),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(folder):
    return json.loads(inspect(folder, "--summary"))


def rows(*folders):
    records = [json.loads(line) for folder in folders for line in inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def core_of_this_process():
    alive = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            if child.name().startswith("wandb-core") and child.status() != psutil.STATUS_ZOMBIE:
                alive.append(child)
    return alive[-1] if alive else None


def wait_until(condition):
    while not (result := condition()):  # for ever: what never happens is ended by pytest's limit
        time.sleep(0.02)
    return result


def close_in_time(tracker, timeout_s=600.0):
    """That it returns at all is the test, where what it waits for stands still."""
    tracker.close(timeout_s)
    assert core_of_this_process() is None


# Configuration


def test_the_configuration_is_an_omegaconf_schema():
    schema = OmegaConf.structured(TrackingConfig)
    read = OmegaConf.to_object(OmegaConf.merge(schema, {"wandb": "offline", "tags": ["a"]}))
    assert read == TrackingConfig(wandb="offline", tags=["a"])


@pytest.mark.parametrize(
    "wrong", [{"project": ""}, {"project": "a/b"}, {"project": "a" * 129}, {"tags": [""]}]
)
def test_what_the_server_would_refuse_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=f"tracking.{next(iter(wrong))}: .*got "):
        TrackingConfig(**wrong)


def test_run_ids_are_stable_and_distinct():
    assert run_id("my-sweep", "t0001") == "my-sweep-t0001"
    ids = {run_id(sweep, "t0001") for sweep in ("a b", "a-b", "a:b", "a" * 100, "a" * 101)}
    assert len(ids) == 5
    assert all(len(id_) <= 80 and not set(id_) & set(":;,#?/' ") for id_ in ids)


# Offline


def test_off_never_imports_wandb(tmp_path):
    code = (
        "import sys, pathlib; from sweeps.tracking.wandb import *\n"
        "from trainables.evaluation.record import Evaluation\n"
        "tracker = WandbTracker(TrackingConfig(wandb='off'), 's', pathlib.Path(sys.argv[1]), print)\n"
        "tracker.trial_started('t0001', {}); tracker.close()\n"
        "assert 'wandb' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / "x").exists()


def test_three_trials_and_a_winner_offline(tmp_path, track, lines, capfd):
    tracker = track(tags=["mine"])
    track_trial(tracker, "t0001", [1.5, 1.2])
    track_trial(tracker, "t0002", [1.4, 1.1, 1.3], verdict="overfit")
    track_trial(
        tracker,
        "t0003",
        [float("nan")],
        status="failed",
        verdict="failed",
        verdict_reason="out of memory",
    )
    tracker.sweep_finished(ended("t0002", "lowest validation loss", "/a/checkpoint"))
    close_in_time(tracker)

    first, second, third = (
        summary(folders(tmp_path, trial)[0]) for trial in ("t0001", "t0002", "t0003")
    )
    assert first["run_id"] == "my-sweep-t0001"
    assert first["name"] == "t0001 lora"
    assert first["project"] == "a-project"
    assert first["config"] == PARAMS
    assert first["tags"] == ["mine", "lora"]
    assert '"run_group":"my-sweep"' in inspect(folders(tmp_path, "t0001")[0])
    wanted = {"status": "complete", "verdict": "healthy", "best/val_loss": 1.2, "best/step": 20, "val/loss": 1.2,
              "probe/loss": 0.9, "samples_seen": 320, "epoch": 2.0, "val/accuracy": 0.5}  # fmt: skip
    assert first["summary"].items() >= wanted.items()
    assert [run["exit_code"] for run in (first, second, third)] == [0, 0, 1]
    assert third["summary"]["verdict_reason"] == "out of memory"
    curve = rows(folders(tmp_path, "t0002")[0])
    assert [(row["samples_seen"], row["_step"], row["val/loss"]) for row in curve] == [
        (160, 10, 1.4), (320, 20, 1.1), (480, 30, 1.3)]  # fmt: skip
    assert (
        '"metric":{"name":"val/loss","options":{"step_sync":true},"step_metric":"samples_seen"}'
        in inspect(folders(tmp_path, "t0002")[0]).replace('"defined":true,', "")
    )

    (folder,) = folders(tmp_path, "t0002")  # its run was still open when it was marked
    marked = summary(folder)
    assert marked["run_id"] == "my-sweep-t0002"
    assert marked["tags"] == ["mine", "lora", "winner"]
    assert marked["config"] == PARAMS
    wanted = {"winner": True, "winner_reason": "lowest validation loss", "winner_checkpoint": "/a/checkpoint",
              "verdict": "overfit", "best/val_loss": 1.1, "val/loss": 1.1, "samples_seen": 320}  # fmt: skip
    assert marked["summary"].items() >= wanted.items(), (
        "of the checkpoint that won, not of the last evaluation"
    )
    assert marked["exit_code"] == 0
    assert lines == [
        f"W&B: offline runs: 3, the winner is not uploaded; upload with: python -m sweeps sync {tmp_path}",
    ]
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.glob("wandb*"))


ABOUT = {
    "task": "classification",
    "model": {"name": "org/encoder", "revision": None, "fingerprint": "ab12"},
    "data": {"train": {"source": "train.csv", "rows": 800, "fingerprint": "cd34"}},
}


def test_the_summary_has_the_numbers_of_the_checkpoint_that_stands_for_the_trial(tmp_path, track):
    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    best = evaluation(20, 1.1, probe_loss=0.7, metrics={"accuracy": 0.8, "macro_f1": 0.75})
    for each in (
        evaluation(10, 1.5),
        best,
        evaluation(30, 1.3, metrics={"accuracy": 0.6, "macro_f1": 0.5}),
    ):
        tracker.evaluation("t0001", each)
    tracker.trial_finished("t0001", **FINISHED | {"verdict": "overfit"}, best=best)
    track_trial(tracker, "t0002", [1.5, 1.6], status="failed")
    tracker.trial_started("t0003", PARAMS)
    tracker.evaluation("t0003", evaluation(10, 2.5))
    tracker.trial_finished("t0003", **FINISHED, best=None)
    close_in_time(tracker)
    wanted = {"val/loss": 1.1, "probe/loss": 0.7, "val/accuracy": 0.8, "val/macro_f1": 0.75, "samples_seen": 320, "epoch": 2.0,
              "best/val_loss": 1.1, "best/probe_loss": 0.7, "best/accuracy": 0.8, "best/macro_f1": 0.75, "best/step": 20,
              "best/samples_seen": 320, "best/epoch": 2.0}  # fmt: skip
    (folder,) = folders(tmp_path, "t0001")
    assert summary(folder)["summary"].items() >= wanted.items()
    assert [row["val/loss"] for row in rows(folder)] == [1.5, 1.1, 1.3], "the curve is whole"
    assert summary(folders(tmp_path, "t0002")[0])["summary"]["val/loss"] == 1.5
    without = summary(folders(tmp_path, "t0003")[0])["summary"]
    assert without["val/loss"] == 2.5 and not [name for name in without if name.startswith("best/")]


def test_every_run_says_what_the_sweep_is_about(tmp_path):
    tracker = WandbTracker(
        TrackingConfig(wandb="offline"), "my-sweep", tmp_path / "tracking", print, ABOUT
    )
    track_trial(tracker, "t0001", [1.5])
    track_trial(tracker, "t0002", [1.4])
    close_in_time(tracker)
    for trial in ("t0001", "t0002"):
        assert summary(folders(tmp_path, trial)[0])["config"] == ABOUT | PARAMS


def test_the_winner_among_many_trials_has_one_folder(tmp_path, track, monkeypatch):
    """Only so many runs stay open for the mark; those that are behind are finished as their trials end."""
    monkeypatch.setattr(tracking, "MOST_OPEN", 2)
    tracker = track()
    for number, loss in enumerate([1.0, 3.0, 2.0, 1.5, 4.0]):
        track_trial(tracker, f"t000{number}", [loss])

    def exits(trial):
        return [
            summary(folder).get("exit_code")
            for folder in folders(tmp_path, trial)
            if list(folder.glob("*.wandb"))
        ]

    wait_until(lambda: all(exits(trial) == [0] for trial in ("t0001", "t0002", "t0004")))
    assert {trial for trial, run in tracker._sink._runs.items() if run.live} == {"t0000", "t0003"}
    tracker.sweep_finished(ended("t0000", "lowest", "/a"))
    close_in_time(tracker)
    for number in range(5):
        (folder,) = folders(tmp_path, f"t000{number}")
        found = summary(folder)
        assert found["exit_code"] == 0 and found["summary"].get("winner") == (
            True if number == 0 else None
        )


def test_optional_and_missing_values(tmp_path, track):
    tracker = track()
    tracker.evaluation("t0001", evaluation(10, train_loss=2.0, learning_rate=1e-4))
    tracker.evaluation(
        "t0001", evaluation(20, probe_loss=None, metrics={}, forgetting=None, kl=None)
    )
    tracker.evaluation("t0001", evaluation(30, forgetting=-0.125, kl=0.25))
    tracker.close()
    first, second, third = rows(*folders(tmp_path))
    assert first.items() >= {"train/loss": 2.0, "train/learning_rate": 1e-4}.items()
    assert "probe/loss" not in second and "train/loss" not in second
    assert not [
        name for row in (first, second) for name in row if name in ("val/forgetting", "val/kl")
    ]
    assert third.items() >= {"val/forgetting": -0.125, "val/kl": 0.25}.items()


def test_a_resumed_sweep_goes_on_with_its_runs(tmp_path, track):
    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    tracker.evaluation("t0001", evaluation(20, 1.3))
    track_trial(tracker, "t0002", [1.4])
    tracker.sweep_finished(ended("t0002", "so far", "/b"))
    close_in_time(tracker)
    interrupted = folders(tmp_path, "t0001")[0]
    assert summary(interrupted)["exit_code"] == 1 and '"preempting"' in inspect(interrupted)

    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    for step, loss in ((10, 1.5), (20, 1.3), (30, 1.2)):  # the first two are known already
        tracker.evaluation("t0001", evaluation(step, loss))
    tracker.trial_finished("t0001", **FINISHED, best=evaluation(30, 1.2))
    close_in_time(tracker)
    pieces = folders(tmp_path, "t0001")
    assert [row["_step"] for row in rows(*pieces)] == [10, 20, 30]
    assert summary(pieces[1])["run_id"] == summary(pieces[0])["run_id"] == "my-sweep-t0001"
    assert (
        summary(pieces[1])["summary"].items()
        >= {"status": "complete", "val/loss": 1.2, "val/accuracy": 0.5}.items()
    )
    assert summary(pieces[1])["exit_code"] == 0

    tracker = (
        track()
    )  # finished in an earlier process, marked in this one; the old winner loses the mark
    tracker.sweep_finished(ended("t0001", "lower", "/a"))
    close_in_time(tracker)
    marked, unmarked = (
        summary(folders(tmp_path, "t0001")[-1]),
        summary(folders(tmp_path, "t0002")[-1]),
    )
    assert marked["summary"].items() >= {"winner": True, "val/loss": 1.2, "best/step": 30}.items()
    assert marked["config"] == PARAMS and marked["name"] == "t0001 lora"
    assert marked["tags"] == ["lora", "winner"]
    assert unmarked["summary"]["winner"] is False and unmarked["tags"] == ["lora"]

    pieces = len(folders(tmp_path, "t0001"))
    tracker = track()  # a finished sweep that is resumed marks its winner once more
    tracker.sweep_finished(ended("t0001", "lower", "/a"))
    close_in_time(tracker)
    assert len(folders(tmp_path, "t0001")) == pieces


def test_calls_return_at_once(track, monkeypatch):
    import wandb

    released = threading.Event()
    monkeypatch.setattr(wandb, "setup", lambda settings: released.wait())
    tracker = track()
    for trial in range(100):
        track_trial(tracker, f"t{trial:04}", [1.0] * 10)
    close_in_time(tracker, 0.4)
    assert not released.is_set(), "none of the calls has waited for it"
    released.set()


# What goes wrong on this machine


def test_wandb_init_raises(track, lines, monkeypatch):
    import wandb

    def init(**kwargs):
        raise RuntimeError("no such luck\nand a traceback")

    monkeypatch.setattr(wandb, "init", init)
    tracker = track()
    for trial in range(5):
        track_trial(tracker, f"t{trial:04}", [1.0])
    tracker.sweep_finished(ended("t0001", "", ""))
    close_in_time(tracker)
    assert lines == [
        "W&B: trial_started of t0000 failed (RuntimeError: no such luck)",
        "W&B: gave up after 3 failures in a row; the sweep goes on without it",
        "W&B: no runs",
    ]


def test_wandb_cannot_be_imported(track, lines, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = track()
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    (line,) = lines
    assert line.startswith("W&B: not tracking, because it did not start (ModuleNotFoundError")


def test_the_folder_cannot_be_written(tmp_path, track, lines):
    (tmp_path / "tracking").write_text("a file where the folder should be")
    tracker = track()
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    (line,) = lines
    assert line.startswith("W&B: not tracking, because it did not start (NotADirectoryError")


def test_a_damaged_state_file_costs_only_what_it_held(tmp_path, track, lines):
    (tmp_path / "tracking/state").mkdir(parents=True)
    (tmp_path / "tracking/state/t0001.json").write_text("")
    tracker = track()
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    assert summary(folders(tmp_path)[0])["summary"]["val/loss"] == 1.0
    assert "could not read" in lines[0]


def test_wandb_core_killed(tmp_path, track, lines):
    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    wait_until(lambda: list(tmp_path.glob("tracking/wandb/*/*.wandb")) and rows(*folders(tmp_path)))
    core_of_this_process().kill()
    wait_until(lambda: core_of_this_process() is None)
    tracker.evaluation("t0001", evaluation(20, 1.4))
    track_trial(tracker, "t0002", [1.0])
    tracker.trial_finished("t0001", **FINISHED, best=evaluation(20, 1.4))
    close_in_time(tracker)
    assert [row["_step"] for row in rows(*folders(tmp_path, "t0001"))] == [10, 20]
    assert (
        summary(folders(tmp_path, "t0001")[-1])["summary"].items()
        >= {"status": "complete", "best/step": 20}.items()
    )
    assert summary(folders(tmp_path, "t0002")[-1])["exit_code"] == 0
    assert lines[0] == "W&B: wandb-core had ended; it was started again"
    assert len(lines) == 2


def test_wandb_core_killed_at_the_end(tmp_path, track, lines):
    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    wait_until(lambda: list(tmp_path.glob("tracking/wandb/*/*.wandb")) and rows(*folders(tmp_path)))
    core_of_this_process().kill()
    wait_until(lambda: core_of_this_process() is None)
    close_in_time(tracker)
    assert lines[-1].startswith("W&B: offline runs: 1")


def test_an_import_elsewhere_does_not_meet_a_wandb_core_that_has_ended(tmp_path, track):
    """wandb 0.31 tells its service of modules in the thread that imports them."""
    from wandb.sdk.lib.import_hooks import notify_module_loaded

    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    wait_until(lambda: list(tmp_path.glob("tracking/wandb/*/*.wandb")) and rows(*folders(tmp_path)))
    core_of_this_process().kill()
    wait_until(lambda: core_of_this_process() is None)
    for name in ("sklearn", "joblib", "torch"):
        notify_module_loaded(ModuleType(name))
    close_in_time(tracker)


@pytest.mark.slow
def test_wandb_core_stands_still(tmp_path, track, lines):
    tracker = track()
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    wait_until(lambda: list(tmp_path.glob("tracking/wandb/*/*.wandb")) and rows(*folders(tmp_path)))
    core_of_this_process().suspend()
    track_trial(tracker, "t0002", [1.0])
    close_in_time(tracker, 2)
    assert lines[0] == "W&B: not all was done in time; what was logged by then is on disk"
    assert rows(*folders(tmp_path, "t0001"))


@pytest.mark.slow
def test_an_exit_without_close_does_not_hang(tmp_path):
    code = (
        "import sys, pathlib; from sweeps.tracking.wandb import *\n"
        "from trainables.evaluation.record import Evaluation\n"
        "tracker = WandbTracker(TrackingConfig(wandb='offline'), 'my-sweep', pathlib.Path(sys.argv[1]), print)\n"
        "tracker.trial_started('t0001', {}); tracker.evaluation('t0001', Evaluation(step=1, samples_seen=16, epoch=0, val_loss=1, probe_loss=1))\n"
        "import time\n"
        "while not list(pathlib.Path(sys.argv[1]).glob('state/*.json')): time.sleep(0.1)\n"
        "raise KeyError('a mistake elsewhere')"
    )
    command = [sys.executable, "-c", code, tmp_path / "tracking"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.count("Traceback") == 1 and "wandb" not in run.stderr
    assert run.stdout == f"W&B: offline runs: 1; upload with: python -m sweeps sync {tmp_path}\n"
    assert len(rows(*folders(tmp_path))) == 1


# Online, and what goes wrong on the way to the server


def test_online(tmp_path, track, server, lines):
    tracker = track("auto", tags=["mine"])
    track_trial(tracker, "t0001", [1.5, 1.2])
    track_trial(tracker, "t0002", [1.0], status="failed")
    tracker.sweep_finished(ended("t0001", "lowest", winner(tmp_path / "a")))
    close_in_time(tracker)
    run = server.runs["my-sweep-t0001"]
    assert [(row["samples_seen"], row["_step"], row["val/loss"]) for row in run["history"]] == [
        (160, 10, 1.5), (320, 20, 1.2)]  # fmt: skip
    assert (
        run["summary"].items()
        >= {"winner": True, "status": "complete", "best/step": 20, "val/loss": 1.2}.items()
    )
    assert (run["name"], run["group"], run["tags"]) == (
        "t0001 lora",
        "my-sweep",
        ["mine", "lora", "winner"],
    )
    assert {name: run["config"][name]["value"] for name in PARAMS} == PARAMS
    assert len(run["config"]["_wandb"]["value"]["m"]) >= 4  # what is drawn over samples_seen
    assert (run["exit"], server.runs["my-sweep-t0002"]["exit"]) == (0, 1)
    assert lines == [
        f"W&B: runs at {server.url}/someone/a-project/groups/my-sweep; fetch the winner with:"
        " python -m sweeps pick someone/a-project/my-sweep-winner:winner --to winner"
    ]

    tracker = track(
        "online", tags=["mine"]
    )  # a later process: another winner, and one evaluation more
    tracker.evaluation("t0001", evaluation(20, 99.0))
    tracker.evaluation("t0001", evaluation(30, 1.1))
    tracker.sweep_finished(ended("t0002", "another", winner(tmp_path / "b")))
    close_in_time(tracker)
    assert [row["_step"] for row in run["history"]] == [10, 20, 30]
    assert (
        run["summary"].items() >= {"winner": False, "val/loss": 1.1, "verdict": "healthy"}.items()
    )
    assert run["tags"] == ["mine", "lora"]
    assert server.runs["my-sweep-t0002"]["tags"] == ["mine", "lora", "winner"]


@pytest.mark.slow  # wandb asks every 15 s
def test_a_stop_in_the_web_page_does_not_interrupt_the_sweep(track, server, lines):
    server.stopped = True
    tracker = track("online")
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10))
    wait_until(lambda: "W&B: a stop asked for in the web page was ignored" in lines)
    close_in_time(tracker)


@pytest.mark.slow
def test_offline_runs_are_merged_by_sync(tmp_path, track, server):
    for step in (10, 20):  # two processes
        tracker = track("offline")
        tracker.trial_started("t0001", PARAMS)
        tracker.evaluation("t0001", evaluation(step, 2 - step / 100))
        close_in_time(tracker)
    tracker = track("offline")
    tracker.trial_finished("t0001", **FINISHED, best=evaluation(20, 1.8))
    tracker.sweep_finished(ended("t0001", "the only one", "/a"))
    close_in_time(tracker)
    command = [sys.executable, "-m", "wandb", "sync", str(tmp_path / "tracking/wandb")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (run,) = server.runs.values()
    assert [row["_step"] for row in run["history"]] == [10, 20]
    assert (
        run["summary"].items()
        >= {"winner": True, "status": "complete", "val/loss": 1.8, "best/step": 20}.items()
    )
    assert (run["tags"], run["exit"], run["name"]) == (["lora", "winner"], 0, "t0001 lora")
    assert len(run["config"]["_wandb"]["value"]["m"]) >= 4


@pytest.mark.slow
def test_a_finished_trial_of_a_sweep_that_was_killed_is_uploaded_whole(tmp_path, server):
    """Its offline run was still open, for the mark of a winner."""
    code = (
        "import sys, pathlib, time; from sweeps.tracking.wandb import *\n"
        "from trainables.evaluation.record import Evaluation\n"
        "tracker = WandbTracker(TrackingConfig(wandb='offline'), 'my-sweep', pathlib.Path(sys.argv[1]), print)\n"
        "tracker.trial_started('t0001', {}); best = Evaluation(step=1, samples_seen=16, epoch=0, val_loss=1.5, probe_loss=1.0)\n"
        "tracker.evaluation('t0001', best)\n"
        "tracker.trial_finished('t0001', status='complete', verdict='healthy', verdict_reason='', best=best)\n"
        "time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "tracking"])
    wait_until(lambda: list(tmp_path.glob("tracking/wandb/*/*.wandb")))
    wait_until(lambda: summary(folders(tmp_path)[0])["summary"].get("best/val_loss") == 1.5)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()
    command = [sys.executable, "-m", "wandb", "sync", str(tmp_path / "tracking/wandb")]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=tmp_path)
    (run,) = server.runs.values()
    assert [row["_step"] for row in run["history"]] == [1]
    assert (
        run["summary"].items()
        >= {"status": "complete", "best/val_loss": 1.5, "val/loss": 1.5}.items()
    )


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_no_key(tmp_path, track, lines, mode):
    tracker = track(mode)
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    assert len(folders(tmp_path)) == 1
    warning = "warning: online was asked for, but " if mode == "online" else ""
    assert lines[0].startswith(f"W&B: {warning}no API key is configured")
    assert len(lines) == 2


def test_a_key_of_the_wrong_form(tmp_path, track, server, lines):
    os.environ["WANDB_API_KEY"] = "short"
    tracker = track()
    tracker.close()
    tracker = track("online")
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    assert len(folders(tmp_path)) == 1
    assert any("AuthenticationError" in line for line in lines)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_the_server_refuses_connections(tmp_path, track, server, lines, mode):
    server.stop()
    tracker = track(mode)
    track_trial(tracker, "t0001", [1.0])
    track_trial(tracker, "t0002", [1.0])
    close_in_time(tracker)
    assert len(folders(tmp_path)) == 2
    warning = "warning: online was asked for, but " if mode == "online" else ""
    assert lines[0].startswith(
        f"W&B: {warning}{server.url} does not answer (URLError: <urlopen error [Errno 111]"
    )
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ({"status": 401}, "refused the key (HTTP 401)"),
        ({"viewer": None}, "refused the key"),
        ({"status": 500}, "answered HTTP 500"),
        ({"hang_on": ["*"]}, "does not answer (TimeoutError"),
    ],
)
def test_the_server_is_in_trouble_from_the_start(
    tmp_path, track, server, lines, monkeypatch, trouble, line
):
    if "hang_on" in trouble:
        monkeypatch.setattr(online, "PROBE_TIMEOUT_S", 0.3)
    vars(server).update(trouble)
    tracker = track("online")
    track_trial(tracker, "t0001", [1.5, 1.2])
    close_in_time(tracker)
    assert len(rows(*folders(tmp_path))) == 2
    assert line in lines[0] and len(lines) == 2


def test_the_server_hangs_where_the_probe_did_not_look(tmp_path, track, server, lines, monkeypatch):
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 3.0)
    server.hang_on = ["UpsertBucket"]
    tracker = track("online")
    track_trial(tracker, "t0001", [1.5, 1.2])
    track_trial(tracker, "t0002", [1.5])
    close_in_time(tracker)
    assert [len(rows(*folders(tmp_path, trial))) for trial in ("t0001", "t0002")] == [2, 1]
    assert "wandb.init failed" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [{"status": 500}, {"hang_on": ["*"]}, {"status": 401}, "stop"])
def test_the_server_dies_while_runs_are_open(tmp_path, track, server, lines, monkeypatch, trouble):
    monkeypatch.setattr(online, "PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 2.0)
    tracker = track("online")
    tracker.trial_started("t0001", PARAMS)
    tracker.evaluation("t0001", evaluation(10, 1.5))
    wait_until(lambda: server.runs.get("my-sweep-t0001"))
    server.stop() if trouble == "stop" else vars(server).update(trouble)
    tracker.evaluation("t0001", evaluation(20, 1.4))
    tracker.trial_finished("t0001", **FINISHED, best=evaluation(20, 1.4))
    track_trial(tracker, "t0002", [1.0])
    close_in_time(tracker)
    (begun,) = folders(tmp_path, "t0001", "run")
    assert [row["_step"] for row in rows(begun)] == [10, 20]
    assert summary(begun)["summary"]["status"] == "complete"
    assert len(rows(*folders(tmp_path, "t0002"))) == 1
    assert f"runs not fully uploaded: 1; upload with: python -m sweeps sync {tmp_path}" in lines[-1]
    assert "offline runs: 1" in lines[-1]


def test_close_does_not_wait_for_a_server_that_hangs(tmp_path, track, server, lines, monkeypatch):
    monkeypatch.setattr(online, "PROBE_TIMEOUT_S", 0.5)
    tracker = track("online")
    for trial in ("t0001", "t0002"):
        tracker.trial_started(trial, PARAMS)
        tracker.evaluation(trial, evaluation(10, 1.5))
    wait_until(lambda: "my-sweep-t0002" in server.runs)
    server.hang_on = ["*"]
    close_in_time(tracker, 3)
    assert all(len(rows(folder)) == 1 for folder in folders(tmp_path, kind="run"))
    assert "runs not fully uploaded: 2" in lines[-1]


@pytest.mark.slow
def test_a_full_disk(tmp_path, track, lines):
    """A file system of 2 MB, which only root can mount."""
    disk = tmp_path / "tracking"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs leave to mount")
    try:
        tracker = track()
        track_trial(tracker, "t0001", [1.0])
        wait_until(lambda: (disk / "state/t0001.json").exists())
        (disk / "filler").write_bytes(b"0" * (shutil.disk_usage(disk).free - 1))
        for trial in range(2, 8):
            track_trial(tracker, f"t{trial:04}", [1.0, 0.9])
        close_in_time(tracker)
        assert "No space left on device" in "".join(lines)
        assert len(lines) <= 5
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_nothing_of_wandb_is_left_behind(track):
    exit_, hook = sys.exit, sys.excepthook
    tracker = track()
    track_trial(tracker, "t0001", [1.0])
    close_in_time(tracker)
    assert (sys.exit, sys.excepthook) == (exit_, hook)
    assert not [thread for thread in threading.enumerate() if "tracking" in thread.name]
    assert "WANDB_SERVICE" not in os.environ


def test_the_folders_of_wandb_lie_beneath_ours(tmp_path, track):
    tracker = track("offline", folder=Path(tmp_path / "tracking"))
    tracker.close()
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        assert os.environ[name] == str(tmp_path / "tracking")
