"""How far a sweep is, and how long it will take."""

import time
from collections.abc import Callable, Sequence

from sweeps.ledger.progress import Progress, RunningTrial
from sweeps.selection.curves import Curve
from trainables.runtime.protocol import Snapshot, TrialProgress


class Pace:
    """Of one process of a sweep."""

    def __init__(
        self,
        sweep: str,
        *,
        trials: int,
        time_budget_s: float | None,
        total_samples: Callable[[Curve], int],
        clock: Callable[[], float],
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """trials: that the sweep will have; total_samples: that a trial sees when it trains to its
        end; clock: seconds that the sweep has run, in all its processes and without pauses.
        """
        self.total_samples = total_samples
        self._prefix = f"{sweep}-"  # that all slots of the sweep have in their names
        self.trials, self.budget_s = trials, time_budget_s
        self._clock, self._paused = clock, paused
        self._began = clock()
        self._done_before: float | None = None

    def progress(self, curves: Sequence[Curve], snapshot: Snapshot) -> Progress:
        on = {trial: slot for slot, trials in snapshot.slots.items() for trial in trials}
        running = {
            curve.id: self._running(curve, snapshot, on.get(curve.id))
            for curve in curves
            if curve.status == "running"
        }
        done = len(curves) - len(running) + sum(each.share for each in running.values())
        elapsed = self._clock() - self._began
        return Progress(
            time=time.time(),
            trials=self.trials,
            elapsed_s=elapsed,
            left_s=self._left(done, elapsed),
            running=running,
            paused=self._paused(),
        )

    def _running(self, curve: Curve, snapshot: Snapshot, slot: str | None) -> RunningTrial:
        seen = snapshot.progress.get(curve.id, TrialProgress())
        return RunningTrial(
            samples_seen=seen.samples_seen,
            total_samples=self.total_samples(curve),
            samples_per_s=seen.samples_per_s,
            slot=None if slot is None else slot.removeprefix(self._prefix),
        )

    def _left(self, done: float, elapsed: float) -> float | None:
        """Seconds until the sweep ends; done: trials, a running one by its share."""
        if self._done_before is None:
            self._done_before = done  # by an earlier process
        fresh = done - self._done_before
        left = elapsed * (self.trials - done) / fresh if fresh > 0.2 else None
        if self.budget_s is None:
            return left
        of_budget = max(0.0, self.budget_s - self._clock())
        return of_budget if left is None else min(left, of_budget)
