"""What Ray's nodes tell of a real sweep while it runs, and what a real Prometheus makes of it."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

FOLDER = Path(__file__).resolve().parents[3] / "cluster" / "monitoring"
PROMETHEUS = shutil.which("prometheus")
TRIALS = ("t0001", "t0002")
SERIES = re.compile(r"^ray_(sweeps_\w+){(.*)} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture
def running(
    start_sweeps, shakespeare, tmp_path: Path, ray_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A sweep whose two trials share a slot and train until it is interrupted."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "2000")
    file = shakespeare("""
search:
  trials: 2
  scheduler: none
  space:
    method: lora
    learning_rate: {choice: [1e-5, 2e-5]}
    rank: 4
    batch_size: 16
    epochs: 1000
cluster: {slots: 1, trials_per_slot: 2}
""")
    log = tmp_path / "log"
    process = start_sweeps(log, "run", file)
    sweep = SimpleNamespace(process=process, log=log, ray=ray_tmp / "ray")
    sweep.dashboard = wait_for(
        sweep, lambda: next(iter(re.findall(r"Ray dashboard: (\S+)", log.read_text())), None)
    )
    yield sweep
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1, log.read_text()
    assert "Ray's metrics" not in log.read_text() and "Traceback" not in log.read_text()


def wait_for(sweep: Any, condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it gives something, while the sweep runs."""
    while not (found := condition()):
        assert sweep.process.poll() is None, sweep.log.read_text()
        time.sleep(0.2)
    return found


def series(dashboard: str) -> dict[tuple[str, ...], float]:
    """All that the cluster's nodes tell of sweeps, by metric and the labels that we gave it."""
    found = {}
    for group in requests.get(f"{dashboard}/api/prometheus/sd", timeout=30).json():
        for target in group["targets"]:
            try:
                text = requests.get(f"http://{target}/metrics", timeout=30).text
            except requests.ConnectionError:  # Ray lists what comes up later
                continue
            for metric, labels, value in SERIES.findall(text):
                given = dict(LABEL.findall(labels))
                names = ("trial", "slot", "worker", "state", "activity", "device")
                key = (metric, *(given[name] for name in names if name in given))
                found[key] = float(value)
                assert given["sweep"].startswith("shakespeare-")
    return found


def test_nodes_tell_every_trial_and_slot_of_a_running_sweep(running) -> None:
    needed = {
        ("sweeps_trials", "running"),
        ("sweeps_trials", "failed"),
        ("sweeps_trials_planned",),
        ("sweeps_best_val_loss",),
        ("sweeps_untuned_val_loss",),
        ("sweeps_evaluations",),
        ("sweeps_checkpoint_bytes",),
        ("sweeps_slots", "running"),
        ("sweeps_slot_trials", "slot0"),
        ("sweeps_slot_samples_total", "slot0"),
        ("sweeps_slot_tokens_total", "slot0"),
        ("sweeps_slot_memory_bytes", "slot0", "0", "cpu"),
    }
    needed |= {
        ("sweeps_slot_seconds_total", "slot0", activity)
        for activity in ("training", "evaluating", "waiting", "other")
    }
    for trial in TRIALS:
        needed |= {("sweeps_trial_state", trial, "running")}
        needed |= {("sweeps_trial_samples_per_second", trial, "slot0")}
        needed |= {
            (f"sweeps_trial_{number}", trial)
            for number in ("val_loss", "probe_loss", "samples", "epochs", "progress")
        }

    def whole() -> dict[tuple[str, ...], float] | None:
        found = series(running.dashboard)
        return found if needed <= {*found} else None

    found = wait_for(running, whole)
    assert {*found} == needed | {("sweeps_trials", state) for state in ("complete", "pruned")} | {
        ("sweeps_slots", state) for state in ("lost", "quarantined")
    }
    assert found["sweeps_trials", "running"] == found["sweeps_trials_planned",] == 2
    assert found["sweeps_slot_trials", "slot0"] == 2 and found["sweeps_slots", "running"] == 1
    assert found["sweeps_evaluations",] >= 2 and found["sweeps_checkpoint_bytes",] > 1000
    assert found["sweeps_slot_memory_bytes", "slot0", "0", "cpu"] > 50e6
    log = running.log.read_text()
    for trial in TRIALS:
        losses = re.findall(rf"{trial} epoch \S+ val loss ([\d.]+), probe loss ([\d.]+)", log)
        told = (found["sweeps_trial_val_loss", trial], found["sweeps_trial_probe_loss", trial])
        assert tuple(f"{loss:.4f}" for loss in told) in losses
        assert 0 < found["sweeps_trial_progress", trial] < 1
        assert found["sweeps_trial_epochs", trial] == found["sweeps_trial_samples", trial] / 320


@pytest.fixture
def prometheus(running, tmp_path: Path) -> Iterator[str]:
    """The address of one that reads the shipped file."""
    file = tmp_path / "prometheus.yml"
    file.write_text((FOLDER / "prometheus.yml").read_text().replace("/tmp/ray/", f"{running.ray}/"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [PROMETHEUS, f"--config.file={file}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://{address}"
    process.terminate()
    assert process.wait(60) == 0, (tmp_path / "prometheus.log").read_text()


@pytest.mark.skipif(
    PROMETHEUS is None, reason="needs the program prometheus (Debian: apt-get install prometheus)"
)
def test_prometheus_answers_what_the_dashboard_asks(running, prometheus: str) -> None:
    board = json.loads((FOLDER / "sweeps.json").read_text())
    variables = {"$sweep": "shakespeare-.*", "$SessionName": ".*", "$__rate_interval": "1m"}

    def answer(expression: str) -> list[dict[str, Any]]:
        for name, value in variables.items():
            expression = expression.replace(name, value)
        try:
            asked = requests.get(
                f"{prometheus}/api/v1/query", params={"query": expression}, timeout=30
            )
        except requests.ConnectionError:  # it starts
            return []
        if asked.status_code == 503:
            return []
        assert asked.json()["status"] == "success", asked.text
        return asked.json()["data"]["result"]

    for panel in board["panels"]:
        for target in panel["targets"]:
            found = wait_for(running, lambda t=target: answer(t["expr"]))
            trials = {each["metric"]["trial"] for each in found if "trial" in each["metric"]}
            assert trials in (set(), {*TRIALS}), panel["title"]
            assert len({*map(str, (each["metric"] for each in found))}) == len(found)
