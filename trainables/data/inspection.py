"""What is seen of the data once they are tokenised."""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.findings import Finding
from trainables.data.manifest import Manifest, SplitSummary
from trainables.data.records import Noticed
from trainables.data.store import RowStore
from trainables.data.tokens import Written
from trainables.tasks import TASKS
from trainables.tasks.declared import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANY_UNKNOWN = 0.01  # of the tokens
MANY_TWICE = 0.005  # of the rows, that occur with two labels
MANY_DROPPED = 0.01
MANY_CUT = 0.5  # of the conversations
FAR, NEAR = 10.0, 0.05  # labels beyond the one, or that differ by less than the other


def split_findings(manifest: Manifest) -> Iterator[Finding]:
    """By what the manifest counts."""
    for name, count in manifest.duplicates_dropped.items():
        if count:
            yield Finding(
                kind="in_two_splits",
                split=name,
                rows=count,
                message=f"{name}: {count} row(s) dropped that are also in another split",
            )
    for name, count in manifest.duplicates_inside.items():
        if count:
            yield Finding(
                kind="repeated",
                split=name,
                rows=count,
                message=f"{name}: {count} row(s) repeat an earlier one",
            )
    rows = sum(split.read for split in manifest.splits.values())
    if manifest.labels and manifest.texts_with_two_labels:
        yield Finding(
            kind="two_labels",
            severity="warning" if manifest.texts_with_two_labels > MANY_TWICE * rows else "note",
            rows=manifest.texts_with_two_labels,
            message=f"{manifest.texts_with_two_labels} text(s) occur with more than one label",
        )
    for name, split in manifest.splits.items():
        yield from _of_split(name, split, manifest)
    yield from _far_labels(manifest.train)


def _far_labels(train: SplitSummary) -> Iterator[Finding]:
    """Of labels that are numbers: whether a new head has far to go to them."""
    if train.label_mean is None or train.label_variance is None:
        return
    mean, spread = train.label_mean, math.sqrt(train.label_variance)
    if max(abs(mean), spread) > FAR or spread < NEAR:
        yield Finding(
            kind="far_labels",
            severity="warning",
            split="train",
            rows=train.rows,
            message=f"train: the labels have mean {mean:.4g} and standard deviation {spread:.4g},"
            " and a new head begins near 0 and moves by about the learning rate a step; learnt"
            f" faster is ({'label' if not mean else f'label - {mean:.4g}'}) / {spread:.4g}",
        )


def _of_split(name: str, split: SplitSummary, manifest: Manifest) -> Iterator[Finding]:
    longer = "raise data.max_length"
    if split.truncated:
        yield Finding(
            kind="truncated",
            split=name,
            rows=split.truncated,
            setting=longer,
            message=f"{name}: {split.truncated} of {split.read} row(s) cut to"
            f" {manifest.max_length} tokens",
        )
    if split.dropped and TASKS[manifest.task].is_conversation:
        yield Finding(
            kind="no_answer",
            severity="warning" if split.dropped > MANY_DROPPED * split.read else "note",
            split=name,
            rows=split.dropped,
            setting=longer,
            message=f"{name}: {split.dropped} row(s) dropped, whose answer begins after"
            f" {manifest.max_length} tokens",
        )
    if split.endless_answers:
        yield Finding(
            kind="endless_answers",
            severity="warning",
            split=name,
            rows=split.endless_answers,
            message=f"{name}: {split.endless_answers} answer(s) have no end-of-turn token in the"
            " chat template, so the model will not learn to stop",
        )
    if split.rows and split.endings_cut > MANY_CUT * split.rows:
        yield Finding(
            kind="endings_cut",
            severity="warning",
            split=name,
            rows=split.endings_cut,
            setting=longer,
            message=f"{name}: {split.endings_cut} of {split.rows} conversations lose their end to"
            f" data.max_length {manifest.max_length}, so that little or nothing teaches the model"
            " to stop",
        )
    for what, rows in split.lost.items():
        yield Finding(
            kind="unrendered",
            severity="warning",
            split=name,
            rows=rows,
            setting="data.chat_template: a template that writes it out",
            message=f"{name}: the chat template leaves out {what} of {rows} row(s)",
        )
    for kind, words in TASKS[manifest.task].notices().items():
        if found := split.noticed.get(kind):
            yield _noticed(name, kind, words, found)
    if split.unknown > MANY_UNKNOWN * max(split.tokens, 1):
        yield Finding(
            kind="unknown_tokens",
            severity="warning",
            split=name,
            rows=split.rows,
            message=f"{name}: {split.unknown / split.tokens:.1%} of the tokens are unknown to the"
            " tokenizer: the model reads the same token for all of them",
        )
    absent = [label for label, count in (split.label_counts or {}).items() if not count]
    if absent:
        yield Finding(
            kind="absent_label",
            severity="warning",
            split=name,
            message=f"{name}: no row of {', '.join(absent)}",
        )


def _noticed(split: str, kind: str, words: Words, found: Noticed) -> Finding:
    said = words.message.format(messages=found.messages, rows=found.rows)
    such = f", such as {'; '.join(found.examples)}" if words.severity == "warning" else ""
    return Finding(
        kind=kind,
        severity=words.severity,
        split=split,
        rows=found.rows,
        examples=found.examples,
        setting=words.setting,
        message=f"{split}: {said}{such}",
    )


def same_tokens(store: RowStore, written: Mapping[str, Written]) -> Iterator[Finding]:
    """Rows that differ and became the same tokens: with other labels, or in another split."""
    whole = {name: each for name, each in written.items() if len(each.of_rows)}
    for name, rows in whole.items():
        clash = _pairs(rows, rows, store.labels.of_rows)
        if store.labels.names and len(clash):
            yield _same_tokens(
                store, clash, name, f"{name}: {{}} row(s) have the same tokens as a row with"
                " another label, so that no model can tell them apart"
            )  # fmt: skip
    for one, other in combinations(whole, 2):
        shared = _pairs(whole[one], whole[other], store.keys)
        if len(shared):
            yield _same_tokens(
                store,
                shared,
                other,
                f"{other}: {{}} row(s) have the same tokens as a row of {one} with another text",
            )


def _pairs(one: Written, other: Written, values: np.ndarray) -> np.ndarray:
    """Rows of the store, one of `other` and one of `one` each [n, 2], that have the same tokens
    and another of `values` [rows of the store]; each of `other` once.
    """
    order = np.argsort(one.hashes, kind="stable")
    hashes, rows = one.hashes[order], one.of_rows[order]
    at = np.searchsorted(hashes, other.hashes, side="left")
    is_there = at < len(hashes)
    is_there[is_there] = hashes[at[is_there]] == other.hashes[is_there]
    theirs, first = other.of_rows[is_there], at[is_there]
    # of rows of one hash: the first, and the first of another value than that has
    begins = np.searchsorted(hashes, hashes, side="left")
    unlike = np.flatnonzero(values[rows] != values[rows[begins]])
    second = np.full(len(hashes), -1)
    second[begins[unlike[::-1]]] = unlike[::-1]
    is_first = values[rows[first]] != values[theirs]
    found = np.where(is_first, first, second[first])
    return np.stack([theirs, rows[found]], axis=1)[found >= 0]


def _same_tokens(store: RowStore, pairs: np.ndarray, split: str, message: str) -> Finding:
    examples = [
        " and ".join(record.place for record in store.records(np.sort(pair))) for pair in pairs[:3]
    ]
    return Finding(
        kind="same_tokens",
        severity="warning",
        split=split,
        rows=len(pairs),
        examples=tuple(examples),
        message=f"{message.format(len(pairs))} (such as {examples[0]})",
    )


def same_names(labels: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Classes whose names a prompt could not tell apart."""
    if not labels:
        return
    by_tokens: dict[tuple[int, ...], list[str]] = {}
    names = tokenizer(list(labels), add_special_tokens=False, verbose=False).input_ids
    for label, ids in zip(labels, names, strict=True):
        by_tokens.setdefault(tuple(ids), []).append(label)
    for same in by_tokens.values():
        if len(same) > 1:
            yield Finding(
                kind="same_names",
                severity="warning",
                message=f"labels {', '.join(map(repr, same[:5]))} are the same tokens to this"
                " tokenizer: prompts that name the classes cannot tell them apart",
            )
