"""Rows of a file that are to be answered, read as the sweep read its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trainables.data.config import DataConfig
from trainables.data.records import Record
from trainables.data.rows import BadRow
from trainables.data.sources import FileSource, Source, open_sources
from trainables.errors import InputError
from trainables.tasks import Task

KEY = "FILE"
"""What stands before what is wrong with a row."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row that is to be answered."""

    columns: Mapping[str, object]
    """As they were read; none where the row itself cannot be."""
    record: Record | BadRow
    """What the model is given, or why it cannot be."""


def open_file(file: str) -> list[Source]:
    """The tables of a path, folder, pattern or URL. Raises InputError where there is none."""
    return list(map(_named, open_sources(DataConfig(train=file), "train")))


def _named(source: Source) -> Source:
    if not isinstance(source, FileSource) or source.is_document:
        raise InputError(
            f"{KEY}: {source.name}: must be a table of rows to be answered, .csv, .tsv, .jsonl,"
            " .json, .parquet or .arrow"
        )
    return replace(source, key=KEY, file=replace(source.file, key=KEY))


def read_rows(source: Source, task: Task, data: DataConfig) -> Iterator[Asked]:
    """data: the sweep's, of which the group of a row does not matter here. Raises InputError where
    no row of the source could be used.
    """
    reader = task.format.asking(source, replace(data, group=None))
    for row in source.rows():
        columns = {} if isinstance(row, BadRow) else row.columns
        yield Asked(columns=columns, record=reader.attempt(row))
