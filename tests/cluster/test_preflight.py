"""Whether a sweep can run on a cluster, asked of a head and a node that has a view of the disk of its own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests

from sweeps.run.node_check import Found, Question, file_sizes, look, versions
from sweeps.run.preflight import _problems

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


# --- with no cluster ---


def test_a_node_tells_what_stands_in_the_way(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "mark").touch()
    question = Question(
        storage=str(tmp_path), mark="mark", folders={str(model): file_sizes(model)}, needs=("KEY",)
    )
    monkeypatch.setenv("KEY", "value")
    assert look(question) == Found(versions=versions(), problems=())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mark", "model"], "nothing is left"
    monkeypatch.delenv("KEY")
    (model / "config.json").write_text("{ }")
    (tmp_path / "mark").unlink()
    assert look(question).problems == (
        f"storage: {tmp_path} is not the same place as on the head: what was written there is not",
        f"model.name: {model} has another config.json than the head",
        "--env: KEY is not set",
    )
    shutil.rmtree(model)
    assert look(question).problems[1] == f"model.name: no such folder: {model}"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"Python": "3.11.99"}, []),
        ({"Python": "3.9.1"}, ["Python is 3.9.1, and 3.11.5 on the head"]),
        ({"ray": "2.9.0"}, ["ray is 2.9.0, and 2.60.0 on the head"]),
        ({"peft": "0.1"}, []),
        ({"peft": None}, ["peft not installed: it needs requirements.lock"]),
    ],
)
def test_versions_that_must_be_the_same(changed, expected):
    from cluster.nodes import Answered

    here = {"Python": "3.11.5", "ray": "2.60.0", "peft": "0.21.2"}
    there = {name: of for name, of in {**here, **changed}.items() if of is not None}
    found = Answered(node="n", answer=Found(versions=there, problems=()))
    assert list(_problems(found, here)) == expected


# --- with a head, and a node with mounts of its own ---


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that the second node sees otherwise, and one whose packages it has too."""
    top = tmp_path_factory.mktemp("places")
    for name in ("shared", "read-only", "own-disk", "packages"):
        (top / name).mkdir()
    shutil.copytree(ROOT.parent / "shared" / "data" / "models" / "stories260K", top / "model")
    return top


@pytest.fixture(scope="module")
def second_node(ray_head, shared_data, places):
    """The id of a node of the head's cluster with the resource `second`."""
    # else both would unpack the code of a job in one folder, and one delete it for the other
    unpacked = (ray_head.temp_dir / "session_latest").resolve() / "runtime_resources"
    unpacked.mkdir(exist_ok=True)
    mounts = [
        f"mount -t tmpfs none {unpacked}",
        f"mount --bind {places}/read-only {places}/read-only",
        f"mount -o remount,bind,ro {places}/read-only",
        f"mount -t tmpfs none {places}/own-disk",
        f"mount -t tmpfs none {places}/model",
    ]
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "sh", "-c", " && ".join(mounts)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in PORTS}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        ports = [f"--{name}={each.getsockname()[1]}" for name, each in sockets.items()]
    ray = Path(sys.executable).with_name("ray")
    start = [
        f"exec {ray} start --address={ray_head.address} --block --num-cpus=1 --num-gpus=0",
        f"--object-store-memory={100 * 2**20} --resources='{json.dumps({'second': 1})}'",
        "--node-ip-address=127.0.0.1 --min-worker-port=0 --max-worker-port=0 --disable-usage-stats",
        *ports,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= ray_head.env | {"PYTHONPATH": f"{places}/packages:{ROOT}"}
    process = subprocess.Popen(
        [*unshare, "sh", "-c", " && ".join([*mounts, " ".join(start)])],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (
            found := [each for each in nodes(ray_head) if "second" in each["resources_total"]]
        ):
            assert process.poll() is None
            time.sleep(0.5)
        yield found[0]["node_id"]
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for each in alive:
            each.kill()
        process.kill()
        process.wait()


def nodes(ray_head) -> list[dict]:
    """Those that live."""
    return [each for each in asked(ray_head, "nodes") if each["state"] == "ALIVE"]


def asked(ray_head, what: str) -> list[dict]:
    """What the dashboard knows."""
    headers = {"Authorization": f"Bearer {Path(ray_head.env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    url = f"{ray_head.dashboard_url}/api/v0/{what}?detail=1&limit=10000"
    try:
        answer = requests.get(url, headers=headers)
    except requests.ConnectionError:  # a head that is new may close what comes first
        answer = requests.get(url, headers=headers)
    return answer.json()["data"]["result"]["result"]


@pytest.fixture
def checked(ray_head, second_node, places, shared_data):
    """Checks a sweep beside the cluster: the finished process."""
    (places / "lm.yaml").write_text(f"""
name: ahead
task: causal_lm
storage: {places}/shared/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
train: {{method: full, batch_size: 8, epochs: 1, probe_rows: 64}}
cluster: {{address: "{ray_head.address}", resources_per_worker: {{CPU: 1, second: 0.5}}}}
search: {{trials: 2, space: {{learning_rate: {{choice: [0.0003, 0.001]}}}}}}
selection: {{baselines: false}}
""")

    def check(*overrides: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "sweeps", "check", str(places / "lm.yaml"), *overrides]
        environment = {**os.environ, **ray_head.env}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return check


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_can_run_is_rehearsed_on_a_worker(ray_head, second_node, checked, places):
    (places / "packages" / "peft-0.0.1.dist-info").mkdir()
    (places / "packages" / "peft-0.0.1.dist-info" / "METADATA").write_text("Version: 0.0.1\n")
    try:
        done = checked()
    finally:
        shutil.rmtree(places / "packages" / "peft-0.0.1.dist-info")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Preflight, in [\d.]+ s: 1 node for slots, storage", done.stdout)
    assert re.search(r"Other versions \([\d.]+ \(\w{8}\)\): peft 0\.0\.1, ", done.stdout)
    assert "every method trains, loads again" in done.stdout
    tasks = asked(ray_head, "tasks")
    (rehearsal,) = [each for each in tasks if each["name"] == "rehearse_rows"]
    assert rehearsal["node_id"] == second_node
    assert not [*places.glob("shared/**/.preflight*"), *places.glob("shared/runs")]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "storage={places}/read-only/runs",
            "storage: cannot write to {places}/read-only: Read-only file system",
        ),
        (
            "storage={places}/own-disk/runs",
            "storage: {places}/own-disk is not the same place as on",
        ),
        ("model.name={places}/model", "model.name: {places}/model lacks config.json, "),
        ("cluster.resources_per_worker={{second: 1, TPU: 4}}", "cluster: not one slot fits: asked"),
        ("cluster.slots=3", "cluster: 3 slots do not fit, only 1"),
    ],
)
def test_what_stands_in_the_way_is_a_line_before_data_are_read(checked, places, override, words):
    done = checked(
        override.format(places=places), "search.trials=4", "data.train=/nobody/reads/this.txt"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words.format(places=places) in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_another_ray_on_a_node_is_named(checked, places):
    other = places / "packages" / "ray-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Version: 9.9.9\n")
    try:
        done = checked()
    finally:
        shutil.rmtree(other)
    assert done.returncode == 2
    assert re.fullmatch(
        r"preflight: ray is 9\.9\.9, and 2\.60\.0 on the head \(on [\d.]+ \(\w{8}\)\)",
        done.stderr.strip(),
    ), done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_check_asks_for_variables_by_name(ray_head, places, checked):
    """The end of the job is that of the command; `checked` has written the file."""
    command = [sys.executable, "-m", "sweeps", "submit", str(places / "lm.yaml"), "--check"]
    command += ["--address", ray_head.dashboard_url, "--env", "NOBODY_HAS_THIS", "--env", "PATH"]
    environment = {**os.environ, **ray_head.env, "NOBODY_HAS_THIS": "a secret of ours"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "preflight: --env: NOBODY_HAS_THIS is not set (on the head, " in done.stdout
    logs = b"".join(each.read_bytes() for each in ray_head.temp_dir.rglob("*") if each.is_file())
    assert b"NOBODY_HAS_THIS" in logs and b"a secret of ours" not in logs
