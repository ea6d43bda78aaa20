"""What a sweep does first when it is told to stop."""

import threading
from types import SimpleNamespace

import pytest

import sweeps.run.sweep
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import INTERRUPTED


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep without all that is not asked here; `calls` are what it did, in order."""
    one = object.__new__(sweeps.run.sweep._Sweep)
    one.calls = []
    one.ledger = Ledger(str(tmp_path))
    one.stopped, one._beating = None, threading.Lock()
    one.elapsed_s = lambda: 3.0
    one.display = SimpleNamespace(say=lambda line: one.calls.append(line))
    one._save_study = lambda: one.calls.append(
        f"study, {one.ledger.store.read_json('status.json')['status']}"
    )
    one._coordinator = SimpleNamespace(
        stop_trials=SimpleNamespace(remote=lambda reason: one.calls.append("trials"))
    )
    monkeypatch.setattr("ray.get", lambda value, timeout=None: value)
    return one


def test_it_writes_that_it_was_interrupted_before_anything_else(sweep):
    sweep._stop(INTERRUPTED)
    assert sweep.calls == ["study, interrupted", f"Stopping: {INTERRUPTED}", "trials"]
    told = sweep.ledger.store.read_json("status.json")
    assert (told["status"], told["ending"], told["elapsed_s"]) == ("interrupted", True, 3.0)


def test_a_heartbeat_that_comes_later_does_not_take_it_back(sweep):
    sweep._heartbeat()
    assert sweep.ledger.store.read_json("status.json")["status"] == "running"
    sweep._stop(INTERRUPTED)
    sweep._heartbeat()
    assert sweep.ledger.store.read_json("status.json")["status"] == "interrupted"


def test_a_store_that_cannot_be_written_does_not_keep_it_from_stopping(sweep, monkeypatch):
    monkeypatch.setattr(
        Ledger, "set_status", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    sweep._stop(INTERRUPTED)
    assert sweep.calls[-1] == "trials" and "disk full" in sweep.calls[0]


def test_a_spent_time_budget_is_no_interruption(sweep):
    sweep._stop("the time budget of 1h is spent")
    assert sweep.calls[-1] == "trials" and not sweep.ledger.store.exists("status.json")
