"""Checked rows on disk, before they are tokenised: they may be more than memory holds."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainables.data.records import Record

ROWS, CHARACTERS = 1000, 1 << 23  # of a batch of the file, at most; a longer row is a batch
SHOWN = 200  # characters kept of the text that a user knows a row by
COLUMNS = ("value", "place", "shown", "rest")
SCHEMA = pa.schema([(name, pa.large_string()) for name in COLUMNS])


@dataclass(frozen=True, kw_only=True)
class Names:
    """A value of each row, by its position in `names`; -1: the row has none."""

    names: tuple[str, ...]
    of_rows: np.ndarray
    """int64 [N]."""

    def of(self, row: int) -> str | None:
        code = int(self.of_rows[row])
        return None if code < 0 else self.names[code]


class _NamesWriter:
    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._of_rows = [np.zeros(0, dtype=np.int64)]

    def add(self, names: Sequence[str | None]) -> None:
        codes = self._codes
        numbers = [-1 if name is None else codes.setdefault(name, len(codes)) for name in names]
        self._of_rows.append(np.array(numbers, dtype=np.int64))

    def done(self) -> Names:
        return Names(names=tuple(self._codes), of_rows=np.concatenate(self._of_rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Records as they lie in the file, and what is kept in memory of them."""

    batch: pa.RecordBatch
    keys: bytes
    labels: list[str | None]
    groups: list[str | None]
    slices: list[str | None]
    weights: np.ndarray

    def __len__(self) -> int:
        return self.batch.num_rows

    @classmethod
    def of(cls, records: Sequence[Record]) -> "PackedRows":
        columns = (
            [_json(record.value) for record in records],
            [record.place for record in records],
            [record.shown[:SHOWN] for record in records],
            [_json(record.rest) if record.rest else "" for record in records],
        )
        arrays = [pa.array(column, pa.large_string()) for column in columns]
        return cls(
            batch=pa.record_batch(arrays, schema=SCHEMA),
            keys=b"".join(record.key for record in records),
            labels=[record.label for record in records],
            groups=[record.group for record in records],
            slices=[record.slice for record in records],
            weights=np.array([record.weight for record in records], dtype=np.int64),
        )


_json = json.JSONEncoder(ensure_ascii=False).encode


class RowWriter:
    """Writes records, one after another, to a file that `RowStore` reads. Memory holds a batch of
    them, and some 50 bytes a row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, SCHEMA)
        self._open: list[Record] = []
        self._characters = 0
        self._starts = [0]
        self._keys = bytearray()
        self._labels, self._groups, self._slices = _NamesWriter(), _NamesWriter(), _NamesWriter()
        self._weights = [np.zeros(0, dtype=np.int64)]

    def __len__(self) -> int:
        return self._starts[-1] + len(self._open)

    def add(self, record: Record) -> None:
        self._open.append(record)
        self._characters += len(_json(record.value))
        if len(self._open) == ROWS or self._characters >= CHARACTERS:
            self._flush()

    def write(self, packed: "PackedRows") -> None:
        """Rows that another process may have packed."""
        self._flush()
        self._write(packed)

    def _flush(self) -> None:
        if self._open:
            self._write(PackedRows.of(self._open))
            self._open.clear()
            self._characters = 0

    def _write(self, packed: "PackedRows") -> None:
        if not len(packed):
            return
        self._file.write_batch(packed.batch)
        self._starts.append(self._starts[-1] + len(packed))
        self._keys += packed.keys
        self._weights.append(packed.weights)
        self._labels.add(packed.labels)
        self._groups.add(packed.groups)
        self._slices.add(packed.slices)

    def close(self) -> "RowStore":
        """Nothing can be added after."""
        self._flush()
        self._file.close()
        self._sink.close()
        return RowStore(
            path=self._path,
            starts=np.unique(self._starts),
            keys=np.frombuffer(bytes(self._keys), dtype="S16"),
            labels=self._labels.done(),
            groups=self._groups.done(),
            slices=self._slices.done(),
            weights=np.concatenate(self._weights),
        )


@dataclass(frozen=True, kw_only=True)
class RowStore:
    """N rows on disk, and in memory what splitting asks of each."""

    path: Path
    starts: np.ndarray
    """Of the file's batches, in rows, and last N."""
    keys: np.ndarray
    """`Record.key`, 16 bytes each [N]."""
    labels: Names
    groups: Names
    slices: Names
    weights: np.ndarray
    """`Record.weight`, int64 [N]."""

    def __len__(self) -> int:
        return len(self.keys)

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """`rows`, which rise, in pieces of one batch of the file each."""
        cuts = np.searchsorted(rows, self.starts[1:-1])
        return [piece for piece in np.split(rows, cuts) if len(piece)]

    def records(self, rows: np.ndarray) -> Iterator[Record]:
        """Some of the rows, which rise, one batch of the file in memory at a time."""
        for piece in self.batches(rows):
            yield from self.some(piece).records()

    def shown(self, row: int) -> str:
        """The text by which the user will know a row."""
        return next(self.records(np.array([row]))).shown

    @cached_property
    def _file(self) -> pa.RecordBatchFileReader:
        """Open once: a file says at its end where each of its batches is."""
        return pa.ipc.open_file(pa.OSFile(str(self.path), "rb"))

    def some(self, piece: np.ndarray) -> "SomeRows":
        """Rows of one batch of the file, which another process may read."""
        number = int(np.searchsorted(self.starts, piece[0], side="right")) - 1
        return SomeRows(
            batch=self._file.get_batch(number).take(pa.array(piece - self.starts[number])),
            labels=tuple(map(self.labels.of, piece)),
            groups=tuple(map(self.groups.of, piece)),
            slices=tuple(map(self.slices.of, piece)),
        )


@dataclass(frozen=True, kw_only=True)
class SomeRows:
    """Rows of one batch of a store's file."""

    batch: pa.RecordBatch
    labels: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    slices: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.batch)

    def records(self) -> list[Record]:
        texts = [column.to_pylist() for column in self.batch.columns]
        return [
            Record(
                value=json.loads(value),
                place=place,
                key=b"",
                shown=shown,
                label=label,
                group=group,
                slice=part,
                rest=json.loads(rest) if rest else {},
            )
            for value, place, shown, rest, label, group, part in zip(
                *texts, self.labels, self.groups, self.slices, strict=True
            )
        ]
