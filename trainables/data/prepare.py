"""From sources to a folder of checked, split and tokenised data with a manifest of what is in
it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data import cache
from trainables.data.arrow import Split, open_split
from trainables.data.collect import Collected, collect, weighted_rows
from trainables.data.config import DataConfig
from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding
from trainables.data.inspection import Tokenised
from trainables.data.manifest import (
    MANIFEST,
    Manifest,
    SplitSummary,
    TokenSummary,
    read_manifest,
    write_manifest,
)
from trainables.data.processes import Processes
from trainables.data.records import Encoding, Format, Record
from trainables.data.same_rows import same_rows, same_tokens
from trainables.data.sources import SPLITS, Source, open_sources, unread_files
from trainables.data.splits import Splits, draw_rows, label_counts, separate
from trainables.data.store import RowStore, RowWriter
from trainables.data.tokens import SLICES, Slices, SplitFiles
from trainables.errors import InputError, did_you_mean
from trainables.storage.records import to_json
from trainables.tasks import TASKS, Task
from trainables.tasks.instruction.templates import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from trainables.data.doctor.examine import Examination
    from trainables.storage.records import Json

__all__ = ["Slices", "Split", "open_slices", "open_split", "prepare", "tokenise_split"]

MAX_SLICES = 100
DAY = len("2025-01-31")  # characters of a moment
CHAT_TEMPLATE = "chat_template.jinja"  # what conversations were rendered with


def prepare(
    data: DataConfig,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    folder: Path,
    context: int | None = None,
    examine: Examination | None = None,
    *,
    in_bytes: bool = False,
) -> Manifest:
    """Read, check, split and tokenise the data, and write it to `folder`.

    Writes `train.arrow`, `validation.arrow` (tokens), `validation.jsonl`, `test.jsonl` (the rows as
    they were read; the tokens of the test split are looked at and thrown away, until it is scored:
    `tokenise_split`) and last, atomically, `manifest.json`: a folder without it is not ready.

    context: the model's longest row in tokens; None where only the tokenizer's own limit is known.
    examine: what else is found in the rows, for the manifest.
    in_bytes: whether losses are told in bits per byte (`Encoding.in_bytes`).
    Returns the manifest. Raises InputError for everything that the user can put right.
    """
    owner, folder = _task(task), Path(folder)
    if data.slice is not None and data.cross_documents:
        raise InputError(
            "data.slice: cannot be told of blocks that run on into the next document"
            " (cross_documents)"
        )
    if data.cross_documents and any(part.weight > 1 for part in data.parts("train")):
        raise InputError(
            "data.cross_documents: cannot be combined with a weight above 1 in data.train, whose"
            " documents would follow themselves in one block"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, CHAT_TEMPLATE):
        (folder / name).unlink(missing_ok=True)
    template_of = None
    if owner.is_conversation:
        template_of, tokenizer = with_template(tokenizer, data.chat_template)
    max_length = _max_length(data, owner.format, tokenizer, context)
    _check_given(data, tokenizer, in_bytes)
    with TemporaryDirectory(dir=folder, prefix="rows.") as scratch, Processes() as processes:
        sources = {name: open_sources(data, name, Path(scratch)) for name in SPLITS}
        preparation = Preparation(
            data=data,
            task=task,
            tokenizer=tokenizer,
            seed=seed,
            folder=folder,
            max_length=max_length,
            template_of=template_of,
            examine=examine,
            processes=processes,
            moment=_moment(tokenizer) if owner.is_conversation else "",
            unread=tuple(each for name in SPLITS if (each := unread_files(data, name))),
            in_bytes=in_bytes,
        )
        key = preparation.key(sources)
        if (manifest := cache.take(key, folder)) is not None:
            return manifest
        store = Path(scratch) / "rows.arrow"
        manifest = preparation.manifest(
            collect(data, sources, owner.format, seed, store, processes)
        )
    if template_of not in (None, "tokenizer", "none"):
        template = cast("str", tokenizer.chat_template)
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    write_manifest(folder, manifest)
    cache.keep(key, folder, manifest)
    return manifest


def _own_code(tokenizer: PreTrainedTokenizerBase) -> set[Path]:
    """Files of a tokenizer that is not one of transformers' own, but came with its model."""
    modules = {each.__module__ for each in type(tokenizer).__mro__}
    known = {*sys.stdlib_module_names, "transformers"}
    return {
        path
        for name in modules
        if name.split(".")[0] not in known
        if (file := getattr(sys.modules.get(name), "__file__", None)) is not None
        for path in Path(file).parent.glob("*.py")
    }


def _moment(tokenizer: PreTrainedTokenizerBase) -> str:
    """Now, for a chat template that asks: all rows are told the same, also those of the test split,
    which may be rendered days later. Empty where it does not ask.
    """
    asks = "strftime_now" in str(tokenizer.chat_template)
    return datetime.now().isoformat(timespec="seconds") if asks else ""


def _check_given(data: DataConfig, tokenizer: PreTrainedTokenizerBase, in_bytes: bool) -> None:
    if in_bytes and not tokenizer.is_fast:
        raise InputError(
            f"model.name: {type(tokenizer).__name__} is a slow tokenizer, which cannot say what"
            " text its tokens are: in a choice of base models each needs a fast one (a"
            " tokenizer.json)"
        )
    if not data.train:
        raise InputError("data.train: no training data; give a file or hf:owner/name")
    if data.validation is None or data.validation == "":
        raise InputError(
            "data.validation: no validation data, without which no winner can be chosen; give a"
            " file, or the share of train to set apart for it, such as 0.1"
        )


def with_template(
    tokenizer: PreTrainedTokenizerBase, setting: str | None
) -> tuple[str, PreTrainedTokenizerBase]:
    """The tokenizer with the chat template that its conversations are rendered with, and whose that
    is: the tokenizer's, the default one, or the setting.
    """
    if setting is None and tokenizer.chat_template:
        return "tokenizer", tokenizer
    own = copy(tokenizer)
    own.chat_template = chat_template(tokenizer, setting)
    return setting or "default", own


def with_own_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """With the chat template that the data in `folder` were rendered with."""
    template = folder / CHAT_TEMPLATE
    if not template.exists():
        return tokenizer
    own = copy(tokenizer)
    own.chat_template = template.read_text(encoding="utf-8")
    return own


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Of what was read: splits, tokens, and a manifest that is not yet written."""

    data: DataConfig
    task: str
    tokenizer: PreTrainedTokenizerBase
    seed: int
    folder: Path
    max_length: int
    template_of: str | None
    examine: Examination | None
    processes: Processes
    moment: str
    """`Encoding.moment`."""
    unread: tuple[Finding, ...]
    """Files that are left out."""
    in_bytes: bool
    """`Encoding.in_bytes`."""

    def key(self, sources: Mapping[str, Sequence[Source]]) -> str:
        """By which these data are known before they are prepared: fingerprints of the sources, and
        all else that they depend on.
        """
        tokenizer = self.tokenizer
        settings = tokenizer.init_kwargs.items()  # what a path says is not what a tokenizer does
        return cache.cache_key(
            {
                "files": [each.fingerprint() for name in SPLITS for each in sources[name]],
                "unread": [each.message for each in self.unread],
                "data": to_json(self.data),
                "task": self.task,
                "tokenizer": _tokenizer_digest(tokenizer),
                "special_tokens": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
                "inputs": list(tokenizer.model_input_names),
                "settings": {k: v for k, v in settings if isinstance(v, bool | int | float)},
                "seed": self.seed,
                "max_length": self.max_length,
                "examined": None if self.examine is None else self.examine.digest,
                "day": self.moment[:DAY],
                "in_bytes": self.in_bytes,
            },
            _own_code(tokenizer),
        )

    def manifest(self, read: Collected) -> Manifest:
        data, store = self.data, read.store
        splits, duplicates = separate(store, read.splits, data.duplicates)
        doubled = list(same_rows(store, read.splits, splits, duplicates))
        _check_filled(splits, data)
        owner = TASKS[self.task]
        drawn = {name for name in splits if data.share(name) is not None}
        labels = owner.labels(store, splits, drawn)
        classes = labels if owner.has_classes else ()
        splits["train"] = weighted_rows(splits["train"], read.weighted, self.seed)
        if lost := _lost(store, splits["train"], classes):
            raise InputError(
                f"data.train: at weights below 1 no row of the label(s) {lost} is left; raise the"
                " weights of the sources that have them"
            )
        if data.rows is not None:
            splits["train"] = _drawn(store, splits["train"], data.rows, classes, self.seed)
        encoding = Encoding(
            max_length=self.max_length,
            source_prefix=data.source_prefix,
            labels=labels,
            slices=_slices(store, splits, data),
            cross_documents=data.cross_documents,
            chat_template="none" if data.chat_template == "none" else None,
            reasoning=data.reasoning,
            train_on=data.train_on,
            moment=self.moment,
            in_bytes=self.in_bytes,
        )
        files = SplitFiles(
            folder=self.folder,
            store=store,
            task=self.task,
            tokenizer=self.tokenizer,
            encoding=encoding,
            processes=self.processes,
            bad_rows=data.bad_rows,
        )
        most_blocks = None if data.rows is None else (data.rows, self.seed)
        summaries = {
            name: files.split(name, rows, most_blocks if name == "train" else None)
            for name, rows in splits.items()
        }
        most, share = _majority(store, splits)
        manifest = Manifest(
            task=self.task,
            seed=self.seed,
            data=data,
            sources=read.sources,
            encoding=encoding,
            labels=labels,
            max_length=self.max_length,
            tokenizer=_tokenizer_digest(self.tokenizer),
            chat_template=self.template_of,
            splits=summaries,
            duplicates_inside=duplicates.inside,
            duplicates_dropped=duplicates.dropped,
            texts_with_two_labels=duplicates.two_labels,
            majority_label=most,
            majority_share=share,
        )
        if data.unrendered == "error":
            _refuse_lost(summaries)
        tokenised = Tokenised(manifest=manifest, store=store, splits=splits, written=files.written)
        findings = (
            *self.unread,
            *read.findings,
            *files.findings,
            *self._dated(),
            *doubled,
            *tokenised.findings(),
            *same_tokens(store, files.written),
            *tokenised.same_names(self.tokenizer),
        )
        if self.examine is not None:
            prepared = Prepared(
                store=store, splits=splits, task=self.task, data=data, seed=self.seed
            )
            findings = (*findings, *self.examine(prepared))
        return replace(manifest, findings=findings)

    def _dated(self) -> Iterator[Finding]:
        if self.moment:
            yield Finding(
                kind="dated",
                message="the chat template asks for the date of today: all rows are rendered with"
                f" {self.moment[:DAY]}",
            )


def _task(name: str) -> Task:
    if name not in TASKS:
        raise InputError(
            f"task: {name!r} is unknown; allowed are"
            f" {', '.join(TASKS)}.{did_you_mean(name, list(TASKS))}"
        )
    return TASKS[name]


def _drawn(
    store: RowStore, train: np.ndarray, most: int, labels: tuple[str, ...], seed: int
) -> np.ndarray:
    """At most so many rows of train, in which every class still occurs."""
    drawn = draw_rows(store, train, most, seed)
    if lost := _lost(store, drawn, labels):
        raise InputError(
            f"data.rows: {most} row(s) of train leave out the label(s) {lost}; raise it"
        )
    return drawn


def _lost(store: RowStore, train: np.ndarray, labels: tuple[str, ...]) -> str:
    """Classes that are not, or no longer, in train; empty where all are."""
    return ", ".join(sorted(set(labels) - set(label_counts(store, train))))


def _majority(store: RowStore, splits: Splits) -> tuple[str, float]:
    """The commonest class of train, and its share of validation; of rows without classes none."""
    counts = label_counts(store, splits["train"])
    if not counts:
        return "", 0.0
    most = max(counts, key=lambda label: counts[label])
    of_most = label_counts(store, splits["validation"]).get(most, 0)
    return most, of_most / len(splits["validation"])


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
    if manifest.chat_template == "none":
        _, tokenizer = with_template(tokenizer, "none")
    else:
        tokenizer = with_own_template(tokenizer, Path(folder))
    if manifest.tokenizer != _tokenizer_digest(tokenizer):
        raise InputError(
            f"data.{name}: the tokenizer is not the one that {folder} was prepared with"
        )
    folder = Path(folder)
    with TemporaryDirectory(dir=folder, prefix="rows.") as scratch, Processes() as processes:
        writer = RowWriter(Path(scratch) / "rows.arrow")
        with open(folder / f"{name}.jsonl", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                writer.add(_raw_record(json.loads(line), f"{folder / name}.jsonl line {number}"))
        store = writer.close()
        writing = SplitFiles(
            folder=folder,
            store=store,
            task=manifest.task,
            tokenizer=tokenizer,
            encoding=manifest.encoding,
            processes=processes,
            bad_rows=manifest.data.bad_rows,
        )
        return writing.tokens(name, np.arange(len(store)), None)


def _raw_record(value: dict[str, str], place: str) -> Record:
    return Record(
        value=value,
        place=place,
        key=bytes(16),
        shown="",
        label=value.get("label"),
        slice=value.get("slice"),
        group=value.get("group"),
    )


def open_slices(folder: Path, name: str) -> Slices | None:
    """Of which slice each row of a tokenised split is; None where the sweep names no column for
    it.
    """
    manifest, path = read_manifest(folder), Path(folder) / SLICES.format(name)
    if manifest is None or not path.exists():
        return None
    return Slices(values=manifest.encoding.slices, of_rows=np.load(path))


def _slices(store: RowStore, splits: Splits, data: DataConfig) -> tuple[str, ...]:
    """The values of `data.slice` in the splits that are measured."""
    codes = np.concatenate(
        [store.slices.of_rows[rows] for name, rows in splits.items() if name != "train"]
    )
    found = sorted(store.slices.names[code] for code in np.unique(codes[codes >= 0]))
    if len(found) > MAX_SLICES:
        raise InputError(
            f"data.slice: {data.slice!r} has {len(found)} values; at most {MAX_SLICES} can be"
            " measured one by one"
        )
    return tuple(found)


def _refuse_lost(splits: Mapping[str, SplitSummary]) -> None:
    for name, split in splits.items():
        for what, rows in split.lost.items():
            raise InputError(
                f"data.{name}: the chat template leaves out {what} of {rows} row(s); take another"
                " data.chat_template, remove it from the rows, or set data.unrendered=note"
            )


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


def _check_filled(splits: Splits, data: DataConfig) -> None:
    for name, rows in splits.items():
        if not len(rows):
            share = data.share(name)
            why = (
                f"a share of {share} leaves it no rows"
                if share is not None
                else "no rows are left after dropping duplicates"
            )
            if name == "train":
                why = "no rows are left of it after splitting and dropping duplicates"
            of_groups = f" (rows of one {data.group!r} stay together)" if data.group else ""
            raise InputError(f"data.{name}: {why}{of_groups}; give more rows or another share")


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
