"""What a sweep tells, in a store of MLflow, read back by MLflow's own client."""

import json
import subprocess
import sys

import pytest

from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import BaseSource, SweepEnd, Table, open_tracker
from trainables.evaluation.record import Evaluation

mlflow = pytest.importorskip("mlflow")

PARAMS = {"method": "lora", "learning_rate": 0.001, "rank": 8}
ABOUT = {"task": "classification", "model": {"name": "tiny"}, "data": {"train": {"rows": 64}}}


def point(step, val_loss, **more):
    return Evaluation(
        step=step,
        samples_seen=step * 8,
        epoch=step / 10,
        val_loss=val_loss,
        probe_loss=0.4,
        metrics={"accuracy": 0.75},
        **more,
    )


@pytest.fixture
def lines():
    return []


@pytest.fixture
def track(tmp_path, lines, monkeypatch):
    """Opens the sweep's trackers, as one process after the other would."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = []

    def start(mlflow=True, sweep="my-sweep"):
        config = TrackingConfig(wandb="off", mlflow=mlflow, project="a project", tags=["mine"])
        opened.append(
            open_tracker(config, sweep=sweep, folder=tmp_path, log=lines.append, about=ABOUT)
        )
        return opened[-1]

    yield start
    for each in opened:
        each.close(60)


def runs_of(uri, project="a project"):
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(project)
    found = client.search_runs([experiment.experiment_id])
    return client, {run.data.tags["trial"]: run for run in found}


def end(tracker, trial, best, status="complete", verdict="healthy"):
    tracker.trial_finished(trial, status=status, verdict=verdict, verdict_reason="it is", best=best)


def won(trial, reason):
    samples = Table(columns=("row", "given"), rows=((3, "two"),))
    return SweepEnd(
        trial=trial,
        reason=reason,
        checkpoint=f"trials/{trial}",
        paragraph=reason,
        tables={"samples": samples},
        base=BaseSource(name="tiny"),
    )


def test_what_a_sweep_tells_is_read_back_also_after_a_resume(track, tmp_path, lines):
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    first = track()
    first.trial_started("t0001", PARAMS)
    first.evaluation("t0001", point(8, 0.6))
    first.evaluation("t0001", point(16, 0.5, train_loss=0.3))
    end(first, "t0001", point(16, 0.5))
    first.trial_started("t0002", PARAMS)
    first.evaluation("t0002", point(8, 0.9))
    first.close(300)
    client, runs = runs_of(uri)
    assert (runs["t0001"].info.status, runs["t0002"].info.status) == ("FINISHED", "KILLED")
    assert lines == [f"MLflow: 2 runs; see them with: mlflow ui --backend-store-uri {uri}"]

    second = track()
    second.trial_started("t0002", PARAMS)
    second.evaluation("t0002", point(8, 0.9))  # told already
    second.evaluation("t0002", point(16, None))
    end(second, "t0002", None, "failed", "diverged")
    second.sweep_finished(won("t0002", "an earlier choice"))
    second.sweep_finished(won("t0001", "lowest"))
    second.close(300)
    client, runs = runs_of(uri)
    best, lost = runs["t0001"], runs["t0002"]
    assert best.data.params == {
        "task": "classification",
        "model.name": "tiny",
        "data.train.rows": "64",
        "method": "lora",
        "learning_rate": "0.001",
        "rank": "8",
    }
    curve = client.get_metric_history(best.info.run_id, "val/loss")
    assert [(each.step, each.value) for each in curve] == [(64, 0.6), (128, 0.5)]
    assert (best.data.metrics["best/val_loss"], best.data.metrics["val/accuracy"]) == (0.5, 0.75)
    tags = {name: value for name, value in best.data.tags.items() if not name.startswith("mlflow.")}
    assert tags == {
        "mine": "true",
        "sweep": "my-sweep",
        "trial": "t0001",
        "status": "complete",
        "verdict": "healthy",
        "verdict_reason": "it is",
        "winner": "true",
        "winner_reason": "lowest",
        "winner_checkpoint": "trials/t0001",
    }
    answers = client.download_artifacts(best.info.run_id, "samples.json", str(tmp_path))
    with open(answers) as stream:
        assert json.load(stream) == {"columns": ["row", "given"], "data": [[3, "two"]]}
    assert (lost.info.status, lost.data.tags["winner"]) == ("FAILED", "false")
    curve = client.get_metric_history(lost.info.run_id, "probe/loss")
    assert [each.step for each in curve] == [64, 128], "none is there twice"
    assert [each.step for each in client.get_metric_history(lost.info.run_id, "val/loss")] == [64]


def test_a_store_that_is_not_there_is_said_once_and_stops_nothing(track, lines, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = track("http://127.0.0.1:9")
    for number in range(5):
        tracker.trial_started(f"t{number:04d}", PARAMS)
    tracker.close(300)
    assert any("gave up after 3 failures in a row" in line for line in lines), lines
    assert len(lines) == len(set(lines)) <= 5
    assert all(line.startswith("MLflow: ") and "\n" not in line for line in lines)


def test_without_the_package_one_line_says_how_to_get_it(tmp_path):
    code = (
        "import sys, pathlib; sys.modules['mlflow'] = None\n"
        "from sweeps.tracking.config import TrackingConfig\n"
        "from sweeps.tracking.mlflow import MlflowTracker\n"
        "config = TrackingConfig(mlflow=True)\n"
        "tracker = MlflowTracker(config, 's', pathlib.Path(sys.argv[1]), print, {})\n"
        "tracker.trial_started('t0001', {}); tracker.close()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    line = "MLflow: not tracking: mlflow is not installed (pip install 'finetune-sweeps[mlflow]')\n"
    assert (run.returncode, run.stdout, run.stderr) == (0, line, "")


def test_what_is_not_asked_for_is_not_imported(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from sweeps.tracking.config import TrackingConfig\n"
        "from sweeps.tracking.protocol import open_tracker\n"
        "config = TrackingConfig(wandb='off')\n"
        "open_tracker(config, sweep='s', folder=pathlib.Path(sys.argv[1]), log=print, about={}).close()\n"
        "assert not {'mlflow', 'sweeps.tracking.mlflow'} & sys.modules.keys()"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
