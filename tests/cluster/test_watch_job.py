"""`python -m sweeps watch JOB --address URL`, and `ctl`: a submitted sweep, followed and steered from where it was submitted."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import ClusterError
from cluster.jobs import Jobs
from sweeps.reporting.relay import Relayed
from sweeps.run import ctl
from sweeps.run.watch_job import relayed, watched_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

ROOT = Path(__file__).resolve().parent.parent.parent


def start(*arguments: object, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sweeps", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def job(ray_head, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a job that runs a sweep of two trials."""
    ray_head.use(monkeypatch)
    (tmp_path / "lm.yaml").write_text(f"""
name: far
task: causal_lm
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
train: {{method: full, batch_size: 8, epochs: 4, probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 2
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space: {{learning_rate: {{choice: [0.0003, 0.001]}}}}
selection: {{baselines: false}}
""")
    process = start("submit", tmp_path / "lm.yaml", "--address", ray_head.dashboard_url)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return re.match(r"Job (\S+): ", output.splitlines()[-1])[1]


def board_of(folder: Path) -> dict:
    process = start("best", folder, "--json")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output)


@pytest.mark.long
def test_a_job_is_watched_by_its_folder_and_through_a_job_beside_it(ray_head, job, tmp_path):
    """The second as where this machine cannot read the folder; both end with the board that `best` prints."""
    by_folder = start("watch", job, "--address", ray_head.dashboard_url, "--json", **ray_head.env)
    jobs = Jobs(ray_head.dashboard_url)
    while "sweep_folder" not in (found := jobs.find(job)).metadata:
        assert not found.has_ended, found
        time.sleep(0.2)
    folder = found.metadata["sweep_folder"]
    states, version = [], None
    with relayed(jobs, found, folder, pages=True) as source:
        assert source.name == Path(folder).name and source.log == f"{folder}/log.txt"
        while (look := source.look()).status == "running":
            if look.version != version:
                version = look.version
                states.append({curve.id: len(curve.points) for curve in look.curves})
                assert '<html lang="en" data-version' in source.page()
            time.sleep(source.looks_every_s)
        page, board = source.page(), source.board()
    assert any(0 < sum(state.values()) < 8 for state in states), states
    assert look.story == Path(folder, "log.txt").read_text().splitlines()[: len(look.story)]
    assert any(re.search(r" t0001 starts: ", line) for line in look.story)
    output, errors = by_folder.communicate()
    assert by_folder.returncode == 0, errors
    own = board_of(tmp_path / "runs" / Path(folder).name)
    assert json.loads(output) == own and "t0001 starts: " in errors
    assert board is not None and board.winner is not None
    assert (board.status, board.winner.trial) == ("finished", own["winner"]["trial"])
    assert f'data-trial="{own["winner"]["trial"]}"' in page
    left = [
        each
        for each in jobs._client.list_jobs()
        if each.metadata.get("job_name", "").startswith("watch-")
    ]
    assert left and all(each.status.is_terminal() for each in left)


@pytest.mark.long
def test_a_watcher_that_leaves_takes_its_job_along(ray_head, job):
    jobs = Jobs(ray_head.dashboard_url)
    while "sweep_folder" not in (found := jobs.find(job)).metadata:
        time.sleep(0.2)
    with relayed(jobs, found, found.metadata["sweep_folder"], pages=False) as source:
        assert source.look().status == "running"
    while not all(
        each.status.is_terminal()
        for each in jobs._client.list_jobs()
        if each.metadata.get("job_name", "").startswith("watch-")
    ):
        time.sleep(0.2)
    assert not jobs.find(job).has_ended, "the sweep goes on"
    jobs.stop(job)


def test_what_cannot_be_watched_is_said_in_one_line(ray_head, monkeypatch):
    ray_head.use(monkeypatch)
    with (
        pytest.raises(ClusterError, match="nobody-1"),
        watched_job(ray_head.dashboard_url, "nobody-1", pages=False, say=print),
    ):
        pass
    jobs = Jobs(ray_head.dashboard_url)
    broken = jobs._client.submit_job(entrypoint="python -c 'raise SystemExit(3)'")
    with (
        pytest.raises(ClusterError, match=f"^{broken}: FAILED before it began a sweep"),
        watched_job(ray_head.dashboard_url, broken, pages=False, say=print),
    ):
        pass
    with relayed(jobs, jobs.find(broken), "/nowhere", pages=False) as source:
        assert isinstance(source, Relayed)
        with pytest.raises(ClusterError, match="the job that reads /nowhere said"):
            source.look()


@pytest.mark.long
def test_a_job_is_steered_by_its_folder_and_through_a_job_beside_it(ray_head, job, monkeypatch):
    """The second as where this machine cannot reach the folder."""
    jobs = Jobs(ray_head.dashboard_url)
    while "sweep_folder" not in (found := jobs.find(job)).metadata:
        assert not found.has_ended, found
        time.sleep(0.2)
    folder = Path(found.metadata["sweep_folder"])
    while not (folder / "trials" / "t0001").is_dir():
        assert not jobs.find(job).has_ended
        time.sleep(0.2)
    by_folder = start("ctl", job[:-2], "--address", ray_head.dashboard_url, "pause", **ray_head.env)
    output, errors = by_folder.communicate()
    assert by_folder.returncode == 0 and output.startswith("done: nothing new starts"), errors
    monkeypatch.setattr(ctl, "is_reached", lambda folder: False)

    def steered(*words):
        return ctl.steer_job(ray_head.dashboard_url, job, words, by="ann@desk", say=print)

    more = steered("trials=+1")
    assert (more.state, more.words) == ("done", "Changed: search.trials: 2 to 3")
    with pytest.raises(ClusterError, match="^ctl: t0009: the sweep has no such trial"):
        steered("stop", "t0009")
    assert steered("go-on").state == "done"
    jobs.stop(job)
    found = board_of(folder)["steered"]
    assert [(each["command"], each["state"]) for each in found] == [
        ("pause", "done"),
        ("trials=+1", "done"),
        ("go-on", "done"),
    ]
    assert [each["by"] for each in found[1:]] == ["ann@desk"] * 2
