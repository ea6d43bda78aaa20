"""Classes that are likely one, wrongly written, or too small."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher

from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding
from trainables.data.splits import label_counts

RARE, OFTEN = 0.002, 50  # share of a likely typo, and how many times commoner what it was to be is
ALIKE, SHORTEST = 0.8, 4  # similarity of two names, and the characters that it takes to tell
IMBALANCED = 0.9
FEW = 10  # rows of validation


def label_findings(prepared: Prepared) -> Iterator[Finding]:
    counts: Counter[str] = Counter()
    for rows in prepared.splits.values():
        counts.update(label_counts(prepared.store, rows))
    if not counts:
        return
    yield from _same_but_for_form(counts)
    yield from _typos(counts)
    yield from _imbalance(prepared)
    yield from _small(prepared)


def _normalised(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _same_but_for_form(counts: Counter[str]) -> Iterator[Finding]:
    forms: dict[str, list[str]] = {}
    for label in counts:
        forms.setdefault(_normalised(label), []).append(label)
    for same in forms.values():
        if len(same) > 1:
            names = ", ".join(f"{label!r} ({counts[label]} rows)" for label in same)
            yield Finding(
                kind="labels_alike",
                severity="warning",
                rows=sum(counts[label] for label in same),
                examples=tuple(map(repr, same[:3])),
                message=f"labels {names} differ only in case, white space or Unicode form, and are"
                " learnt as different classes",
            )


def _typos(counts: Counter[str]) -> Iterator[Finding]:
    total = counts.total()
    for label, count in counts.items():
        if len(label) < SHORTEST or label.isdigit() or count > max(5, RARE * total):
            continue
        for other, often in counts.items():
            if (
                often >= OFTEN * count
                and _normalised(label) != _normalised(other)
                and SequenceMatcher(None, label.casefold(), other.casefold()).ratio() >= ALIKE
            ):
                yield Finding(
                    kind="label_typo",
                    severity="warning",
                    rows=count,
                    examples=(repr(label),),
                    message=f"label {label!r} of {count} row(s) is likely {other!r}, of {often}",
                )
                break


def _imbalance(prepared: Prepared) -> Iterator[Finding]:
    counts = label_counts(prepared.store, prepared.splits["train"])
    most = max(counts, key=lambda label: counts[label])
    share = counts[most] / sum(counts.values())
    if share >= IMBALANCED:
        yield Finding(
            kind="imbalance",
            severity="warning",
            split="train",
            rows=counts[most],
            message=f"train: {share:.1%} of the rows are {most!r}; accuracy says little here, look"
            " at F1 of the others",
        )


def _small(prepared: Prepared) -> Iterator[Finding]:
    train = label_counts(prepared.store, prepared.splits["train"])
    counts = label_counts(prepared.store, prepared.splits["validation"])
    small = {label: counts.get(label, 0) for label in train if 0 < counts.get(label, 0) < FEW}
    if small:
        named = ", ".join(f"{label!r} {count}" for label, count in list(small.items())[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        yield Finding(
            kind="small_classes",
            split="validation",
            rows=sum(small.values()),
            message=f"validation: fewer than {FEW} rows of {named}{more}: no difference on such a"
            " class can be told from chance",
            setting="data.validation: a larger share",
        )
