"""A Ray of our own ends with the process that has started it, even with one that is killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

DRIVER = """
import sys
from pathlib import Path
from cluster.config import ClusterConfig
from cluster.connect import connect

temp_dir = Path(sys.argv[1])
with connect(ClusterConfig(), namespace="reaped", temp_dir=temp_dir, last_words="Go on."):
    print("ready", flush=True)
    sys.stdin.read()
"""
SOON_S = 45.0  # Ray's agents take more than a minute to end by themselves
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets lie below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_no_process_of_ray_outlives_its_driver(temp_dir: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(temp_dir)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
        below = psutil.Process(driver.pid).children(recursive=True)
        assert {title.strip() for each in below for title in each.cmdline()[:1]} >= AGENTS
        if how == "kill":
            driver.kill()
        _, errors = driver.communicate()
    _, alive = psutil.wait_procs(below, timeout=SOON_S)
    assert alive == []
    assert ("Go on.\n" in errors) == (how == "kill"), errors
