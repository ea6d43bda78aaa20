"""What the columns say that the model does not read, and what the text says of the label."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainables.data.doctor.rows import SAMPLE, Prepared, three_of
from trainables.data.findings import Finding

ORIGIN = re.compile(
    r"(^|_)(user|author|customer|client|doc|document|conversation|session|thread|query|question"
    r"|patient|file|source|url|speaker|article|book|game|group|parent|repo|account)s?(_?id|_?name)?$",
    re.IGNORECASE,
)
"""Names of columns that say what a row comes from."""
MEASURED = re.compile(
    r"[+-]?[$€£]?\d+([.,]\d+)*(e[+-]?\d+)?%?|"
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\S+)*|\d{1,2}:\d{2}\S*",
    re.IGNORECASE,
)
"""Numbers, dates and times: two rows may share one by chance."""
PURE, ABOVE_CHANCE = 0.95, 0.2  # share of rows whose label a column tells, and above the majority's
TOLD, UNTOLD = 0.8, 0.05  # share of a class's texts that hold its name, and of the others' texts
SHORTEST, MOST_CLASSES = 3, 50  # characters of a name, and classes whose others are looked at
FEW_VALUES, SOME_VALUES = 20, 3  # the second, of columns whose name says that rows come from them
REPEATED = 1.2  # rows a value, below which one that is not named so is no origin
MANY = 0.01  # of a split's rows, from which it is a warning
OF_ONE = 200  # rows a value, above which few values are kinds of rows and not what they come from
SORTED = 0.1  # label changes from row to row, of those in a shuffled file
AT_ONCE = 10_000_000  # values of columns that are held in memory, 8 bytes each


@dataclass(frozen=True, kw_only=True)
class _Column:
    name: str
    rows: Mapping[str, np.ndarray]
    """Of each split, by their numbers in the store, rising."""
    values: Mapping[str, np.ndarray]
    """A hash of each row's value, 0 where it has none, int64."""

    @property
    def every(self) -> np.ndarray:
        return np.concatenate(list(self.values.values()))


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """A column whose values stand in train and in another split."""

    name: str
    is_likely: bool
    """Whether it says what rows come from, of many rows; else it may."""
    told: tuple[str, ...]
    """How many rows of each split share theirs, in words."""
    rows: np.ndarray
    """Those rows, in the store."""


def column_findings(prepared: Prepared) -> Iterator[Finding]:
    origins = []
    for column in _columns(prepared):
        yield from _constant(column, prepared)
        origins += _origin(column, prepared)
        if prepared.store.labels.names:
            yield from _gives_away(column, prepared)
    yield from _no_group(origins, prepared)
    if prepared.store.labels.names:
        yield from _named_in_text(prepared)
        yield from _sorted_file(prepared)


def _columns(prepared: Prepared) -> Iterator[_Column]:
    """One after another; the rows are read again for each `AT_ONCE` values."""
    rows = {split: np.unique(rows) for split, rows in prepared.splits.items()}
    count = sum(map(len, rows.values()))
    most, done, is_more = max(1, AT_ONCE // count), set[str](), True
    while is_more:
        found: dict[str, np.ndarray] = {}
        is_more, at = False, 0
        for each in rows.values():
            for record in prepared.store.records(each):
                for name, value in record.rest.items():
                    if name in found:
                        found[name][at] = _hash(value)
                    elif name not in done and len(found) < most:
                        found[name] = np.zeros(count, dtype=np.int64)
                        found[name][at] = _hash(value)
                    elif name not in done:
                        is_more = True
                at += 1
        ends = np.cumsum([len(each) for each in rows.values()])[:-1]
        for name, values in found.items():
            parts = dict(zip(rows, np.split(values, ends), strict=True))
            yield _Column(name=name, rows=rows, values=parts)
        done |= found.keys()


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _hash(value: object) -> int:
    """0 for nothing alone."""
    text = _text(value)
    return (hash(text) or 1) if text else 0


def _constant(column: _Column, prepared: Prepared) -> Iterator[Finding]:
    every = column.every
    if len(every) > 1 and (every == every[0]).all():
        yield Finding(
            kind="constant_column",
            rows=len(every),
            examples=_examples(column, prepared, column.rows["train"]),
            message=f"column {column.name!r} is {'the same' if every[0] else 'empty'} in all"
            f" {len(every)} rows",
        )


def _examples(column: _Column, prepared: Prepared, rows: np.ndarray) -> tuple[str, ...]:
    """Up to three of the rows, with what the column has there."""
    return tuple(
        f"{record.place}: {_text(record.rest.get(column.name))!r}"
        for record in prepared.store.records(rows[:3])
    )


def _origin(column: _Column, prepared: Prepared) -> Iterator[_Origin]:
    """Where rows of one value stand in two splits though no group is named."""
    if prepared.data.group is not None or column.name == prepared.data.slice:
        return
    every = column.every
    values, counts = np.unique(every[every != 0], return_counts=True)
    is_named = bool(ORIGIN.search(column.name))
    least = SOME_VALUES if is_named else FEW_VALUES
    if len(values) < least or counts.max() == 1:
        return
    is_seldom = len(every) < REPEATED * len(values)
    if not is_named and (is_seldom or _is_measured(column, prepared)):
        return
    told, rows, are_many = [], [], False
    for split, found in column.values.items():
        is_shared = np.isin(found, column.values["train"]) & (found != 0)
        if split != "train" and is_shared.any():
            told.append(f"{is_shared.sum()} of {len(found)} rows of {split}")
            rows.append(column.rows[split][is_shared])
            are_many |= is_shared.mean() >= MANY
    if told:
        yield _Origin(
            name=column.name,
            is_likely=is_named
            and bool(are_many)
            and (len(values) >= FEW_VALUES or counts.mean() <= OF_ONE),
            told=tuple(told),
            rows=np.concatenate(rows),
        )


def _is_measured(column: _Column, prepared: Prepared) -> bool:
    """Whether the first values are numbers, dates or times."""
    has_one = column.rows["train"][column.values["train"] != 0][:FEW_VALUES]
    records = prepared.store.records(has_one)
    return all(MEASURED.fullmatch(_text(each.rest.get(column.name))) for each in records)


def _no_group(origins: list[_Origin], prepared: Prepared) -> Iterator[Finding]:
    """One for all columns that could be the group, since one alone can be."""
    if not origins:
        return
    first, *others = sorted(origins, key=lambda each: not each.is_likely)
    names = " and ".join(
        repr(each.name) for each in others[:3] if each.is_likely or not first.is_likely
    )
    rows = np.unique(first.rows)
    records = list(prepared.store.records(rows[:3]))
    yield Finding(
        kind="no_group",
        severity="warning" if first.is_likely else "note",
        rows=len(rows),
        examples=tuple(f"{each.place}: {_text(each.rest.get(first.name))!r}" for each in records),
        message=f"{' and '.join(first.told)} share their {first.name!r} with rows of train"
        f"{f' (and {names} likewise)' if names else ''}; if that says what a row comes from, rows"
        " of one should stay together",
        setting=f"data.group: {first.name}",
    )


def _gives_away(column: _Column, prepared: Prepared) -> Iterator[Finding]:
    """A column of few values that tells the label."""
    rows, labels = column.rows["train"], prepared.store.labels.of_rows[column.rows["train"]]
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        return
    values, of_rows = np.unique(column.values["train"][known], return_inverse=True)
    if not 1 < len(values) <= max(FEW_VALUES, len(known) // 20):
        return
    classes = int(labels.max()) + 1
    pairs, counts = np.unique(of_rows * classes + labels[known], return_counts=True)
    most_of_values = np.zeros(len(values), dtype=np.int64)
    np.maximum.at(most_of_values, pairs // classes, counts)
    told = most_of_values.sum() / len(known)
    majority = np.bincount(labels[known]).max() / len(known)
    if told >= PURE and told - majority >= ABOVE_CHANCE:
        yield Finding(
            kind="gives_label_away",
            split="train",
            rows=len(known),
            examples=_examples(column, prepared, rows[known]),
            message=f"train: column {column.name!r} alone tells the label of {told:.1%} of the"
            " rows; where it stands in a text, the model learns that and nothing else",
        )


def _named_in_text(prepared: Prepared) -> Iterator[Finding]:
    """Texts that hold the name of their own class."""
    totals, named, places = Counter[str](), Counter[str](), defaultdict[str, list[str]](list)
    for text in prepared.texts("train", SAMPLE):
        label = text.answered
        totals[label] += 1
        if len(label) >= SHORTEST and _holds(text.asked.casefold(), label):
            named[label] += 1
            if len(places[label]) < 3:
                places[label].append(f"{text.place}: {label!r}")
    told = [label for label in totals if named[label] >= TOLD * totals[label]][:MOST_CLASSES]
    strange: dict[str, int] = defaultdict(int)  # texts of other classes that hold a name
    for text in prepared.texts("train", SAMPLE) if told else ():
        asked = text.asked.casefold()
        for label in told:
            strange[label] += label != text.answered and _holds(asked, label)
    holders = [
        label for label in told if strange[label] <= UNTOLD * max(1, totals.total() - totals[label])
    ]
    if holders:
        shown = ", ".join(map(repr, holders[:3]))
        yield Finding(
            kind="label_in_text",
            severity="warning",
            split="train",
            rows=sum(totals[label] for label in holders),
            examples=tuple(three_of(places[label] for label in holders)),
            message=f"train: texts of {shown} hold the name of their class, and those of other"
            " classes do not: the label stands in the text",
        )


def _holds(text: str, label: str) -> bool:
    """Whether the name of a class stands in a text, in lower case, as a word."""
    name = label.casefold()
    return name in text and bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def _sorted_file(prepared: Prepared) -> Iterator[Finding]:
    rows = np.unique(prepared.splits["train"])
    codes = prepared.store.labels.of_rows[rows]
    shares = np.bincount(codes[codes >= 0]) / max(1, (codes >= 0).sum())
    expected = (1 - (shares**2).sum()) * (len(codes) - 1)
    changes = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    if expected > FEW_VALUES and len(changes) < SORTED * expected:
        records = prepared.store.records(rows[changes[:3]])
        yield Finding(
            kind="sorted",
            split="train",
            rows=len(codes),
            examples=tuple(f"{each.place}: {each.label!r} begins" for each in records),
            message=f"train: the file is sorted by label ({len(changes)} changes from row to row,"
            f" about {expected:.0f} in a shuffled one); splits and batches are drawn, so that"
            " nothing is lost here, but a file cut by hand would be",
        )
