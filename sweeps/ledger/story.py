"""log.txt: what happened in a sweep, a line each after the time of the day (UTC)."""

import re
import threading
from contextlib import suppress
from datetime import UTC, datetime

from trainables.storage.store import Store

STORY = "log.txt"
STAMP = "%Y-%m-%d %H:%M:%S"
STAMPED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")


class Story:
    """Takes lines from any thread. A local folder has each at once; an object store, which cannot
    append, a copy whenever it is saved.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._lock, self._saving = store, threading.Lock(), threading.Lock()
        self.told = 0
        """Lines of this process."""
        self._lines: list[str] = []  # of this process, at an object store
        self._earlier: str | None = None  # of those before it, once they were read
        self._saved = 0

    def tell(self, line: str) -> None:
        """One event. Whatever the disk says: a line less is no reason to end a sweep."""
        stamped = f"{datetime.now(UTC).strftime(STAMP)} {' '.join(line.splitlines())}\n"
        with self._lock:
            self.told += 1
            if self._store.local is None:
                self._lines.append(stamped)
                return
            # names of files may hold what UTF-8 has no letters for
            with suppress(OSError), (self._store.local / STORY).open("ab") as file:
                file.write(stamped.encode(errors="backslashreplace"))

    def save(self) -> None:
        """Raises OSError where an object store does not answer."""
        with self._saving:  # a store that hangs must hold up nobody who tells
            with self._lock:
                lines = list(self._lines)
            if len(lines) == self._saved:
                return
            if self._earlier is None:
                self._earlier = _read(self._store.once())
            text = self._earlier + "".join(lines)
            self._store.once().write_bytes(STORY, text.encode(errors="backslashreplace"))
            self._saved = len(lines)


def read_story(store: Store) -> list[str]:
    """Its lines, the first first; none where there is none."""
    *whole, _unfinished = _read(store).split("\n")
    return whole


def _read(store: Store) -> str:
    """Empty where there is none."""
    return store.read_bytes(STORY).decode(errors="replace") if store.exists(STORY) else ""
