"""What goes on beside the trials: heartbeat, time budget, reminding, looking, growing."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import HEARTBEAT_S
from sweeps.reporting.live import Display
from sweeps.run.baseline import KnownBaseline
from sweeps.run.jobs import Jobs
from sweeps.run.lifetime import ASK_TIMEOUT_S, Lifetime
from sweeps.run.slots import Slots
from sweeps.selection.curves import Curve
from trainables.engine.schedule import trained_samples
from trainables.evaluation.record import UntunedResults
from trainables.runtime.protocol import Snapshot

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

WATCH_S = 0.5  # between rounds of a watching thread
GROW_S = 10.0  # between looks at the cluster's size


class Monitor:
    """Everything that goes on beside the trials, each duty in a thread of its own. No duty may
    silence another, failing or hanging: without a heartbeat another host would resume the same
    sweep, without the time budget it would not end.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        *,
        coordinator: "ActorHandle",
        lifetime: Lifetime,
        slots: Slots,
        jobs: Jobs,
        baseline: KnownBaseline,
        display: Display,
        rows: Mapping[str, int],
    ) -> None:
        """rows: of train, for each base model."""
        self._config, self._ledger, self._rows = config, ledger, rows
        self._coordinator, self._lifetime, self._slots = coordinator, lifetime, slots
        self._jobs, self._baseline, self._display = jobs, baseline, display
        self._limits: dict[str, int] = {}  # how many trials share a slot, as far as was said
        self._watching = False
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        duties = {
            "heartbeat": (self._lifetime.heartbeat, HEARTBEAT_S),
            "time budget": (self._lifetime.keep_to_the_budget, WATCH_S),
            "reminding the coordinator": (self.remind, WATCH_S),
            "looking at the slots": (self.look, WATCH_S),
            "growing with the cluster": (self._slots.grow, GROW_S),
        }
        self._watching = True
        self.threads = [
            threading.Thread(target=self._repeat, args=(name, *duty), name=name, daemon=True)
            for name, duty in duties.items()
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self._watching = False
        for thread in self.threads:
            thread.join()

    def _repeat(self, name: str, duty: Callable[[], None], every_s: float) -> None:
        told: set[type] = set()
        done = time.monotonic()
        while self._watching:
            time.sleep(min(WATCH_S, every_s))
            if time.monotonic() - done < every_s:
                continue
            done = time.monotonic()
            try:
                duty()
            # the border of a watching thread: it must outlive whatever goes wrong in its duty
            except Exception as error:
                if type(error) not in told:
                    told.add(type(error))
                    self._display.say(
                        f"The sweep goes on, but {name} failed: {type(error).__name__}: {error}"
                    )

    def remind(self) -> None:
        """Tell the coordinator what it may have forgotten: one that was restarted knows nothing."""
        if self._baseline.known:
            self._coordinator.skip_baseline.remote()
        if self._lifetime.stopped is not None:
            self._coordinator.stop_trials.remote(self._lifetime.stopped)
        self._slots.remind()

    def look(self) -> None:
        """What the slots have found out, and the live table."""
        import ray.exceptions

        waiting: ObjectRef[Snapshot] = self._coordinator.snapshot.remote()
        try:
            (snapshot,) = ray.get([waiting], timeout=ASK_TIMEOUT_S)
        except ray.exceptions.RayError:
            return  # the coordinator is starting again
        self._take_baseline(snapshot)
        self._tell_limits(snapshot)
        self._slots.quarantine(snapshot.quarantined)
        self._slots.stop_if_none_is_left()
        if len(self._ledger.curves()) >= self._config.search.trials:
            # a slot that finds no more trials need not wait for the last of the others
            self._jobs.ask_for_baselines_once(self._coordinator)
        self._display.refresh(self._ledger.curves(), snapshot, self._total_samples)

    def _take_baseline(self, snapshot: Snapshot) -> None:
        if self._baseline.known or snapshot.baseline is None:
            return
        self._baseline.write(snapshot.baseline)
        if isinstance(snapshot.baseline, UntunedResults):
            self._display.say(f"the untuned model: val loss {snapshot.baseline.val_loss:.4f}")

    def _tell_limits(self, snapshot: Snapshot) -> None:
        for cost, limit in snapshot.limits.items():
            if self._limits.get(cost) != limit:
                self._limits[cost] = limit
                alone = "a trial has a slot to itself"
                shared = f"{limit} trials share a slot" if limit > 1 else alone
                self._display.say(f"profiled: {shared} ({cost})")

    def _total_samples(self, curve: Curve) -> int:
        hp = self._config.hyperparameters(curve.params)
        return trained_samples(self._rows[hp.model], hp)
