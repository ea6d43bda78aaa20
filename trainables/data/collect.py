"""Every source's rows, checked, in one store on disk; and which of them each split has."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from trainables.data.bad_rows import BadRows
from trainables.data.config import COLUMNS, DataConfig
from trainables.data.findings import Finding
from trainables.data.manifest import SourceSummary
from trainables.data.processes import Processes
from trainables.data.progress import counted
from trainables.data.readers import Piece
from trainables.data.records import Format, Record, RowReader
from trainables.data.rows import BadRow, Row
from trainables.data.sources import SPLITS, Source
from trainables.data.splits import split_by_share
from trainables.data.store import PackedRows, RowStore, RowWriter
from trainables.streams import stream
from trainables.tasks.causal_lm.format import Documents, cut_tail

REST = 100  # characters of a column's value, beyond which it is not what a row comes from


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was read."""

    store: RowStore
    splits: dict[str, np.ndarray]
    """Rows of each split, before those that are in two are looked for."""
    sources: Mapping[str, SourceSummary]
    weighted: tuple[tuple[range, float], ...]
    """Rows of train that stand more or less than once in an epoch, and how often."""
    findings: tuple[Finding, ...]


def collect(
    data: DataConfig,
    sources: Mapping[str, Sequence[Source]],
    form: Format,
    seed: int,
    path: Path,
    processes: Processes,
) -> Collected:
    """Read the sources of all splits into a store at `path`. Raises InputError for what cannot be
    used.
    """
    reading = _Reading(data=data, form=form, writer=RowWriter(path), processes=processes)
    for name in SPLITS:
        reading.read(name, sources[name])
    store = reading.writer.close()
    splits = {name: np.arange(*reading.bounds[name]) for name in SPLITS if name in reading.bounds}
    if shares := reading.shares():
        splits |= split_by_share(store, splits["train"], shares, seed)
    return Collected(
        store=store,
        splits={name: splits[name] for name in SPLITS if name in splits},
        sources=reading.sources,
        weighted=tuple(reading.weighted),
        findings=tuple(reading.findings()),
    )


def weighted_rows(
    rows: np.ndarray, weighted: Iterable[tuple[range, float]], seed: int
) -> np.ndarray:
    """`rows` of train, each as often as it stands in an epoch; of a broken weight's rest, rows are
    drawn.
    """
    times = np.ones(len(rows), dtype=np.int64)
    for number, (part, weight) in enumerate(weighted):
        at = np.flatnonzero((rows >= part.start) & (rows < part.stop))
        times[at] = int(weight)
        more = round((weight - int(weight)) * len(at))
        times[stream("mixture", seed, number).permutation(at)[:more]] += 1
    return np.repeat(rows, times)


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """What became of a piece of a source."""

    rows: PackedRows
    bad: list[str]
    """What is wrong with rows that cannot be used."""
    unused: Counter[str]

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.bad)


@dataclass(frozen=True, kw_only=True)
class _PieceReader:
    """Reads pieces of one source; another process may do it."""

    reader: RowReader
    used: frozenset[str]
    """Columns that settings name."""

    def __call__(self, piece: Piece) -> _Packed:
        records: list[Record] = []
        bad: list[str] = []
        for row in piece.rows():
            record = self.reader.attempt(row)
            if isinstance(row, BadRow) or isinstance(record, BadRow):
                bad.append(str(record))
            else:
                records.append(replace(record, rest=rest) if (rest := self._rest(row)) else record)
        unused = Counter(name for record in records for name in record.unused)
        return _Packed(rows=PackedRows.of(records), bad=bad, unused=unused)

    def _rest(self, row: Row) -> dict[str, object]:
        return {
            name: value
            for name, value in row.columns.items()
            if name not in self.used and isinstance(value, str | int | float | None)
            if value is None or _is_short(row, value, name)
        }


@dataclass(kw_only=True)
class _Reading:
    """Of all sources."""

    data: DataConfig
    form: Format
    writer: RowWriter
    processes: Processes
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each split that has been read, its first row and the one after its last."""
    sources: dict[str, SourceSummary] = field(default_factory=dict)
    weighted: list[tuple[range, float]] = field(default_factory=list)
    bad: dict[str, BadRows] = field(default_factory=dict)
    unused: dict[str, Counter[str]] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Of the splits that are a share of train and not cut off it already."""
        return {
            name: share
            for name in SPLITS[1:]
            if (share := self.data.share(name)) is not None and name not in self.bounds
        }

    def read(self, split: str, given: Sequence[Source]) -> None:
        if not given:
            return
        self.bad[split], self.unused[split] = BadRows(f"data.{split}"), Counter()
        cuts = split == "train" and len(given) == 1 and isinstance(self.form, Documents)
        first = None
        for number, source in enumerate(given):
            reader = self.form.reader(source, self.data)
            pieces = self._cut(source, reader) if cuts else self._packed(source.pieces(), reader)
            begin = len(self.writer)
            first = begin if first is None else first
            self._write(split, f"Reading {source.name}", pieces)
            key = split if len(given) == 1 else f"{split}[{number}]"
            self.sources[key] = SourceSummary(
                source=source.name,
                format=reader.name,
                rows=len(self.writer) - begin,
                sha256=source.fingerprint(),
            )
            if source.weight != 1:
                self.weighted.append((range(begin, len(self.writer)), source.weight))
        self.bounds[split] = first or 0, len(self.writer)
        self.bad[split].refuse(self.data.bad_rows, len(self.writer) - (first or 0))

    def _write(self, split: str, doing: str, packed: Iterator[_Packed]) -> None:
        for each in counted(doing, ((found.read, found) for found in packed)):
            self.writer.write(each[1].rows)
            self.unused[split] += each[1].unused
            for error in each[1].bad:
                self.bad[split].add(error)

    def _packed(self, pieces: Iterator[Piece], reader: RowReader) -> Iterator[_Packed]:
        """By several processes from where it takes longer than they need to start."""
        data = self.data
        texts = (data.text, data.text_pair, data.label, data.labels, data.tokens, data.tags)
        settings = (*texts, *COLUMNS, *reader.name.split("+"), *data.columns.values())
        used = frozenset(name for name in settings if name is not None)
        read, rows = _PieceReader(reader=reader, used=used), 0
        while not self.processes.pay_off(rows):
            piece = next(pieces, None)
            if piece is None:
                return
            rows += len(piece)
            yield read(piece)
        yield from self.processes.map(read, pieces)

    def _cut(self, source: Source, reader: RowReader) -> Iterator[_Packed]:
        """The rows of train; of a single document, what its other splits are a share of is cut off
        and written.
        """
        shares, pieces = self.shares(), source.pieces()
        first = list(islice(pieces, 2))
        alone = shares and len(first) == 1 and len(first[0]) == 1
        record = reader.attempt(next(first[0].rows())) if alone else None
        if not isinstance(record, Record):
            return self._packed(chain(first, pieces), reader)
        parts = cut_tail(record, shares)
        for name in shares:
            begin = len(self.writer)
            self.writer.write(PackedRows.of(parts[name]))
            self.bounds[name] = begin, len(self.writer)
        return iter([_Packed(rows=PackedRows.of(parts["train"]), bad=[], unused=Counter())])

    def findings(self) -> Iterator[Finding]:
        for split, bad in self.bad.items():
            if bad.count:
                yield bad.finding(split)
        for split, unused in self.unused.items():
            if unused:
                named = [f"{name} ({count} row(s))" for name, count in unused.most_common(5)]
                more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
                yield Finding(
                    kind="unused",
                    split=split,
                    rows=max(unused.values()),
                    message=f"{split}: not used: {', '.join(named)}{more}",
                )


def _is_short(row: Row, value: object, name: str) -> bool:
    """And can be stored."""
    try:
        row.check_storable(value, name)
    except BadRow:
        return False
    return len(str(value)) <= REST
