"""Which process may write a sweep's folder: one at a time, whatever the clocks of machines say.

Every process that runs the sweep leaves `drivers/NNNN.json`, a file that only one can make. The
last of them writes; whoever finds a later one than its own has been given up for dead, and ends.
"""

import json
import os
import socket
import time

from sweeps.ledger.folder import Ledger, WrittenStatus
from sweeps.ledger.status import DEAD_AFTER_S, process_runs, process_start
from trainables.errors import InputError
from trainables.storage.patience import StorageTaken, words
from trainables.storage.records import from_json, to_json

DRIVERS = "drivers"
STATUS = "status.json"


class Driver:
    """This process, as the one that runs a sweep."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger, self._number = ledger, number

    @classmethod
    def take(cls, ledger: Ledger) -> "Driver":
        """Become it. Raises InputError where another process runs the sweep, or becomes so at the
        same moment.
        """
        number = _last(ledger)  # before the look at who runs: who comes between takes the next
        if (other := _running(ledger, number)) is not None:
            raise InputError(
                f"{ledger.store.path('')}: this sweep is running ({_who(other)}); `best` shows how"
                " far it is"
            )
        now = WrittenStatus(
            status="running",
            pid=os.getpid(),
            began=process_start(os.getpid()),
            host=socket.gethostname(),
            time=time.time(),
            elapsed_s=0.0,
        )
        content = json.dumps(to_json(now), indent=1).encode()
        try:
            created = ledger.store.create(_file(number + 1), content)
        except OSError as error:
            path = ledger.store.path("")
            raise InputError(f"{path}: cannot be written: {words(error, path)}") from error
        if not created:
            other = _read(ledger, number + 1)
            raise InputError(
                f"{ledger.store.path('')}: another process has begun to go on with this sweep at"
                f" this moment ({_who(other)})"
            )
        return cls(ledger, number + 1)

    def check(self) -> None:
        """Raises StorageTaken where another process has gone on with the sweep."""
        last = _last(self._ledger)
        if last > self._number:
            other = _read(self._ledger, last)
            raise StorageTaken(
                f"{self._ledger.store.path('').rstrip('/')}: another process goes on with this"
                f" sweep ({_who(other)})"
            )


def _file(number: int) -> str:
    return f"{DRIVERS}/{number:04d}.json"


def _last(ledger: Ledger) -> int:
    """Number of the last process that took the sweep; 0: none has, or only an earlier version."""
    names = ledger.store.once().find(DRIVERS)
    numbers = [name.rpartition("/")[2].removesuffix(".json") for name in names]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _read(ledger: Ledger, number: int) -> WrittenStatus:
    name = _file(number)
    return from_json(WrittenStatus, ledger.store.read_json(name), ledger.store.path(name))


def _running(ledger: Ledger, number: int) -> WrittenStatus | None:
    """The process that runs the sweep; number: of the last that took it."""
    written, taken = ledger.process(), _read(ledger, number) if number else None
    if taken is not None and (written is None or written.by != taken.by):
        return taken if _lives(ledger, _file(number), taken) else None
    if written is None or not (written.status == "running" or written.ending):
        return None
    return written if _lives(ledger, STATUS, written) else None


def _lives(ledger: Ledger, file: str, written: WrittenStatus) -> bool:
    """Whether the process still runs that has written `file`: of another machine, whether it has
    done so lately.
    """
    if written.host == socket.gethostname():
        return process_runs(written.pid, written.began)
    return written.status == "running" and ledger.store.age_s(file) < DEAD_AFTER_S


def _who(process: WrittenStatus) -> str:
    return f"process {process.pid} on {process.host}"
