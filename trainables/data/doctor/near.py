"""Rows that are nearly the same: MinHash over pieces of the text (Broder 1997), and among rows that
share a band of it (locality-sensitive hashing; Leskovec, Rajaraman and Ullman, chapter 3) the
Jaccard similarity itself.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from trainables.data.doctor.rows import Prepared, Text
from trainables.data.findings import Finding

PIECE = 5  # characters
SIMILAR = 0.8  # Jaccard similarity from which rows are told of
# At similarity 0.8, two rows share a band with probability 0.998; at 0.5 with 0.27.
BANDS, OF_BAND = 20, 6
CANDIDATES = 20  # of a row that are compared
MANY = 0.01  # of a split's rows, from which it is a warning
BATCH = 5000


@dataclass(frozen=True, kw_only=True)
class Sketched:
    """A split's rows, by what they share with rows like them."""

    rows: np.ndarray
    """In the store [N]."""
    bands: np.ndarray
    """uint64 [BANDS, N]."""


def near_duplicates(prepared: Prepared) -> Iterator[Finding]:
    """Within each split, and of each with those that come before it."""
    sketched = {name: _sketched(prepared, name) for name in prepared.splits}
    for name, rows in sketched.items():
        yield from _within(prepared, name, rows)
    yield from _between(prepared, sketched)


def pieces(text: str) -> frozenset[str]:
    """All pieces of the text, whose case, white space and punctuation do not count."""
    words = " ".join(re.sub(r"[^\w]+", " ", text.casefold()).split())
    return frozenset(words[i : i + PIECE] for i in range(max(1, len(words) - PIECE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _sketched(prepared: Prepared, split: str) -> Sketched:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # it is Rust

    texts, rows, bands = prepared.texts(split), [], []
    while batch := list(islice(texts, BATCH)):
        sets = [list(pieces(text.asked)) for text in batch]
        digests = np.array(
            RMinHash.digests_from_token_sets(sets, num_perm=BANDS * OF_BAND, seed=1),
            dtype=np.uint64,
        )
        rows.append(np.array([text.row for text in batch]))
        bands.append(_folded(digests.reshape(len(batch), BANDS, OF_BAND)).T)
    return Sketched(rows=np.concatenate(rows), bands=np.concatenate(bands, axis=1))


def _folded(digests: np.ndarray) -> np.ndarray:
    """One number for the last axis."""
    found = np.full(digests.shape[:-1], 0xCBF29CE484222325, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in np.moveaxis(digests, -1, 0):
            found = (found ^ part) * np.uint64(0x100000001B3)
            found ^= found >> np.uint64(29)
    return found


def _candidates(of: Sketched, among: Sketched) -> dict[int, set[int]]:
    """Rows of `among` that share a band with a row of `of`, by that; none twice of a pair of one
    split.
    """
    found: dict[int, set[int]] = {}
    for mine, theirs in zip(of.bands, among.bands, strict=True):
        order = np.argsort(theirs, kind="stable")
        low = np.searchsorted(theirs[order], mine, side="left")
        high = np.searchsorted(theirs[order], mine, side="right")
        for i in np.flatnonzero(high > low + (of is among)):
            row = int(of.rows[i])
            others = found.setdefault(row, set())
            for j in order[low[i] : min(high[i], low[i] + CANDIDATES)]:
                other = int(among.rows[j])
                if other != row and len(others) < CANDIDATES and (of is not among or other < row):
                    others.add(other)
    return {row: others for row, others in found.items() if others}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    row: Text
    other: Text
    similarity: float


def _pairs(prepared: Prepared, of: Sketched, among: Sketched) -> list[_Pair]:
    """Each row of `of` that is similar to one of `among`, with the one that is most."""
    candidates = _candidates(of, among)
    wanted = {*candidates, *(other for others in candidates.values() for other in others)}
    texts = _texts(prepared, wanted)
    found = []
    for row, others in candidates.items():
        mine = pieces(texts[row].asked)
        similarity, other = max((jaccard(mine, pieces(texts[o].asked)), -o) for o in others)
        if similarity >= SIMILAR:
            found.append(_Pair(row=texts[row], other=texts[-other], similarity=similarity))
    return found


def _texts(prepared: Prepared, rows: set[int]) -> Mapping[int, Text]:
    chosen = replace(prepared, splits={"chosen": np.array(sorted(rows), dtype=np.int64)})
    return {text.row: text for text in chosen.texts("chosen")} if rows else {}


def _within(prepared: Prepared, name: str, rows: Sketched) -> Iterator[Finding]:
    keys = prepared.store.keys
    pairs = [
        pair
        for pair in _pairs(prepared, rows, rows)
        if keys[pair.row.row] != keys[pair.other.row]  # the same rows are told of elsewhere
    ]
    if pairs:
        yield Finding(
            kind="near_duplicates",
            split=name,
            rows=len(pairs),
            examples=_places(pairs),
            message=f"{name}: {len(pairs)} of {len(rows.rows)} row(s) are nearly the same as an"
            f" earlier row{_answers(pairs)} {_example(pairs)}",
        )


def _between(prepared: Prepared, sketched: Mapping[str, Sketched]) -> Iterator[Finding]:
    names, found, told, are_many = list(sketched), [], [], False
    for i, name in enumerate(names):
        for earlier in names[:i]:
            pairs = _pairs(prepared, sketched[name], sketched[earlier])
            rows = len(sketched[name].rows)
            are_many |= len(pairs) >= MANY * rows
            if pairs:
                told.append(f"{len(pairs)} of {rows} of {name} as in {earlier}")
                found += pairs
    if found:
        is_grouped = prepared.data.group is not None
        yield Finding(
            kind="near_duplicates_between",
            severity="warning" if are_many else "note",
            rows=len(found),
            examples=_places(found),
            message=f"rows are nearly the same in two splits: {', '.join(told)}{_answers(found)}"
            f" {_example(found)}; what is measured on them is in part what was learnt by heart",
            setting="" if is_grouped else "data.group: the column that says what rows come from",
        )


def _answers(pairs: list[_Pair]) -> str:
    unlike = sum(pair.row.answered != pair.other.answered for pair in pairs)
    return f", {unlike} of them with another answer" if unlike else ""


def _example(pairs: list[_Pair]) -> str:
    most = max(pairs, key=lambda pair: pair.similarity)
    return f"(such as {most.row.place} and {most.other.place}, similarity {most.similarity:.2f})"


def _places(pairs: list[_Pair]) -> tuple[str, ...]:
    return tuple(f"{pair.row.place} and {pair.other.place}" for pair in pairs[:3])
