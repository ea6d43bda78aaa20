"""The rows that the doctor looks at."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.store import RowStore
from trainables.streams import stream
from trainables.tasks import TASKS

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
        rows, form = np.unique(self.splits[split]), TASKS[self.task].format
        if most is not None and most < len(rows):
            drawn = stream("doctor", self.seed).choice(len(rows), most, replace=False)
            rows = rows[np.sort(drawn)]
        for row, record in zip(rows.tolist(), self.store.records(rows), strict=True):
            asked, answered = form.question(record.value)
            yield Text(row=row, place=record.place, asked=asked, answered=answered)
