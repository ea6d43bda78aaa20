"""A whole sweep that is steered while it runs, killed in between, and resumed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

FILE = """
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64}
cluster: {slots: 1, trials_per_slot: 1}
rehearse: false
search:
  trials: 2
  scheduler: none
  early_stopping: {overfit: false, diverged: false}
  space: {learning_rate: {log_uniform: [1e-4, 1e-2]}, epochs: {choice: [2, 1]}}
"""


def evaluations(folder: Path, trial: str) -> int:
    return len([*folder.glob(f"trials/{trial}/attempt-*/step-*/evaluation.json")])


def test_what_is_asked_of_a_running_sweep_is_done_once_and_survives_a_kill(
    start_sweeps, sweeps, shakespeare, tmp_path: Path
) -> None:
    process = start_sweeps(tmp_path / "log", "run", shakespeare(FILE))

    def wait_for(condition, log: str = "log"):
        while not (found := condition()):
            assert process.poll() is None, (tmp_path / log).read_text()
            time.sleep(0.2)
        return found

    def began() -> Path | None:
        folder = next(iter((tmp_path / "runs").glob("*-*")), None)
        return folder if folder and evaluations(folder, "t0001") else None

    folder = wait_for(began)

    def ctl(*words: str, code: int = 0) -> dict:
        done = sweeps("ctl", folder, *words, "--json")
        assert done.code == code, done.out + done.err
        return json.loads(done.out) if done.out else {"words": done.err.strip()}

    assert ctl("pause")["state"] == "done"
    assert json.loads((folder / "status.json").read_text())["paused"]
    before = evaluations(folder, "t0001")
    assert ctl("clone", "t0001", "learning_rate=0.004")["trial"] == "t0002"
    assert ctl("add", "learning_rate=0.002", "epochs=1")["trial"] == "t0003"
    again = ctl("add", "learning_rate=0.002", "epochs=1", code=2)
    assert again["words"] == "add: t0003 has this configuration already"
    assert "t0009: the sweep has no such trial" in ctl("stop", "t0009", code=2)["words"]
    assert ctl("trials=+1")["words"] == "Changed: search.trials: 2 to 3"
    assert evaluations(folder, "t0001") <= before + 1 and not evaluations(folder, "t0002")
    assert ctl("stop", "t0001")["state"] == "done"
    assert ctl("go-on")["state"] == "done"

    wait_for(lambda: evaluations(folder, "t0002"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told = ctl("stop", "t0002", code=1)
    assert told["state"] == "waiting"
    assert told["words"].endswith(f"python -m sweeps resume {folder} takes it up")

    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", folder, "--json").out)
    trials = {each["id"]: each for each in board["trials"]}
    assert sorted(trials) == [f"t000{number}" for number in (1, 2, 3, 4, 5)]
    stopped = {id for id, each in trials.items() if each["status_reason"] == "stopped by hand"}
    assert stopped == {"t0001", "t0002"}
    assert {trials[id]["status"] for id in sorted({*trials} - stopped)} == {"complete"}
    by_hand = {
        id: each["by_hand"].split(" by ")[0] for id, each in trials.items() if each.get("by_hand")
    }
    assert by_hand == {"t0002": "clone of t0001", "t0003": "added"}
    assert trials["t0002"]["params"]["epochs"] == trials["t0001"]["params"]["epochs"] == 2
    assert len({str(sorted(each["params"].items())) for each in trials.values()}) == 5
    for each in trials.values():
        steps = [evaluation["step"] for evaluation in each["evaluations"]]
        assert steps == sorted(set(steps))
    states = [(each["command"], each["state"]) for each in board["steered"]]
    assert states == [
        ("pause", "done"),
        ("clone t0001 learning_rate=0.004", "done"),
        ("add learning_rate=0.002 epochs=1", "done"),
        ("add learning_rate=0.002 epochs=1", "refused"),
        ("trials=+1", "done"),
        ("stop t0001", "done"),
        ("go-on", "done"),
        ("stop t0002", "done"),
    ]
    page, log = (folder / "report.html").read_text(), (folder / "log.txt").read_text()
    assert "Steered by hand" in page and "clone t0001 learning_rate=0.004" in page
    assert log.count(": stop t0001: done: ") == log.count(": trials=+1: done: ") == 1
    assert len([*(folder / "configurations").iterdir()]) == 2
    kept = json.loads((folder / "tracking" / "end.json").read_text())
    assert len(kept["tables"]["steered"]["rows"]) == len(states)
    run = json.loads((folder / "tracking" / "state" / "t0001.json").read_text())
    assert run["summary"]["notes"][0].startswith("stopped by hand of ")
    assert json.loads((folder / "cost.json").read_text())["device_seconds"] > 0
