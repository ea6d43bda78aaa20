"""A sweep as it is seen from beside, by its folder alone."""

import socket
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from sweeps.ledger.folder import WrittenStatus
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.opening import open_sweep
from sweeps.ledger.progress import Progress
from sweeps.ledger.status import DEAD_AFTER_S
from sweeps.ledger.story import STORY, read_story
from sweeps.reporting.leaderboard import leaderboard
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve

LOOK_S = 1.0  # between looks
STORE_S = 10.0  # the same at an object store
SHARE = 0.1  # of the time, that looking may take, and as much making pages
PATIENCE_S = 60.0  # with a folder that cannot be read


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a folder showed at a moment."""

    status: str
    curves: list[Curve]
    progress: Progress | None
    story: list[str]
    news: int
    """Times that the trials' files were others than at the look before."""

    @property
    def version(self) -> str:
        """Changes with what there is to see."""
        heard = 0.0 if self.progress is None else self.progress.time
        return f"{self.status}-{self.news}-{len(self.story)}-{heard:.3f}"


class Source(Protocol):
    """A sweep that can be watched, wherever it runs."""

    looks_every_s: float

    @property
    def name(self) -> str: ...

    @property
    def log(self) -> str: ...

    @property
    def selection(self) -> SelectionConfig: ...

    def look(self) -> Look: ...

    def page_version(self) -> str:
        """Of the page that `page` would give."""
        ...

    def page(self) -> str: ...

    def board(self) -> Leaderboard | None: ...


class Watched:
    """A sweep by its folder. One thread at a time looks at it, others wait meanwhile."""

    def __init__(self, folder: str) -> None:
        """Raises InputError where there is no sweep."""
        self._folder, self._looking, self._drawing = folder, threading.Lock(), threading.Lock()
        self.ledger, self.config = open_sweep(folder)
        self.looks_every_s = LOOK_S if self.ledger.store.local is not None else STORE_S
        self._looked: Look | None = None
        self._process: WrittenStatus | None = None  # whose status was read last
        self._beat = self._seen = self._due = time.monotonic()
        self._page: tuple[str, str] | None = None  # version and page
        self._page_due = 0.0

    @property
    def name(self) -> str:
        return self.ledger.name

    @property
    def log(self) -> str:
        """Where the sweep's log lies."""
        return self.ledger.store.path(STORY)

    @property
    def selection(self) -> SelectionConfig:
        return self.config.selection

    def look(self) -> Look:
        """As it is now, or was a moment ago where looking takes long or fails for a while."""
        with self._looking:
            began = time.monotonic()
            if self._looked is not None and began < self._due:
                return self._looked
            try:
                self._looked, self._seen = self._look(), began
            except OSError:
                if self._looked is None or began - self._seen > PATIENCE_S:
                    raise
            ended = time.monotonic()
            self._due = ended + max(self.looks_every_s, (ended - began) / SHARE)
            return self._looked

    def _look(self) -> Look:
        status = self._status()
        return Look(
            status=status,
            curves=self.ledger.load().curves(),
            progress=self.ledger.progress(),
            story=read_story(self.ledger.store),
            news=self.ledger.news,
        )

    def _status(self) -> str:
        """What the sweep's process says; of one on another host, whose clock may be another, that
        it still beats.
        """
        process, before = self.ledger.process(), self._process
        if process is None:
            return "interrupted"
        if before is not None and process.by != before.by:
            self.ledger, self.config = open_sweep(self._folder)  # it goes on, maybe amended
        if before is None or process.time != before.time:
            self._process, self._beat = process, time.monotonic()
        silent = time.monotonic() - self._beat
        elsewhere = process.host != socket.gethostname()
        if process.status == "running" and elsewhere and silent < DEAD_AFTER_S:
            return "running"
        return process.present

    def board(self) -> Leaderboard:
        look = self.look()
        return leaderboard(self.ledger.copy(), self.config.name, self.config.selection, look.status)

    def page_version(self) -> str:
        """A large page is made as seldom as its making takes long."""
        look = self.look()
        page = self._page
        return page[0] if page is not None and time.monotonic() < self._page_due else look.version

    def page(self) -> str:
        """The report as it follows the sweep."""
        from sweeps.reporting.publish import report_page

        with self._drawing:
            version, began = self.page_version(), time.monotonic()
            if self._page is None or self._page[0] != version:
                ledger = self.ledger.copy()
                page = report_page(ledger, self.config, self.board(), live=version)
                self._page = version, page
                ended = time.monotonic()
                self._page_due = ended + (ended - began) / SHARE
            return self._page[1]
