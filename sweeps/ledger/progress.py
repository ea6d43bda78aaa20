"""How far the trials of a running sweep are between their evaluations, for whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """How far a trial has trained."""

    samples_seen: int
    total_samples: int
    """That it sees when it trains to its end."""
    samples_per_s: float
    slot: str | None
    """None: it waits for one."""

    @property
    def share(self) -> float:
        return min(1.0, self.samples_seen / max(1, self.total_samples))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """progress.json: written anew every few seconds while a sweep runs."""

    time: float
    trials: int
    """That the sweep will have, finalists with new seeds among them."""
    elapsed_s: float
    """Of this process of the sweep."""
    left_s: float | None
    """None: not known yet."""
    running: Mapping[str, RunningTrial] = field(default_factory=dict)
    paused: bool = False
    """Whether somebody has let the sweep pause."""
