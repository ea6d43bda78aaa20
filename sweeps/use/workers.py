"""Blocks of rows through Ray Data: read by a task, answered by actors with a model each, and their
answers written by the one who asked.
"""

import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayTaskError

from cluster.config import ClusterConfig
from cluster.connect import SlotPlan, connect, plan_slots_now
from sweeps.use.answers import answerer
from sweeps.use.predict import BLOCK, Extent, Job, open_again, part_name
from sweeps.use.rows import read_rows
from sweeps.use.trained import open_trained
from trainables.data.records import Record
from trainables.errors import InputError
from trainables.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

    from sweeps.use.trained import Trained
    from trainables.data.config import DataConfig
    from trainables.tasks import Task

NUMBER, ROWS, ANSWERS = "number", "rows", "answers"
"""Columns: a block, what is asked, and what was answered."""


def run(
    job: Job,
    trained: "Trained",
    cluster: ClusterConfig,
    extents: Sequence[Extent],
    missing: frozenset[int],
    store: Store,
    say: Callable[[str], None],
) -> None:
    """Answer the `missing` blocks, and write their parts."""
    with connect(cluster, namespace="predict"):
        plan = plan_slots_now(cluster, len(missing))
        say(plan.reason.replace("slot", "worker"))
        done = 0
        for block in _answered(job, trained, extents, missing, plan):
            store.write_bytes(part_name(int(block[NUMBER])), block[ANSWERS])
            done += 1
            say(f"{done} of {len(missing)} blocks of {BLOCK} rows")


def _answered(
    job: Job,
    trained: "Trained",
    extents: Sequence[Extent],
    missing: frozenset[int],
    plan: SlotPlan,
) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.print_on_execution_start = False
    # a block of rows is a row there: each is handed on by itself, as soon as it is read
    context.target_max_block_size = 1
    blocks = ray.data.read_datasource(
        _Blocks(extents, trained.task, trained.config.data, missing),
        override_num_blocks=len(extents),
        num_cpus=0,
    ).map_batches(
        _Worker,
        fn_constructor_args=(job, plan.threads_per_worker),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=plan.slots),
        **plan.worker_options,
    )
    try:
        yield from blocks.iter_rows()
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        raise


class _Blocks(Datasource):
    """The missing blocks of all files, a file a task."""

    def __init__(
        self,
        extents: Sequence[Extent],
        task: "Task",
        data: "DataConfig",
        missing: frozenset[int],
    ) -> None:
        super().__init__()
        self._extents, self._task, self._data = extents, task, data
        self._missing = missing

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        return [
            ReadTask(
                lambda extent=extent: self._read(extent),
                BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None),
            )
            for extent in self._extents
            if self._missing.intersection(extent.blocks)
        ]

    def _read(self, extent: Extent) -> Iterable[pa.Table]:
        rows = read_rows(open_again(extent.source), self._task, self._data)
        numbered = enumerate(rows, start=extent.first)

        def block_of(row: tuple[int, object]) -> int:
            return extent.first + (row[0] - extent.first) // BLOCK * BLOCK

        for block, found in groupby(numbered, block_of):
            usable = [(i, each.record) for i, each in found if isinstance(each.record, Record)]
            if block in self._missing:
                yield pa.table({NUMBER: [block], ROWS: [pickle.dumps(usable)]})


class _Worker:
    """An actor with the model."""

    def __init__(self, job: Job, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._open = ExitStack()
        trained = self._open.enter_context(open_trained(job.folder, job.trial))
        self._answers = answerer(trained, job.sampling)

    def __call__(self, batch: dict[str, "np.ndarray"]) -> dict[str, list[object]]:
        written = []
        for packed in batch[ROWS]:
            rows: list[tuple[int, Record]] = pickle.loads(packed)
            answers = self._answers(rows) if rows else ()
            lines = [
                json.dumps({"row": number, "answer": answer}, ensure_ascii=False)
                for (number, _), answer in zip(rows, answers, strict=True)
            ]
            written.append("\n".join(lines).encode())
        return {NUMBER: batch[NUMBER].tolist(), ANSWERS: written}
