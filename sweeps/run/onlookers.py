"""What a running sweep writes for those who watch its folder."""

import threading
import time
from contextlib import suppress

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import REPORT, Ledger
from sweeps.ledger.progress import PROGRESS, Progress
from sweeps.ledger.story import Story
from trainables.storage.records import to_json

PROGRESS_S = 3.0  # between times that the folder hears how far the trials are
STORE_S = 15.0  # the same of an object store, where each is an upload
REPORT_S = 30.0  # between times that report.html is written, at the least
REPORT_SHARE = 0.01  # of the time, that making it may take


class Onlookers:
    """Keeps progress.json, log.txt and report.html current."""

    def __init__(self, config: SweepConfig, ledger: Ledger, story: Story) -> None:
        self._config, self._ledger, self._story = config, ledger, story
        self._told = -STORE_S
        self._due = time.monotonic() + REPORT_S  # not while everything else starts
        self._reported = 0  # lines that were told when the page was written
        self._writing, self._closed = threading.Lock(), False

    def tell(self, progress: Progress) -> None:
        """Where the folder cannot be written, the heartbeat says so."""
        if self._ledger.store.local is None and time.monotonic() - self._told < STORE_S:
            return
        self._told = time.monotonic()
        with suppress(OSError):
            self._ledger.store.once().write_json(PROGRESS, to_json(progress))
            self._story.save()

    def renew_report(self) -> None:
        """Write the page anew where it is time and it would show something else."""
        from sweeps.reporting.leaderboard import leaderboard
        from sweeps.reporting.publish import report_page

        if time.monotonic() < self._due:
            return
        began, told = time.monotonic(), self._story.told  # a line tells of all that happens
        self._due = began + REPORT_S
        if told == self._reported:
            return
        ledger = self._ledger.copy()
        board = leaderboard(ledger, self._config.name, self._config.selection)
        page = report_page(ledger, self._config, board)
        with self._writing:
            if self._closed:
                return
            with suppress(OSError):  # the heartbeat says so
                self._ledger.store.once().write_bytes(REPORT, page.encode())
        self._reported = told
        self._due = began + max(REPORT_S, (time.monotonic() - began) / REPORT_SHARE)

    def forget(self) -> None:
        """What an earlier process has left that was killed."""
        with suppress(OSError):  # a file too many, which says itself how old it is
            self._ledger.store.once().delete(PROGRESS)

    def close(self) -> None:
        """Nothing runs any more, and the page is written by others; one that is being made is
        not waited for.
        """
        with self._writing:
            self._closed = True
        self.forget()
