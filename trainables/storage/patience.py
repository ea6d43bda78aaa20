"""What storage refuses is tried again for a while: a full disk, a server that does not answer."""

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

WAIT_S = 300.0  # for how long, unless it is said otherwise
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0  # between two tries
HURRY_S = 3.0  # that is left where the sweep must end

Done = TypeVar("Done")


class StorageLost(OSError):
    """Storage has not worked for as long as it is waited for."""


class StorageTaken(StorageLost):
    """The folder is gone, or another process's by now: nothing may be written there any more."""


class Patience:
    """Does again what storage refuses, for a while. One for all threads of a process; as soon as
    one of them has given up, all do.
    """

    def __init__(
        self,
        on_wait: Callable[[str | None], None],
        on_lost: Callable[[StorageLost], None] = lambda lost: None,
        wait_s: float | None = None,
    ) -> None:
        """on_wait: is told what is wrong as soon as somebody waits, and None when nobody does any
        more; on_lost: that storage was given up, before whoever has asked is.
        """
        self.wait_s = WAIT_S if wait_s is None else wait_s
        self._on_wait, self._on_lost = on_wait, on_lost
        self._lost: StorageLost | None = None
        self._lock = threading.Lock()
        self._failing = 0  # calls that wait

    def again(self, action: Callable[[], Done], where: str) -> Done:
        """What comes of `action`, which is tried until storage does it; where: its path or URL.
        Raises StorageLost where that takes too long.
        """
        self._refuse(StorageLost)
        began, pause = time.monotonic(), FIRST_PAUSE_S
        waits = False
        try:
            while True:
                try:
                    done = action()
                except OSError as error:
                    if not passes(error):
                        raise
                    waits = self._wait(error, where, began, pause, waits)
                    pause = min(LONGEST_PAUSE_S, 2 * pause)
                else:
                    return done
        except StorageTaken as taken:
            self.lose(taken)
            raise
        finally:
            if waits:
                self._count(-1)

    def once(self, action: Callable[[], Done]) -> Done:
        """The same without another try, for what is done again anyway."""
        self._refuse(StorageTaken)
        return action()

    def lose(self, lost: StorageLost) -> None:
        """Nobody waits any more."""
        with self._lock:
            known, self._lost = self._lost, self._lost or lost
        if known is None:
            self._on_lost(lost)

    def hurry(self) -> None:
        """The sweep must end: nobody waits for long."""
        self.wait_s = HURRY_S

    def _refuse(self, kind: type[StorageLost]) -> None:
        if isinstance(self._lost, kind):
            raise type(self._lost)(*self._lost.args)

    def _wait(self, error: OSError, where: str, began: float, pause: float, waits: bool) -> bool:
        """Before another try; raises StorageLost where there is none."""
        self._refuse(StorageLost)
        waited = time.monotonic() - began
        if waited >= self.wait_s:
            lost = StorageLost(f"{words(error, where)}, for {waited:.0f} s")
            self.lose(lost)
            raise lost from error
        if not waits:
            self._count(1, words(error, where))
        time.sleep(pause)
        return True

    def _count(self, more: int, wrong: str | None = None) -> None:
        with self._lock:
            before, self._failing = self._failing, self._failing + more
        if 0 in (before, before + more) and self._lost is None:
            self._on_wait(wrong)


def passes(error: OSError) -> bool:
    """Whether an error may be of the storage, and another try can succeed."""
    final = FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError
    return not isinstance(error, StorageLost | final)


def words(error: OSError, where: str) -> str:
    """Where, and what is wrong, in a line."""
    if error.strerror:
        file = str(error.filename or where)
        return f"{where if '/.' in file else file}: {error.strerror}"  # temporary ones say nothing
    told = " ".join(str(error).split()) or type(error).__name__
    return told if where in told else f"{where}: {told}"


def of_disk(error: Exception) -> OSError | None:
    """The system's error in what a library that writes files has raised; None where there is
    none. safetensors' is no OSError, and names the system's by its number; torch's names none.
    """
    if isinstance(error, OSError):
        return error
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if re.search(r"PytorchStreamWriter failed|inline_container", str(error)):
        return OSError(errno.EIO, " ".join(str(error).split()))
    return None
