"""Sweeps on a cluster of two nodes of this machine: one is killed, or both, or one is called back, or another sweep comes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.cluster_utils

from tests.ray_nodes import free_port
from tests.sweeps.run.killing import evaluations, of_the_sweep, same, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

EVALUATIONS = 10  # of a trial


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Callable[[int], ray.cluster_utils.Cluster]]:
    """Starts a head of so many cores, and a node of one."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    temp_dir = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets lie below it
    (temp_dir / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(temp_dir))
    started = []

    def start(head_cores: int) -> ray.cluster_utils.Cluster:
        port = free_port()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        head = {
            "num_cpus": head_cores,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
        }
        started.append(ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head))
        add_node(started[0])
        return started[0]

    yield start
    for each in started:
        each.shutdown()
    shutil.rmtree(temp_dir, ignore_errors=True)


def add_node(cluster: ray.cluster_utils.Cluster) -> None:
    # an address of its own: the driver joins at the head, not at just any node of this machine
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, node_ip_address="127.0.0.2")


def kill_node(cluster: ray.cluster_utils.Cluster, *, holds: str) -> None:
    """The node beside the head, which has a process of that title."""
    (node,) = cluster.worker_nodes
    raylet = node.all_processes["raylet"][0].process
    assert of_the_sweep(raylet.pid, holds)
    raylet.send_signal(signal.SIGKILL)
    raylet.wait()  # or its workers take what is left of it for a raylet


@pytest.fixture
def file(shakespeare, general_text) -> Path:
    return shakespeare(f"""
train: {{method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 2}}
cluster: {{trials_per_slot: 1, resources_per_worker: {{CPU: 1}}, wait_minutes: 0.2}}
selection: {{baselines: false, general_text: {general_text}}}
search:
  trials: 3
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space: {{learning_rate: {{choice: [0.001, 0.002, 0.004]}}}}
""")


@pytest.fixture(scope="module")
def results():
    """What came of every configuration, in whatever sweep of this module: they must agree."""
    return {}


def whole(tmp_path: Path, results) -> None:
    """All is there, once, and as in the other sweeps."""
    (folder,) = (tmp_path / "runs").iterdir()
    ours = evaluations(folder)
    assert [len(records) for records in ours.values()] == [EVALUATIONS] * 3
    same(ours, results)


@pytest.mark.long
def test_trials_of_a_node_that_is_lost_board_another_slot(
    start_sweeps, cluster, file, results, tmp_path: Path
) -> None:
    nodes, log = cluster(1), tmp_path / "log"
    sweep = start_sweeps(log, "run", file, f"cluster.address={nodes.address}", "cluster.slots=2")
    wait_for(
        lambda: len({p.parts[-3] for p in tmp_path.glob("runs/*/trials/*/*/step-*")}) >= 2,
        sweep,
        log,
    )
    kill_node(nodes, holds="Slot")
    assert sweep.wait() == 0, log.read_text()
    assert "is without workers; its trials go on where there is room" in log.read_text()
    assert "but looking at the slots failed" not in log.read_text()
    whole(tmp_path, results)


@pytest.mark.long
def test_a_sweep_whose_cluster_is_lost_goes_on_at_another(
    start_sweeps, cluster, file, results, tmp_path: Path
) -> None:
    """First the only node with a slot, then the head, and all that was in their memory."""
    nodes, log = cluster(0), tmp_path / "log"
    slot = ("cluster.slots=1", "cluster.resources_per_worker={CPU: 1}")
    sweep = start_sweeps(log, "run", file, f"cluster.address={nodes.address}", *slot)
    wait_for(
        lambda: len([*tmp_path.glob("runs/*/trials/*/*/step-*/evaluation.json")]) > 2, sweep, log
    )
    kill_node(nodes, holds="Slot")
    assert sweep.wait() == 1, log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"resume {folder}" in log.read_text()
    nodes.shutdown()
    others = cluster(1)
    again = start_sweeps(log, "resume", folder, f"cluster.address={others.address}")
    assert again.wait() == 0, log.read_text()
    whole(tmp_path, results)


# --- nodes and slots that go with notice ---

RARELY = (
    "train.evaluate_every=640",
    "train.epochs=6",
    "selection.baselines=false",
    "search.early_stopping.overfit=false",
)


@pytest.fixture
def undisturbed(sweeps, file, tmp_path: Path):
    """What comes of the sweep on a Ray of its own."""
    done = sweeps("run", file, *RARELY, f"storage={tmp_path}/undisturbed")
    assert done.code == 0, done.out + done.err
    (folder,) = (tmp_path / "undisturbed").iterdir()
    return evaluations(folder)


def origins(folder: Path) -> list[str]:
    """What attempts went on from."""
    told = [json.loads(path.read_text())["from"] for path in folder.glob("trials/*/*/attempt.json")]
    return [each for each in told if each is not None]


@pytest.mark.long
def test_trials_of_a_node_that_is_to_be_taken_away_are_paused_and_go_on_elsewhere(
    start_sweeps, cluster, file, undisturbed, tmp_path: Path
) -> None:
    """As a spot machine that is called back, or a pod that Kubernetes ends."""
    nodes, log = cluster(1), tmp_path / "log"
    at = (f"cluster.address={nodes.address}", "cluster.slots=2")
    sweep = start_sweeps(log, "run", file, *RARELY, *at)
    wait_for(
        lambda: len({p.parts[-3] for p in tmp_path.glob("runs/*/trials/*/*/step-*")}) >= 2,
        sweep,
        log,
    )
    (node,) = nodes.worker_nodes
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "called back"]
    drained = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
        + ["--node-id", node.node_id, *notice, "--deadline-remaining-seconds", "600"],
        capture_output=True,
        text=True,
    )
    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert sweep.wait() == 0, log.read_text()
    told = log.read_text()
    assert re.search(
        r"slot\d ends: its machine is to be taken away; t000\d paused, to go on elsewhere", told
    ), told
    assert "is lost" not in told and "is without workers" not in told
    (folder,) = (tmp_path / "runs").iterdir()
    assert evaluations(folder) == undisturbed
    assert len([each for each in origins(folder) if "/paused/" in each]) == 1
    assert not [*folder.glob("trials/*/*/paused/*")], "it is deleted once it is not needed"


@pytest.mark.long
def test_two_sweeps_share_a_cluster_and_each_is_as_if_it_were_alone(
    start_sweeps, sweeps, cluster, file, undisturbed, tmp_path: Path
) -> None:
    """The first is paused until the second has its part, so that it has not ended by then."""
    nodes, logs = cluster(1), [tmp_path / "first", tmp_path / "second"]
    at = (*RARELY, f"cluster.address={nodes.address}")
    first = start_sweeps(logs[0], "run", file, *at, f"storage={tmp_path}/one")
    wait_for(
        lambda: len({p.parts[-3] for p in tmp_path.glob("one/*/trials/*/*/step-*")}) >= 2,
        first,
        logs[0],
    )
    (folder,) = (tmp_path / "one").iterdir()
    assert sweeps("ctl", folder, "pause").code == 0
    second = start_sweeps(logs[1], "run", file, *at, f"storage={tmp_path}/two")
    wait_for(lambda: [*tmp_path.glob("two/*/trials/*/*/step-*")], second, logs[1])
    assert sweeps("ctl", folder, "go-on").code == 0
    assert first.wait() == 0 and second.wait() == 0, [log.read_text() for log in logs]
    told = logs[0].read_text()
    assert re.search(r"slot\d ends: it is another sweep's turn; t000\d paused", told), told
    assert re.search(r"The cluster is shared with \S+/two/\S+, 1 slots? for this one now", told)
    for name in ("one", "two"):
        (folder,) = (tmp_path / name).iterdir()
        assert evaluations(folder) == undisturbed
