"""One process at a time writes a sweep's folder: real processes, also with clocks that differ."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from sweeps.ledger.driver import DRIVERS, Driver
from sweeps.ledger.folder import Ledger
from trainables.errors import InputError
from trainables.storage.patience import StorageTaken

ROOT = Path(__file__).resolve().parents[3]
# of another machine, whose clock differs from ours by so many seconds
PROGRAM = """
import socket, sys, time
folder, host, differs = sys.argv[1], sys.argv[2], float(sys.argv[3])
from sweeps.ledger.driver import Driver
from sweeps.ledger.folder import Ledger
from trainables.errors import InputError
real = time.time
time.time = lambda: real() + differs
if host: socket.gethostname = lambda: host
ledger = Ledger(folder)
print("ready", flush=True)
sys.stdin.readline()
try:
    driver = Driver.take(ledger)
except InputError as error:
    print(error, flush=True)
    sys.exit(2)
ledger.set_status("running", 0.0)
print("taken", flush=True)
sys.stdin.readline()
"""


class Other:
    """Another process that wants to run the sweep."""

    def __init__(self, folder, host="", differs=0.0):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), host, str(differs)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.line()

    def line(self):
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self):
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def takes(self):
        self.go()
        return self.line()

    def kill(self):
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            stream.close()


@pytest.fixture
def other():
    """Starts others, and ends them."""
    started = []

    def start(*given):
        started.append(Other(*given))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


def test_of_two_that_go_on_at_once_one_does(folder, other):
    for number in range(1, 4):
        several = [other(folder) for _ in range(2)]
        for each in several:
            each.go()
        told = sorted(each.line() for each in several)
        assert told.count("taken") == 1, told
        assert "is running" in told[0] or "at this moment" in told[0]
        assert len([*(folder / DRIVERS).iterdir()]) == number
        for each in several:
            each.kill()


def test_one_that_runs_is_left_alone_and_one_that_was_killed_is_not(folder, other):
    first = other(folder)
    assert first.takes() == "taken"
    assert "is running (process" in other(folder).takes()
    first.kill()
    assert other(folder).takes() == "taken"


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_clocks_of_machines_may_differ_by_hours(folder, other, hours):
    there = other(folder, "there", 3600.0 * hours)
    assert there.takes() == "taken"
    with pytest.raises(InputError, match=r"this sweep is running \(process \d+ on there\)"):
        Driver.take(Ledger(str(folder)))
    there.kill()
    # its last sign of life grows old, by the clock of the disk
    for name in ("status.json", f"{DRIVERS}/0001.json"):
        os.utime(folder / name, (time.time() - 61, time.time() - 61))
    Driver.take(Ledger(str(folder)))
    assert sorted(each.name for each in (folder / DRIVERS).iterdir()) == ["0001.json", "0002.json"]


def test_one_that_has_begun_but_written_no_status_counts(folder, other):
    ledger = Ledger(str(folder))
    ledger.set_status("finished", 10.0)
    assert other(folder, "there").takes() == "taken"
    os.utime(folder / "status.json", (1, 1))
    ledger.set_status("interrupted", 10.0)  # of an older process
    with pytest.raises(InputError, match="is running"):
        Driver.take(Ledger(str(folder)))


@pytest.mark.parametrize("store", ["folder", "memory"])
def test_one_that_was_given_up_for_dead_writes_no_more(store, folder):
    url = str(folder) if store == "folder" else f"memory://{folder.parent.name}/sweep"
    ledger = Ledger(url)
    first = Driver.take(ledger)
    first.check()
    ledger.set_status("interrupted", 1.0)  # as of one that has ended
    second = Driver.take(Ledger(url))
    second.check()
    with pytest.raises(StorageTaken, match=rf"goes on with this sweep \(process {os.getpid()} on"):
        first.check()
    fsspec.filesystem("memory").store.clear()


def test_a_sweep_of_an_earlier_version_has_no_drivers(folder):
    ledger = Ledger(str(folder))
    ledger.set_status("running", 1.0)
    with pytest.raises(InputError, match="is running"):
        Driver.take(ledger)
    ledger.set_status("finished", 1.0)
    Driver.take(ledger)
