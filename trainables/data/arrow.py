"""Tokenised splits on disk: Arrow files that are memory-mapped, so that every worker of a machine
shares one copy.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainables.data.records import Encoded


def write_split(path: Path, encoded: Encoded) -> str:
    """Write `encoded` as one Arrow record batch. Returns the SHA-256 of its content, the same for
    the same rows wherever written.
    """
    labels, types = encoded.labels, encoded.token_type_ids
    one_each = isinstance(labels, np.ndarray)
    columns: dict[str, pa.Array | None] = {
        "input_ids": _lists(encoded.input_ids),
        "labels": pa.array(labels) if one_each else labels and _lists(labels),
        "token_type_ids": types and _lists(types),
        "weights": encoded.weights and _lists(encoded.weights),
    }
    batch = pa.record_batch({name: each for name, each in columns.items() if each is not None})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return _digest(batch)


def split_fingerprint(path: Path) -> str:
    """What `write_split` returned for this file, from its content now; empty where it cannot be
    read.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return _digest(pa.ipc.open_file(source).get_batch(0))
    except (OSError, pa.ArrowException):
        return ""


def _digest(batch: pa.RecordBatch) -> str:
    digest = hashlib.sha256()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        digest.update(f"{name} {column.type} {len(column)}\n".encode())
        for array in _arrays(column):
            digest.update(array.data)
    return digest.hexdigest()


def _lists(rows: list[np.ndarray]) -> pa.LargeListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _arrays(column: pa.Array) -> tuple[np.ndarray, ...]:
    """Views of the column's memory: (offsets, values) of lists, else (values,)."""
    if isinstance(column, pa.LargeListArray):
        return column.offsets.to_numpy(), column.values.to_numpy()
    return (column.to_numpy(),)


class Split:
    """Rows of one tokenised split, read from a memory map."""

    lengths: np.ndarray
    """Tokens of each row, int32 [N]."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        self._columns = {name: _arrays(batch.column(name)) for name in batch.schema.names}
        self.lengths = np.diff(self._columns["input_ids"][0]).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def largest_id(self) -> int:
        """Of the tokens of all rows."""
        return int(self._columns["input_ids"][1].max())

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each row, int64 [N]; None for language models."""
        column = self._columns.get("labels", ())
        return column[0] if len(column) == 1 else None

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Rows by position: `input_ids` int32 [T], `labels` a class or int32 [T] (-100: no loss),
        perhaps `token_type_ids` [T] and `weights` of the labels, float32 [T].

        The arrays are read-only views of the file.
        """
        rows: list[dict[str, Any]] = [{} for _ in indices]
        for name, arrays in self._columns.items():
            if len(arrays) == 1:
                for row, i in zip(rows, indices, strict=True):
                    row[name] = int(arrays[0][i])
            else:
                offsets, values = arrays
                for row, i in zip(rows, indices, strict=True):
                    row[name] = values[offsets[i] : offsets[i + 1]]
        if "labels" not in self._columns:
            for row in rows:
                row["labels"] = row["input_ids"]
        return rows


def open_split(folder: Path, name: str) -> Split:
    """The split `name` of a folder that `prepare` wrote."""
    return Split(Path(folder) / f"{name}.arrow")
