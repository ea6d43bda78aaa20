"""Rows that are nearly the same: MinHash over pieces of the text (Broder 1997) finds rows that are
likely to be, by locality-sensitive hashing (Leskovec, Rajaraman and Ullman, chapter 3), and the
Jaccard similarity of their pieces decides.

Stretches of text that many rows have, those of a template or a signature, say nothing about
likeness and are left out. Nor are rows the same that differ in what makes them rows of their own:
their numbers, or in few words one of them (`turn on light 3`, `how many people live in Iowa`). The
cost grows with the rows and not with how many of them are alike: of the rows that share a band,
each is compared with a few.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from trainables.data.doctor.rows import Prepared, three_of
from trainables.data.findings import Finding
from trainables.tasks import TASKS

PIECE = 5  # characters
SIMILAR = 0.8  # Jaccard similarity from which rows are told of
# At similarity 0.8, two rows share a band with probability 0.998; at 0.5 with 0.27.
BANDS, OF_BAND = 20, 6
# what of the sketch is kept to tell which of the rows in a band is most alike (b-bit minwise
# hashing, Li and König 2010): at similarity 0.8, its standard error is 0.037
KEPT_BITS = 8
LIKELY = SIMILAR - 0.15  # by the sketch, from which the pieces themselves are compared
COMPARED = 10  # rows of a band, with each row of it
STRETCH = 6  # pieces of PIECE characters, one behind another: words alone are no template
SAMPLED, BEGINNING = 1000, 10_000  # rows in which stretches are counted, and their characters
COMMON, FEWEST = 0.05, 20  # share of those rows, and their number, above which one is left out
SHORT = 80  # pieces of a row's own, below which another word makes another row
NUMBERED = 0.01  # of the pieces are numbers, from which other numbers make another row
MANY, SEVERAL = 0.01, 3  # share of a split's rows, and their number, from which it is a warning
BATCH = 1000  # rows in memory


@dataclass(frozen=True, kw_only=True)
class Sketched:
    """A split's rows, by what they share with rows like them; of rows that are the same, one."""

    rows: np.ndarray
    """In the store, rising [N]."""
    bands: np.ndarray
    """uint32 [BANDS, N]."""
    kept: np.ndarray
    """Of each minimum its lowest bits, uint8 [N, BANDS * OF_BAND]."""


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Rows of a split that are nearly the same as another, each with the one that is most [n]."""

    rows: np.ndarray
    others: np.ndarray
    similarities: np.ndarray
    answers_differ: np.ndarray
    is_least: bool
    """Whether there may be more: rows have more beside them in a band than they are compared
    with.
    """

    def __len__(self) -> int:
        return len(self.rows)


def near_duplicates(prepared: Prepared) -> Iterator[Finding]:
    """Within each split, and of each with those that come before it."""
    search = _Search(prepared=prepared, common=_common(prepared))
    sketched = {name: search.sketched(name) for name in prepared.splits}
    for name, rows in sketched.items():
        yield from _within(search, name, rows)
    yield from _between(search, sketched)


def pieces(text: str) -> np.ndarray:
    """Hashes of all pieces of the text, whose case, white space and punctuation do not count
    (unless there is nothing else), uint64, rising [n].
    """
    return np.unique(_pieces(text))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sets of pieces."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


WORD = re.compile(r"[a-z]*\d[a-z\d]*|[^\W\d]+")
"""A number with the letters around it, or a word."""


def say_something_else(one: str, other: str, own: int, *, is_told_apart: bool = False) -> bool:
    """Whether two texts that are alike are rows of their own: they differ in numbers alone, or they
    are short and each has a word that the other lacks. own: how many pieces they have that are not
    those of a template; is_told_apart: whether they are answered in other words, so that one more
    word is enough.
    """
    ours, theirs = (Counter(WORD.findall(text.casefold())) for text in (one, other))
    differ = [*(ours - theirs).elements(), *(theirs - ours).elements()]
    if differ and all(any(map(str.isdigit, word)) for word in differ):
        return sum(map(len, differ)) / 2 >= NUMBERED * own
    if is_told_apart:
        return own < SHORT and ours != theirs
    return own < SHORT and not (ours <= theirs or theirs <= ours)


def _pieces(text: str) -> np.ndarray:
    """One from each character on."""
    words = " ".join(re.findall(r"\w+", text.casefold())) or text.strip()
    points = np.frombuffer(words.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _in_a_row(points, min(PIECE, len(points)), 1)


def _stretches(found: np.ndarray) -> np.ndarray:
    """Of a text's pieces, one from each on as far as they reach."""
    return _in_a_row(found, STRETCH, PIECE) if len(found) > (STRETCH - 1) * PIECE else found[:0]


def _in_a_row(values: np.ndarray, count: int, step: int) -> np.ndarray:
    """Hashes of `count` values, each `step` behind the last, from each value on."""
    found = np.zeros(len(values) - (count - 1) * step, dtype=np.uint64)
    for i in range(count):  # wraps around, as hashes do
        found = found * np.uint64(0x9E3779B97F4A7C15) + values[i * step : i * step + len(found)]
    return found


def _common(prepared: Prepared) -> np.ndarray:
    """Stretches that stand in many rows of train that are not the same, rising."""
    texts = prepared.texts_of(prepared.drawn(prepared.distinct("train"), SAMPLED))
    seen = [np.unique(_stretches(_pieces(text.asked[:BEGINNING]))) for text in texts]
    found, rows = np.unique(np.concatenate(seen), return_counts=True)
    return found[rows > max(FEWEST, COMMON * len(seen))]


@dataclass(frozen=True, kw_only=True)
class _Search:
    prepared: Prepared
    common: np.ndarray
    """Stretches that say nothing about likeness, rising."""

    def sketched(self, split: str) -> Sketched:
        rows = self.prepared.distinct(split)
        texts = self.prepared.texts_of(rows)
        sketches = (_sketch(self._own(text.asked)) for text in texts)
        bands, kept = [], []
        while batch := list(islice(sketches, BATCH)):
            digests = np.array(batch, dtype=np.uint32)
            bands.append(_folded(digests.reshape(len(batch), BANDS, OF_BAND)).T)
            kept.append((digests & (2**KEPT_BITS - 1)).astype(np.uint8))
        return Sketched(rows=rows, bands=np.concatenate(bands, axis=1), kept=np.concatenate(kept))

    def _own(self, text: str) -> np.ndarray:
        """Pieces of a text outside of what many texts have; all of them, where that is nothing."""
        found = _pieces(text)
        own = found[~self._is_common(found)] if len(self.common) else found
        return np.unique(own if len(own) else found)

    def _is_common(self, found: np.ndarray) -> np.ndarray:
        """Which of a text's pieces stand in a stretch that many have."""
        stretches = _stretches(found)
        at = np.searchsorted(self.common, stretches)
        at[at == len(self.common)] = 0
        starts = np.flatnonzero(self.common[at] == stretches)
        edges = np.zeros(len(found) + 1, dtype=np.int64)
        edges[starts] += 1
        edges[starts + (STRETCH - 1) * PIECE + 1] -= 1
        return np.cumsum(edges[:-1]) > 0

    def pairs(self, of: Sketched, among: Sketched) -> _Pairs:
        """Rows of `of` that are nearly the same as one of `among`; where both are one split, as an
        earlier one.
        """
        others, likeness, has_more = _most_alike(of, among)
        likely = np.flatnonzero(likeness >= LIKELY)
        rows, others = of.rows[likely], among.rows[others[likely]]
        similarities, differ = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            similarities[part], differ[part] = self._compared(rows[part], others[part])
        is_similar = similarities >= SIMILAR
        has_more[likely[is_similar]] = False
        return _Pairs(
            rows=rows[is_similar],
            others=others[is_similar],
            similarities=similarities[is_similar],
            answers_differ=differ[is_similar],
            is_least=bool(has_more.any()),
        )

    def _compared(self, rows: np.ndarray, others: np.ndarray) -> tuple[list[float], list[bool]]:
        """Similarity of the pairs, 0 where each says something of its own, and whether their
        answers differ.
        """
        texts = {text.row: text for text in self.prepared.texts_of(np.union1d(rows, others))}
        own = {row: self._own(text.asked) for row, text in texts.items()}
        whole = {row: pieces(text.asked) for row, text in texts.items()}

        pairs = list(zip(rows.tolist(), others.tolist(), strict=True))
        differ = [texts[row].answered != texts[other].answered for row, other in pairs]
        answers = TASKS[self.prepared.task].is_language_model  # in words, not by a label

        def similarity(row: int, other: int, *, answers_differ: bool) -> float:
            # by themselves, and as they stand: what many rows have may differ, too
            found = min(jaccard(own[row], own[other]), jaccard(whole[row], whole[other]))
            is_other = found >= SIMILAR and say_something_else(
                texts[row].asked,
                texts[other].asked,
                max(len(own[row]), len(own[other])),
                is_told_apart=answers_differ and answers,
            )
            return 0.0 if is_other else found

        return [
            similarity(*pair, answers_differ=each) for pair, each in zip(pairs, differ, strict=True)
        ], differ

    def places(self, pairs: _Pairs, chosen: np.ndarray) -> list[str]:
        """Where the chosen of the pairs stand."""
        places = self.prepared.places
        both = zip(places(pairs.rows[chosen]), places(pairs.others[chosen]), strict=True)
        return [f"{one} and {other}" for one, other in both]


def _sketch(own: np.ndarray) -> list[int]:
    """The least hash of the pieces under each of BANDS * OF_BAND hash functions."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # it is Rust

    ends = np.array([0, len(own)], dtype=np.uint64)
    (digest,) = RMinHash.digest_matrix_from_flat_token_hashes(
        own, ends, num_perm=BANDS * OF_BAND, seed=1
    ).to_rows()
    return digest


def _folded(digests: np.ndarray) -> np.ndarray:
    """One number, uint32, for the last axis."""
    found = np.full(digests.shape[:-1], 0xCBF29CE484222325, dtype=np.uint64)
    for part in np.moveaxis(digests, -1, 0):
        found = (found ^ part) * np.uint64(0x100000001B3)
        found ^= found >> np.uint64(29)
    return (found >> np.uint64(32)).astype(np.uint32)


def _most_alike(of: Sketched, among: Sketched) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of `of`, which of the rows of `among` that share a band with it is most like it,
    how much by the sketch (0: there is none), and whether there are more in a band than were
    compared, [N] each.
    """
    others = np.zeros(len(of.rows), dtype=np.int64)
    likeness = np.zeros(len(of.rows))
    has_more = np.zeros(len(of.rows), dtype=bool)
    for mine, theirs in zip(of.bands, among.bands, strict=True):
        order = np.argsort(theirs, kind="stable")
        first = np.searchsorted(theirs[order], mine, side="left")
        if of is among:  # rows of a band are in their order: what is before a row is earlier
            last = np.empty_like(first)
            last[order] = np.arange(len(order))
        else:
            last = np.searchsorted(theirs[order], mine, side="right")
        has_more |= last - first > COMPARED
        for back in range(1, COMPARED + 1):
            rows = np.flatnonzero(last - back >= first)
            found = order[last[rows] - back]
            alike = _likeness(of, rows, among, found)
            better = alike > likeness[rows]
            others[rows[better]], likeness[rows[better]] = found[better], alike[better]
    return others, likeness, has_more


def _likeness(of: Sketched, rows: np.ndarray, among: Sketched, others: np.ndarray) -> np.ndarray:
    """Similarity of pairs by what is kept of their sketches [n]."""
    same = np.zeros(len(rows))
    for start in range(0, len(rows), 100 * BATCH):
        part = slice(start, start + 100 * BATCH)
        same[part] = (of.kept[rows[part]] == among.kept[others[part]]).mean(axis=1)
    by_chance = 2.0**-KEPT_BITS
    return (same - by_chance) / (1 - by_chance)


def _within(search: _Search, name: str, rows: Sketched) -> Iterator[Finding]:
    pairs = search.pairs(rows, rows)
    if len(pairs):
        yield Finding(
            kind="near_duplicates",
            split=name,
            rows=len(pairs),
            examples=_examples(search, pairs),
            message=f"{name}: {_count(pairs)} of {len(rows.rows)} row(s) are nearly the same as an"
            f" earlier row{_answers([pairs])}",
        )


def _between(search: _Search, sketched: Mapping[str, Sketched]) -> Iterator[Finding]:
    names, found, told, are_many = list(sketched), [], [], False
    for i, name in enumerate(names):
        for earlier in names[:i]:
            pairs = search.pairs(sketched[name], sketched[earlier])
            rows = len(sketched[name].rows)
            are_many |= len(pairs) >= max(SEVERAL, MANY * rows)
            if len(pairs):
                told.append(f"{_count(pairs)} of {rows} of {name} as in {earlier}")
                found.append(pairs)
    if found:
        yield Finding(
            kind="near_duplicates_between",
            severity="warning" if are_many else "note",
            rows=sum(map(len, found)),
            examples=tuple(three_of(_examples(search, pairs) for pairs in found)),
            message=f"rows are nearly the same in two splits: {', '.join(told)}{_answers(found)};"
            " what is measured on them is in part what was learnt by heart",
            setting=""
            if search.prepared.data.group is not None
            else "data.group: the column that says what rows come from",
        )


def _count(pairs: _Pairs) -> str:
    return f"{'at least ' if pairs.is_least else ''}{len(pairs)}"


def _answers(found: list[_Pairs]) -> str:
    unlike = sum(int(pairs.answers_differ.sum()) for pairs in found)
    return f", {unlike} of them with another answer" if unlike else ""


def _examples(search: _Search, pairs: _Pairs) -> tuple[str, ...]:
    """The three that are most alike."""
    most = np.argsort(-pairs.similarities, kind="stable")[:3]
    return tuple(
        f"{places}, similarity {similarity:.2f}"
        for places, similarity in zip(
            search.places(pairs, most), pairs.similarities[most], strict=True
        )
    )
