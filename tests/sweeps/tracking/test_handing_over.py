"""What a finished sweep tells its trackers, and the winner of a real one from training to a folder of one's own."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from wandb_stub import KEY, WandbServer, clean_environment

from sweeps.ledger.opening import open_sweep
from sweeps.reporting.ending import sweep_end
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.wandb_report import save_wandb_report
from sweeps.run.folder import about
from sweeps.run.syncing import sync_sweep
from sweeps.tracking.wandb import WandbTracker
from sweeps.use.pick import pick
from tests.sweeps.use.tiny_sweep import TRIAL, drawn, tiny_sweep
from trainables.storage.checksums import altered_files


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = drawn(folder / "model", "llama", "causal")
    return tiny_sweep(folder / "s", "instruction", model, "lora", rank=2)


def ended(folder):
    ledger, config = open_sweep(str(folder))
    board = leaderboard(ledger.load(), config.name, config.selection)
    return ledger, config, board, sweep_end(ledger, config, board, ledger.store.path("winner"))


def test_the_end_says_all_of_the_winner(sweep):
    ledger, config, board, end = ended(sweep)
    winner = board.winner
    assert end.trial == TRIAL and end.reason == winner.reason and end.reason in end.paragraph
    assert end.checkpoint == str(sweep / "winner")
    assert end.summary["val_loss"] == winner.val_loss and end.summary["trials"] == 1
    assert end.base.name == config.model.name
    assert [each.name for each in end.data] == ["train", "validation"]
    manifest = ledger.manifest()
    assert end.data[0].fingerprint == manifest.train.fingerprint
    assert end.data[0].rows == manifest.train.rows
    table = end.tables["leaderboard"]
    (row,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert row.items() >= {"place": 1, "trial": TRIAL, "method": "lora", "rank": 2}.items()
    low, high = end.metadata["val_loss_interval"]
    assert low < winner.val_loss < high and len(end.metadata) <= 100
    assert end.metadata["method"] == "lora"
    assert end.metadata["parameters"]["learning_rate"] == 2e-2
    assert not altered_files(sweep / "winner")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_the_winner_of_a_real_sweep_is_picked_from_a_report(sweep, tmp_path, monkeypatch):
    with clean_environment(tmp_path):
        server = WandbServer()
        os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        ledger, config, board, end = ended(sweep)
        lines = []
        tracker = WandbTracker(
            config.tracking, ledger.name, sweep / "tracking", lines.append, about(ledger, config)
        )
        server.status = 500  # it is down
        tracker.trial_started(TRIAL, {"method": "lora"})
        tracker.sweep_finished(end)
        tracker.close(600.0)
        assert f"upload with: python -m sweeps sync {sweep}" in lines[-1]
        server.status = 200
        assert "artifact " in sync_sweep(ledger, config)
        told = replace(config.tracking, entity="someone")
        url = save_wandb_report(board, told, ledger.name).url
        monkeypatch.chdir(tmp_path)
        here = pick(url, "model")
        assert here.check == f"python -m sweeps verify {sweep}"
        away = sweep.rename(tmp_path / "away")
        try:
            pick(url, str(tmp_path / "again"))
        finally:
            shutil.rmtree(sweep, ignore_errors=True)  # where wandb keeps its own logs
            away.rename(sweep)
        server.stop()
        assert not server.mistakes
        import wandb

        wandb.teardown()
    names = {file.name for file in Path("model").iterdir()}
    assert names == {file.name for file in (sweep / "winner").iterdir()}
    for name in ("adapter_model.safetensors", "README.md", "winner.json"):
        found = {(folder / name).read_bytes() for folder in (Path("model"), tmp_path / "again")}
        assert found == {(sweep / "winner" / name).read_bytes()}
    loaded: dict[str, object] = {}
    exec(here.loading.split("tokenizer")[0], loaded)  # as the card says
    assert loaded["model"].peft_config
