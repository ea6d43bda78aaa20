"""Hosts of a small network: two network namespaces of this machine, a cable between them, and a node
of a Ray cluster on each. Both see the same files.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray_nodes import stop_node

STARTS = 6  # a busy machine starts the agents of a node more slowly than Ray waits for them, 15 s
CABLE = "cable"  # name of each end
HEAD_PORT, DASHBOARD_PORT = 6379, 8265  # Ray's own: a namespace has all ports to itself
# a node that says nothing is given up after some five seconds, and not after half a minute
SOON_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# what runs on a node that is cut off waits for the head, and does not end after a minute
PATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}


@dataclass(frozen=True, kw_only=True)
class Host:
    namespace: str
    address: str

    def command(self, *words: object) -> list[str]:
        """What runs `words` on it."""
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]

    def plug(self) -> None:
        """Its end of the cable."""
        _ip("-n", self.namespace, "link", "set", CABLE, "up")
        # Ray finds a node's own address by the way out into the world
        _ip("-n", self.namespace, "route", "replace", "default", "dev", CABLE)

    def unplug(self) -> None:
        _ip("-n", self.namespace, "link", "set", CABLE, "down")

    def clear(self) -> None:
        """End what still runs on it: an agent of Ray waits for the head longer than its node."""
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A cluster of a head and a node, of one core each."""

    head: Host
    node: Host
    node_process: subprocess.Popen
    """`ray start` on the node: all that Ray runs there is below it."""
    env: Mapping[str, str]
    """Of all that runs there."""

    @property
    def address(self) -> str:
        return f"{self.head.address}:{HEAD_PORT}"

    @property
    def dashboard_url(self) -> str:
        """As the head reaches it, and nobody else."""
        return f"http://127.0.0.1:{DASHBOARD_PORT}"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips where this machine makes no namespaces."""
    if shutil.which("ip") is None:
        pytest.skip("needs `ip` (the package iproute2)")
    mark = f"sweeps-{os.getpid()}"
    hosts = [Host(namespace=f"{mark}-{n}", address=f"10.77.0.{n}") for n in (1, 2)]
    with ExitStack() as made:
        for host in hosts:
            try:
                _ip("netns", "add", host.namespace)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"needs to make network namespaces, as root: {error.stderr.strip()}")
            made.callback(_ip, "netns", "delete", host.namespace)
            made.callback(host.clear)
        one, other = (host.namespace for host in hosts)
        ends = ("netns", one, "type", "veth", "peer", "name", CABLE, "netns", other)
        _ip("link", "add", CABLE, *ends)
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", CABLE)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.plug()
        yield hosts[0], hosts[1]


@contextmanager
def two_nodes() -> Iterator[Network]:
    """A cluster whose nodes are a host each. What talks to it must run on one of them."""
    with two_hosts() as (head, node), ExitStack() as made:
        folder = Path(tempfile.mkdtemp(prefix="ns", dir="/tmp"))  # short: sockets lie below it
        made.callback(shutil.rmtree, folder, ignore_errors=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {**SOON_DEAD, "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
        env |= {"WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}

        def start(host: Host, *words: object, **more: str) -> subprocess.Popen:
            return _start_ray(made, host, folder / host.namespace[-1], env | more, *words)

        # one after the other: a busy machine starts two too slowly for Ray
        start(head, "--head", f"--port={HEAD_PORT}", "--dashboard-host=127.0.0.1")
        process = start(node, f"--address={head.address}:{HEAD_PORT}", **PATIENT)
        yield Network(head=head, node=node, node_process=process, env=env)


def _start_ray(
    made: ExitStack, host: Host, folder: Path, env: Mapping[str, str], *words: object
) -> subprocess.Popen:
    """Raises RuntimeError: it does not start."""
    folder.mkdir()
    ray = Path(sys.executable).with_name("ray")
    log = folder / "start.log"
    for _ in range(STARTS):
        with log.open("w") as output:
            process = subprocess.Popen(
                host.command(
                    ray,
                    "start",
                    *words,
                    "--block",
                    "--disable-usage-stats",
                    f"--node-ip-address={host.address}",
                    f"--temp-dir={folder}",
                    "--num-cpus=1",
                    "--num-gpus=0",
                    f"--object-store-memory={100 * 2**20}",
                ),
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        made.callback(stop_node, process)
        while process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.2)
    raise RuntimeError(log.read_text())


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
