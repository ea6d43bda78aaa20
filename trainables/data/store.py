"""Checked rows on disk, before they are tokenised: they may be more than memory holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
        self._of_rows: list[np.ndarray] = []
        self._open: list[int] = []

    def add(self, name: str | None) -> None:
        code = -1 if name is None else self._codes.setdefault(name, len(self._codes))
        self._open.append(code)

    def flush(self) -> None:
        self._of_rows.append(np.array(self._open, dtype=np.int64))
        self._open.clear()

    def done(self) -> Names:
        return Names(names=tuple(self._codes), of_rows=np.concatenate(self._of_rows))


class RowWriter:
    """Writes records, one after another, to a file that `RowStore` reads. Memory holds a batch of
    them, and some 50 bytes a row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, SCHEMA)
        self._columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
        self._characters = 0
        self._starts = [0]
        self._keys = bytearray()
        self._labels, self._groups, self._slices = _NamesWriter(), _NamesWriter(), _NamesWriter()
        self._weights: list[np.ndarray] = []
        self._open_weights: list[int] = []

    def __len__(self) -> int:
        return self._starts[-1] + len(self._open_weights)

    def add(self, record: Record) -> None:
        text = json.dumps(record.value, ensure_ascii=False)
        rest = json.dumps(record.rest, ensure_ascii=False) if record.rest else ""
        for name, value in zip(
            COLUMNS, (text, record.place, record.shown[:SHOWN], rest), strict=True
        ):
            self._columns[name].append(value)
        self._keys += record.key
        self._labels.add(record.label)
        self._groups.add(record.group)
        self._slices.add(record.slice)
        self._open_weights.append(record.weight)
        self._characters += len(text)
        if len(self._open_weights) == ROWS or self._characters >= CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._open_weights:
            arrays = [pa.array(self._columns[name], pa.large_string()) for name in COLUMNS]
            self._file.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        self._starts.append(len(self))
        self._weights.append(np.array(self._open_weights, dtype=np.int64))
        for names in (self._labels, self._groups, self._slices):
            names.flush()
        for values in self._columns.values():
            values.clear()
        self._open_weights.clear()
        self._characters = 0

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

    def some(self, piece: np.ndarray) -> "SomeRows":
        """What another process needs to read rows of one batch."""
        batch = int(np.searchsorted(self.starts, piece[0], side="right")) - 1
        return SomeRows(
            path=self.path,
            batch=batch,
            positions=piece - self.starts[batch],
            labels=tuple(map(self.labels.of, piece)),
            groups=tuple(map(self.groups.of, piece)),
            slices=tuple(map(self.slices.of, piece)),
        )


@dataclass(frozen=True, kw_only=True)
class SomeRows:
    """Rows of one batch of a store's file."""

    path: Path
    batch: int
    positions: np.ndarray
    """In the batch, int64 [n]."""
    labels: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    slices: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def records(self) -> list[Record]:
        with pa.OSFile(str(self.path), "rb") as source:
            batch = pa.ipc.open_file(source).get_batch(self.batch)
            texts = [column.to_pylist() for column in batch.take(pa.array(self.positions)).columns]
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
