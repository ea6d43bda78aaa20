"""Rows that are the same: as they are read, but for case and white space, or as tokens."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from trainables.data.findings import Finding
from trainables.data.splits import Duplicates, Splits
from trainables.data.store import RowStore
from trainables.data.tokens import Written

MANY_TWICE = 0.005  # of the rows, that occur with two labels


def same_rows(
    store: RowStore, read: Splits, kept: Splits, duplicates: Duplicates
) -> Iterator[Finding]:
    """What `separate` counted, with places. read, kept: rows before and after it."""
    for name, count in duplicates.dropped.items():
        if count:
            others = np.concatenate([rows for other, rows in kept.items() if other != name])
            yield Finding(
                kind="in_two_splits",
                split=name,
                rows=count,
                examples=_both(store, _same(store, np.setdiff1d(read[name], kept[name]), others)),
                message=f"{name}: {count} row(s) dropped that are also in another split",
            )
    for name, count in duplicates.inside.items():
        if count:
            rows = kept[name]
            _, first = np.unique(store.keys[rows], return_index=True)
            again = np.delete(rows, first)
            yield Finding(
                kind="repeated",
                split=name,
                rows=count,
                examples=_both(store, _same(store, again, rows)),
                message=f"{name}: {count} row(s) repeat an earlier one",
            )
    if store.labels.names and duplicates.two_labels:
        yield _two_labels(store, np.concatenate(list(kept.values())), duplicates.two_labels)


def _same(store: RowStore, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Up to three of the rows, each with the first of `among` that is the same [n, 2]."""
    keys, first = np.unique(store.keys[among], return_index=True)
    at = np.searchsorted(keys, store.keys[rows[:3]])
    return np.stack([rows[:3], among[first[at]]], axis=1)


def _two_labels(store: RowStore, rows: np.ndarray, count: int) -> Finding:
    rows = np.sort(rows)
    keys, labels = store.keys[rows], store.labels.of_rows[rows]
    _, first, text = np.unique(keys, return_index=True, return_inverse=True)
    unlike = np.flatnonzero(labels != labels[first[text]])
    _, each = np.unique(text[unlike], return_index=True)  # of each text the first that is unlike
    pairs = np.stack([rows[first[text[unlike]]], rows[unlike]], axis=1)[np.sort(each)]
    return Finding(
        kind="two_labels",
        severity="warning" if count > MANY_TWICE * len(rows) else "note",
        rows=count,
        examples=_both(store, pairs[:3], with_labels=True),
        message=f"{count} text(s) occur with more than one label",
    )


def _both(store: RowStore, pairs: np.ndarray, *, with_labels: bool = False) -> tuple[str, ...]:
    """Where up to three pairs of rows stand."""
    rows = np.unique(pairs[:3])
    records = dict(zip(rows.tolist(), store.records(rows), strict=True))

    def place(row: int) -> str:
        return records[row].place + (f": {records[row].label!r}" if with_labels else "")

    return tuple(f"{place(one)} and {place(other)}" for one, other in pairs[:3].tolist())


def same_tokens(store: RowStore, written: Mapping[str, Written]) -> Iterator[Finding]:
    """Rows that differ and became the same tokens: with other labels, or in another split."""
    whole = {name: each for name, each in written.items() if len(each.of_rows)}
    for name, rows in whole.items():
        clash = _pairs(rows, rows, store.labels.of_rows)
        # of one text under two labels is told already
        clash = clash[store.keys[clash[:, 0]] != store.keys[clash[:, 1]]]
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
    return Finding(
        kind="same_tokens",
        severity="warning",
        split=split,
        rows=len(pairs),
        examples=_both(store, np.unique(np.sort(pairs, axis=1), axis=0)),
        message=message.format(len(pairs)),
    )
