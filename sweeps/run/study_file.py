"""The file of a sweep's study."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sweeps.ledger.folder import Ledger

Done = TypeVar("Done")


class StudyFile:
    """The study's journal. It grows in a local file, of which an object store gets copies."""

    def __init__(self, ledger: Ledger, scratch: Path) -> None:
        self._store = ledger.store
        self._path = ledger.store.local or scratch

    def open(self) -> Path:
        from sweeps.search.study import STUDY

        if self._store.local is None and self._store.exists(STUDY):
            (self._path / STUDY).write_bytes(self._store.read_bytes(STUDY))
        return self._path / STUDY

    def save(self, *, once: bool = False) -> None:
        """once: where storage does not work, it is not tried again."""
        from sweeps.search.study import STUDY

        if self._store.local is None:
            store = self._store.once() if once else self._store
            store.write_bytes(STUDY, (self._path / STUDY).read_bytes())

    def again(self, action: Callable[[], Done]) -> Done:
        """What is done with the journal where it grows."""
        return action() if self._store.local is None else self._store.again(action)
