import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster import ClusterError
from cluster.config import ClusterConfig
from cluster.connect import connect

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_cluster_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert not ray.is_initialized()
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not ray.is_initialized()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths are limited."""
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def script(code: str, **env: str) -> subprocess.Popen:
    """A driver of its own: Ray reads its token once per process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", "import ray\nfrom cluster.connect import *\n" + code],
        cwd=ROOT,
        env=environment | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_ray_that_does_not_come_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def slow(**given: object) -> None:
        tried.append(given)
        raise Exception("The current node timed out\nduring startup.")  # as Ray raises it

    monkeypatch.setattr(ray, "init", slow)
    words = "^Ray did not start on this machine: The current node timed out during startup.$"
    with (
        pytest.raises(ConnectionError, match=words),
        connect(ClusterConfig(), namespace="n"),
    ):
        pass
    assert len(tried) == 3  # a machine may be busy for a moment


def test_nothing_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"^cluster.address: nothing answers at {address}; "):
            with connect(ClusterConfig(address=address), namespace="n"):
                pass


def test_bad_address_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterError, match="^RAY_ADDRESS: http://127.0.0.1:8265 is a dashboard's"):
        with connect(ClusterConfig(), namespace="n"):
            pass


def test_temp_dir_too_long() -> None:
    with pytest.raises(ClusterError, match="may have 40 characters at most"):
        with connect(ClusterConfig(), namespace="n", temp_dir=Path("/tmp/" + "x" * 40)):
            pass


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_of_our_own_ends_with_the_connection_and_with_its_driver(
    short_folder: Path, tmp_path: Path
) -> None:
    code = """
import os, requests, time
folder = Path(os.environ["FOLDER"])
with connect(ClusterConfig(), namespace="mine", temp_dir=folder) as outer:
    assert outer.own and outer.namespace == "mine" and outer.dashboard_url.startswith("http://127.0.0.1:")
    names = (
        "RAY_API_SERVER_ADDRESS", "RAY_prestart_worker_first_driver", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    )
    assert not any(name in os.environ for name in names)
    @ray.remote
    def told(): return [os.environ[name] for name in names]
    assert ray.get(told.remote()) == [outer.dashboard_url, "0", "0"]
    assert requests.get(outer.dashboard_url).ok
    with connect(ClusterConfig(), namespace="other") as inner:
        assert not inner.own and inner.namespace == "mine" and inner.dashboard_url == outer.dashboard_url
    assert ray.is_initialized()
assert not ray.is_initialized()
with connect(ClusterConfig(), namespace="mine", temp_dir=folder):
    print("up", flush=True)
    time.sleep(100_000)
"""
    driver = script(code, HOME=str(tmp_path), FOLDER=str(short_folder))
    assert driver.stdout.readline() == "up\n", driver.communicate()[1]
    family = psutil.Process(driver.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    listening = {
        found.laddr.ip.removeprefix("::ffff:")
        for process in (psutil.Process(driver.pid), *family)
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    }
    driver.send_signal(signal.SIGKILL)
    output, errors = driver.communicate()
    psutil.wait_procs(family)  # all end by themselves, or by the process that watches over them
    assert (output, errors) == ("", "")
    assert listening == {"127.0.0.1"}, "no other machine reaches any of its servers"


@pytest.mark.ray
@pytest.mark.slow
def test_joins_a_cluster_and_leaves_it_running(ray_head, tmp_path: Path) -> None:
    code = """
with connect(ClusterConfig(address={address}), namespace="n") as connection:
    print(connection.own, connection.dashboard_url, connection.dashboard_token, ray.cluster_resources()["CPU"])
"""
    by_config = script(
        code.format(address=repr(ray_head.address)), HOME=str(tmp_path), **ray_head.env
    )
    expected = f"False {ray_head.dashboard_url} `ray get-auth-token` 2.0\n"
    assert by_config.communicate() == (expected, "")
    by_variable = script(
        code.format(address=None), HOME=str(tmp_path), RAY_ADDRESS=ray_head.address, **ray_head.env
    )
    assert by_variable.communicate() == (expected, "")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "env", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}], ids=["missing", "wrong"]
)
def test_token_refused(env: dict[str, str], ray_head, tmp_path: Path) -> None:
    code = f"""
try:
    with connect(ClusterConfig(address="{ray_head.address}"), namespace="n"):
        pass
except ClusterError as error:
    print(error)
"""
    output, _ = script(code, HOME=str(tmp_path), **env).communicate()
    assert output == (
        f"cluster.address: {ray_head.address} refused our token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        "to the cluster's token, or RAY_AUTH_TOKEN_PATH to a file with it\n"
    )
