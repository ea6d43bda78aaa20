"""What a sweep does first when it is told to stop."""

from types import SimpleNamespace

import pytest

from sweeps.config.schema import SearchConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import INTERRUPTED
from sweeps.run.lifetime import Lifetime


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The lifetime of a sweep; `calls` are what it did, in order."""
    ledger, calls = Ledger(str(tmp_path)), []
    one = Lifetime(
        ledger,
        SearchConfig(space={}, time_budget="1h"),
        elapsed_s=0.0,
        say=calls.append,
        save_study=lambda: calls.append(
            f"study, {ledger.store.read_json('status.json')['status']}"
        ),
    )
    one.calls = calls
    one.elapsed_s = lambda: 3.0
    one.coordinator = SimpleNamespace(
        stop_trials=SimpleNamespace(remote=lambda reason, pause: calls.append("trials"))
    )
    monkeypatch.setattr("ray.get", lambda value, timeout=None: value)
    return one


def test_it_writes_that_it_was_interrupted_before_anything_else(sweep):
    sweep.stop(INTERRUPTED)
    assert sweep.calls == ["study, interrupted", f"Stopping: {INTERRUPTED}", "trials"]
    told = sweep.ledger.store.read_json("status.json")
    assert (told["status"], told["ending"], told["elapsed_s"]) == ("interrupted", True, 3.0)


def test_a_heartbeat_that_comes_later_does_not_take_it_back(sweep):
    sweep.heartbeat()
    assert sweep.ledger.store.read_json("status.json")["status"] == "running"
    sweep.stop(INTERRUPTED)
    sweep.heartbeat()
    assert sweep.ledger.store.read_json("status.json")["status"] == "interrupted"


def test_a_store_that_cannot_be_written_does_not_keep_it_from_stopping(sweep, monkeypatch):
    monkeypatch.setattr(
        Ledger, "set_status", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    sweep.stop(INTERRUPTED)
    assert sweep.calls[-1] == "trials" and "disk full" in sweep.calls[0]


def test_a_spent_time_budget_is_no_interruption(sweep):
    sweep.stop("the time budget of 1h is spent")
    assert sweep.calls[-1] == "trials" and not sweep.ledger.store.exists("status.json")
