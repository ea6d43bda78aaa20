"""What trackers write of a sweep on an object store is there when the sweep goes on."""

import io
import sqlite3

import fsspec
import pytest
from rich.console import Console

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.run.sweep import Sweep
from sweeps.tracking.sync import rows_of
from trainables.evaluation.record import Evaluation

FILE = """
name: s
task: causal_lm
model: {name: nobody/nothing}
data: {train: a.txt, validation: 0.1}
search: {trials: 2, space: {method: lora, rank: 4, alpha: 8, learning_rate: 0.001, batch_size: 8, epochs: 1}}
tracking: {wandb: offline, mlflow: true}
"""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The sweep, opened by one process after another."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))  # which the tracker sets anew
    (tmp_path / "sweep.yaml").write_text(FILE)
    ledger = Ledger(f"memory://{tmp_path.name}/s-1")
    split = {"rows": 100}
    ledger.store.write_json(
        "data/manifest.json",
        {
            "task": "causal_lm",
            "splits": {"train": split, "validation": split},
            "sources": {"train": {"source": "a.txt"}},
        },
    )
    yield lambda: Sweep(load(tmp_path / "sweep.yaml"), ledger, Console(file=io.StringIO()), 1.0)
    fsspec.filesystem("memory").store.clear()


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_that_goes_on_knows_what_it_has_tracked(opened, tmp_path):
    pytest.importorskip("mlflow")
    for trial, step in (("t0001", 10), ("t0001", 10), ("t0002", 10)):
        sweep = opened()
        sweep.tracker.trial_started(trial, {"method": "lora"})
        sweep.tracker.evaluation(
            trial, Evaluation(step=step, samples_seen=80, epoch=1.0, val_loss=2.0, probe_loss=2.0)
        )
        sweep.tracker.close(600.0)
        sweep.close()
        assert not sweep._scratch.exists()
    store = sweep.ledger.store
    (tmp_path / "mlflow.db").write_bytes(store.read_bytes("tracking/mlflow/mlflow.db"))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        runs = database.execute("SELECT name FROM runs ORDER BY name").fetchall()
        rows = database.execute("SELECT count(*) FROM metrics WHERE key = 'val/loss'").fetchone()
    assert (runs, rows) == ([("t0001",), ("t0002",)], (2,))
    kept = store.fetch("tracking", tmp_path / "here")
    logged = [
        len(rows_of(log)) for log in sorted(kept.rglob("*.wandb"), key=lambda log: log.parent)
    ]
    assert logged == [1, 0, 1], "a process logs again what an earlier one has logged"
