"""harness.json: what benchmarks of the Language Model Evaluation Harness gave a winner and its
base. Neither torch nor the harness here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.storage.records import from_json, to_json

if TYPE_CHECKING:
    from sweeps.ledger.folder import Ledger

HARNESS = "harness.json"


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """A metric of a task, of a trained checkpoint and of its untuned base."""

    trial: str
    step: int
    task: str
    filter: str
    """How answers are taken out of what the model wrote; `none` where they are not."""
    metric: str
    version: str = ""
    """Of the task."""
    shots: int = 0
    samples: int
    limit: int | None = None
    """Samples at most that were asked for; with one, a score compares with no published number."""
    chat: bool = False
    """Whether questions were put as a conversation."""
    trained: float
    base: float
    difference: float
    """Trained less base."""
    standard_error: float | None = None
    """Of the difference."""
    paired: bool = False
    """Whether that is of the differences sample by sample; else as if both were independent, which
    is too large.
    """
    higher_is_better: bool | None = None

    def is_again(self, other: "HarnessScore") -> bool:
        """Whether both answer one question."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("trial", "step", "task", "filter", "metric", "shots", "chat")
        )


@dataclass(frozen=True, kw_only=True)
class HarnessScores:
    """All of the file."""

    scores: tuple[HarnessScore, ...] = ()


def read_harness(ledger: "Ledger") -> tuple[HarnessScore, ...]:
    """Of all checkpoints of the sweep; none where none was evaluated."""
    if not ledger.store.exists(HARNESS):
        return ()
    written, where = ledger.store.read_json(HARNESS), ledger.store.path(HARNESS)
    return from_json(HarnessScores, written, where).scores


def harness_of(ledger: "Ledger", trial: str, step: int) -> tuple[HarnessScore, ...]:
    """Of one checkpoint."""
    return tuple(each for each in read_harness(ledger) if (each.trial, each.step) == (trial, step))


def add_harness(ledger: "Ledger", found: Sequence[HarnessScore]) -> None:
    """Beside those that are there; what was asked again is replaced."""
    kept = [each for each in read_harness(ledger) if not any(map(each.is_again, found))]
    ledger.store.write_json(HARNESS, to_json(HarnessScores(scores=(*kept, *found))))
