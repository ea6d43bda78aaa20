"""`python -m sweeps submit` to a head with token authentication: the job, its page and the names in the Actors page."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml

from cluster.endpoint import find_endpoint, open_client

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

ROOT = Path(__file__).resolve().parent.parent.parent


def test_submit_runs_the_sweep_as_a_job_whose_page_and_actors_read_well(
    ray_head, shared_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "manual.txt").write_text(
        "The manual says what each word of the language does. " * 60
    )
    (tmp_path / "space.yaml").write_text(
        "{method: lora, rank: 4, alpha: 8, learning_rate: {log_uniform: [3e-3, 1e-2]}, batch_size: 16, epochs: 2}"
    )
    (tmp_path / "lm.yaml").write_text(f"""
name: submitted
task: causal_lm
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
train: {{probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 2
  scheduler: none
  space: {tmp_path}/space.yaml
selection: {{general_text: {tmp_path}/manual.txt}}
""")
    seen: dict[str, dict] = {}
    running: set[str] = set()
    told: list[dict[str, str]] = []  # the job's metadata, one after another
    done = threading.Event()

    def watch_dashboard() -> None:
        headers = {
            "Authorization": f"Bearer {Path(ray_head.env['RAY_AUTH_TOKEN_PATH']).read_text()}"
        }
        while not done.is_set():
            answer = requests.get(f"{ray_head.dashboard_url}/logical/actors", headers=headers)
            for actor in answer.json()["data"]["actors"].values():
                seen[
                    f"{actor.get('name')} | {actor.get('reprName')} | {actor.get('actorClass')}"
                ] = actor
            answer = requests.get(
                f"{ray_head.dashboard_url}/api/v0/tasks?limit=10000", headers=headers
            )
            for task in answer.json()["data"]["result"]["result"]:
                running.add(task["name"])
            for job in requests.get(f"{ray_head.dashboard_url}/api/jobs/", headers=headers).json():
                if job["metadata"].get("sweep") == "submitted" and job["metadata"] not in told:
                    told.append(job["metadata"])
            time.sleep(1)

    watcher = threading.Thread(target=watch_dashboard)
    watcher.start()
    try:
        finished = subprocess.run(
            [
                sys.executable,
                "-m",
                "sweeps",
                "submit",
                str(tmp_path / "lm.yaml"),
                "--address",
                ray_head.dashboard_url,
                "--wait",
            ],
            cwd=ROOT,
            env={**os.environ, **ray_head.env},
            capture_output=True,
            text=True,
        )
    finally:
        done.set()
        watcher.join()
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = finished.stdout.splitlines()
    assert any("t0001 starts: lora" in line for line in lines) and any(
        line.startswith("Winner: t000") for line in lines
    )
    assert "SUCCEEDED" in lines[-1] and "\x1b" not in finished.stdout, (
        "plain lines: the job page shows them as they are"
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    ran = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert (
        ran["selection"]["general_text"] == "data/general_text.txt"
        and ran["search"]["space"]["rank"] == 4
    )
    assert any(name.startswith(f"{folder.name} t0001: lora") for name in running), sorted(running)
    assert any(f"{folder.name}-slot0" in name for name in seen), list(seen)
    winner = json.loads(sweeps("best", folder, "--json").stdout)["winner"]
    assert {"sweep_state": "running", "sweep_trials": "0 of 2 ended"}.items() <= told[1].items()
    assert told[-1] == told[0] | {
        "sweep_folder": str(folder),
        "sweep_state": "finished",
        "sweep_trials": "2 of 2 ended",
        "sweep_best": f"{winner['trial']}, val loss {winner['val_loss']:.4f}",
    }


@pytest.fixture
def submitted(ray_head, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Submits a sweep of three trials; returns its job's client and id, and the sweep's folder once a trial has ended and
    the next has been evaluated, and the job's page says so.
    """
    ray_head.use(monkeypatch)
    (tmp_path / "manual.txt").write_text(
        "The manual says what each word of the language does. " * 60
    )
    (tmp_path / "lm.yaml").write_text(f"""
name: stopped
task: causal_lm
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
train: {{method: full, batch_size: 8, epochs: 6, probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 3
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space: {{learning_rate: {{choice: [0.0003, 0.001, 0.003]}}}}
selection: {{general_text: {tmp_path}/manual.txt}}
""")

    def submit(**env: str):
        command = ["submit", str(tmp_path / "lm.yaml"), "--address", ray_head.dashboard_url]
        done = sweeps(*command, **ray_head.env, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        job = re.match(r"Job (\S+): ", done.stdout.splitlines()[-1])[1]
        client = open_client(find_endpoint(ray_head.dashboard_url))
        while True:
            ended = [*(tmp_path / "runs").glob("*/trials/*/outcome.json")]
            begun = {
                path.parts[-3] for path in (tmp_path / "runs").glob("*/trials/*/attempt-*/step-*")
            }
            page = client.get_job_info(job).metadata
            if ended and len(begun) > len(ended) and page.get("sweep_trials") == "1 of 3 ended":
                break
            assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
            time.sleep(0.2)
        (folder,) = (tmp_path / "runs").iterdir()
        return client, job, folder

    return submit


def sweeps(*arguments: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sweeps", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.mark.long
@pytest.mark.parametrize("wait", [None, "3"], ids=["as submitted", "with the 3 s that Ray gives"])
def test_a_job_that_is_stopped_ends_in_order_or_loses_nothing_that_was_evaluated(
    ray_head, submitted, wait
) -> None:
    client, job, folder = submitted(**({} if wait is None else {"RAY_JOB_STOP_WAIT_TIME_S": wait}))
    page = client.get_job_info(job).metadata
    assert page["sweep_state"] == "running"
    assert re.fullmatch(r"t000[12], val loss \d\.\d{4}", page["sweep_best"])
    client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    assert client.get_job_status(job).value == "STOPPED"
    if wait is None:
        told = json.loads((folder / "status.json").read_text())
        assert (told["status"], told["ending"]) == ("interrupted", False), client.get_job_logs(job)
        assert client.get_job_info(job).metadata["sweep_state"] == "interrupted"
        assert (
            f"python -m sweeps resume {folder}" in client.get_job_logs(job)
            and (folder / "report.html").is_file()
        )
    stopped = json.loads(sweeps("best", folder, "--json").stdout)
    assert stopped["status"] == "interrupted"
    kept = {
        path: path.read_bytes()
        for name in ("evaluation", "outcome")
        for path in folder.glob(f"trials/**/{name}.json")
    }
    done = sweeps("resume", folder, **ray_head.env, RAY_ADDRESS=ray_head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    board = json.loads(sweeps("best", folder, "--json").stdout)
    assert (
        board["status"] == "finished" and [t["status"] for t in board["trials"]] == ["complete"] * 3
    )
    for trial in board["trials"]:
        assert [e["epoch"] for e in trial["evaluations"]] == [1, 2, 3, 4, 5, 6], (
            "nothing is lost, and nothing twice"
        )
        (before,) = [t for t in stopped["trials"] if t["id"] == trial["id"]] or [None]
        if before is not None:
            told = [e["val_loss"] for e in before["evaluations"]]
            assert [e["val_loss"] for e in trial["evaluations"]][: len(told)] == told


@pytest.mark.long
def test_a_sweep_is_asked_for_cancelled_and_gone_on_with_by_commands(ray_head, submitted) -> None:
    client, job, folder = submitted()
    at = ("--address", ray_head.dashboard_url)

    def told(*arguments: str) -> dict:
        done = sweeps(*arguments, *at, "--json", **ray_head.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    running = told("status")  # the only one that runs
    assert (running["job_id"], running["status"], running["state"]) == (job, "RUNNING", "running")
    assert running["folder"] == str(folder) and running["go_on"] is None
    assert told("status", job[:-3])["job_id"] == job
    assert "t0001 starts: " in sweeps("logs", job[:-3], *at, **ray_head.env).stdout

    done = sweeps("cancel", *at, "--wait", **ray_head.env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Stopping {job}: it has 60 s to end its sweep in order")
    ended = told("status", job)
    assert (ended["status"], ended["state"], ended["was_killed"]) == (
        "STOPPED",
        "interrupted",
        False,
    )
    assert f"Best: {ended['best']}" in lines and f"Folder: {folder}" in lines
    assert lines[-1] == f"Go on: {ended['go_on']}"
    assert "Winner: " in client.get_job_logs(job) and (folder / "report.html").is_file()
    again = sweeps("cancel", job, *at, **ray_head.env)
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, f"{job} had ended before.")

    python, _, module, *arguments = ended["go_on"].split()
    assert (python, module) == ("python", "sweeps")
    done = sweeps(*arguments, **ray_head.env)
    assert done.returncode == 0, done.stdout + done.stderr
    board = json.loads(sweeps("best", folder, "--json").stdout)
    assert board["status"] == "finished"
    for trial in board["trials"]:
        assert [each["epoch"] for each in trial["evaluations"]] == [1, 2, 3, 4, 5, 6]
    after = told("status", done.stdout.splitlines()[-1].split()[1].rstrip(":"))
    assert (after["state"], after["go_on"]) == ("finished", None)
    last = sweeps("status", *at, **ray_head.env)
    assert last.returncode == 0 and after["job_id"] in last.stdout, "of those that ran the last"


def test_submit_names_what_the_user_can_put_right(
    ray_head, shared_data: Path, tmp_path: Path
) -> None:
    text = f"name: x\ntask: causal_lm\nmodel: {{name: {shared_data}/models/stories260K}}\ndata: {{train: missing.txt}}\nsearch: {{space: llm_small}}\n"
    (tmp_path / "x.yaml").write_text(text)

    def submit(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "sweeps", "submit", str(tmp_path / "x.yaml"), *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **ray_head.env, **env},
            capture_output=True,
            text=True,
        )

    for answer, words in (
        (submit("--address", ray_head.dashboard_url), "data.train: no such file: missing.txt"),
        (submit(), "--address: not given"),
        (
            submit(
                "--address",
                "http://127.0.0.1:1",
                f"data.train={shared_data}/text/tinyshakespeare.txt",
            ),
            "nothing answers at http://127.0.0.1:1",
        ),
        (
            submit(
                "--address",
                "http://cluster.example:8265",
                f"data.train={shared_data}/text/tinyshakespeare.txt",
            ),
            "storage: must be a URL",
        ),
    ):
        assert (
            answer.returncode == 2
            and words in answer.stderr
            and len(answer.stderr.strip().splitlines()) == 1
        ), answer.stderr
