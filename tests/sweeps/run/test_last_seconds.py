"""A sweep whose winner is written has finished, whatever comes after."""

import io

import pytest
from rich.console import Console

from sweeps.ledger.opening import open_sweep
from sweeps.reporting import handover, publish
from sweeps.run.sweep import Sweep
from tests.sweeps.use.tiny_sweep import TRIAL, drawn, tiny_sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """All trials of it have ended, and all is measured; what is told of it is in `told`."""
    model = drawn(tmp_path / "model", "llama", "causal")
    ledger, config = open_sweep(
        str(tiny_sweep(tmp_path / "s", "instruction", model, "lora", rank=2))
    )
    heard = io.StringIO()
    made = Sweep(config, ledger.load(), Console(file=heard, width=300), 1.0)
    monkeypatch.setattr(made.jobs, "left", dict)
    made.told, made.heard = [], heard.getvalue
    monkeypatch.setattr(made.notifier, "tell", lambda news, trial: made.told.append(news))
    return made


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")])
def test_what_breaks_off_the_telling_ends_no_finished_sweep(sweep, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(publish, "write_report", broken)
    with pytest.raises(type(error)):
        sweep.run()
    assert sweep.ledger.status()[0] == "finished"
    (news,) = sweep.told
    assert (news.status, news.winner) == ("finished", TRIAL)
    assert f"python -m sweeps report {sweep.ledger.store.path('').rstrip('/')}" in sweep.heard()


def test_without_a_winner_it_is_interrupted(sweep, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(handover, "hand_over", broken)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert sweep.ledger.status()[0] == "interrupted"
    assert [news.status for news in sweep.told] == ["interrupted"]
