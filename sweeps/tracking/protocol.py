"""What a sweep tells whoever tracks its trials, and where trackers are opened.

Another tracker is a module with a class that has these methods, its field in
sweeps.tracking.config, and a line in TRACKERS.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sweeps.tracking.config import TrackingConfig
from trainables.evaluation.record import Evaluation

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are text, numbers, yes or no, or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One of a split's sources."""

    name: str
    """A path, a URL, or as the sweep file names it."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A split that the sweep read."""

    name: str
    """train, validation or test."""
    source: str
    """The names of its sources, or of many how many and where."""
    files: tuple[SourceFile, ...] = ()
    fingerprint: str
    """SHA-256 of its rows."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """The base model of the winner."""

    name: str
    revision: str | None = None
    fingerprint: str | None = None
    """Its commit on the hub, or SHA-256 of its files; None where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class SweepEnd:
    """What a finished sweep has found."""

    trial: str
    """The winner."""
    reason: str
    checkpoint: str
    """Where `winner/` lies: a path, or a URL."""
    paragraph: str
    """The same as people read it, in Markdown."""
    summary: Mapping[str, object] = field(default_factory=dict)
    """Numbers of the winner and of the sweep, such as its cost."""
    findings: tuple[str, ...] = ()
    """What was noticed of the data, a line each."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """`leaderboard`; where models wrote answers to the same rows, `samples`; where somebody steered
    the sweep, `steered`.
    """
    data: tuple[DataSource, ...] = ()
    data_fingerprint: str = ""
    """SHA-256 of the prepared data, wherever their sources lie."""
    base: BaseSource
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Of the winner: at most 100 keys."""


class Tracker(Protocol):
    """Follows a sweep's trials. Every call returns at once, and none raises."""

    def trial_started(self, trial: str, params: Mapping[str, object]) -> None:
        """A trial begins, or goes on in a later process. params: its hyperparameters; of a new seed
        of a finalist also `finalist_of`, the trial that had its configuration first, and of one
        that somebody asked for `by_hand`, how and who.
        """
        ...

    def evaluation(self, trial: str, evaluation: Evaluation) -> None:
        """A trial was evaluated."""
        ...

    def noted(self, trial: str, words: str) -> None:
        """Somebody has steered a trial that runs, in these words."""
        ...

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        """A trial has ended. best: the evaluation of the checkpoint that stands for it; None where
        it has none.
        """
        ...

    def sweep_finished(self, end: SweepEnd) -> None:
        """The sweep has finished, and this has won; what won before no longer has. A sweep that
        goes on and finishes again tells it again.
        """
        ...

    def close(self, timeout_s: float = 30) -> None:
        """Write all that was told; returns within `timeout_s`."""
        ...


Open = Callable[[TrackingConfig, str, Path, Log, Mapping[str, object]], Tracker | None]
"""None: it is not asked for."""


def _open_wandb(
    config: TrackingConfig, sweep: str, folder: Path, log: Log, about: Mapping[str, object]
) -> Tracker:
    from sweeps.tracking.wandb import WandbTracker

    return WandbTracker(config, sweep, folder, log, about)


def _open_mlflow(
    config: TrackingConfig, sweep: str, folder: Path, log: Log, about: Mapping[str, object]
) -> Tracker | None:
    if not config.mlflow:
        return None
    from sweeps.tracking.mlflow import MlflowTracker

    return MlflowTracker(config, sweep, folder, log, about)


TRACKERS: Mapping[str, Open] = {"wandb": _open_wandb, "mlflow": _open_mlflow}


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
    found = [each(config, sweep, folder, log, about) for each in trackers.values()]
    opened = [each for each in found if each is not None]
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

    def noted(self, trial: str, words: str) -> None:
        for each in self._trackers:
            each.noted(trial, words)

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        for each in self._trackers:
            each.trial_finished(
                trial, status=status, verdict=verdict, verdict_reason=verdict_reason, best=best
            )

    def sweep_finished(self, end: SweepEnd) -> None:
        for each in self._trackers:
            each.sweep_finished(end)

    def close(self, timeout_s: float = 30) -> None:
        began = time.monotonic()
        for position, each in enumerate(self._trackers):
            left = timeout_s - (time.monotonic() - began)
            others = len(self._trackers) - position - 1
            each.close(max(left - others * timeout_s / 10, timeout_s / 10))
