"""From checked rows to tokens, batch by batch; many rows by several processes."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.processes import Processes
from trainables.data.records import Encoded, Encoding
from trainables.data.store import RowStore, SomeRows
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAGGED = ("input_ids", "labels", "target_ids", "token_type_ids", "weights", "token_bytes")


def tokenised(
    store: RowStore,
    rows: np.ndarray,
    task: str,
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    processes: Processes,
) -> Iterator[tuple[int, Encoded]]:
    """`rows`, which rise, in order, batch by batch; beside each, of how many rows it was made."""
    pieces, form = store.batches(rows), TASKS[task].format
    if not processes.pay_off(len(rows)):
        for piece in pieces:
            yield len(piece), form.encode(store.some(piece).records(), tokenizer, encoding)
        return
    path = store.path.with_suffix(".tokenizer")
    path.write_bytes(pickle.dumps(tokenizer))
    pack = partial(_packed, task=task, tokenizer=path, encoding=encoding)
    results = processes.map(pack, map(store.some, pieces))
    for piece, encoded in zip(pieces, results, strict=True):
        yield len(piece), _with_lists(encoded, lambda packed: packed.rows())


@dataclass(frozen=True, kw_only=True)
class _Ragged:
    """Rows of unlike lengths as one array, which goes from process to process a thousand times
    faster than an array a row.
    """

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "_Ragged":
        values = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
        return cls(values=values, lengths=np.array(list(map(len, rows)), dtype=np.int64))

    def rows(self) -> list[np.ndarray]:
        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


def _with_lists(encoded: Encoded, convert: Callable) -> Encoded:
    """With `convert` of each of its lists of rows."""
    given = {name: getattr(encoded, name) for name in RAGGED}
    lists = {name: each for name, each in given.items() if isinstance(each, list | _Ragged)}
    return replace(encoded, **{name: convert(each) for name, each in lists.items()})


def _packed(some: SomeRows, task: str, tokenizer: Path, encoding: Encoding) -> Encoded:
    encoded = TASKS[task].format.encode(some.records(), _tokenizer(tokenizer), encoding)
    return _with_lists(encoded, _Ragged.of)


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    return pickle.loads(path.read_bytes())
