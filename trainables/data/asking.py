"""Rows that are to be answered, read as rows that have been: with another answer in the place of
theirs, which may be missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from trainables.data.config import DataConfig
from trainables.data.readers import Rows
from trainables.data.records import Encoding, Record, RowReader
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
    """`reader` of the rows of `source` with what `fill` makes of their columns."""
    data = without_parts(source, data)
    if source.is_document:
        return reader(source, data)
    filled = tuple(fill(dict.fromkeys(source.columns)))
    found = reader(GivenSource(key=source.key, name=source.name, filled=filled), data)

    def read(row: Row) -> Record:
        return found.read(replace(row, columns=fill(row.columns)))

    return RowReader(name=found.name, read=read)


def without_parts(source: Source, data: DataConfig) -> DataConfig:
    """`data` for rows that need not say which slice they are of, nor what they belong to."""
    has_groups = data.group is not None and data.group in source.columns
    return replace(data, slice=None, group=data.group if has_groups else None)


def numbered(encoding: Encoding, tags: int) -> Encoding:
    """`encoding` for rows that are read so: in the place of classes, and of the tags of words, of
    which a row has so many at most, they have numbers.
    """
    return replace(encoding, labels=tuple(map(str, range(max(tags, len(encoding.labels), 1)))))


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
