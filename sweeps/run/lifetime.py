"""How long a sweep runs, why it must stop, and what its folder says of both."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sweeps.config.schema import SearchConfig
from sweeps.ledger.driver import Driver
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import HEARTBEAT_S, INTERRUPTED, STORAGE
from sweeps.run.device_time import DeviceTime
from trainables.storage.patience import Patience, StorageLost, StorageTaken, words

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
        held: DeviceTime | None = None,
        driver: Driver | None = None,
    ) -> None:
        """elapsed_s: that it ran in earlier processes; held: of devices; driver: this process."""
        self.ledger = ledger
        self.stopped: str | None = None  # why no trial may start or go on any more
        self.detail = ""  # what led to that, where it is known
        self.coordinator: ActorHandle | None = None  # as soon as there is one
        self._elapsed_before, self._began = elapsed_s, time.monotonic()
        self.search = search
        """Its bounds, as they are now."""
        self._held = held
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._say, self._save_study, self._driver = say, save_study, driver
        self._beating = threading.Lock()
        self._beats = True  # whether the last heartbeat was written
        self.patience = Patience(self._tell_storage, self.lose_storage)
        self.lost: StorageLost | None = None  # why storage was given up

    def elapsed_s(self) -> float:
        """Without the time that it was paused."""
        now = time.monotonic() if self._paused_at is None else self._paused_at
        return self._elapsed_before + now - self._began - self._paused_s

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    def pause(self) -> None:
        self._paused_at = self._paused_at or time.monotonic()
        self.remind()

    def go_on(self) -> None:
        if self._paused_at is not None:
            self._paused_s += time.monotonic() - self._paused_at
            self._paused_at = None
        self.remind()

    def remind(self) -> None:
        """Tell the coordinator whether it is paused; one that was restarted knows nothing."""
        if self.coordinator is not None:
            self.coordinator.pause.remote(self.paused)

    def stop(self, reason: str, detail: str = "") -> None:
        """Stop what runs, in order: trials end at once, nothing new starts. detail: what led to the
        reason.
        """
        import ray
        import ray.exceptions

        if self.stopped is None:
            self.stopped, self.detail = reason, detail
            if reason == INTERRUPTED:
                self.patience.hurry()
                self.heartbeat()  # first of all: a job that is stopped may have seconds to live
            self._say(f"Stopping: {reason}{f': {detail}' if detail else ''}")
            if self.coordinator is not None:
                stopping = self.coordinator.stop_trials.remote(reason, pause=reason == INTERRUPTED)
                # one that does not answer is lost, which others see too, and say
                with suppress(ray.exceptions.RayError):
                    ray.get(stopping, timeout=ASK_TIMEOUT_S)

    def heartbeat(self) -> None:
        try:
            with self._beating:
                ending = self.stopped == INTERRUPTED
                status = "interrupted" if ending else "running"
                if self._driver is not None:
                    self._driver.check()
                self.ledger.set_status(
                    status, self.elapsed_s(), ending=ending, paused=self.paused, once=True
                )
                self._save_study()
                if self._held is not None:
                    self._held.save()
            if not self._beats:
                self._beats = True
                self._say("The sweep's folder can be written again")
        except StorageTaken as taken:
            self.patience.lose(taken)
        # a store that does not answer for a while, or a full disk: the trials go on
        except OSError as error:
            if self._beats and self.lost is None:
                told = words(error, self.ledger.store.path("status.json"))
                self._say(f"The sweep's folder cannot be written, and the trials go on: {told}")
            self._beats = False

    def _tell_storage(self, wrong: str | None) -> None:
        if wrong is None:
            self._say("storage works again")
        else:
            self._say(f"storage: {wrong}; tried again for {self.patience.wait_s:.0f} s")

    def lose_storage(self, lost: StorageLost) -> None:
        """Nothing can be written any more: the sweep ends, and `resume` goes on with it."""
        self.lost = self.lost or lost
        self.stop(STORAGE)

    def check_storage(self) -> None:
        """Raises StorageLost where storage was given up."""
        if self.lost is not None:
            raise self.lost

    @contextmanager
    def beating(self) -> Iterator[None]:
        """The heartbeat goes on, where nothing else sees to it."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                self.heartbeat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def keep_to_the_budget(self) -> None:
        if (spent := self.spent) is not None:
            self.stop(spent)

    @property
    def spent(self) -> str | None:
        """Which budget is, in words."""
        search, hours = self.search, self.search.device_budget_h()
        seconds = search.time_budget_s()
        if seconds is not None and self.elapsed_s() > seconds:
            return f"the time budget of {search.time_budget} is spent"
        if hours is not None and self._held is not None and self._held.seconds() > hours * 3600:
            return f"{search.device_budget_words()} is spent"
        return None
