"""Evaluations of a sweep compared by a metric, row by row."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sweeps.selection.choosing import Paired
from sweeps.selection.resampling import paired
from trainables.evaluation.answered import Answered
from trainables.tasks import Task


class Rows(NamedTuple):
    """What metrics of an evaluation are made of. Shapes: N rows, M numbers of each."""

    outcomes: np.ndarray
    """[N, M]"""
    metrics: Callable[[np.ndarray], dict[str, float]]
    """Of such rows, also of resampled ones."""
    groups: np.ndarray | None
    """The group of each row [N], 0 to G - 1; None: every row is one."""
    of: tuple[int, ...] | None
    """Which rows of the split they are; None: all."""
    names: tuple[str, ...]
    lower_is_better: frozenset[str]


class Sweep(Protocol):
    """A ledger, as far as comparing goes."""

    @property
    def task(self) -> Task: ...

    def answers(self, folder: str) -> Answered | None: ...

    def outcomes(self, folder: str) -> np.ndarray | None: ...

    def groups(self, split: str, rows: int | None = None) -> np.ndarray | None: ...


def rows_of(sweep: Sweep, folder: str, split: str = "validation") -> list[Rows]:
    """Of the task's own metrics, and of those of written answers, as far as they were measured."""
    found, task = [], sweep.task
    if (outcomes := sweep.outcomes(folder)) is not None:
        groups = sweep.groups(split, len(outcomes))
        found.append(
            Rows(outcomes, task.metrics, groups, None, task.metric_names, task.lower_is_better)
        )
    if (written := answer_rows(sweep, folder, split)) is not None:
        found.append(written)
    return found


def answer_rows(sweep: Sweep, folder: str, split: str) -> Rows | None:
    """Of what was written to rows of a split; None where nothing was, or no metric is of it."""
    answers = sweep.answers(folder)
    if answers is None or not answers.scores:
        return None
    groups = sweep.groups(split)
    if groups is not None:
        groups = np.unique(groups[list(answers.rows)], return_inverse=True)[1]
    lower, names = frozenset(answers.lower_is_better), tuple(answers.scores)
    return Rows(answers.outcomes, answers.metrics, groups, answers.rows, names, lower)


def rows_with(sweep: Sweep, folder: str, metric: str, split: str = "validation") -> Rows | None:
    """Those that give a metric; None where it was not measured."""
    for rows in rows_of(sweep, folder, split):
        if metric in rows.metrics(rows.outcomes):
            return rows
    return None


def shared(
    own: tuple[int, ...] | None, other: tuple[int, ...] | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the rows stand that two models were both asked, which models over unlike bases need not
    all be; None: all of them.
    """
    if own is None or other is None or own == other:
        return None, None
    _, mine, theirs = np.intersect1d(own, other, assume_unique=True, return_indices=True)
    return mine, theirs


def only(rows: Rows, at: np.ndarray | None) -> Rows:
    """Those at some places; None: all."""
    if at is None:
        return rows
    groups = None
    if rows.groups is not None:
        groups = np.unique(rows.groups[at], return_inverse=True)[1]
    of = None if rows.of is None else tuple(rows.of[k] for k in at.tolist())
    return rows._replace(outcomes=rows.outcomes[at], groups=groups, of=of)


class Comparisons:
    """By one metric after another; what was compared is known from then on."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._known: dict[tuple[str, str, str], Paired | None] = {}

    def by(self, metric: str, leader: str, others: Sequence[str]) -> list[Paired | None]:
        """See `sweeps.selection.choosing.Compare`."""
        new = [other for other in others if (metric, leader, other) not in self._known]
        if new:
            found = self._compared(metric, leader, new)
            self._known |= {(metric, leader, other): found.get(other) for other in new}
        return [self._known[metric, leader, other] for other in others]

    def _compared(self, metric: str, leader: str, others: Sequence[str]) -> Mapping[str, Paired]:
        own = rows_with(self._sweep, leader, metric)
        if own is None:
            return {}
        like: dict[tuple[int, ...] | None, dict[str, Rows]] = {}
        for other in others:
            rows = rows_with(self._sweep, other, metric)
            if rows is not None and rows.names == own.names:
                like.setdefault(rows.of, {})[other] = rows
        found: dict[str, Paired] = {}
        for of, of_others in like.items():
            mine, theirs = shared(own.of, of)
            asked = only(own, mine)
            answers = {
                name: outcomes
                for name, rows in of_others.items()
                if (outcomes := only(rows, theirs).outcomes).shape == asked.outcomes.shape
            }
            if answers and len(asked.outcomes):
                drawn = paired(asked.outcomes, answers, asked.metrics, metric, asked.groups)
                found |= {name: Paired(*each) for name, each in drawn.items()}
        return found
