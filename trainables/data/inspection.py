"""What is seen of the data once they are tokenised."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.findings import Finding
from trainables.data.manifest import Manifest, SplitSummary
from trainables.data.records import Noticed
from trainables.data.splits import Splits, label_counts
from trainables.data.store import RowStore
from trainables.data.tokens import Written
from trainables.tasks import TASKS
from trainables.tasks.declared import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANY_UNKNOWN = 0.01  # of the tokens
MANY_DROPPED = 0.01
MANY_CUT = 0.5  # of the conversations
FAR, NEAR = 10.0, 0.05  # labels beyond the one, or that differ by less than the other
SHOWN = 20  # labels
JOINING = (";", "|", ",", "/")  # what names of several classes may stand joined by
LOOKED_AT = 1000  # rows that were cut, of which the longest are named


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """What became of the rows of a store."""

    manifest: Manifest
    store: RowStore
    splits: Splits
    written: Mapping[str, Written]

    def findings(self) -> Iterator[Finding]:
        """By what the manifest counts."""
        for name, split in self.manifest.splits.items():
            yield from _of_split(name, split, self)
        yield from _far_labels(self.manifest.train)
        yield from _joined_names(self.manifest)

    def same_names(self, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
        """Classes whose names a prompt could not tell apart."""
        by_tokens: dict[tuple[int, ...], list[str]] = {}
        labels = self.manifest.labels if TASKS[self.manifest.task].has_classes else ()
        names = (
            tokenizer(list(labels), add_special_tokens=False, verbose=False).input_ids
            if labels
            else []
        )
        for label, ids in zip(labels, names, strict=True):
            by_tokens.setdefault(tuple(ids), []).append(label)
        counts = label_counts(self.store, self.splits["train"])
        for same in by_tokens.values():
            if len(same) > 1:
                yield Finding(
                    kind="same_names",
                    severity="warning",
                    rows=sum(counts[label] for label in same),
                    examples=self.of_labels(same),
                    message=f"labels {', '.join(map(repr, same[:5]))} are the same tokens to this"
                    " tokenizer: prompts that name the classes cannot tell them apart",
                )

    def places(self, rows: np.ndarray) -> tuple[str, ...]:
        """Of rows of the store."""
        rising = np.unique(rows)
        records = zip(rising.tolist(), self.store.records(rising), strict=True)
        place = {row: record.place for row, record in records}
        return tuple(place[row] for row in rows.tolist())

    def longest(self, split: str) -> tuple[str, ...]:
        """The longest of the split's first rows that fill max_length, or are dropped for it."""
        written = self.written[split]
        filled = written.of_rows[written.longest >= self.manifest.max_length]
        filled = np.concatenate([filled, self.dropped(split)])
        question = TASKS[self.manifest.task].format.question
        found = [
            (sum(map(len, question(record.value))), record.place)
            for record in self.store.records(np.unique(filled)[:LOOKED_AT])
        ]
        longest = sorted(found, key=lambda each: -each[0])[:3]
        return tuple(f"{place}: {characters} characters" for characters, place in longest)

    def dropped(self, split: str) -> np.ndarray:
        """Rows of a split whose answer is beyond max_length; none where rows that cannot be used
        are left out, too.
        """
        missing = np.setdiff1d(self.splits[split], self.written[split].of_rows)
        return missing if len(missing) == self.manifest.splits[split].dropped else missing[:0]

    def of_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Where up to three labels stand first in train."""
        names, rows = self.store.labels.names, np.unique(self.splits["train"])
        codes = self.store.labels.of_rows[rows]
        known = [label for label in labels if label in names]  # not where a row has several
        first = [int(rows[(codes == names.index(label)).argmax()]) for label in known[:3]]
        return tuple(
            f"{record.place}: {record.label!r}"
            for record in self.store.records(np.array(sorted(first), dtype=np.int64))
        )


def _joined_names(manifest: Manifest) -> Iterator[Finding]:
    """Of classes of which a row may have several: whether a name is several, joined otherwise."""
    if TASKS[manifest.task].problem_type != "multi_label_classification":
        return
    counts = manifest.train.label_counts or {}
    for sign in JOINING:
        joined = [name for name in counts if counts.keys() & _parts(name, sign)]
        if joined:
            yield Finding(
                kind="joined_names",
                severity="warning",
                split="train",
                rows=sum(counts[name] for name in joined),
                setting=f"data.separator: {sign!r}",
                message=f"train: {', '.join(map(repr, joined[:3]))} hold names of other classes,"
                f" joined by {sign!r}, and are learnt as classes of their own",
            )


def _parts(name: str, sign: str) -> set[str]:
    return {part.strip() for part in name.split(sign)} - {name}


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


def _of_split(name: str, split: SplitSummary, found: Tokenised) -> Iterator[Finding]:
    yield from _cut(name, split, found)
    yield from _of_template(name, split, TASKS[found.manifest.task].notices())
    if split.unknown > MANY_UNKNOWN * max(split.tokens, 1):
        yield _unknown(name, split, found)
    absent = [label for label, count in (split.label_counts or {}).items() if not count]
    if absent:
        yield _absent(name, absent, found)


def _cut(name: str, split: SplitSummary, found: Tokenised) -> Iterator[Finding]:
    """What max_length takes away."""
    manifest, longer = found.manifest, "raise data.max_length"
    if split.truncated:
        yield Finding(
            kind="truncated",
            split=name,
            rows=split.truncated,
            examples=found.longest(name),
            setting=longer,
            message=f"{name}: {split.truncated} of {split.read} row(s) cut to"
            f" {manifest.max_length} tokens",
        )
    if not TASKS[manifest.task].is_conversation:
        return
    if split.dropped:
        yield Finding(
            kind="no_answer",
            severity="warning" if split.dropped > MANY_DROPPED * split.read else "note",
            split=name,
            rows=split.dropped,
            examples=found.places(found.dropped(name)[:3]),
            setting=longer,
            message=f"{name}: {split.dropped} row(s) dropped, whose answer begins after"
            f" {manifest.max_length} tokens",
        )
    if split.endings_cut > MANY_CUT * split.read:
        yield Finding(
            kind="endings_cut",
            severity="warning",
            split=name,
            rows=split.endings_cut,
            examples=found.longest(name),
            setting=longer,
            message=f"{name}: {split.endings_cut} of {split.read} conversations lose their end to"
            f" data.max_length {manifest.max_length}, so that little or nothing teaches the model"
            " to stop",
        )


def _of_template(name: str, split: SplitSummary, notices: Mapping[str, Words]) -> Iterator[Finding]:
    """What the chat template does with conversations, and what else their format has noticed."""
    if split.endless_answers:
        yield Finding(
            kind="endless_answers",
            severity="warning",
            split=name,
            rows=split.endless_answers,
            setting="data.chat_template: one that ends an answer with a special token",
            message=f"{name}: {split.endless_answers} answer(s) end in no special token of this"
            " tokenizer, so the model will not learn to stop",
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
    for kind, words in notices.items():
        if noticed := split.noticed.get(kind):
            yield _noticed(name, kind, words, noticed)


def _noticed(split: str, kind: str, words: Words, found: Noticed) -> Finding:
    said = words.message.format(messages=found.messages, rows=found.rows)
    return Finding(
        kind=kind,
        severity=words.severity,
        split=split,
        rows=found.rows,
        examples=found.examples,
        setting=words.setting,
        message=f"{split}: {said}",
    )


def _unknown(name: str, split: SplitSummary, found: Tokenised) -> Finding:
    """Names the rows of which most is unknown."""
    written = found.written[name]
    most = np.argsort(-written.unknown / written.lengths, kind="stable")[:3]
    places = found.places(written.of_rows[most])
    return Finding(
        kind="unknown_tokens",
        severity="warning",
        split=name,
        rows=len(np.unique(written.of_rows[written.unknown > 0])),
        examples=tuple(
            f"{place}: {written.unknown[row]} of {written.lengths[row]} tokens"
            for place, row in zip(places, most, strict=True)
        ),
        setting="model.name: a model whose tokenizer knows the rows' language and signs",
        message=f"{name}: {split.unknown / split.tokens:.1%} of the tokens are unknown to the"
        " tokenizer: the model reads the same token for all of them",
    )


def _absent(name: str, labels: list[str], found: Tokenised) -> Finding:
    """Names rows of train that have the labels."""
    counts = found.manifest.train.label_counts or {}
    share = found.manifest.data.share(name)
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return Finding(
        kind="absent_label",
        severity="warning",
        split=name,
        rows=sum(counts[label] for label in labels),
        examples=found.of_labels(labels),
        setting="" if share is None else f"data.{name}: a larger share than {share:g}",
        message=f"{name}: no row of {', '.join(map(repr, labels[:SHOWN]))}{more}",
    )
