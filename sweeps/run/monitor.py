"""What goes on beside the trials: heartbeat, budgets, commands, reminding, looking, growing."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.progress import Progress, RunningTrial
from sweeps.ledger.status import HEARTBEAT_S
from sweeps.reporting.live import Display
from sweeps.run.baseline import KnownBaseline
from sweeps.run.head import LOOK_S as HEAD_S
from sweeps.run.head import HeadWatch
from sweeps.run.job_page import TELL_S as PAGE_S
from sweeps.run.job_page import JobPage
from sweeps.run.jobs import Jobs
from sweeps.run.lifetime import ASK_TIMEOUT_S, Lifetime
from sweeps.run.metrics import SweepMetrics
from sweeps.run.news import StallWatch
from sweeps.run.onlookers import PROGRESS_S, Onlookers
from sweeps.run.pace import Pace
from sweeps.run.slots import Slots
from sweeps.run.steering import Steering
from sweeps.tracking.notify import Notifier
from trainables.evaluation.record import UntunedResults
from trainables.runtime.metrics import TELL_S, Exporter
from trainables.runtime.protocol import Snapshot
from trainables.storage.patience import StorageLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

WATCH_S = 0.5  # between rounds of a watching thread
LOOK_S = 10.0  # between looks for a stall
KEEPING_THE_PAGE = "keeping the report page"
PAGE_WAIT_S = 2.0  # at the end
SHARE = 0.05  # of a core, that a duty may take: some look at all trials
GROW_S = 10.0  # between looks at the cluster's size
LEAVE_S = 2.0  # between looks for nodes that are to be taken away


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
        notifier: Notifier,
        page: JobPage,
        rows: Mapping[str, int],
        pace: Pace,
        onlookers: Onlookers,
        steering: Steering,
        head: HeadWatch | None = None,
    ) -> None:
        """rows: of train, for each base model."""
        self._config, self._ledger = config, ledger
        self._coordinator, self._lifetime, self._slots = coordinator, lifetime, slots
        self._jobs, self._baseline, self._display = jobs, baseline, display
        self._page = page
        self._limits: dict[str, int] = {}  # how many trials share a slot, as far as was said
        minutes = config.tracking.stall_minutes
        self._stall = StallWatch(ledger, notifier, minutes, self._is_searching)
        self._exporter = Exporter(display.say, sweep=ledger.name)
        self._metrics = SweepMetrics(
            ledger.name,
            trials=config.search.trials,
            selection=config.selection,
            rows=rows,
            total_samples=pace.total_samples,
        )
        self._pace, self._onlookers, self._steering = pace, onlookers, steering
        self._head = head
        self._snapshot: Snapshot | None = None  # the last that was looked at
        self._progress: Progress | None = None  # as far as it tells
        self.trained: Mapping[str, RunningTrial] = {}  # how far trials were when last some ran
        self._watching = False
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        duties = {
            "heartbeat": (self._lifetime.heartbeat, HEARTBEAT_S),
            "keeping to the budget": (self._lifetime.keep_to_the_budget, WATCH_S),
            "reminding the coordinator": (self.remind, WATCH_S),
            "looking at the slots": (self.look, WATCH_S),
            "doing what is asked": (self._steering.act, self._steering.every_s),
            "looking for a stall": (self._stall.look, LOOK_S),
            "telling Ray's metrics": (self.tell_metrics, TELL_S),
            "writing how far the sweep is": (self.tell_onlookers, PROGRESS_S),
            KEEPING_THE_PAGE: (self._onlookers.renew_report, WATCH_S),
            "telling the job's page": (self.tell_page, PAGE_S),
            "growing with the cluster": (self._slots.grow, GROW_S),
            "looking for machines that leave": (self._slots.leave_nodes, LEAVE_S),
        }
        if self._head is not None:
            duties["asking the cluster's head"] = (self._head.look, HEAD_S)
        self._watching = True
        self.threads = [
            threading.Thread(target=self._repeat, args=(name, *duty), name=name, daemon=True)
            for name, duty in duties.items()
        ]
        for thread in self.threads:
            thread.start()

    def pause(self) -> None:
        """No round begins any more; one that is under way may wait for the cluster."""
        self._watching = False

    def stop(self) -> None:
        self.pause()
        for thread in self.threads:
            # a large page takes long, and is not needed now
            thread.join(PAGE_WAIT_S if thread.name == KEEPING_THE_PAGE else None)
        self._onlookers.close()

    def _repeat(self, name: str, duty: Callable[[], None], every_s: float) -> None:
        told: set[type] = set()
        done, busy_s = time.monotonic(), 0.0
        while self._watching:
            time.sleep(min(WATCH_S, every_s))
            if time.monotonic() - done < max(every_s, busy_s / SHARE):
                continue
            done, began = time.monotonic(), time.thread_time()
            try:
                duty()
            except StorageLost:  # the sweep ends
                continue
            # the border of a watching thread: it must outlive whatever goes wrong in its duty
            except Exception as error:
                if type(error) not in told:
                    told.add(type(error))
                    self._display.say(
                        f"The sweep goes on, but {name} failed: {type(error).__name__}: {error}"
                    )
            finally:
                busy_s = time.thread_time() - began

    def _is_searching(self) -> bool:
        return not self._jobs.begun and not self._lifetime.paused

    def remind(self) -> None:
        """Tell the coordinator what it may have forgotten: one that was restarted knows nothing."""
        if self._baseline.known:
            self._coordinator.skip_baseline.remote()
        if self._lifetime.stopped is not None:
            self._coordinator.stop_trials.remote(self._lifetime.stopped)
        self._lifetime.remind()
        self._slots.remind()

    def look(self) -> None:
        """What the slots have found out, and the live table."""
        import ray.exceptions

        waiting: ObjectRef[Snapshot] = self._coordinator.snapshot.remote()
        try:
            (snapshot,) = ray.get([waiting], timeout=ASK_TIMEOUT_S)
        except ray.exceptions.RayError:
            return  # the coordinator is starting again
        self._snapshot = snapshot
        self._take_baseline(snapshot)
        self._tell_limits(snapshot)
        self._slots.look(snapshot)
        if self._ledger.drawn() >= self._lifetime.search.trials and not self._lifetime.paused:
            # a slot that finds no more trials need not wait for the last of the others
            self._jobs.ask_for_baselines_once(self._coordinator)
        curves = self._ledger.curves()
        self._progress = self._pace.progress(curves, snapshot)
        self.trained = self._progress.running or self.trained
        self._display.refresh(curves, self._progress)

    def tell_onlookers(self) -> None:
        """What only this process knows, for those who watch the sweep's folder."""
        if self._progress is not None:
            self._onlookers.tell(self._progress)

    def tell_metrics(self) -> None:
        """What Prometheus reads of the sweep and its trials."""
        if self._snapshot is not None:
            curves, reference = self._ledger.curves(), self._baseline.reference
            self._metrics.planned = self._lifetime.search.trials
            self._exporter.tell(self._metrics.readings(curves, self._snapshot, reference))

    def tell_page(self) -> None:
        """What the dashboard shows of the job, where the sweep is one."""
        stopped = self._lifetime.stopped
        state = "paused" if self._lifetime.paused else "running"
        self._page.tell(state if stopped is None else f"stopping: {stopped}")

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
