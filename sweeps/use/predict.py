"""Answers of a trained model to the rows of a file, by Ray Data: a model for each worker, blocks of
rows, and what is done is kept.

What answers there are lies beside the table that is to be written, a part for each block; once all
are there, the rows are read again and each is written with its answer.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cluster.config import ClusterConfig
from sweeps.use.answers import ERROR, FINISH, PREDICTION, Answer, check_columns
from sweeps.use.rows import KEY, Asked, open_file, read_rows
from sweeps.use.tables import check_table, write_table
from trainables.data.rows import BadRow
from trainables.data.sources import Source
from trainables.errors import InputError
from trainables.storage.store import Store

if TYPE_CHECKING:
    from sweeps.use.generation import Sampling
    from sweeps.use.trained import Trained

BLOCK = 64  # rows
JOB = "job.json"
NAMED = 3  # bad rows


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for."""

    folder: str
    """Of the sweep."""
    trial: str | None
    file: str
    out: str
    sampling: "Sampling"
    bad_rows: Literal["error", "drop"] | None = None
    """None: as the sweep's `data.bad_rows` says."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was written."""

    out: str
    """The table."""
    rows: int
    bad: int
    blocks: int
    kept: int
    """Blocks that an earlier call had done."""


@dataclass(kw_only=True)
class Extent:
    """Where a source's rows are among all rows."""

    source: Source
    first: int
    rows: int = 0
    usable: int = 0

    @property
    def blocks(self) -> range:
        """Numbers of its blocks: those of the rows that begin them, in blocks."""
        return range(self.first, self.first + self.rows, BLOCK)


def predict(
    job: Job, trained: "Trained", cluster: ClusterConfig, say: Callable[[str], None]
) -> Counted:
    """Write `job.out`. say: takes a line on how far it is. Raises InputError for what the user can
    put right, bad rows among it where they are not to be left unanswered.
    """
    check_table(job.out, "--out")
    extents, bad = _look(open_file(job.file), trained)
    drops = (job.bad_rows or trained.config.data.bad_rows) == "drop"
    bad.check(drops=drops and any(extent.usable for extent in extents))
    store = Store(f"{job.out}.parts")
    _claim(store, job, trained, extents)
    blocks = frozenset(block for extent in extents for block in extent.blocks)
    missing = blocks - _done(store)
    if missing:
        from sweeps.use.workers import run

        run(job, trained, cluster, extents, missing, store, say)
    parts = _Parts(store, trained, extents)
    late = _BadRows()
    late.add_all(answer[ERROR] for answer in parts.answers() if ERROR in answer)
    late.check(drops=drops)
    write_table(job.out, parts.columns(), parts.table)
    store.delete("")
    return Counted(
        out=job.out,
        rows=sum(extent.rows for extent in extents),
        bad=bad.count + late.count,
        blocks=len(blocks),
        kept=len(blocks) - len(missing),
    )


@dataclass
class _BadRows:
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add_all(self, errors: Iterator[object]) -> None:
        for error in errors:
            self.count += 1
            if self.count <= NAMED:
                self.first.append(str(error).removeprefix(f"{KEY}: "))

    def check(self, *, drops: bool) -> None:
        """Raise InputError where there are any, unless they may stay without an answer."""
        if drops or not self.count:
            return
        first, *others = self.first
        more = f"; {self.count - 1} more row(s) cannot be used either: {'; '.join(others)}"
        raise InputError(
            f"{KEY}: {first}{more if others else ''}; mend them, or give --bad-rows drop, which"
            " writes such rows with an error in the place of an answer"
        )


def _look(sources: Sequence[Source], trained: "Trained") -> tuple[list[Extent], _BadRows]:
    """Once through all rows: how many there are, and what is wrong with any."""
    extents, bad, first = [], _BadRows(), 0
    for source in sources:
        check_columns(source.columns, source.name)
        extent = Extent(source=source, first=first)
        for asked in read_rows(source, trained.task, trained.config.data):
            extent.rows += 1
            if isinstance(asked.record, BadRow):
                bad.add_all(iter([asked.record]))
            else:
                extent.usable += 1
        extents.append(extent)
        first += extent.rows
    return extents, bad


def _claim(store: Store, job: Job, trained: "Trained", extents: Sequence[Extent]) -> None:
    """Raise InputError where parts of other answers lie there already."""
    sources = [[each.source.name, each.source.fingerprint()] for each in extents]
    what = {
        "sweep": trained.ledger.store.path(""),
        "trial": trained.trial,
        "step": trained.evaluation.step,
        "sources": sources,
        "sampling": asdict(job.sampling) if trained.task.is_language_model else None,
        "block": BLOCK,
    }
    if not store.exists(JOB):
        store.write_json(JOB, what)
        return
    before = store.read_json(JOB)
    now = json.loads(json.dumps(what))
    if other := sorted(name for name in now if before.get(name) != now[name]):
        raise InputError(
            f"--out: {store.path('')} has parts of another call ({', '.join(other)} differ);"
            " repeat that one, remove the folder, or name another file"
        )


def part_name(block: int) -> str:
    """The file with the answers of a block."""
    return f"{block:012d}.jsonl"


def _done(store: Store) -> frozenset[int]:
    names = (name.removesuffix(".jsonl") for name in store.find() if name.endswith(".jsonl"))
    return frozenset(int(name) for name in names if name.isdigit())


class _Parts:
    """All answers, beside their rows."""

    def __init__(self, store: Store, trained: "Trained", extents: Sequence[Extent]) -> None:
        self._store, self._trained, self._extents = store, trained, extents

    def answers(self) -> Iterator[Answer]:
        """Of the rows that were given to the model, in order."""
        for extent in self._extents:
            for block in extent.blocks:
                yield from self._part(block).values()

    def _part(self, block: int) -> dict[int, Answer]:
        """By the numbers of rows."""
        lines = self._store.read_bytes(part_name(block)).decode().splitlines()
        return {row["row"]: row["answer"] for row in map(json.loads, lines)}

    def table(self) -> Iterator[Mapping[str, object]]:
        for extent in self._extents:
            source = open_again(extent.source)
            rows = read_rows(source, self._trained.task, self._trained.config.data)
            part: dict[int, Answer] = {}
            for number, asked in enumerate(rows, start=extent.first):
                if number in extent.blocks:
                    part = self._part(number)
                yield {**asked.columns, **_answer(asked, part.get(number))}

    def columns(self) -> list[str]:
        """Of the rows, then of the answers."""
        found, answered = _names(self.table()), _names(self.answers())
        ends = [name for name in (FINISH, ERROR) if name in found]
        ours = [PREDICTION, *(name for name in answered if name not in (PREDICTION, *ends)), *ends]
        return [*(name for name in found if name not in ours), *ours]


def _names(rows: Iterator[Mapping[str, object]]) -> list[str]:
    """Of columns, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _answer(asked: Asked, answer: Answer | None) -> Answer:
    if isinstance(asked.record, BadRow):
        return {PREDICTION: None, ERROR: str(asked.record)}
    assert answer is not None, "all parts are there"
    return {PREDICTION: None, **answer}


def open_again(source: Source) -> Source:
    """The same, to be read from its first row."""
    return replace(source)
