"""From checked rows to tokens, batch by batch; many rows by several processes."""

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data.records import Encoded, Encoding
from trainables.data.store import RowStore, SomeRows
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_PROCESS = 20_000  # fewer are tokenised before another process would have started
RAGGED = ("input_ids", "labels", "token_type_ids", "weights")


def tokenised(
    store: RowStore,
    rows: np.ndarray,
    task: str,
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
) -> Iterator[tuple[int, Encoded]]:
    """`rows`, which rise, in order, batch by batch; beside each, of how many rows it was made."""
    from joblib import Parallel, cpu_count, delayed

    pieces, form = store.batches(rows), TASKS[task].format
    processes = min(cpu_count(), len(rows) // ROWS_PER_PROCESS)
    if processes < 2:
        for piece in pieces:
            yield len(piece), form.encode(store.some(piece).records(), tokenizer, encoding)
        return
    from joblib.externals.loky import get_reusable_executor

    path = store.path.with_suffix(".tokenizer")
    path.write_bytes(pickle.dumps(tokenizer))
    results = Parallel(n_jobs=processes, return_as="generator", pre_dispatch="2*n_jobs")(
        delayed(_packed)(store.some(piece), task, path, encoding) for piece in pieces
    )
    try:
        for piece, encoded in zip(pieces, cast("Iterator[Encoded]", results), strict=True):
            yield len(piece), _with_lists(encoded, lambda packed: packed.rows())
    finally:
        get_reusable_executor().shutdown(wait=False)  # it would keep its memory for minutes


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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core
    return pickle.loads(path.read_bytes())
