"""What models wrote to rows, as it lies in the sweep's folder. Neither torch nor Ray here.

Letters of shapes: A rows that were answered, of the N of a split.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trainables.storage.records import from_json, to_json
from trainables.storage.store import Store

ANSWERS = "answers.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The rows of a split that are answered, the same for all models over one base."""

    rows: tuple[int, ...]
    """Positions in the split [A]."""
    prompts: tuple[str, ...]
    """As rendered."""
    references: tuple[str, ...]
    """The rows' own answers."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one model wrote to them."""

    rows: tuple[int, ...]
    """As of `Asked`."""
    texts: tuple[str, ...]
    scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """What each metric gives of each row; None where it tells nothing."""
    lower_is_better: tuple[str, ...] = ()
    """Those of the metrics of which that holds."""
    seconds: float = 0.0
    """For writing them."""
    notes: tuple[str, ...] = ()
    """What metrics say of their work: a judge, what it asked and what that cost."""
    settings: str = ""
    """By which metrics and how (see `trainables.metrics.config.settings_digest`)."""

    @property
    def means(self) -> dict[str, float | None]:
        """Of each metric, over the rows that have it."""
        found = self.metrics(self.outcomes)
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    @property
    def outcomes(self) -> np.ndarray:
        """Of each row, by the metrics in their order, float64 [A, M]; NaN where a row has none."""
        columns = [
            [math.nan if value is None else value for value in values]
            for values in self.scores.values()
        ]
        return np.array(columns, dtype=float).reshape(len(columns), len(self.rows)).T

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """Means over rows with such outcomes; NaN where none of them tells."""
        known = ~np.isnan(outcomes)
        counts = known.sum(0)
        sums = np.where(known, outcomes, 0).sum(0)
        means = np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)
        return dict(zip(self.scores, means.tolist(), strict=True))


def answers_file(folder: str) -> str:
    """Of an evaluation's folder, or of a baseline (`baselines/SPLIT/NAME`)."""
    between = "." if folder.startswith("baselines/") else "/"
    return f"{folder}{between}{ANSWERS}"


def asked_file(split: str, below: str) -> str:
    """below: where the data for the base lie (see `trainables.data.manifest.data_of`)."""
    return f"answers/{split}{below and f'.{below}'}.json"


def write_answers(store: Store, folder: str, found: Answered) -> None:
    store.write_json(answers_file(folder), to_json(found))


def read_answers(store: Store, folder: str) -> Answered | None:
    """None where the model has not been asked."""
    name = answers_file(folder)
    return from_json(Answered, store.read_json(name), name) if store.exists(name) else None


def write_asked(store: Store, split: str, below: str, asked: Asked) -> None:
    store.write_json(asked_file(split, below), to_json(asked))


def read_asked(store: Store, split: str, below: str) -> Asked | None:
    name = asked_file(split, below)
    return from_json(Asked, store.read_json(name), name) if store.exists(name) else None
