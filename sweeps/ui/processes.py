"""Commands that the page has started: each a process of its own, which outlives page and server and
is found again by what is written beside its log.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sweeps.ledger.folder import WrittenStatus
from sweeps.ledger.status import process_runs, process_start
from sweeps.ui.files import SWEEP_FILES, claim
from trainables.errors import InputError
from trainables.storage.records import from_json, to_json

TAIL = 20_000  # bytes of a log that are shown


@dataclass(frozen=True, kw_only=True)
class Started:
    """One of them, as it is written down."""

    name: str
    """Of the files that it has: NAME.log, NAME.json."""
    command: tuple[str, ...]
    """Of `python -m sweeps`."""
    pid: int
    began: str | None
    host: str
    time: float
    sweep: str | None = None
    """Name of the sweep that it runs, as soon as that is known."""

    @property
    def runs(self) -> bool:
        return self.host == socket.gethostname() and process_runs(self.pid, self.began)

    def has_written(self, status: WrittenStatus) -> bool:
        """Whether it is the process that a sweep's status is of."""
        return (self.pid, self.began, self.host) == (status.pid, status.began, status.host)


# the ones of this server, so that those that have ended are waited for
_own: list[subprocess.Popen[bytes]] = []


def start(storage: Path, name: str, command: Sequence[str], sweep: str | None = None) -> Started:
    """`python -m sweeps COMMAND` in a session of its own, its output in STORAGE/sweep-files.
    sweep: that it goes on with.
    """
    folder = storage / SWEEP_FILES
    log = claim(folder, f"{name}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    _own.append(process)
    begun = Started(
        name=log.stem,
        command=tuple(command),
        pid=process.pid,
        began=process_start(process.pid),
        host=socket.gethostname(),
        time=time.time(),
        sweep=sweep,
    )
    write(storage, begun)
    return begun


def write(storage: Path, started: Started) -> None:
    file = storage / SWEEP_FILES / f"{started.name}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(to_json(started)), encoding="utf-8")
    os.replace(partial, file)


def all_started(storage: Path) -> list[Started]:
    """The latest first."""
    _own[:] = [process for process in _own if process.poll() is None]
    found = []
    for file in (storage / SWEEP_FILES).glob("*.json"):
        with suppress(OSError, ValueError):  # one that is damaged must not hide the others
            written = json.loads(file.read_text(encoding="utf-8"))
            found.append(from_json(Started, written, str(file)))
    return sorted(found, key=lambda each: -each.time)


def stop(pid: int, began: str | None, host: str) -> None:
    """As Ctrl-C in its terminal does: in order. Raises InputError where it does not run here."""
    if host != socket.gethostname():
        raise InputError(f"it runs on {host}: stop it there, with Ctrl-C or kill -INT {pid}")
    if not process_runs(pid, began):
        raise InputError("it has ended already")
    os.kill(pid, signal.SIGINT)


def ended_by(number: int, what: str) -> str:
    """Of a process that did not end by itself; number: of the signal."""
    killed = " (by hand, or by the system, which ends what takes too much memory)"
    return f"{what} was ended by signal {number}{killed if number == signal.SIGKILL else ''}"


def log_of(storage: Path, started: Started) -> str:
    """The end of what it has said."""
    file = storage / SWEEP_FILES / f"{started.name}.log"
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - TAIL))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def in_a_terminal(command: Sequence[str]) -> str:
    """What one would type."""
    return f"python -m sweeps {shlex.join(command)}"
