"""A model and trials in Weights & Biases are brought here by the real wandb, from a small server on this machine."""

import os

import pytest

from sweeps.tracking.artifacts import download
from sweeps.tracking.runs import TrackedTrial, trials_of
from trainables.errors import InputError

CONTENT = b'{"model_type": "llama"}'
PROJECT = "someone/a-project"


@pytest.fixture
def server(server, tmp_path):
    """With two versions of an artifact."""
    folders = {f"WANDB_{name}_DIR": str(tmp_path / "wandb") for name in ("DATA", "CACHE", "CONFIG")}
    os.environ |= {"WANDB_MODE": "online", **folders}
    server.add_version("tickets", {"config.json": b"{}"})
    server.add_version("tickets", {"config.json": CONTENT}, aliases=["latest"])
    yield server
    import wandb

    wandb.teardown()


def test_an_artifact_is_downloaded_once(server, tmp_path):
    folder = download(f"wandb:{PROJECT}/tickets:v1", tmp_path / "artifacts")
    assert folder == tmp_path / "artifacts" / "someone" / "a-project" / "tickets:v1"
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == CONTENT
    asked = len(server.asked)
    assert download(f"wandb:{PROJECT}/tickets:v1", tmp_path / "artifacts") == folder
    assert len(server.asked) == asked
    # of an alias it is asked which version it is now
    assert download(f"wandb:{PROJECT}/tickets:latest", tmp_path / "artifacts") == folder
    assert len(server.asked) > asked and len(list(folder.parent.iterdir())) == 1


def test_what_is_not_there_is_one_line(server, tmp_path):
    with pytest.raises(
        InputError, match=rf"^model.name: could not download wandb:{PROJECT}/tickets:v9: "
    ):
        download(f"wandb:{PROJECT}/tickets:v9", tmp_path)
    with pytest.raises(
        InputError, match="must be wandb:ENTITY/PROJECT/NAME:VERSION, got 'wandb:x'"
    ):
        download("wandb:x", tmp_path)


def test_trials_of_a_group_are_read(server):
    for name, kind in (("tickets-1-t0001", "trial"), ("tickets-1-sweep", "sweep")):
        server.on_UpsertBucket(
            {
                "name": name,
                "displayName": name,
                "groupName": "tickets-1",
                "jobType": kind,
                "config": '{"method": {"value": "lora"}, "learning_rate": {"value": 0.001}}',
                "summaryMetrics": '{"status": "complete", "best/val_loss": 0.5}',
            }
        )
    (trial,) = trials_of(f"wandb:{PROJECT}/tickets-1", "search.prior[0]")
    assert trial == TrackedTrial(
        config={"method": "lora", "learning_rate": 1e-3},
        summary={"status": "complete", "best/val_loss": 0.5},
    )
    with pytest.raises(
        InputError, match=rf"^search.prior\[0\]: wandb:{PROJECT}/none: no runs of this"
    ):
        trials_of(f"wandb:{PROJECT}/none", "search.prior[0]")
    with pytest.raises(InputError, match="must be a folder or wandb:ENTITY/PROJECT/SWEEP, got"):
        trials_of("wandb:me/p", "search.prior[0]")
