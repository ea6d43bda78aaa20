"""From sources to a folder of checked, split and tokenised data with a manifest of what is in
it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data.arrow import Split, open_split, write_split
from trainables.data.config import DataConfig
from trainables.data.manifest import (
    MANIFEST,
    Manifest,
    SourceSummary,
    SplitSummary,
    TokenSummary,
    read_manifest,
    write_manifest,
)
from trainables.data.records import IGNORED, Encoded, Encoding, Format, Record
from trainables.data.sources import read_source
from trainables.data.splits import Splits, check_labels, draw_rows, separate, split_by_share
from trainables.errors import InputError, did_you_mean
from trainables.tasks import TASKS, Task
from trainables.tasks.causal_lm.format import Documents, cut_tail, draw_blocks
from trainables.tasks.classification.format import sorted_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from trainables.storage.records import Json

__all__ = [
    "GROUPS",
    "SLICES",
    "Slices",
    "Split",
    "open_slices",
    "open_split",
    "prepare",
    "tokenise_split",
]

SLICES = "{}.slices.npy"  # beside a split's tokens: the slice of each row
GROUPS = "{}.groups.npy"  # and which rows belong together, so that they count as one observation
RUNS = 30  # of neighbouring blocks, which belong together where a whole split is one document
MAX_SLICES = 100


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


def prepare(
    data: DataConfig,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    folder: Path,
    context: int | None = None,
) -> Manifest:
    """Read, check, split and tokenise the data, and write it to `folder`.

    Writes `train.arrow`, `validation.arrow` (tokens), `validation.jsonl`, `test.jsonl` (the rows as
    they were read; the test split is tokenised only when it is scored, by `tokenise_split`) and
    last, atomically, `manifest.json`: a folder without it is not ready.

    context: the model's longest row in tokens; None where only the tokenizer's own limit is known.
    Returns the manifest. Raises InputError for everything that the user can put right.
    """
    owner = _task(task)
    if data.slice is not None and data.cross_documents:
        raise InputError(
            "data.slice: cannot be told of blocks that run on into the next document"
            " (cross_documents)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)

    max_length = _max_length(data, owner.format, tokenizer, context)
    splits, sources = _read(data, owner.format, seed)
    splits, duplicates = separate(splits, data.duplicates)
    _check_filled(splits, data)
    labels = _labels(splits) if owner.has_classes else ()
    if data.rows is not None:
        splits["train"] = _drawn(splits["train"], data.rows, labels, seed)
    encoding = Encoding(
        max_length=max_length,
        labels=labels,
        slices=_slices(splits, data),
        cross_documents=data.cross_documents,
    )
    most, share = _majority(splits) if labels else ("", 0.0)
    manifest = Manifest(
        task=task,
        seed=seed,
        data=data,
        sources=sources,
        encoding=encoding,
        labels=labels,
        max_length=max_length,
        tokenizer=_tokenizer_digest(tokenizer),
        chat_template=_template_owner(tokenizer) if owner.is_conversation else None,
        splits={
            name: _write(folder, name, records, owner.format, tokenizer, encoding, data.rows, seed)
            for name, records in splits.items()
        },
        duplicates_inside=duplicates.inside,
        duplicates_dropped=duplicates.dropped,
        texts_with_two_labels=duplicates.two_labels,
        majority_label=most,
        majority_share=share,
    )
    manifest = replace(manifest, notes=tuple(_notes(manifest)))
    write_manifest(folder, manifest)
    return manifest


def _task(name: str) -> Task:
    if name not in TASKS:
        raise InputError(
            f"task: {name!r} is unknown; allowed are"
            f" {', '.join(TASKS)}.{did_you_mean(name, list(TASKS))}"
        )
    return TASKS[name]


def _labels(splits: Splits) -> tuple[str, ...]:
    """The classes of train, which must be all that there are."""
    check_labels(splits)
    return sorted_labels({r.label for r in splits["train"] if r.label is not None})


def _drawn(train: list[Record], rows: int, labels: tuple[str, ...], seed: int) -> list[Record]:
    """At most `rows` rows of train, in which every class still occurs."""
    drawn = draw_rows(train, rows, seed)
    lost = sorted(set(labels) - {r.label for r in drawn})
    if lost:
        raise InputError(
            f"data.rows: {rows} row(s) of train leave out the label(s) {', '.join(lost)}; raise it"
        )
    return drawn


def _majority(splits: Splits) -> tuple[str, float]:
    """The commonest class of train, and its share of validation."""
    train, validation = splits["train"], splits["validation"]
    most = Counter(r.label for r in train if r.label is not None).most_common(1)[0][0]
    return most, sum(r.label == most for r in validation) / len(validation)


def _template_owner(tokenizer: PreTrainedTokenizerBase) -> str:
    return "tokenizer" if tokenizer.chat_template else "default"


def _write(
    folder: Path,
    name: str,
    records: list[Record],
    form: Format,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    most_rows: int | None,
    seed: int,
) -> SplitSummary:
    """Write one split: its rows, of all but train, and its tokens, of all but test. most_rows: of
    train.
    """
    raw_fingerprint, tokens = "", TokenSummary()
    if name != "train":
        raw_fingerprint = _write_raw(folder / f"{name}.jsonl", records)
    if name != "test":
        encoded = form.encode(records, tokenizer, encoding)
        if name == "train" and most_rows is not None:
            encoded = draw_blocks(encoded, most_rows, seed)
        tokens = _write_tokens(folder, name, encoded, records, encoding)
    counts = Counter(r.label for r in records)
    return SplitSummary(
        read=len(records),
        label_counts={label: counts[label] for label in encoding.labels} or None,
        raw_fingerprint=raw_fingerprint,
        **vars(tokens),
    )


def tokenise_split(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> TokenSummary:
    """Tokenise a split that `folder` holds raw (the test split), as `prepare` did the others; then
    `open_split` opens it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no manifest.json: its data were not prepared to the end")
    if name not in manifest.splits:
        raise InputError(
            f"data.{name}: {folder} has no {name} split, only {', '.join(manifest.splits)}"
        )
    if manifest.tokenizer != _tokenizer_digest(tokenizer):
        raise InputError(
            f"data.{name}: the tokenizer is not the one that {folder} was prepared with"
        )
    encoding = manifest.encoding
    path = Path(folder) / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    records = [
        Record(
            value=(value := json.loads(line)),
            place=f"{path} line {number}",
            key=b"",
            shown="",
            label=value.get("label"),
            slice=value.get("slice"),
            group=value.get("group"),
        )
        for number, line in enumerate(lines, start=1)
    ]
    encoded = TASKS[manifest.task].format.encode(records, tokenizer, encoding)
    return _write_tokens(Path(folder), name, encoded, records, encoding)


def open_slices(folder: Path, name: str) -> Slices | None:
    """Of which slice each row of a tokenised split is; None where the sweep names no column for
    it.
    """
    manifest, path = read_manifest(folder), Path(folder) / SLICES.format(name)
    if manifest is None or not path.exists():
        return None
    return Slices(values=manifest.encoding.slices, of_rows=np.load(path))


def _slices(splits: Splits, data: DataConfig) -> tuple[str, ...]:
    """The values of `data.slice` in the splits that are measured."""
    found = sorted(
        {r.slice for name in splits if name != "train" for r in splits[name] if r.slice is not None}
    )
    if len(found) > MAX_SLICES:
        raise InputError(
            f"data.slice: {data.slice!r} has {len(found)} values; at most {MAX_SLICES} can be"
            " measured one by one"
        )
    return tuple(found)


def _max_length(
    data: DataConfig, form: Format, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> int:
    longest = tokenizer.model_max_length  # 1e30 where the tokenizer does not know
    if context is not None:
        longest = min(longest, context)
    if data.max_length is not None and data.max_length > longest:
        raise InputError(
            f"data.max_length: the model takes at most {longest} tokens, got {data.max_length}"
        )
    return data.max_length or min(form.default_length, longest)


def _check_given(data: DataConfig) -> None:
    if not data.train:
        raise InputError("data.train: no training data; give a file or hf:owner/name")
    if data.validation is None or data.validation == "":
        raise InputError(
            "data.validation: no validation data, without which no winner can be chosen; give a"
            " file, or the share of train to set apart for it, such as 0.1"
        )


def _read(data: DataConfig, form: Format, seed: int) -> tuple[Splits, dict[str, SourceSummary]]:
    """Every source's records, split; and for the manifest what each source was."""
    _check_given(data)
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    read: Splits = {}
    sources = {}
    for name, source in given.items():
        if isinstance(source, str) and source:
            table = read_source(source, f"data.{name}")
            format_name, read[name] = form.read(table, data)
            sources[name] = SourceSummary(
                source=source,
                format=format_name,
                rows=len(table.rows),
                sha256=table.fingerprint,
            )
    shares = {
        name: float(source) for name, source in given.items() if isinstance(source, int | float)
    }
    if shares:
        read |= _cut(read["train"], shares, form, seed)
    return {name: read[name] for name in given if name in read}, sources


def _cut(train: list[Record], shares: dict[str, float], form: Format, seed: int) -> Splits:
    """Train without the splits that are a share of it, and those."""
    if isinstance(form, Documents) and len(train) == 1:
        return cut_tail(train[0], shares)
    return split_by_share(train, shares, seed)


def _check_filled(splits: Splits, data: DataConfig) -> None:
    for name, records in splits.items():
        if not records:
            share = getattr(data, name)
            why = (
                f"a share of {share} leaves it no rows"
                if isinstance(share, int | float)
                else "no rows are left after dropping duplicates"
            )
            if name == "train":
                why = "no rows are left of it after splitting and dropping duplicates"
            of_groups = f" (rows of one {data.group!r} stay together)" if data.group else ""
            raise InputError(f"data.{name}: {why}{of_groups}; give more rows or another share")


def _write_raw(path: Path, records: list[Record]) -> str:
    """Returns the SHA-256 of the rows, whichever columns of theirs slice and group them."""

    def lines(values: Iterable[dict[str, Json]]) -> bytes:
        return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()

    columns = ("slice", "group")
    path.write_bytes(
        lines(
            r.value | {c: value for c in columns if (value := getattr(r, c)) is not None}
            for r in records
        )
    )
    return hashlib.sha256(lines(r.value for r in records)).hexdigest()


def _write_tokens(
    folder: Path, name: str, encoded: Encoded, records: list[Record], encoding: Encoding
) -> TokenSummary:
    if not encoded.input_ids:
        raise InputError(f"data.{name}: no rows are left after tokenisation")
    partial = folder / f"{name}.arrow.partial"
    fingerprint = write_split(partial, encoded)
    os.replace(partial, folder / f"{name}.arrow")
    slice_counts = of_groups = None
    if name != "train":
        slice_counts = _write_slices(folder, name, encoded, records, encoding)
        of_groups = _write_groups(folder, name, encoded, records)
    lengths = np.array([len(ids) for ids in encoded.input_ids])
    return TokenSummary(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        targets=_targets(encoded),
        truncated=encoded.truncated,
        dropped=encoded.dropped,
        endless_answers=encoded.endless_answers,
        mean_length=float(lengths.mean()),
        longest=int(lengths.max()),
        fingerprint=fingerprint,
        slice_counts=slice_counts,
        groups=of_groups,
    )


def _write_slices(
    folder: Path, name: str, encoded: Encoded, records: list[Record], encoding: Encoding
) -> dict[str, int] | None:
    """Returns how many rows each slice has; None where the sweep names no column for them."""
    if not encoding.slices:
        return None
    position = {value: i for i, value in enumerate(encoding.slices)}
    of_records = np.array([position[r.slice] for r in records if r.slice is not None])
    of_rows = of_records if encoded.origin is None else of_records[encoded.origin]
    np.save(folder / SLICES.format(name), of_rows)
    return {value: len(rows) for value, rows in Slices(values=encoding.slices, of_rows=of_rows)}


def _write_groups(folder: Path, name: str, encoded: Encoded, records: list[Record]) -> int | None:
    """Returns how many groups there are; None where each row stands for itself."""
    groups = _groups(encoded, records)
    if groups is None:
        return None
    np.save(folder / GROUPS.format(name), groups)
    return len(np.unique(groups))


def _groups(encoded: Encoded, records: list[Record]) -> np.ndarray | None:
    """Which rows belong together [N]: those of one `data.group`, else of one document; None where
    each stands for itself.
    """
    if records[0].group is not None:
        _, of_records = np.unique([str(r.group) for r in records], return_inverse=True)
        return of_records if encoded.origin is None else of_records[encoded.origin]
    if encoded.origin is None:
        return None
    if len(records) == 1:  # a single text says nothing of others; of itself, its parts do
        return np.arange(len(encoded.origin)) * RUNS // max(len(encoded.origin), RUNS)
    return encoded.origin


def _targets(encoded: Encoded) -> int:
    """What the split's loss is a mean over: rows of classification, else tokens that are
    predicted.
    """
    if isinstance(encoded.labels, np.ndarray):
        return len(encoded.labels)
    rows = encoded.input_ids if encoded.labels is None else encoded.labels
    return int(sum(np.count_nonzero(row[1:] != IGNORED) for row in rows))


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what the tokenizer does: its vocabulary, rules and chat template, not the
    truncation that its last call left behind.
    """
    own: dict[str, Json]
    if tokenizer.is_fast:
        rules = cast("PreTrainedTokenizerFast", tokenizer).backend_tokenizer.to_str()
        own = {**json.loads(rules), "truncation": None, "padding": None}
    else:
        own = {"vocabulary": {**tokenizer.get_vocab()}, "class": type(tokenizer).__name__}
    content = {**own, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _notes(manifest: Manifest) -> list[str]:
    """What the user should see of the data, in words."""
    notes = []
    for name, count in manifest.duplicates_dropped.items():
        if count:
            notes.append(f"{name}: {count} row(s) dropped that are also in another split")
    for name, count in manifest.duplicates_inside.items():
        if count:
            notes.append(f"{name}: {count} row(s) repeat an earlier one")
    if manifest.labels and manifest.texts_with_two_labels:
        notes.append(f"{manifest.texts_with_two_labels} text(s) occur with more than one label")
    for name, split in manifest.splits.items():
        notes += _split_notes(name, split, manifest)
    return notes


def _split_notes(name: str, split: SplitSummary, manifest: Manifest) -> Iterator[str]:
    if split.truncated:
        yield (
            f"{name}: {split.truncated} of {split.read} row(s) cut to {manifest.max_length} tokens"
        )
    if split.dropped and TASKS[manifest.task].is_conversation:
        yield (
            f"{name}: {split.dropped} row(s) dropped, whose answer begins after"
            f" {manifest.max_length} tokens"
        )
    if split.endless_answers:
        yield (
            f"{name}: {split.endless_answers} answer(s) have no end-of-turn token in the"
            " chat template, so the model will not learn to stop"
        )
    absent = [label for label, count in (split.label_counts or {}).items() if not count]
    if absent:
        yield f"{name}: no row of {', '.join(absent)}"
