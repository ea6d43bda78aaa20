"""Which rows are for training, for validation and for the test: disjoint, stratified, seeded.

Rows are numbers of a store's rows, which rise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from trainables.data.rows import shorten
from trainables.data.store import RowStore
from trainables.errors import InputError, did_you_mean
from trainables.streams import stream

Splits = Mapping[str, np.ndarray]


def split_by_share(
    store: RowStore, rows: np.ndarray, shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Cut `rows` into train and the splits named in `shares`, keeping their order and, as closely
    as can be, each label's share.

    What moves as one is a unit: the rows of one group; without groups, rows that are the same but
    for case and white space. Units are taken in a random order, large ones before small ones, each
    to the split in which it lessens the chi-squared distance between what the splits have of each
    label and what they should have the most. That keeps large units out of small splits and spreads
    the others evenly.
    """
    shares = {"train": 1.0 - sum(shares.values()), **shares}
    _check_single_rows(store, rows, list(shares)[1:])
    unit_of_row = _units(store, rows)
    units = _Units.of(unit_of_row, store.labels.of_rows[rows] + 1, store.weights[rows])
    totals = units.totals()
    fillings = [
        _Filling(due=[share * total for total in totals], whole=share * sum(totals))
        for share in shares.values()
    ]
    order = stream("split", seed).permutation(len(units.sizes))
    # stable: random among units of like size
    large_first = np.argsort([-units.sizes[unit].bit_length() for unit in order], kind="stable")
    chosen = np.zeros(len(units.sizes), dtype=np.int64)
    for unit in order[large_first].tolist():
        weights, size = units.weights(unit), units.sizes[unit]
        distances = [filling.added_distance(weights, size) for filling in fillings]
        chosen[unit] = best = distances.index(min(distances))
        fillings[best].add(weights, size)
    split_of_row = chosen[unit_of_row]
    return {name: rows[split_of_row == number] for number, name in enumerate(shares)}


def _check_single_rows(store: RowStore, rows: np.ndarray, others: list[str]) -> None:
    """Raise InputError where a label has one row only."""
    counts = label_counts(store, rows)
    single = [label for label, count in counts.items() if count == 1]
    if not single:
        return
    codes = store.labels.of_rows[rows]
    first = rows[codes == store.labels.names.index(single[0])]
    meant = did_you_mean(single[0], [other for other in counts if other != single[0]])
    others_named = [shorten(label, 30) for label in single[1:3]]
    more = f" and {len(single) - 3} more" if len(single) > 3 else ""
    place = next(store.records(first)).place
    named = ", ".join([f"{shorten(single[0])} ({place})", *others_named])
    raise InputError(
        f"data.label: {named}{more} {'have' if others_named else 'has'} a single row, too few to be"
        f" both in train and in {' or '.join(others)}; leave it out, or give data.validation as a"
        f" file{meant and f'.{meant}'}"
    )


def label_counts(store: RowStore, rows: np.ndarray) -> dict[str, int]:
    """Rows of each label that occurs, in the order in which the labels were first read."""
    codes = store.labels.of_rows[rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(store.labels.names)).tolist()
    return {label: count for label, count in zip(store.labels.names, counts, strict=True) if count}


def _units(store: RowStore, rows: np.ndarray) -> np.ndarray:
    """The unit of each row [n], numbered as they first appear."""
    groups, keys = store.groups.of_rows[rows], first_seen(store.keys[rows])
    # a text file beside tables has no columns, so that it is of no group
    return first_seen(np.where(groups >= 0, groups, len(store.groups.names) + keys))


def first_seen(values: np.ndarray) -> np.ndarray:
    """Numbers in the place of values, in the order in which these first appear."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


@dataclass(frozen=True, kw_only=True)
class _Units:
    """What each unit weighs of each label. Lists, since a number of an array is slow to take."""

    labels: list[int]
    of_labels: list[int]
    """What a unit has of the label beside it in `labels`: unit after unit."""
    starts: list[int]
    """Where each unit's begin, and the end."""
    sizes: list[int]
    """Of units, all labels together."""

    @classmethod
    def of(cls, unit_of_row: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> "_Units":
        count = int(labels.max()) + 1
        pairs, first, pair_of_row = np.unique(
            unit_of_row * count + labels, return_index=True, return_inverse=True
        )
        order = np.lexsort((first, pairs // count))
        of_pairs = np.bincount(pair_of_row, weights).astype(np.int64)
        units = int(unit_of_row.max()) + 1
        return cls(
            labels=(pairs % count)[order].tolist(),
            of_labels=of_pairs[order].tolist(),
            starts=np.searchsorted((pairs // count)[order], np.arange(units + 1)).tolist(),
            sizes=np.bincount(unit_of_row, weights).astype(np.int64).tolist(),
        )

    def weights(self, unit: int) -> list[tuple[int, int]]:
        """Labels of a unit, and what it has of each."""
        start, end = self.starts[unit], self.starts[unit + 1]
        return list(zip(self.labels[start:end], self.of_labels[start:end], strict=True))

    def totals(self) -> list[int]:
        """Of each label."""
        return np.bincount(self.labels, self.of_labels).astype(np.int64).tolist()


class _Filling:
    """A split that is being filled."""

    def __init__(self, *, due: list[float], whole: float) -> None:
        """due: what it should have of each label in the end; whole: and of all together."""
        self._due, self._whole = due, whole
        self._have, self._filled = [0] * len(due), 0

    def added_distance(self, weights: list[tuple[int, int]], size: int) -> float:
        """How much a unit lengthens the distance of the split from its share of every label and of
        the whole. Units of like size are taken as of one: by its own, a small split would always
        take the smaller of them, and its documents would be shorter than those of train.
        """
        like = (1 << size.bit_length() - 1) / size
        by_label = 0.0
        for label, weight in weights:
            due, added = self._due[label], weight * like
            by_label += added * (added + 2 * (self._have[label] - due)) / due
        size_of_all = size * like
        return (
            by_label + size_of_all * (size_of_all + 2 * (self._filled - self._whole)) / self._whole
        )

    def add(self, weights: list[tuple[int, int]], size: int) -> None:
        for label, weight in weights:
            self._have[label] += weight
        self._filled += size


def draw_rows(store: RowStore, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of `rows`, in their order, with each label's share kept."""
    if most >= len(rows):
        return rows
    labels = store.labels.of_rows[rows] + 1
    totals = np.bincount(labels)
    order = stream("rows", seed).permutation(len(rows))
    by_label = np.argsort(labels[order], kind="stable")
    starts = np.cumsum(totals) - totals
    seen = np.empty(len(rows))
    seen[by_label] = np.arange(len(rows)) - starts[labels[order][by_label]]
    rank = (seen + 0.5) / totals[labels[order]]
    return rows[np.sort(order[np.lexsort((order, rank))[:most]])]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Rows that are the same but for case and white space."""

    dropped: dict[str, int]
    """Rows dropped from each split because a later one (train, validation, test) has them."""
    inside: dict[str, int]
    """Rows of each split that repeat an earlier row of the same split; they stay."""
    two_labels: int
    """Texts that occur with more than one label, in all splits together."""


def separate(
    store: RowStore, splits: Splits, duplicates: str
) -> tuple[dict[str, np.ndarray], Duplicates]:
    """Make sure that no row and no group is in two splits.

    duplicates: "error" raises InputError with examples; "drop" drops from train what validation or
    test has, and from validation what test has. A group in two splits (of files that were given
    split) is always an error.
    """
    names = [name for name in ("test", "validation", "train") if name in splits]
    _check_groups(store, splits, names)
    found: dict[str, np.ndarray] = {}
    elsewhere = store.keys[:0]
    for name in names:
        if duplicates == "error":
            _check_rows(store, name, splits[name], found)
        found[name] = splits[name][~np.isin(store.keys[splits[name]], elsewhere)]
        elsewhere = np.concatenate([elsewhere, store.keys[found[name]]])
    kept = {name: found[name] for name in splits}
    return kept, Duplicates(
        dropped={name: len(splits[name]) - len(rows) for name, rows in kept.items()},
        inside={name: len(rows) - len(np.unique(store.keys[rows])) for name, rows in kept.items()},
        two_labels=_texts_with_two_labels(store, np.concatenate(list(kept.values()))),
    )


def _texts_with_two_labels(store: RowStore, rows: np.ndarray) -> int:
    texts = first_seen(store.keys[rows])
    count = len(store.labels.names) + 1
    pairs = np.unique(texts * count + store.labels.of_rows[rows] + 1)
    return int((np.bincount(pairs // count) > 1).sum()) if len(pairs) else 0


def _check_groups(store: RowStore, splits: Splits, names: list[str]) -> None:
    """Raise InputError where a group is in two of the splits."""
    groups = {}
    for name in names:
        codes = np.unique(store.groups.of_rows[splits[name]])
        groups[name] = {store.groups.names[code] for code in codes[codes >= 0]}
    for i, name in enumerate(names):
        for other in names[:i]:
            shared = groups[name] & groups[other]
            if shared:
                raise InputError(
                    f"data.group: {len(shared)} group(s) are in both {name} and {other}, such as "
                    f"{_examples(sorted(shared))}; rows of one group must be in one split"
                )


def _check_rows(store: RowStore, name: str, rows: np.ndarray, kept: Splits) -> None:
    """Raise InputError where a row of the split `name` is in one of `kept`."""
    for other, others in kept.items():
        shared = rows[np.isin(store.keys[rows], store.keys[others])]
        if len(shared):
            raise InputError(
                f"data.duplicates: {len(shared)} row(s) of {name} are also in {other}"
                " (case and white space ignored), such as"
                f" {_examples([store.shown(row) for row in shared[:20]])}; remove them, or set"
                f" data.duplicates=drop to leave them out of {name}"
            )


def _examples(texts: list[str]) -> str:
    return ", ".join(shorten(text) for text in list(dict.fromkeys(texts))[:3])


def check_labels(store: RowStore, splits: Splits) -> None:
    """Raise InputError unless train has at least two classes and every class that the other splits
    have.
    """
    counts = label_counts(store, splits["train"])
    if len(counts) < 2:
        raise InputError(
            f"data.label: all {len(splits['train'])} rows of train have the same label,"
            f" {shorten(next(iter(counts)))}; classification needs at least two"
        )
    known = store.labels.of_rows[splits["train"]]
    for name, rows in splits.items():
        strange = rows[~np.isin(store.labels.of_rows[rows], known)]
        if len(strange):
            record = next(store.records(strange[:1]))
            others = label_counts(store, strange)
            several = (
                f"; {len(strange)} rows of {name} have {len(others)} such label(s)"
                if len(strange) > 1
                else ""
            )
            meant = did_you_mean(record.label, counts)
            raise InputError(
                f"data.{name}: {record.place}: label {shorten(record.label)} is nowhere in"
                f" train, which has {_first_names(counts)}{several}{meant and f'.{meant}'}"
            )


def _first_names(labels: Iterable[str]) -> str:
    names = sorted(labels)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{', '.join(shorten(label, 30) for label in names[:20])}{more}"
