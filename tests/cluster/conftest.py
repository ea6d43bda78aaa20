"""A real Ray head on this machine, with token authentication, on ports of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.ray_nodes import stop_node

PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
)


@dataclass(frozen=True, kw_only=True)
class RayHead:
    address: str  # host:port for drivers on this machine
    dashboard_url: str
    env: dict[str, str]  # what a client needs in its environment
    temp_dir: Path

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this process a client that holds the token."""
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="package")
def ray_head() -> Iterator[RayHead]:
    temp_dir = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets lie below it
    token = temp_dir / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    ports = _free_ports()
    head = RayHead(
        address=f"127.0.0.1:{ports['port']}",
        dashboard_url=f"http://127.0.0.1:{ports['dashboard-port']}",
        env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        temp_dir=temp_dir,
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = temp_dir / "ray-start.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"),
                "start",
                "--head",
                "--block",
                "--disable-usage-stats",
                "--node-ip-address=127.0.0.1",
                "--dashboard-host=127.0.0.1",
                f"--temp-dir={temp_dir}",
                "--num-cpus=2",
                "--num-gpus=0",
                f"--object-store-memory={200 * 2**20}",
                "--min-worker-port=0",
                "--max-worker-port=0",
                *(f"--{name}={port}" for name, port in ports.items()),
            ],
            env=environment | head.env | {"RAY_API_SERVER_ADDRESS": head.dashboard_url},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(head, token.read_text(), process, log)
        yield head
    finally:
        stop_node(process)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in PORTS}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def _wait_until_up(head: RayHead, token: str, process: subprocess.Popen, log: Path) -> None:
    while process.poll() is None:
        try:
            answer = requests.get(
                f"{head.dashboard_url}/api/jobs/",
                headers={"Authorization": f"Bearer {token}"},
                timeout=10,
            )
        except requests.RequestException:
            pass
        else:
            if answer.ok:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the Ray head did not start:\n{log.read_text()}")
