"""What a sweep tells whoever tracks its trials, and where trackers are opened.

Another tracker is a module with a class that has these methods, its field in
sweeps.tracking.config, and a line in TRACKERS.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sweeps.tracking.config import TrackingConfig
from trainables.evaluation.record import Evaluation

Log = Callable[[str], None]


class Tracker(Protocol):
    """Follows a sweep's trials. Every call returns at once, and none raises."""

    def trial_started(self, trial: str, params: Mapping[str, object]) -> None:
        """A trial begins, or goes on in a later process."""
        ...

    def evaluation(self, trial: str, evaluation: Evaluation) -> None:
        """A trial was evaluated."""
        ...

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        """A trial has ended. best: the evaluation of the checkpoint that stands for it; None where
        it has none.
        """
        ...

    def winner(self, trial: str, reason: str, checkpoint: str) -> None:
        """A trial has won; an earlier winner no longer has."""
        ...

    def answers(self, trial: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """What models wrote to the same rows, as a table that stands with the winner's trial."""
        ...

    def close(self, timeout_s: float = 30) -> None:
        """Write all that was told; returns within `timeout_s`."""
        ...


Open = Callable[[TrackingConfig, str, Path, Log, Mapping[str, object]], Tracker]


def _open_wandb(
    config: TrackingConfig, sweep: str, folder: Path, log: Log, about: Mapping[str, object]
) -> Tracker:
    from sweeps.tracking.wandb import WandbTracker

    return WandbTracker(config, sweep, folder, log, about)


TRACKERS: Mapping[str, Open] = {"wandb": _open_wandb}


def open_tracker(
    config: TrackingConfig,
    *,
    sweep: str,
    folder: Path,
    log: Log,
    about: Mapping[str, object],
    trackers: Mapping[str, Open] = TRACKERS,
) -> Tracker:
    """All trackers of a sweep as one; what is not asked for tracks nothing.

    sweep: name of the sweep's folder. folder: local, for all that trackers write. log: takes one
    line for people, from any thread. about: what all trials have in common (task, model, data).
    """
    opened = [each(config, sweep, folder, log, about) for each in trackers.values()]
    return opened[0] if len(opened) == 1 else Trackers(opened)


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def trial_started(self, trial: str, params: Mapping[str, object]) -> None:
        for each in self._trackers:
            each.trial_started(trial, params)

    def evaluation(self, trial: str, evaluation: Evaluation) -> None:
        for each in self._trackers:
            each.evaluation(trial, evaluation)

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        for each in self._trackers:
            each.trial_finished(
                trial, status=status, verdict=verdict, verdict_reason=verdict_reason, best=best
            )

    def winner(self, trial: str, reason: str, checkpoint: str) -> None:
        for each in self._trackers:
            each.winner(trial, reason, checkpoint)

    def answers(self, trial: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        for each in self._trackers:
            each.answers(trial, columns, rows)

    def close(self, timeout_s: float = 30) -> None:
        share = timeout_s / max(len(self._trackers), 1)
        for each in self._trackers:
            each.close(share)
