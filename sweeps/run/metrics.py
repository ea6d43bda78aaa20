"""What Ray's metrics tell of a sweep and its trials, as the sweep's process knows it."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.verdicts import candidates
from trainables.hyperparameters import base_of
from trainables.runtime.metrics import Reading
from trainables.runtime.protocol import Snapshot, TrialProgress

STATES = ("running", "complete", "pruned", "failed")

MOST_ENDED = 100  # trials, of those that have ended the last, of which each is told


class SweepMetrics:
    """Readings of a sweep at a moment. Trials that run are told, and the last that have ended: a
    thousand trials would be seven thousand series.
    """

    def __init__(
        self,
        sweep: str,
        *,
        trials: int,
        selection: SelectionConfig,
        rows: Mapping[str, int],
        total_samples: Callable[[Curve], int],
    ) -> None:
        """trials: that the search may draw; rows: of train, for each base model; total_samples:
        that a trial sees when it trains to its end.
        """
        self._sweep, self.planned, self._selection = sweep, trials, selection
        self._rows, self._total_samples = rows, total_samples
        # of each trial, for as long as it has so many evaluations and this state
        self._best: dict[str, tuple[int, str, float | None]] = {}
        self._totals: dict[str, int] = {}
        self._ended: dict[str, None] = {}  # in the order of their ends, as far as we saw them

    def readings(
        self, curves: Sequence[Curve], snapshot: Snapshot, reference: Reference
    ) -> Iterator[Reading]:
        yield from self._of_sweep(curves, reference)
        yield from self._of_slots(snapshot)
        slots = {trial: slot for slot, trials in snapshot.slots.items() for trial in trials}
        for curve in self._told_of(curves):
            progress = snapshot.progress.get(curve.id, TrialProgress())
            yield from self._of_trial(curve, progress, slots.get(curve.id))

    def _of_sweep(self, curves: Sequence[Curve], reference: Reference) -> Iterator[Reading]:
        for state in STATES:
            number = sum(curve.status == state for curve in curves)
            yield Reading("sweeps_trials", number, {"state": state})
        yield Reading("sweeps_trials_planned", self.planned)
        yield Reading("sweeps_evaluations", sum(len(curve.points) for curve in curves))
        best = [loss for curve in curves if (loss := self._best_of(curve)) is not None]
        yield Reading("sweeps_best_val_loss", min(best, default=None))
        yield Reading("sweeps_untuned_val_loss", reference.val_loss)
        kept = (point for curve in curves for point in curve.points if point.checkpoint)
        yield Reading("sweeps_checkpoint_bytes", sum(point.checkpoint_bytes for point in kept))

    def _best_of(self, curve: Curve) -> float | None:
        number, known = len(curve.points), self._best.get(curve.id)
        if known is None or known[:2] != (number, curve.status):
            losses = [point.val_loss for point in candidates(curve, self._selection)]
            lowest = min((loss for loss in losses if loss is not None), default=None)
            known = self._best[curve.id] = number, curve.status, lowest
        return known[2]

    def _of_slots(self, snapshot: Snapshot) -> Iterator[Reading]:
        lost, quarantined = len(snapshot.lost), len(snapshot.quarantined)
        running = len(snapshot.slots.keys() - snapshot.quarantined.keys())
        states = {"running": running, "quarantined": quarantined, "lost": lost}
        for state, number in states.items():
            yield Reading("sweeps_slots", number, {"state": state})
        for slot, trials in snapshot.slots.items():
            yield Reading("sweeps_slot_trials", len(trials), {"slot": self._word(slot)})

    def _word(self, slot: str | None) -> str:
        return "" if slot is None else slot.removeprefix(f"{self._sweep}-")

    def _told_of(self, curves: Sequence[Curve]) -> list[Curve]:
        """Those that run, and the last that have ended."""
        self._ended.update(dict.fromkeys(c.id for c in curves if c.status != "running"))
        last = set([*self._ended][-MOST_ENDED:])
        return [curve for curve in curves if curve.status == "running" or curve.id in last]

    def _of_trial(
        self, curve: Curve, progress: TrialProgress, slot: str | None
    ) -> Iterator[Reading]:
        trial = {"trial": curve.id}
        yield Reading("sweeps_trial_state", 1, {**trial, "state": curve.status})
        last = curve.points[-1] if curve.points else None
        evaluated = 0
        if last is not None:
            yield Reading("sweeps_trial_val_loss", last.val_loss, trial)
            yield Reading("sweeps_trial_probe_loss", last.probe_loss, trial)
            evaluated = last.samples_seen
        samples = max(evaluated, progress.samples_seen)  # who joins a slot anew begins there with 0
        yield Reading("sweeps_trial_samples", samples, trial)
        yield Reading("sweeps_trial_epochs", samples / self._rows[base_of(curve.params)], trial)
        yield Reading("sweeps_trial_progress", samples / self._total(curve), trial)
        if slot is not None:
            on = {**trial, "slot": self._word(slot)}
            yield Reading("sweeps_trial_samples_per_second", progress.samples_per_s, on)

    def _total(self, curve: Curve) -> int:
        if curve.id not in self._totals:
            self._totals[curve.id] = max(1, self._total_samples(curve))
        return self._totals[curve.id]
