"""How long a sweep runs, why it must stop, and what its folder says of both."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweeps.config.schema import SearchConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import INTERRUPTED

if TYPE_CHECKING:
    from ray.actor import ActorHandle

ASK_TIMEOUT_S = 10.0  # the coordinator may be starting again


class Lifetime:
    """How long a sweep has run, with the processes before this one, and whether it must stop."""

    def __init__(
        self,
        ledger: Ledger,
        search: SearchConfig,
        *,
        elapsed_s: float,
        say: Callable[[str], None],
        save_study: Callable[[], None],
    ) -> None:
        """elapsed_s: that it ran in earlier processes."""
        self.ledger = ledger
        self.stopped: str | None = None  # why no trial may start or go on any more
        self.coordinator: ActorHandle | None = None  # as soon as there is one
        self._elapsed_before, self._began = elapsed_s, time.monotonic()
        self._search, self._budget_s = search, search.time_budget_s()
        self._say, self._save_study = say, save_study
        self._beating = threading.Lock()

    def elapsed_s(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    def stop(self, reason: str) -> None:
        """Stop what runs, in order: trials end at once, nothing new starts."""
        import ray

        if self.stopped is None:
            self.stopped = reason
            if reason == INTERRUPTED:
                self.heartbeat()  # first of all: a job that is stopped may have seconds to live
            self._say(f"Stopping: {reason}")
            if self.coordinator is not None:
                ray.get(self.coordinator.stop_trials.remote(reason), timeout=ASK_TIMEOUT_S)

    def heartbeat(self) -> None:
        try:
            with self._beating:
                ending = self.stopped == INTERRUPTED
                status = "interrupted" if ending else "running"
                self.ledger.set_status(status, self.elapsed_s(), ending=ending)
                self._save_study()
        # a store that does not answer for a while, or a full disk: the trials go on
        except OSError as error:
            self._say(f"The sweep's folder cannot be written: {error}")

    def keep_to_the_budget(self) -> None:
        if self._budget_s is not None and self.elapsed_s() > self._budget_s:
            self.stop(f"the time budget of {self._search.time_budget} is spent")
