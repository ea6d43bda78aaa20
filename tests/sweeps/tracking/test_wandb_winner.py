"""The winner goes to W&B and comes back: by the real wandb, against a small server on this machine."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from wandb_stub import KEY

from sweeps.tracking import online
from sweeps.tracking import wandb as tracking
from sweeps.tracking import winner as artifacts
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import BaseSource, DataSource, SourceFile, SweepEnd, Table
from sweeps.tracking.runs import trials_of
from sweeps.tracking.sync import sync
from sweeps.tracking.wandb import WandbTracker
from sweeps.use.pick import pick
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation
from trainables.storage.checksums import CHECKSUMS, digest_of_checksums, write_checksums

LINK = "someone/a-project/my-sweep-winner"
PARAMS = {"method": "lora", "learning_rate": 0.001}
ROOT = Path(__file__).resolve().parents[3]
SWEEP = """
name: my-sweep
task: classification
model: {name: org/encoder}
data: {train: a.csv, validation: 0.1}
search: {space: {method: full, learning_rate: 0.001, batch_size: 8, epochs: 1}}
"""
LIMITS = ("INIT_TIMEOUT_S", "FINISH_TIMEOUT_S", "ARTIFACT_TIMEOUT_S")


@pytest.fixture(autouse=True)
def environment(wandb_environment, monkeypatch):
    """Nothing that answers is given up for being slow."""
    for limit in LIMITS:
        monkeypatch.setattr(tracking, limit, 120.0)
    monkeypatch.setattr(online, "PROBE_TIMEOUT_S", 120.0)
    yield
    import wandb

    wandb.teardown()


@pytest.fixture
def folder(tmp_path):
    """The sweep's folder, with a winner."""
    return made(tmp_path / "my-sweep", b"one")


def made(folder, weights):
    winner = folder / "winner"
    (winner / "base").mkdir(parents=True, exist_ok=True)
    (winner / "adapter_model.safetensors").write_bytes(weights * 1000)
    (winner / "adapter_config.json").write_text("{}")
    (winner / "base" / "config.json").write_text('{"model_type": "llama"}')
    (winner / "README.md").write_text(
        '# It\n\n```python\nmodel = load("winner", "winner/base")\n```\n'
    )
    (winner / "winner.json").write_text('{"trial": "t0001", "step": 20}')
    (folder / "sweep.yaml").write_text(SWEEP)
    write_checksums(winner)
    return folder


def ended(folder, trial="t0001", **more):
    winner = folder / "winner"
    told = {
        "trial": trial,
        "reason": "lowest validation loss",
        "checkpoint": str(winner),
        "paragraph": f"**The winner is {trial}**",
        "summary": {"val_loss": 1.0, "cost/device_seconds": 12.0},
        "findings": ("train: 3 rows twice",),
        "tables": {
            "leaderboard": Table(columns=("trial", "rank"), rows=((trial, 1), ("t0009", None))),
            "samples": Table(columns=("row", "given"), rows=((3, "two plus two"),)),
        },
        "data": (
            DataSource(
                name="train",
                source="/a/one.csv, /a/two.csv",
                files=tuple(SourceFile(name=f"/a/{n}.csv", sha256=n) for n in ("one", "two")),
                fingerprint="cd" * 32,
                rows=8,
            ),
            DataSource(
                name="test",
                source="s3://a/b.csv",
                files=(SourceFile(name="s3://a/b.csv", sha256="b"),),
                fingerprint="ef" * 32,
                rows=2,
            ),
        ),
        "data_fingerprint": "ab" * 32,
        "base": BaseSource(name="org/encoder", revision="abc"),
        "metadata": {
            "sweep": "my-sweep",
            "trial": trial,
            "parameters": PARAMS,
            "checkpoint": str(winner),
            "files_sha256": digest_of_checksums((winner / CHECKSUMS).read_bytes()),
        },
    }
    return SweepEnd(**told | more)


def evaluation(step, loss):
    return Evaluation(
        step=step, samples_seen=step * 16, epoch=step / 10, val_loss=loss, probe_loss=0.9
    )


def swept(
    folder,
    lines=None,
    *,
    end=None,
    trials=2,
    wandb="online",
    steps=(10, 20),
    timeout_s=600.0,
    **config,
):
    """A sweep of so many trials, tracked to its end."""
    settings = TrackingConfig(wandb=wandb, project="a-project", **config)
    log = [].append if lines is None else lines.append
    tracker = WandbTracker(settings, "my-sweep", folder / "tracking", log)
    for number in range(1, trials + 1):
        trial = f"t{number:04}"
        tracker.trial_started(trial, PARAMS)
        for step in steps:
            tracker.evaluation(trial, evaluation(step, number + 1 / step))
        best = evaluation(steps[-1], number + 1 / steps[-1])
        tracker.trial_finished(
            trial, status="complete", verdict="healthy", verdict_reason="it is", best=best
        )
    if end is not False:
        tracker.sweep_finished(end or ended(folder))
    tracker.close(timeout_s)
    return settings


def contents(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def history(server):
    return {name: [row["_step"] for row in run["history"]] for name, run in server.runs.items()}


def go_on(folder, settings):
    before = variables()
    try:
        return sync(settings, "my-sweep", folder / "tracking", {})
    finally:
        assert variables() == before


def variables():
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def elsewhere(folder, tmp_path):
    """The colleague's machine has no sweep's folder."""
    return folder.rename(tmp_path / "far away")


def test_a_finished_sweep_is_picked_from_its_artifact(server, folder, tmp_path):
    lines = []
    swept(folder, lines)
    run = server.runs["my-sweep-sweep"]
    assert (run["job_type"], run["group"]) == ("sweep", "my-sweep")
    wanted = {"winner_trial": "t0001", "val_loss": 1.0, "findings": ["train: 3 rows twice"],
              "paragraph": "**The winner is t0001**", "cost/device_seconds": 12.0}  # fmt: skip
    assert run["summary"].items() >= wanted.items()
    assert {"leaderboard", "samples"} <= run["summary"].keys()
    assert server.runs["my-sweep-t0001"]["summary"]["winner"] is True
    (winner,) = server.of("my-sweep-winner")
    assert (winner["type"], winner["state"], winner["run"]) == (
        "model",
        "COMMITTED",
        "my-sweep-sweep",
    )
    assert sorted(winner["aliases"]) == ["best", "latest", "t0001", "winner"]
    assert json.loads(winner["metadata"])["parameters"] == PARAMS
    assert winner["files"] == contents(folder / "winner")
    (data,), (base,) = server.of("data-abababababababab"), server.of("base-org-encoder")
    assert (data["type"], base["type"]) == ("dataset", "model") and not data["files"]
    entries = json.loads(data["manifest"])["contents"]
    assert {name: (entry["ref"], entry["digest"]) for name, entry in entries.items()} == {
        "train/0000-one.csv": ("file:///a/one.csv", "one"),
        "train/0001-two.csv": ("file:///a/two.csv", "two"),
        "test.csv": ("s3://a/b.csv", "b"),
    }
    used = {server.by_id(id)["collection"] for run, id in server.used}
    assert used == {"data-abababababababab", "base-org-encoder"}
    assert lines == [
        f"W&B: runs at {server.url}/someone/a-project/groups/my-sweep; fetch the winner with:"
        f" python -m sweeps pick {LINK}:winner --to winner"
    ]
    assert not any(KEY.encode() in content for content in contents(tmp_path).values())

    expected = contents(folder / "winner")
    here = pick(f"{LINK}:winner", str(tmp_path / "here"))
    assert "copied from" in here.what and here.notes == ()
    assert here.check == f"python -m sweeps verify {folder}"
    far = elsewhere(folder, tmp_path)
    sources = [
        f"wandb:{LINK}:v0",
        f"{server.url}/someone/a-project/runs/my-sweep-t0002?nw=x",
        f"{server.url}/someone/a-project/groups/my-sweep",
        f"{server.url}/someone/a-project/artifacts/model/my-sweep-winner/v0",
        str(far),
    ]
    for number, source in enumerate(sources):
        target = tmp_path / f"picked-{number}"
        picked = pick(source, str(target))
        assert contents(target) == expected, source
        assert picked.loading == f'model = load("{target}", "{target}/base")'
    assert not list(tmp_path.glob(".partial-*"))


def test_the_commands_leave_nothing_else_where_they_run(server, folder, tmp_path):
    """In a process of its own, as at a prompt."""
    swept(folder, wandb="offline")
    far = tmp_path / "elsewhere"
    far.mkdir()
    kept = {name: value for name, value in os.environ.items() if name.endswith(("_URL", "_KEY"))}
    rest = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = rest | kept | {"PYTHONPATH": str(ROOT), "WANDB_ERROR_REPORTING": "false"}

    def command(*arguments):
        called = [sys.executable, "-m", "sweeps", *arguments]
        done = subprocess.run(called, capture_output=True, text=True, cwd=far, env=environment)
        return done.returncode, done.stdout, done.stderr

    expected = contents(folder / "winner")
    assert command("pick", f"{LINK}:winner", "--to", "model")[0] == 2
    swept(folder, trials=0)
    elsewhere(folder, tmp_path)
    code, out, err = command("pick", f"{LINK}:winner", "--to", "model")
    assert (code, err) == (0, ""), out + err
    assert out.endswith(f"t0001 of {LINK}:winner (v0): model\n")
    assert 'model = load("model", "model/base")' in out
    assert contents(far) == {f"model/{name}": content for name, content in expected.items()}
    code, out, err = command("sync", str(far))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    server.stop()
    code, out, err = command("pick", f"{LINK}:winner", "--to", "again")
    assert (code, out) == (1, "") and "does not answer" in err and len(err.splitlines()) == 1


def test_a_finished_sweep_that_goes_on_logs_its_winner_once(server, folder):
    swept(folder)
    before, asked = history(server), server.asked.count("CreateArtifact")
    swept(folder, trials=0)
    assert history(server) == before
    assert server.asked.count("CreateArtifact") == asked
    made(folder, b"two")  # another winner
    swept(folder, trials=0, end=ended(folder, "t0002"))
    first, second = server.of("my-sweep-winner")
    assert first["aliases"] == ["t0001"]
    assert sorted(second["aliases"]) == ["best", "latest", "t0002", "winner"]
    assert server.runs["my-sweep-t0001"]["summary"]["winner"] is False


def test_data_are_logged_anew_when_they_are_to_go_along(server, folder, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label")
    file = SourceFile(name=str(tmp_path / "rows.csv"), sha256="abc")
    data = DataSource(name="train", source=file.name, files=(file,), fingerprint="cd" * 32, rows=1)
    end = ended(folder, data=(data,))
    swept(folder, end=end)
    swept(folder, end=end, trials=0, dataset="files")
    first, second = server.of("data-abababababababab")
    assert not first["files"] and second["files"] == {"train.csv": b"text,label"}


def test_an_alias_that_a_person_has_moved_is_honoured(server, folder, tmp_path):
    swept(folder)
    other = {"sweep": "my-sweep", "trial": "t0007"}
    server.add_version("my-sweep-winner", {"config.json": b"{}"}, metadata=other)
    server.move("my-sweep-winner:winner", 1)
    picked = pick(f"{LINK}:winner", str(tmp_path / "picked"))
    assert picked.notes == ("alias `winner` points to v1 (t0007); the sweep itself chose t0001",)
    assert contents(tmp_path / "picked") == {"config.json": b"{}"}


def test_a_registry_gets_a_link_and_a_lora_service_an_adapter(server, folder, tmp_path):
    swept(folder, registry="tickets", lora_base="meta/llama")
    (link,) = server.links
    assert (link["projectName"], link["artifactPortfolioName"]) == (
        "wandb-registry-model",
        "tickets",
    )
    (lora,) = server.of("my-sweep-lora")
    assert (
        lora["type"] == "lora" and json.loads(lora["metadata"])["wandb.base_model"] == "meta/llama"
    )
    assert lora["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    expected = contents(folder / "winner")
    elsewhere(folder, tmp_path)
    pick("wandb-registry-model/tickets:latest", str(tmp_path / "picked"))
    assert contents(tmp_path / "picked") == expected


def test_a_reference_is_followed_where_it_can_be(server, folder, tmp_path):
    swept(folder, artifact_limit_gb=1e-9)
    (winner,) = server.of("my-sweep-winner")
    assert not winner["files"]
    pick(f"{LINK}:best", str(tmp_path / "here"))
    assert contents(tmp_path / "here") == contents(folder / "winner")
    elsewhere(folder, tmp_path)
    with pytest.raises(
        OSError, match="W&B has but a reference, to .*, which is not on this machine"
    ):
        pick(f"{LINK}:best", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_the_end_waits_while_a_large_winner_is_read(server, folder, monkeypatch):
    began, read = threading.Event(), artifacts._add_references

    def slowly(*given):
        began.set()
        time.sleep(2)  # longer than the end waits for anything else
        read(*given)

    monkeypatch.setattr(artifacts, "_add_references", slowly)
    monkeypatch.setattr(tracking, "UPLOAD_BYTES_PER_S", 1.0)
    lines = []
    settings = TrackingConfig(wandb="online", project="a-project", artifact="reference")
    tracker = WandbTracker(settings, "my-sweep", folder / "tracking", lines.append)
    tracker.trial_started("t0001", PARAMS)
    tracker.sweep_finished(ended(folder))
    assert began.wait(600)
    tracker.close(0.5)
    assert server.of("my-sweep-winner") and "not all was done in time" not in str(lines)


def test_a_winner_on_an_object_store_is_referred_to(server, folder, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "winner"), "/bucket/my-sweep/winner", recursive=True)
    url = "memory://bucket/my-sweep/winner"
    metadata = ended(folder).metadata | {"checkpoint": url}
    swept(folder, end=ended(folder, checkpoint=url, metadata=metadata))
    (winner,) = server.of("my-sweep-winner")
    entries = json.loads(winner["manifest"])["contents"]
    assert entries["base/config.json"]["ref"] == f"{url}/base/config.json"
    pick(f"{LINK}:winner", str(tmp_path / "picked"))
    assert contents(tmp_path / "picked") == contents(folder / "winner")


def test_what_was_tracked_offline_is_uploaded_once(server, folder, tmp_path):
    lines = []
    settings = swept(folder, lines, wandb="offline", registry="tickets")
    assert lines == [
        "W&B: offline runs: 2, the winner is not uploaded; upload with: python -m sweeps sync"
        f" {folder}"
    ]
    assert not server.runs
    told = go_on(folder, settings)
    assert re.match(r"W&B: 2 runs uploaded, .*artifact my-sweep-winner:v0, link to ", told)
    assert history(server)["my-sweep-t0001"] == history(server)["my-sweep-t0002"] == [10, 20]
    (winner,) = server.of("my-sweep-winner")
    assert winner["files"] == contents(folder / "winner") and server.links
    rows, asked = history(server), server.asked.count("CreateArtifact")
    assert go_on(folder, settings).startswith("W&B: nothing was left to upload (")
    assert history(server) == rows and server.asked.count("CreateArtifact") == asked
    for mark in folder.rglob("*.synced"):  # as if it had been killed before it was done
        mark.unlink()
    assert go_on(folder, settings).startswith("W&B: 2 runs completed (")
    assert history(server) == rows
    elsewhere(folder, tmp_path)
    pick(f"{server.url}/someone/a-project/runs/my-sweep-sweep", str(tmp_path / "picked"))
    assert contents(tmp_path / "picked") == winner["files"]


def test_a_run_that_is_in_part_online_gets_the_rest(server, folder):
    swept(folder, end=False, trials=1)
    settings = swept(folder, wandb="offline", trials=1, steps=(10, 20, 30))
    assert history(server)["my-sweep-t0001"] == [10, 20]
    go_on(folder, settings)
    assert history(server)["my-sweep-t0001"] == [10, 20, 30]
    assert server.runs["my-sweep-t0001"]["summary"]["winner"] is True


def test_new_seeds_of_a_finalist_stand_together(server, folder):
    settings = TrackingConfig(wandb="online", project="a-project")
    again = {f"t000{n}": PARAMS | {"seed": n, "finalist_of": "t0001"} for n in (2, 3)}
    for _ in range(2):  # the second process goes on with them
        tracker = WandbTracker(settings, "my-sweep", folder / "tracking", [].append)
        for trial, params in {"t0001": PARAMS, **again}.items():
            tracker.trial_started(trial, params)
        tracker.close(600.0)
        of = {name: (run["group"], run["job_type"]) for name, run in server.runs.items()}
        assert of == {
            "my-sweep-t0001": ("my-sweep", "trial"),
            "my-sweep-t0002": ("my-sweep", "seeds of t0001"),
            "my-sweep-t0003": ("my-sweep", "seeds of t0001"),
        }
    config = server.runs["my-sweep-t0003"]["config"]
    assert {name: config[name]["value"] for name in again["t0003"]} == again["t0003"]
    (trial,) = trials_of("wandb:someone/a-project/my-sweep", "search.prior[0]")
    assert "finalist_of" not in trial.config


def test_sync_says_in_a_line_what_is_in_the_way(server, folder, tmp_path):
    settings = swept(folder, wandb="offline")
    server.status = 401
    with pytest.raises(OSError, match=r"^W&B: .* refused the key \(HTTP 401\); what is here stays"):
        go_on(folder, settings)
    server.status = 200
    server.refused = ["file_stream", "UpsertBucket"]
    with pytest.raises(OSError, match=r"^W&B: not all was uploaded \(.*another `sync` goes on$"):
        go_on(folder, settings)
    assert not list(folder.rglob("*.synced"))
    server.refused = ()
    go_on(folder, settings)
    assert history(server)["my-sweep-t0001"] == history(server)["my-sweep-t0002"] == [10, 20]
    del os.environ["WANDB_API_KEY"]
    import wandb

    wandb.teardown()
    with pytest.raises(InputError, match="no API key is configured"):
        go_on(folder, settings)
    with pytest.raises(InputError, match="was not tracked"):
        sync(settings, "my-sweep", tmp_path / "nothing", {})


@pytest.mark.parametrize("trouble", ["no key", "dead", "401", "refuses artifacts", "hangs"])
def test_a_sweep_ends_whatever_the_server_does(server, folder, monkeypatch, trouble):
    lines = []
    match trouble:
        case "no key":
            del os.environ["WANDB_API_KEY"]
        case "dead":
            server.stop()
        case "401":
            monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 2.0)
            server.rows_before_trouble = 1
        case "refuses artifacts":
            server.refused = ["CreateArtifact"]
        case "hangs":
            monkeypatch.setattr(tracking, "ARTIFACT_TIMEOUT_S", 1.0)
            monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 2.0)
            server.hang_on = ["CreateArtifact"]
    settings = swept(folder, lines, trials=1, timeout_s=10.0 if trouble == "hangs" else 600.0)
    assert "the winner is not uploaded" in lines[-1]
    assert len(lines) <= 4 and all("\n" not in line for line in lines)
    if trouble in ("refuses artifacts", "hangs"):
        server.refused = server.hang_on = ()
        server.released.set()
        assert "artifact my-sweep-winner:v0" in go_on(folder, settings)
        assert server.of("my-sweep-winner")[0]["files"] == contents(folder / "winner")


def test_a_slow_server_gets_everything(server, folder, tmp_path):
    server.delay_s = 0.2
    swept(folder, trials=1)
    assert history(server)["my-sweep-t0001"] == [10, 20]
    server.delay_s = 0.0
    pick(f"{LINK}:winner", str(tmp_path / "picked"))
    assert contents(tmp_path / "picked") == contents(folder / "winner")


def test_what_cannot_be_picked_is_one_line(server, folder, tmp_path):
    swept(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="--to: must be a folder that is not there yet, or is"):
        pick(f"{LINK}:winner", str(tmp_path / "full"))
    wrong = {
        f"{LINK}:v9": "someone/a-project/my-sweep-winner:v9: ",
        "wandb:x": "wandb:x: must be ENTITY/PROJECT/NAME:ALIAS, ",
        f"{server.url}/someone/a-project/runs/none": "runs/none: ",
        str(tmp_path / "full"): "not a sweep's folder",
    }
    for source, words in wrong.items():
        with pytest.raises(InputError, match=re.escape(words)):
            pick(source, str(tmp_path / "picked"))
    (winner,) = server.of("my-sweep-winner")
    elsewhere(folder, tmp_path)
    del winner["files"]["base/config.json"]  # a download that ends half-way
    with pytest.raises(OSError, match="could not be downloaded"):
        pick(f"{LINK}:winner", str(tmp_path / "picked"))
    server.status = 401
    with pytest.raises(OSError, match=r"refused the key \(HTTP 401\)"):
        pick(f"{LINK}:winner", str(tmp_path / "picked"))
    del os.environ["WANDB_API_KEY"]
    import wandb

    wandb.teardown()
    with pytest.raises(InputError, match="no API key is configured"):
        pick(f"{LINK}:winner", str(tmp_path / "picked"))
    assert not (tmp_path / "picked").exists() and not list(tmp_path.glob(".partial-*"))


@pytest.mark.slow
def test_thirty_two_trials(server, folder):
    settings = swept(folder, trials=32, wandb="offline")
    go_on(folder, settings)
    found = history(server)
    assert len(found) == 33
    assert all(rows == [10, 20] for name, rows in found.items() if name != "my-sweep-sweep")
