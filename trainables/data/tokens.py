"""A split as it is written: its rows as they were read, and their tokens with what goes beside
them.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data.arrow import Split, SplitWriter, open_split, split_fingerprint
from trainables.data.bad_rows import BadRows
from trainables.data.encoding import tokenised
from trainables.data.findings import Finding
from trainables.data.manifest import SplitSummary, TokenSummary
from trainables.data.processes import Processes
from trainables.data.progress import counted
from trainables.data.records import Encoded, Encoding, Noticed, Record
from trainables.data.store import RowStore
from trainables.errors import InputError
from trainables.streams import stream
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLICES = "{}.slices.npy"  # beside a split's tokens: the slice of each row
GROUPS = "{}.groups.npy"  # and which rows belong together, so that they count as one observation
RUNS = 30  # of neighbouring blocks, which belong together where a whole split is one document


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Parts of a split by the values of a column: `of_rows` [N] are positions in `values`."""

    values: tuple[str, ...]
    of_rows: np.ndarray

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each value that occurs, and the positions of its rows."""
        for number, value in enumerate(self.values):
            if len(rows := np.flatnonzero(self.of_rows == number)):
                yield value, rows


@dataclass(frozen=True, kw_only=True)
class Written:
    """The N tokenised rows of a split, as far as they must be known when all are written."""

    lengths: np.ndarray
    """int32 [N]."""
    longest: np.ndarray
    """Tokens of the longest sequence of each: of a pair of the longer one, int32 [N]."""
    of_rows: np.ndarray
    """The row of the store that each is of, int64 [N]."""
    hashes: np.ndarray
    """Of each row's tokens, uint64 [N]."""
    unknown: np.ndarray
    """How many of a row's tokens the tokenizer does not know, int32 [N]."""
    is_whole: bool
    """Whether each is a row of the store, and all of those are there."""


@dataclass(kw_only=True)
class _Counts:
    """Of what the batches of a split have found."""

    task: Task
    targets: int = 0
    found: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    noticed: dict[str, Noticed] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def add(self, encoded: Encoded) -> None:
        self.targets += _targets(self.task, encoded)
        for name in ("truncated", "dropped", "endless_answers", "endings_cut"):
            self.found[name] += getattr(encoded, name)
        self.lost.update(encoded.lost)
        for kind, each in encoded.noticed.items():
            self.noticed[kind] = self.noticed.get(kind, Noticed()) + each
        self.bad += encoded.bad


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Writes splits of rows in `store` to a folder of prepared data."""

    folder: Path
    store: RowStore
    task: str
    tokenizer: "PreTrainedTokenizerBase"
    encoding: Encoding
    processes: Processes
    bad_rows: str = "error"
    """Whether rows that cannot be rendered are refused ("error") or left out ("drop")."""
    findings: list[Finding] = field(default_factory=list)
    written: dict[str, Written] = field(default_factory=dict)
    """Splits that have been tokenised."""

    def split(self, name: str, rows: np.ndarray, most: tuple[int, int] | None) -> SplitSummary:
        """Write one split: its rows, of all but train, and its tokens, of all but test. most: rows
        that are kept of the tokenised ones, and the seed to draw them.
        """
        raw = "" if name == "train" else self._write_raw(name, rows)
        # what is wrong with the test split shall not be found only when it is scored: it is
        # tokenised, and the tokens are left beside the store, with which they go
        files = replace(self, folder=self.store.path.parent) if name == "test" else self
        tokens = files.tokens(name, rows, most)
        if name == "test":
            tokens = replace(tokens, fingerprint="", slice_counts=None, groups=None)
        labels = TASKS[self.task].summarise(open_split(files.folder, name), self.encoding.labels)
        return SplitSummary(
            read=len(rows),
            label_counts=labels.counts,
            label_mean=labels.mean,
            label_variance=labels.variance,
            raw_fingerprint=raw,
            **vars(tokens),
        )

    def tokens(self, name: str, rows: np.ndarray, most: tuple[int, int] | None) -> TokenSummary:
        path = self.folder / f"{name}.arrow"
        partial = path.with_suffix(".arrow.partial")
        counts = _Counts(task=TASKS[self.task])
        written = self._write_tokens(partial, rows, counts)
        if counts.bad:
            bad = BadRows(f"data.{name}", counts.bad)
            bad.refuse(self.bad_rows, len(rows) - len(counts.bad))
            self.findings.append(bad.finding(name))
        if not len(written.lengths):
            raise InputError(self._nothing_left(name, rows))
        if most is not None and len(written.lengths) > most[0]:
            written = self._draw_blocks(partial, written, *most, counts)
        self.written[name] = written
        os.replace(partial, path)
        slice_counts = groups = None
        if name != "train":
            slice_counts = self._write_slices(name, written)
            groups = self._write_groups(name, rows, written)
        return TokenSummary(
            rows=len(written.lengths),
            tokens=int(written.lengths.sum()),
            targets=counts.targets,
            unknown=int(written.unknown.sum()),
            lost=dict(counts.lost),
            noticed=counts.noticed,
            mean_length=float(written.lengths.mean()),
            longest=int(written.longest.max()),
            largest_id=Split(path).largest_id,
            fingerprint=split_fingerprint(path),
            slice_counts=slice_counts,
            groups=groups,
            **counts.found,
        )

    def _nothing_left(self, name: str, rows: np.ndarray) -> str:
        if not len(rows) or not TASKS[self.task].is_conversation:
            return f"data.{name}: no rows are left after tokenisation"
        first = next(self.store.records(rows[:1]))
        return (
            f"data.max_length: in none of {len(rows)} rows ({first.place} and on) do the first"
            f" {self.encoding.max_length} tokens reach the assistant's answer; raise it"
        )

    def _write_raw(self, name: str, rows: np.ndarray) -> str:
        """Returns the SHA-256 of the rows, whichever columns of theirs slice and group them."""
        digest = hashlib.sha256()
        with open(self.folder / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for record in self.store.records(rows):
                digest.update(_line(record.value).encode())
                file.write(_line(record.value | _beside(record)))
        return digest.hexdigest()

    def _write_tokens(self, path: Path, rows: np.ndarray, counts: _Counts) -> Written:
        form, encoding = TASKS[self.task].format, self.encoding
        unknown, position = _unknown_id(self.tokenizer), 0
        lengths, longest, origins, hashes, unknowns = [], [], [], [], []
        is_whole = True

        def batches() -> Iterator[Encoded]:
            nonlocal position, is_whole
            found = tokenised(self.store, rows, self.task, self.tokenizer, encoding, self.processes)
            for read, encoded in counted("Tokenising", found, len(rows)):
                is_whole &= encoded.origin is None
                origin = np.arange(read) if encoded.origin is None else encoded.origin
                yield replace(encoded, origin=rows[position + origin])
                position += read

        with SplitWriter(path) as writer:
            for encoded in form.arrange(batches(), encoding):
                counts.add(encoded)
                if not encoded.input_ids:
                    continue
                writer.write(encoded)
                tokens = encoded.tokens
                lengths.append(np.array(list(map(len, tokens)), dtype=np.int32))
                longest.append(_longest(lengths[-1], encoded.second))
                origins.append(encoded.origin)
                hashes.append(np.array(list(map(_hash, tokens)), dtype=np.uint64))
                unknowns.append(_counts_of(tokens, unknown))
        if not lengths:
            lengths = longest = origins = hashes = unknowns = [rows[:0]]
        return Written(
            lengths=np.concatenate(lengths),
            longest=np.concatenate(longest),
            of_rows=np.concatenate(origins),
            hashes=np.concatenate(hashes),
            unknown=np.concatenate(unknowns),
            is_whole=is_whole,
        )

    def _draw_blocks(
        self, path: Path, written: Written, most: int, seed: int, counts: _Counts
    ) -> Written:
        """Keep that many of the tokenised rows of the file at `path`, in their order."""
        chosen = np.sort(stream("blocks", seed).choice(len(written.lengths), most, replace=False))
        rows = Split(path).rows(chosen)
        sizes = Split(path).target_bytes
        kept = Encoded(
            input_ids=[row["input_ids"] for row in rows],
            target_bytes=None if sizes is None else sizes[chosen],
        )
        drawn = path.with_suffix(".drawn")
        with SplitWriter(drawn) as writer:
            writer.write(kept)
        os.replace(drawn, path)
        counts.targets = _targets(counts.task, kept)
        return Written(
            lengths=written.lengths[chosen],
            longest=written.longest[chosen],
            of_rows=written.of_rows[chosen],
            hashes=written.hashes[chosen],
            unknown=written.unknown[chosen],
            is_whole=False,
        )

    def _write_slices(self, name: str, written: Written) -> dict[str, int] | None:
        """Returns how many rows each slice has; None where the sweep names no column for them."""
        values = self.encoding.slices
        if not values:
            return None
        position = {value: i for i, value in enumerate(values)}
        of_names = np.array([position.get(value, -1) for value in self.store.slices.names])
        of_rows = of_names[self.store.slices.of_rows[written.of_rows]]
        np.save(self.folder / SLICES.format(name), of_rows)
        return {value: len(rows) for value, rows in Slices(values=values, of_rows=of_rows)}

    def _write_groups(self, name: str, rows: np.ndarray, written: Written) -> int | None:
        """Returns how many groups there are; None where each row stands for itself."""
        groups = self._groups(rows, written)
        if groups is None:
            return None
        np.save(self.folder / GROUPS.format(name), groups)
        return len(np.unique(groups))

    def _groups(self, rows: np.ndarray, written: Written) -> np.ndarray | None:
        """Which tokenised rows belong together [N]: those of one `data.group`, else of one
        document; None where each stands for itself.
        """
        if (self.store.groups.of_rows[rows] >= 0).any():
            groups = map(self.store.groups.of, written.of_rows)
            names = [
                f"group {group}"
                if group is not None
                else f"row {row}"  # a text file is of no group
                for group, row in zip(groups, written.of_rows, strict=True)
            ]
            return np.unique(names, return_inverse=True)[1]
        if written.is_whole:
            return None
        if len(rows) == 1:  # a single text says nothing of others; of itself, its parts do
            blocks = len(written.of_rows)
            return np.arange(blocks) * RUNS // max(blocks, RUNS)
        return np.searchsorted(rows, written.of_rows)


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _beside(record: Record) -> dict[str, str]:
    """What goes into a raw row beside its value."""
    named = {"slice": record.slice, "group": record.group}
    return {name: value for name, value in named.items() if value is not None}


def _longest(lengths: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """Tokens of the longest sequence of rows of `lengths` tokens, whose second begins there."""
    return lengths if second is None else np.maximum(second, lengths - second)


def _hash(ids: np.ndarray) -> int:
    return int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def _unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token of what the tokenizer does not know; None where there is none, or it also means
    something else.
    """
    unknown = cast("int | None", tokenizer.unk_token_id)
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if unknown in others else unknown


def _counts_of(rows: list[np.ndarray], token: int | None) -> np.ndarray:
    """How often a token stands in each row, int32 [N]."""
    if token is None:
        return np.zeros(len(rows), dtype=np.int32)
    return np.array([np.count_nonzero(ids == token) for ids in rows], dtype=np.int32)


def _targets(task: Task, encoded: Encoded) -> int:
    """What the split's loss is a mean over, whatever their weights."""
    return task.count_targets(encoded.targets)
