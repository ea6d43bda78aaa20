"""What the columns say that the model does not read, and what the text says of the label."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainables.data.doctor.rows import SAMPLE, Prepared
from trainables.data.findings import Finding

ORIGIN = re.compile(
    r"(^|_)(user|author|customer|client|doc|document|conversation|session|thread|query|question"
    r"|patient|file|source|url|speaker|article|book|game|group|parent|repo|account)s?(_?id|_?name)?$",
    re.IGNORECASE,
)
"""Names of columns that say what a row comes from."""
PURE, ABOVE_CHANCE = 0.95, 0.2  # share of rows whose label a column tells, and above the majority's
TOLD, UNTOLD = 0.8, 0.05  # share of a class's texts that hold its name, and of the others' texts
SHORTEST, MOST_CLASSES = 3, 50  # characters of a name, and classes whose others are looked at
FEW_VALUES, SOME_VALUES = 20, 3  # the second, of columns whose name says that rows come from them
SORTED = 0.1  # label changes from row to row, of those in a shuffled file


@dataclass(frozen=True, kw_only=True)
class _Column:
    name: str
    values: dict[str, list[str]]
    """Of each split's rows."""
    labels: dict[str, list[str | None]]

    @property
    def rows(self) -> int:
        return sum(map(len, self.values.values()))


def column_findings(prepared: Prepared) -> Iterator[Finding]:
    for column in _columns(prepared):
        yield from _constant(column)
        yield from _origin(column, prepared)
        yield from _gives_away(column)
    if prepared.store.labels.names:
        yield from _named_in_text(prepared)
        yield from _sorted_file(prepared)


def _columns(prepared: Prepared) -> list[_Column]:
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    labels: dict[str, dict[str, list[str | None]]] = defaultdict(lambda: defaultdict(list))
    for split, rows in prepared.splits.items():
        for record in prepared.store.records(np.unique(rows)):
            for name, value in record.rest.items():
                values[name][split].append("" if value is None else str(value).strip())
                labels[name][split].append(record.label)
    return [_Column(name=name, values=values[name], labels=labels[name]) for name in values]


def _constant(column: _Column) -> Iterator[Finding]:
    different = {value for values in column.values.values() for value in values}
    if len(different) == 1 and column.rows > 1:
        (value,) = different
        yield Finding(
            kind="constant_column",
            rows=column.rows,
            message=f"column {column.name!r} is {'empty' if not value else 'the same'} in all"
            f" {column.rows} rows",
        )


def _origin(column: _Column, prepared: Prepared) -> Iterator[Finding]:
    """Rows of one value that stand in two splits though no group is named."""
    if prepared.data.group is not None or column.name == prepared.data.slice:
        return
    counts = Counter(v for values in column.values.values() for v in values if v)
    repeated = [value for value, count in counts.items() if count > 1]
    least = SOME_VALUES if ORIGIN.search(column.name) else FEW_VALUES
    if len(counts) < least or column.rows < 1.2 * len(counts) or not repeated:
        return
    train = set(column.values.get("train", ()))
    told, examples = [], []
    for split, values in column.values.items():
        shared = [value for value in values if value and value in train]
        if split != "train" and shared:
            told.append(f"{len(shared)} of {len(values)} rows of {split}")
            examples += shared
    if told:
        yield Finding(
            kind="no_group",
            severity="warning" if ORIGIN.search(column.name) else "note",
            rows=len(examples),
            examples=tuple(dict.fromkeys(examples))[:3],
            message=f"{' and '.join(told)} share their {column.name!r} with rows of train; if that"
            " says what a row comes from, rows of one should stay together",
            setting=f"data.group: {column.name}",
        )


def _gives_away(column: _Column) -> Iterator[Finding]:
    """A column of few values that tells the label."""
    labels, values = column.labels.get("train", []), column.values.get("train", [])
    known = [(v, label) for v, label in zip(values, labels, strict=True) if label is not None]
    if not known or not 1 < len({v for v, _ in known}) <= max(FEW_VALUES, len(known) // 20):
        return
    of_values: dict[str, Counter[str]] = defaultdict(Counter)
    for value, label in known:
        of_values[value][label] += 1
    told = sum(max(counts.values()) for counts in of_values.values()) / len(known)
    majority = Counter(label for _, label in known).most_common(1)[0][1] / len(known)
    if told >= PURE and told - majority >= ABOVE_CHANCE:
        yield Finding(
            kind="gives_label_away",
            split="train",
            rows=len(known),
            message=f"train: column {column.name!r} alone tells the label of {told:.1%} of the"
            " rows; where it stands in a text, the model learns that and nothing else",
        )


def _named_in_text(prepared: Prepared) -> Iterator[Finding]:
    """Texts that hold the name of their own class."""
    rows = [(text.asked.casefold(), text.answered) for text in prepared.texts("train", SAMPLE)]
    labels = [label for _, label in rows]
    totals = Counter(labels)
    named = Counter(label for text, label in rows if len(label) >= SHORTEST and _holds(text, label))
    told = [label for label in totals if named[label] >= TOLD * totals[label]]
    holders = []
    for label in told[:MOST_CLASSES]:
        others = [_holds(text, label) for text, other in rows if other != label]
        if not others or np.mean(others) <= UNTOLD:
            holders.append(label)
    if holders:
        yield Finding(
            kind="label_in_text",
            severity="warning",
            split="train",
            rows=sum(label in holders for label in labels),
            examples=tuple(map(repr, holders[:3])),
            message=f"train: texts of {', '.join(map(repr, holders[:3]))} hold the name of their"
            " class, and those of other classes do not: the label stands in the text",
        )


def _holds(text: str, label: str) -> bool:
    """Whether the name of a class stands in a text as a word; case does not count."""
    name = label.casefold()
    return name in text and bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def _sorted_file(prepared: Prepared) -> Iterator[Finding]:
    codes = prepared.store.labels.of_rows[np.unique(prepared.splits["train"])]
    shares = np.bincount(codes[codes >= 0]) / max(1, (codes >= 0).sum())
    expected = (1 - (shares**2).sum()) * (len(codes) - 1)
    changes = int((codes[1:] != codes[:-1]).sum())
    if expected > FEW_VALUES and changes < SORTED * expected:
        yield Finding(
            kind="sorted",
            split="train",
            rows=len(codes),
            message=f"train: the file is sorted by label ({changes} changes from row to row, about"
            f" {expected:.0f} in a shuffled one); splits and batches are drawn, so that nothing"
            " is lost here, but a file cut by hand would be",
        )
