"""What Ray's metrics tell of sweeps, trials and slots; Prometheus reads it from Ray's nodes.

Ray forgets a gauge that is not set again, some seconds later: a trial or slot that is told of no
more leaves no series behind. Counters of a process stay as they are when it has ended.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from ray.util import metrics

TELL_S = 2.0  # between two times that a process tells its numbers; Ray exports them every 10 s

Activity = Literal["training", "evaluating", "waiting", "other"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that is told, and of what."""

    words: str
    labels: tuple[str, ...]
    counts: bool = False
    """Whether what is told is added to what was told before."""

    def exported(self, name: str) -> str:
        """What Prometheus calls it."""
        return f"ray_{name}_total" if self.counts else f"ray_{name}"


SWEEP, TRIAL, SLOT = ("sweep",), ("sweep", "trial"), ("sweep", "slot")

METRICS: Mapping[str, Metric] = {
    "sweeps_trials": Metric(words="Trials by state", labels=(*SWEEP, "state")),
    "sweeps_trials_planned": Metric(words="Trials that the search may draw", labels=SWEEP),
    "sweeps_evaluations": Metric(words="Evaluations of all trials", labels=SWEEP),
    "sweeps_best_val_loss": Metric(
        words="Lowest validation loss of a checkpoint that may win", labels=SWEEP
    ),
    "sweeps_untuned_val_loss": Metric(words="Validation loss of the untuned model", labels=SWEEP),
    "sweeps_checkpoint_bytes": Metric(
        words="Bytes of the checkpoints that are kept, without optimisers", labels=SWEEP
    ),
    "sweeps_slots": Metric(words="Slots by state", labels=(*SWEEP, "state")),
    "sweeps_trial_state": Metric(words="1 for the state of a trial", labels=(*TRIAL, "state")),
    "sweeps_trial_val_loss": Metric(words="Validation loss, last evaluated", labels=TRIAL),
    "sweeps_trial_probe_loss": Metric(
        words="Loss on the probe of training rows, last evaluated", labels=TRIAL
    ),
    "sweeps_trial_samples": Metric(words="Samples that a trial has seen", labels=TRIAL),
    "sweeps_trial_epochs": Metric(words="Epochs that a trial has trained", labels=TRIAL),
    "sweeps_trial_progress": Metric(
        words="Samples seen, of those that a trial sees when it trains to its end", labels=TRIAL
    ),
    "sweeps_trial_samples_per_second": Metric(
        words="How fast a trial trains", labels=(*TRIAL, "slot")
    ),
    "sweeps_slot_trials": Metric(words="Trials on a slot", labels=SLOT),
    "sweeps_slot_samples": Metric(
        words="Samples that a slot has trained on", labels=SLOT, counts=True
    ),
    "sweeps_slot_tokens": Metric(
        words="Tokens of the samples that a slot has trained on, each by itself",
        labels=SLOT,
        counts=True,
    ),
    "sweeps_slot_seconds": Metric(
        words="Time of a slot by what it did; waiting: it had nothing to do",
        labels=(*SLOT, "activity"),
        counts=True,
    ),
    "sweeps_slot_memory_bytes": Metric(
        words="Memory of a slot's worker: of its process, or held on its GPU",
        labels=(*SLOT, "worker", "device"),
    ),
}


class Reading(NamedTuple):
    """A number of `METRICS` at a moment. None and what is not finite is not told."""

    metric: str
    value: float | None
    labels: Mapping[str, str] = {}


class Exporter:
    """Ray's metrics of this process. What fails there is said once, and reaches nobody else."""

    def __init__(self, log: Callable[[str], None], **labels: str) -> None:
        """log: takes one line for people. labels: of every reading."""
        self._log, self._labels = log, labels
        self._made: dict[str, metrics.Counter | metrics.Gauge] = {}
        self._failed = False

    def tell(self, readings: Iterable[Reading]) -> None:
        try:
            for reading in readings:
                if reading.value is not None and math.isfinite(reading.value):
                    self._record(reading.metric, reading.value, {**self._labels, **reading.labels})
        except Exception as error:  # the border to Ray's metrics: a sweep can do without them
            if not self._failed:
                self._failed = True
                self._log(f"Ray's metrics are not whole: {type(error).__name__}: {error}")

    def _record(self, name: str, value: float, labels: dict[str, str]) -> None:
        from ray.util import metrics

        metric = METRICS[name]
        if name not in self._made:
            kind = metrics.Counter if metric.counts else metrics.Gauge
            self._made[name] = kind(name, metric.words, metric.labels)
        made = self._made[name]
        if isinstance(made, metrics.Gauge):
            made.set(value, labels)
        elif value > 0:
            made.inc(value, labels)


class SlotMeter:
    """What a slot spends its time on, and how much it has trained, since it last told so."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._activity: Activity = "other"
        self._since = self._told = clock()
        self._seconds: defaultdict[Activity, float] = defaultdict(float)
        self._trained = 0, 0

    @property
    def due(self) -> bool:
        return self._clock() - self._told >= TELL_S

    @contextmanager
    def spends(self, activity: Activity) -> Iterator[None]:
        """Time inside is spent on `activity`."""
        before = self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, activity: Activity) -> Activity:
        now, before = self._clock(), self._activity
        self._seconds[before] += now - self._since
        self._since, self._activity = now, activity
        return before

    def readings(self, samples: int, tokens: int) -> Iterator[Reading]:
        """samples, tokens: that the slot has trained on in all."""
        self._switch(self._activity)
        self._told = self._since
        for activity, seconds in self._seconds.items():
            yield Reading("sweeps_slot_seconds", seconds, {"activity": activity})
        self._seconds.clear()
        before, self._trained = self._trained, (samples, tokens)
        yield Reading("sweeps_slot_samples", samples - before[0])
        yield Reading("sweeps_slot_tokens", tokens - before[1])
