"""Classes that are likely one, wrongly written, or too small."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from trainables.data.doctor.rows import Prepared, three_of
from trainables.data.findings import Finding
from trainables.data.splits import label_counts

RARE, OFTEN = 0.002, 50  # share of a likely typo, and how many times commoner what it was to be is
ALIKE = 0.8  # similarity of two names
SHORTEST, LONGEST = 4, 100  # characters of a name that can be told to be a typo
IMBALANCED = 0.9
FEW = 10  # rows of validation
MOST = 10  # findings of a kind, each with its labels; the others are counted


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """The classes of some splits."""

    counts: Mapping[str, int]
    first: Mapping[str, Sequence[int]]
    """Up to three rows of each, in the store."""
    prepared: Prepared

    @classmethod
    def of(cls, prepared: Prepared, splits: Iterable[str]) -> "_Labels":
        counts = Counter[str]()
        for name in splits:
            counts.update(label_counts(prepared.store, prepared.splits[name]))
        rows = np.unique(np.concatenate([prepared.splits[name] for name in splits]))
        codes = prepared.store.labels.of_rows[rows]
        by_label = np.argsort(codes, kind="stable")
        values, begins = np.unique(codes[by_label], return_index=True)
        ends = [*begins[1:], len(rows)]
        names = prepared.store.labels.names
        return cls(
            counts=counts,
            first={
                names[code]: rows[by_label[begin : min(end, begin + 3)]].tolist()
                for code, begin, end in zip(values, begins, ends, strict=True)
                if code >= 0
            },
            prepared=prepared,
        )

    def examples(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Where up to three rows of them stand, of as many labels as can be."""
        rows = three_of(self.first[label] for label in labels)
        records = self.prepared.store.records(np.sort(np.array(rows, dtype=np.int64)))
        return tuple(f"{record.place}: {record.label!r}" for record in records)


def label_findings(prepared: Prepared) -> Iterator[Finding]:
    labels = _Labels.of(prepared, list(prepared.splits))
    if not labels.counts:
        return
    yield from _first_of(list(_same_but_for_form(labels)))
    yield from _first_of(list(_typos(labels)))
    yield from _imbalance(prepared)
    yield from _small(prepared)


def _first_of(found: list[Finding]) -> Iterator[Finding]:
    yield from found[:MOST]
    if more := found[MOST:]:
        yield replace(
            more[0],
            rows=sum(each.rows for each in more),
            examples=tuple(each.examples[0] for each in more[:3]),
            message=f"{len(more)} more such label(s), the first of them: {more[0].message}",
        )


def _normalised(label: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    if number := re.fullmatch(r"([+-]?)0*(\d+?)(?:\.(\d*?)0*)?", words):
        sign, whole, part = number.groups()
        value = f"{whole}.{part}" if part else whole
        return f"-{value}" if sign == "-" and value != "0" else value
    return words


def _same_but_for_form(labels: _Labels) -> Iterator[Finding]:
    forms: dict[str, list[str]] = defaultdict(list)
    for label in labels.counts:
        forms[_normalised(label)].append(label)
    for same in forms.values():
        if len(same) > 1:
            names = ", ".join(f"{label!r} ({labels.counts[label]} rows)" for label in same[:5])
            more = f" and {len(same) - 5} more" if len(same) > 5 else ""
            yield Finding(
                kind="labels_alike",
                severity="warning",
                rows=sum(labels.counts[label] for label in same),
                examples=labels.examples(same),
                message=f"labels {names}{more} differ only in case, white space, Unicode form or"
                " how a number is written, and are learnt as different classes",
            )


def _typos(labels: _Labels) -> Iterator[Finding]:
    """Rare labels that become a common one where a letter of each is left out. So that not all are
    compared with all, these are looked up (as in SymSpell).
    """
    counts = labels.counts
    named = [label for label in counts if SHORTEST <= len(label) <= LONGEST]
    most = max(5, RARE * sum(counts.values()))
    rare = [label for label in named if counts[label] <= most and not label.isdigit()]
    least = OFTEN * min((counts[label] for label in rare), default=0)
    common: dict[str, list[str]] = defaultdict(list)
    for label in named if rare else ():
        if counts[label] >= least:
            for shorter in _shortened(label):
                common[shorter].append(label)
    for label in rare:
        likely = [
            other
            for shorter in _shortened(label)
            for other in common.get(shorter, ())
            if counts[other] >= OFTEN * counts[label] and _is_typo(label, other)
        ]
        if likely:
            meant = max(likely, key=lambda other: (counts[other], other))
            yield Finding(
                kind="label_typo",
                severity="warning",
                rows=counts[label],
                examples=labels.examples([label]),
                message=f"label {label!r} of {counts[label]} row(s) is likely {meant!r}, of"
                f" {counts[meant]}",
            )


def _shortened(label: str) -> set[str]:
    """The name, and the name with each of its letters left out."""
    name = _normalised(label)
    return {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}


def _is_typo(label: str, other: str) -> bool:
    """Whether a slip makes one of the other: not another number, not another word of few letters
    (`grade A`), and not another beginning (`asymptomatic`).
    """
    one, two = _normalised(label), _normalised(other)
    if one == two or one[0] != two[0]:
        return False
    if re.sub(r"\D", "", one) != re.sub(r"\D", "", two):
        return False
    words = re.split(r"[\W_]+", one), re.split(r"[\W_]+", two)
    if len(words[0]) == len(words[1]):
        unlike = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        if any(len(word) < SHORTEST for pair in unlike for word in pair):
            return False
    return SequenceMatcher(None, one, two).ratio() >= ALIKE


def _imbalance(prepared: Prepared) -> Iterator[Finding]:
    labels = _Labels.of(prepared, ["train"])
    counts = labels.counts
    most = max(counts, key=lambda label: counts[label])
    share = counts[most] / sum(counts.values())
    if share >= IMBALANCED:
        yield Finding(
            kind="imbalance",
            severity="warning",
            split="train",
            rows=counts[most],
            examples=labels.examples(label for label in counts if label != most),
            message=f"train: {share:.1%} of the rows are {most!r}; accuracy says little here, look"
            " at F1 of the others",
            setting=f"data.slice: {prepared.data.label}, which measures each class",
        )


def _small(prepared: Prepared) -> Iterator[Finding]:
    train = label_counts(prepared.store, prepared.splits["train"])
    labels = _Labels.of(prepared, ["validation"])
    counts = labels.counts
    small = {label: counts.get(label, 0) for label in train if 0 < counts.get(label, 0) < FEW}
    if small:
        named = ", ".join(f"{label!r} ({count})" for label, count in list(small.items())[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        yield Finding(
            kind="small_classes",
            split="validation",
            rows=sum(small.values()),
            examples=labels.examples(small),
            message=f"validation: fewer than {FEW} rows of {named}{more}: no difference on such a"
            " class can be told from chance",
            setting="data.validation: a larger share",
        )
