"""The rows that the doctor looks at."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TypeVar

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.store import RowStore
from trainables.streams import stream
from trainables.tasks import TASKS

Item = TypeVar("Item")

SAMPLE = 20_000  # rows of a split that are looked at where a sample tells as much


@dataclass(frozen=True, kw_only=True)
class Text:
    """A row as the model reads it."""

    row: int
    """Its number in the store."""
    place: str
    asked: str
    """What the model is given; of plain text, all of it."""
    answered: str
    """What it is to answer: a class, the last answer; empty for plain text."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Checked rows, and which each split has."""

    store: RowStore
    splits: Mapping[str, np.ndarray]
    task: str
    data: DataConfig
    seed: int

    def texts(self, split: str, most: int | None = None) -> Iterator[Text]:
        """All rows of a split, or at most so many, drawn by the seed, in their order."""
        rows = np.unique(self.splits[split])
        return self.texts_of(rows if most is None else self.drawn(rows, most))

    def drawn(self, rows: np.ndarray, most: int) -> np.ndarray:
        """At most so many of the rows, by the seed, in their order."""
        if most >= len(rows):
            return rows
        drawn = stream("doctor", self.seed).choice(len(rows), most, replace=False)
        return rows[np.sort(drawn)]

    def distinct(self, split: str) -> np.ndarray:
        """Rows of a split by their numbers, which rise; of those that are the same, the first."""
        rows = np.unique(self.splits[split])
        _, first = np.unique(self.store.keys[rows], return_index=True)
        return rows[np.sort(first)]

    def texts_of(self, rows: np.ndarray) -> Iterator[Text]:
        """Rows of the store by their numbers, which rise."""
        form = TASKS[self.task].format
        for row, record in zip(rows.tolist(), self.store.records(rows), strict=True):
            asked, answered = form.question(record.value)
            yield Text(row=row, place=record.place, asked=asked, answered=answered)

    def places(self, rows: np.ndarray) -> list[str]:
        """Of each, by their numbers in the store."""
        rising = np.unique(rows)
        records = zip(rising.tolist(), self.store.records(rising), strict=True)
        place = {row: record.place for row, record in records}
        return [place[row] for row in rows.tolist()]


def three_of(groups: Iterable[Sequence[Item]]) -> list[Item]:
    """Up to three items, of as many of the groups as can be."""
    nth = zip_longest(*islice(groups, 3))
    return [each for each in chain.from_iterable(nth) if each is not None][:3]
