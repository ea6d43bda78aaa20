"""The storage budget: what the checkpoints of a sweep may take, all of its trials together."""

import threading
from collections.abc import Callable

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.selection.curves import Curve
from sweeps.selection.ranking import finalists, nearest, pareto
from sweeps.selection.verdicts import best_point

GB = 1e9


class Disk:
    """Deletes checkpoints of trials that have ended and are out of the race, the worst first, while
    all that are kept take more than the budget. Never one that `best` may name, or that is still to
    be trained again or asked: where these alone take more, no new trial starts.
    """

    def __init__(self, config: SweepConfig, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._config, self._ledger, self._say = config, ledger, say
        self.full = False
        self._sizes: dict[str, float] = {}  # of what is kept of each trial, as far as was looked
        self._kept = 0.0
        self._lock = threading.Lock()  # trials end in Tune's thread, and in that of commands

    def keep_to_the_budget(self, trial: str | None = None) -> None:
        """trial: the only one of which something has come or gone since the last time; None: it may
        have been of any.
        """
        budget = self._config.storage_budget_bytes()
        if budget is None:
            return
        with self._lock:
            curves = self._ledger.curves() if trial is None else [self._ledger.curve(trial)]
            for curve in curves:
                self._note(curve.id, _taken(curve))
            if self._kept > budget:
                self._free(budget)
            if self._kept > budget and not self.full:
                self._say(
                    f"the storage budget of {self._config.storage_budget} is spent: the checkpoints"
                    f" that must be kept take {self._kept / GB:.3g} GB; no new trial starts"
                )
            self.full = self._kept > budget

    def _free(self, budget: float) -> None:
        for curve in spare(self._ledger, self._config):
            if self._kept <= budget:
                break
            self._ledger.drop(curve.id)
            self._note(curve.id, 0.0)
            self._say(f"{curve.id}: its checkpoint is deleted, for the storage budget")

    def _note(self, trial: str, taken: float) -> None:
        """Of one trial, as there may be very many."""
        self._kept += taken - self._sizes.get(trial, 0.0)
        self._sizes[trial] = taken


def _taken(curve: Curve) -> float:
    return sum(point.checkpoint_bytes for point in curve.points if point.checkpoint is not None)


def spare(ledger: Ledger, config: SweepConfig) -> list[Curve]:
    """Trials whose checkpoints nothing may name any more, the worst first."""
    curves, selection = ledger.curves(), config.selection
    winner, _ = ledger.select(selection)
    kept = {*finalists(curves, selection)}
    kept |= {each.id for each, _ in pareto(curves, selection)}
    kept |= {each.id for each, _ in nearest(curves, selection, config.generation.candidates)}
    if winner is not None:
        kept |= {winner.trial, *winner.tied}
    found = [
        curve
        for curve in curves
        if curve.status != "running"
        and curve.id not in kept
        and not ledger.is_compared(curve.id)
        and _taken(curve)
    ]
    measure = selection.measure
    best = [(curve, best_point(curve, selection)) for curve in found]
    hopeless = [curve for curve, point in best if point is None]
    ranked = [(measure.key(point), curve.id, curve) for curve, point in best if point is not None]
    worst = sorted(ranked, key=lambda each: each[:2], reverse=True)
    return [*hopeless, *(curve for *_, curve in worst)]
