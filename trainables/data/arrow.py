"""Tokenised splits on disk: Arrow files that are memory-mapped, so that every worker of a machine
shares one copy. A file is written and read in record batches: no more than one is in memory at a
time.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from trainables.data.records import Encoded

TEXTS = ("input_ids", "target_ids")
"""Columns of tokens."""


class SplitWriter:
    """Writes a split, batch of rows by batch. Leaving its context closes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._has_weights = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, encoded: Encoded) -> None:
        if self._has_weights and encoded.weights is None:
            encoded = replace(encoded, weights=_ones(encoded.input_ids))
        batch = _batch(encoded)
        if self._writer is None:
            self._has_weights = encoded.weights is not None
            self._writer = self._open(batch.schema)  # not before: rows may be views of this file
        elif encoded.weights is not None and not self._has_weights:
            self._add_weights(batch.schema)
        self._writer.write_batch(batch)

    def _open(self, schema: pa.Schema) -> pa.RecordBatchFileWriter:
        self._sink = pa.OSFile(str(self._path), "wb")
        return pa.ipc.new_file(self._sink, schema)

    def _close(self) -> None:
        for each in (self._writer, self._sink):
            if each is not None:
                each.close()

    def _add_weights(self, schema: pa.Schema) -> None:
        """To the batches that are written: the first of a split may have none."""
        self._close()
        former = self._path.with_suffix(".former")
        os.replace(self._path, former)
        self._writer, self._has_weights = self._open(schema), True
        with pa.OSFile(str(former), "rb") as source:
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                offsets, values = _arrays(batch.column("input_ids"))
                ones = pa.LargeListArray.from_arrays(
                    pa.array(offsets), pa.array(np.ones(len(values), np.float32))
                )
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                self._writer.write_batch(pa.record_batch({**columns, "weights": ones}))
        former.unlink()


def write_split(path: Path, encoded: Encoded) -> str:
    """Write `encoded` as one record batch. Returns what `split_fingerprint` says of it."""
    with SplitWriter(path) as writer:
        writer.write(encoded)
    return split_fingerprint(path)


def split_fingerprint(path: Path) -> str:
    """SHA-256 of the rows of a split's file, whatever batches they are in; empty where it cannot be
    read.
    """
    try:
        # read, not mapped: pages of a map count as this process's memory
        with pa.OSFile(str(path), "rb") as source:
            names = pa.ipc.open_file(source).schema.names
            digest = hashlib.sha256()
            for number, name in enumerate(names):
                _digest_column(source, number, name, digest)
        return digest.hexdigest()
    except (OSError, pa.ArrowException):
        return ""


def _digest_column(source: pa.NativeFile, number: int, name: str, digest: "hashlib._Hash") -> None:
    columns = list(_lengths_of_batches(source, number))
    kind, rows = columns[0][0], sum(length for _, length in columns)
    digest.update(f"{name} {kind} {rows}\n".encode())
    if isinstance(kind, pa.LargeListType):
        base = np.zeros(1, dtype=np.int64)
        digest.update(base.data)
        for column in _column(source, number):
            offsets = _arrays(column)[0] + base
            digest.update(np.ascontiguousarray(offsets[1:]).data)
            base = offsets[-1:]
    for column in _column(source, number):
        digest.update(np.ascontiguousarray(_arrays(column)[-1]).data)


def _lengths_of_batches(source: pa.NativeFile, number: int) -> Iterator[tuple[pa.DataType, int]]:
    for column in _column(source, number):
        yield column.type, len(column)


def _column(source: pa.NativeFile, number: int) -> Iterator[pa.Array]:
    """One column of each batch of a file."""
    source.seek(0)
    reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[number]))
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i).column(0)


def _batch(encoded: Encoded) -> pa.RecordBatch:
    labels, types, weights = encoded.labels, encoded.token_type_ids, encoded.weights
    one_each = isinstance(labels, np.ndarray)
    columns: dict[str, pa.Array | None] = {
        "input_ids": _lists(encoded.input_ids),
        "labels": pa.array(labels) if one_each else labels and _lists(labels),
        "target_ids": encoded.target_ids and _lists(encoded.target_ids),
        "token_type_ids": types and _lists(types),
        "weights": weights and _lists(weights),
        "thought": _values(encoded.thought),
        "target_bytes": _values(encoded.target_bytes),
        "second": _values(encoded.second),
    }
    return pa.record_batch({name: each for name, each in columns.items() if each is not None})


def _ones(rows: list[np.ndarray]) -> list[np.ndarray]:
    return [np.ones(len(row), np.float32) for row in rows]


def _values(of_rows: np.ndarray | None) -> pa.Array | None:
    return None if of_rows is None else pa.array(of_rows)


def _lists(rows: list[np.ndarray]) -> pa.LargeListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _arrays(column: pa.Array) -> tuple[np.ndarray, ...]:
    """Views of the column's memory: (offsets, values) of lists, else (values,)."""
    if isinstance(column, pa.LargeListArray):
        return column.offsets.to_numpy(), column.values.to_numpy()
    return (column.to_numpy(),)


Row = dict[str, Any]


class Split:
    """Rows of one tokenised split, read from a memory map."""

    parts: np.ndarray
    """Tokens of each row, beside them those of its target where that is another text, int32 [N, 1
    or 2].
    """
    lengths: np.ndarray
    """Tokens of each row, int32 [N]: of both sequences where it is a pair, of both texts where it
    has two.
    """
    sequence_lengths: np.ndarray
    """Tokens of each sequence of each row, int32 [N, 1], or [N, 2] where rows are pairs."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._batches = [
            {name: _arrays(batch.column(name)) for name in batch.schema.names} for batch in batches
        ]
        texts = [name for name in TEXTS if name in self._batches[0]]
        parts = [
            np.stack([np.diff(columns[name][0]) for name in texts], axis=1)
            for columns in self._batches
        ]
        self._starts = np.cumsum([0, *map(len, parts)])
        self.parts = np.concatenate(parts).astype(np.int32)
        self.lengths = self.parts.sum(axis=1, dtype=np.int32)
        self.sequence_lengths = self.lengths[:, None]
        if "second" in self._batches[0]:
            first = self.values("second")
            self.sequence_lengths = np.stack([first, self.lengths - first], 1)
        self._beside: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def largest_id(self) -> int:
        """Of the tokens of all rows."""
        texts = [columns[name][1] for columns in self._batches for name in TEXTS if name in columns]
        return max(int(ids.max()) for ids in texts)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Equal numbers for rows that are as long as each other in each of their texts [N]."""
        lengths = np.hstack([self.parts, self.sequence_lengths])
        return np.unique(lengths, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def has_labels(self) -> bool:
        """Whether they are kept, and are not the tokens themselves."""
        return "labels" in self._batches[0]

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each row, int64 [N], or its number, float64; None where labels are lists."""
        return None if len(self._batches[0].get("labels", ())) != 1 else self.values("labels")

    @cached_property
    def target_bytes(self) -> np.ndarray | None:
        """Bytes of the text that each row's targets are, float64 [N]; None where nobody asks."""
        return self.values("target_bytes") if "target_bytes" in self._batches[0] else None

    def values(self, column: str) -> np.ndarray:
        """Of all rows, one after another."""
        return np.concatenate([columns[column][-1] for columns in self._batches])

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        """Rows by position: `input_ids` int32 [T], `labels` a class, a number, or a list (of tokens
        int32 [T], -100: no loss; of the tokens of another text int32 [U]), perhaps `token_type_ids`
        [T], `weights` float32 [T], `thought` and `target_bytes`; of pairs `second`, where in these
        the second sequence begins; and what `beside` has put there.

        The arrays are read-only views of the file.
        """
        at = np.asarray(indices, dtype=np.int64)
        batches = np.searchsorted(self._starts, at, side="right") - 1
        return [
            _row(self._batches[batch], int(i))
            | {name: values[row] for name, values in self._beside.items()}
            for batch, row, i in zip(batches, at, at - self._starts[batches], strict=True)
        ]

    def beside(self, **columns: np.ndarray) -> "Split":
        """The same rows, with what was found out of each [N, ...]."""
        found = copy(self)
        found._beside = {**self._beside, **columns}
        return found

    def values_of(self, column: str, row: int) -> np.ndarray:
        """What `values` has of one row."""
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        at, arrays = row - int(self._starts[batch]), self._batches[batch][column]
        bounds = (at, at + 1) if len(arrays) == 1 else arrays[0][at : at + 2]
        return arrays[-1][slice(*bounds)]

    @property
    def sequences(self) -> "Split | Sequences":
        """Each sequence as a row of its own: this split, unless its rows are pairs."""
        return self if self.sequence_lengths.shape[1] == 1 else Sequences(self)


class Sequences:
    """The sequences of a split of pairs as rows of their own, each pair's side by side."""

    target_bytes: None = None

    def __init__(self, pairs: Split) -> None:
        self._pairs = pairs
        self.lengths = pairs.sequence_lengths.reshape(-1)
        self.parts, self.kinds = self.lengths[:, None], self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sequence_lengths(self) -> np.ndarray:
        return self.lengths[:, None]

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        at = np.asarray(indices, dtype=np.int64)
        pairs = self._pairs.rows(at // 2)
        return [sequences_of(pair)[which] for pair, which in zip(pairs, at % 2, strict=True)]


def sequences_of(row: Row) -> list[Row]:
    """The sequences of a row: two where it is a pair, else itself."""
    at = row.get("second")
    if at is None:
        return [row]
    ids, labels = row["input_ids"], row["labels"]
    return [
        {"input_ids": ids[part], "labels": labels[part]} for part in (slice(at), slice(at, None))
    ]


def _row(columns: dict[str, tuple[np.ndarray, ...]], i: int) -> Row:
    row: Row = {}
    for name, arrays in columns.items():
        if len(arrays) == 1:
            row[name] = arrays[0][i].item()
        else:
            offsets, values = arrays
            row[name] = values[offsets[i] : offsets[i + 1]]
    if "labels" not in columns:
        row["labels"] = row.pop("target_ids", row["input_ids"])
    return row


def open_split(folder: Path, name: str) -> Split:
    """The split `name` of a folder that `prepare` wrote."""
    return Split(Path(folder) / f"{name}.arrow")
