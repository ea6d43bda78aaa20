"""`python -m sweeps submit` to a head with token authentication: the job, its page and the names in the Actors page."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent.parent


def test_submit_runs_the_sweep_as_a_job_whose_page_and_actors_read_well(
    ray_head, shared_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "manual.txt").write_text("The manual says what each word of the language does. " * 60)
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
  early_stopping: {{asha: false}}
  space: {tmp_path}/space.yaml
selection: {{general_text: {tmp_path}/manual.txt}}
""")
    seen: dict[str, dict] = {}
    done = threading.Event()

    def watch_actors() -> None:
        headers = {"Authorization": f"Bearer {Path(ray_head.env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        while not done.is_set():
            answer = requests.get(f"{ray_head.dashboard_url}/logical/actors", headers=headers, timeout=10)
            for actor in answer.json()["data"]["actors"].values():
                seen[f"{actor.get('name')} | {actor.get('reprName')} | {actor.get('actorClass')}"] = actor
            time.sleep(1)

    watcher = threading.Thread(target=watch_actors)
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
            timeout=600,
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
    told = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert told["selection"]["general_text"] == "data/general_text.txt" and told["search"]["space"]["rank"] == 4
    assert any(name.startswith("trial t0001 ") and f"{folder.name} t0001: lora" in name for name in seen), list(seen)
    assert any(f"{folder.name}-slot0" in name for name in seen), list(seen)


def test_submit_names_what_the_user_can_put_right(ray_head, shared_data: Path, tmp_path: Path) -> None:
    text = f"name: x\ntask: causal_lm\nmodel: {{name: {shared_data}/models/stories260K}}\ndata: {{train: missing.txt}}\nsearch: {{space: llm_small}}\n"
    (tmp_path / "x.yaml").write_text(text)

    def submit(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "sweeps", "submit", str(tmp_path / "x.yaml"), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, **ray_head.env, **env}, capture_output=True, text=True, timeout=120
        )

    for answer, words in (
        (submit("--address", ray_head.dashboard_url), "data.train: no such file: missing.txt"),
        (submit(), "--address: not given"),
        (
            submit("--address", "http://127.0.0.1:1", f"data.train={shared_data}/text/tinyshakespeare.txt"),
            "nothing answers at http://127.0.0.1:1",
        ),
        (
            submit("--address", "http://cluster.example:8265", f"data.train={shared_data}/text/tinyshakespeare.txt"),
            "storage: must be a URL",
        ),
    ):
        assert answer.returncode == 2 and words in answer.stderr and len(answer.stderr.strip().splitlines()) == 1, (
            answer.stderr
        )
