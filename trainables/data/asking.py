"""Rows that are to be answered, read as rows that have been: with another answer in the place of
theirs, which may be missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from trainables.data.config import DataConfig
from trainables.data.readers import Rows
from trainables.data.records import Record, RowReader
from trainables.data.rows import Row
from trainables.data.sources import Source

STAND_IN = "a"
"""An answer in text."""

Columns = Mapping[str, object]


def asking(
    reader: Callable[[Source, DataConfig], RowReader],
    source: Source,
    data: DataConfig,
    fill: Callable[[Columns], Columns],
) -> RowReader:
    """`reader` of the rows of `source` with what `fill` makes of their columns. What rows come from
    and which slice they are of is not asked.
    """
    filled = tuple(fill(dict.fromkeys(source.columns)))
    found = reader(
        GivenSource(key=source.key, name=source.name, filled=filled),
        replace(data, group=None, slice=None),
    )

    def read(row: Row) -> Record:
        return found.read(replace(row, columns=fill(row.columns)))

    return RowReader(name=found.name, read=read)


@dataclass(frozen=True, kw_only=True)
class GivenSource(Source):
    """Rows that are given one by one, of which only the columns are known."""

    filled: tuple[str, ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return self.filled

    def _digest(self) -> str:
        return ""

    def _read(self) -> Rows:
        return iter(())
