"""Which rows are for training, for validation and for the test: disjoint, stratified, seeded."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainables.data.records import Record
from trainables.data.sources import shorten
from trainables.errors import InputError
from trainables.streams import stream

Splits = dict[str, list[Record]]


def split_by_share(records: list[Record], shares: dict[str, float], seed: int) -> Splits:
    """Cut `records` into train and the splits named in `shares`, keeping their order and, as
    closely as can be, each label's share.

    What moves as one is a unit: the rows of one group; without groups, rows that are the same but
    for case and white space. Units are taken in a random order, large ones before small ones, each
    to the split in which it lessens the chi-squared distance between what the splits have of each
    label and what they should have the most. That keeps large units out of small splits and spreads
    the others evenly.
    """
    shares = {"train": 1.0 - sum(shares.values()), **shares}
    _check_single_rows(records, list(shares)[1:])
    units: dict[object, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        units[record.key if record.group is None else record.group].append(i)
    members = list(units.values())
    weights = [_weights(records[i] for i in unit) for unit in members]
    sizes = [weight.total() for weight in weights]
    fillings = _fillings(shares, weights)
    chosen: dict[str, list[int]] = {name: [] for name in shares}
    order = stream("split", seed).permutation(len(members)).tolist()
    for unit in sorted(
        order, key=lambda unit: -sizes[unit].bit_length()
    ):  # stable: random among units of like size
        weight = weights[unit]
        name = min(shares, key=lambda name, weight=weight: fillings[name].added_distance(weight))
        fillings[name].add(weight)
        chosen[name] += members[unit]
    return {name: [records[i] for i in sorted(indices)] for name, indices in chosen.items()}


def _check_single_rows(records: list[Record], others: list[str]) -> None:
    """Raise InputError where a label has one row only."""
    for label, count in Counter(record.label for record in records).items():
        if count == 1 and label is not None:
            raise InputError(
                f"data.label: {shorten(label)} has a single row, too few to be both in train and in"
                f" {' or '.join(others)}; leave it out, or give data.validation as a file"
            )


def _weights(records: Iterable[Record]) -> Counter[str | None]:
    """Of each label."""
    weights: Counter[str | None] = Counter()
    for record in records:
        weights[record.label] += record.weight
    return weights


@dataclass(kw_only=True)
class _Filling:
    """A split that is being filled: weights of each label."""

    due: dict[str | None, float]
    """What it should have in the end."""
    whole: float
    """And of all labels together."""
    have: Counter[str | None] = field(default_factory=Counter)
    filled: int = 0
    """All that it has."""

    def added_distance(self, unit: Counter[str | None]) -> float:
        """How much the unit lengthens the distance of the split from its share of every label and
        of the whole.
        """
        by_label = sum(
            weight * (weight + 2 * (self.have[label] - self.due[label])) / self.due[label]
            for label, weight in unit.items()
        )
        size = unit.total()
        return by_label + size * (size + 2 * (self.filled - self.whole)) / self.whole

    def add(self, unit: Counter[str | None]) -> None:
        self.have.update(unit)
        self.filled += unit.total()


def _fillings(shares: dict[str, float], units: list[Counter[str | None]]) -> dict[str, _Filling]:
    totals: Counter[str | None] = Counter()
    for unit in units:
        totals.update(unit)
    return {
        name: _Filling(
            due={label: share * total for label, total in totals.items()},
            whole=share * totals.total(),
        )
        for name, share in shares.items()
    }


def draw_rows(records: list[Record], rows: int, seed: int) -> list[Record]:
    """At most `rows` of `records`, in their order, with each label's share kept."""
    if rows >= len(records):
        return records
    order = stream("rows", seed).permutation(len(records))
    totals = Counter(record.label for record in records)
    seen: Counter = Counter()
    rank = []
    for i in order:
        label = records[i].label
        rank.append(((seen[label] + 0.5) / totals[label], i))
        seen[label] += 1
    return [records[i] for i in sorted(i for _, i in sorted(rank)[:rows])]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Rows that are the same but for case and white space."""

    dropped: dict[str, int]
    """Rows dropped from each split because a later one (train, validation, test) has them."""
    inside: dict[str, int]
    """Rows of each split that repeat an earlier row of the same split; they stay."""
    two_labels: int
    """Texts that occur with more than one label, in all splits together."""


def separate(splits: Splits, duplicates: str) -> tuple[Splits, Duplicates]:
    """Make sure that no row and no group is in two splits.

    duplicates: "error" raises InputError with examples; "drop" drops from train what validation or
    test has, and from validation what test has. A group in two splits (of files that were given
    split) is always an error.
    """
    names = [name for name in ("test", "validation", "train") if name in splits]
    _check_groups(splits, names)
    kept: Splits = {}
    elsewhere: set[bytes] = set()
    for name in names:
        if duplicates == "error":
            _check_rows(name, splits[name], kept)
        kept[name] = [r for r in splits[name] if r.key not in elsewhere]
        elsewhere |= _keys(kept[name])
    kept = {name: kept[name] for name in splits}
    return kept, Duplicates(
        dropped={name: len(splits[name]) - len(rows) for name, rows in kept.items()},
        inside={name: _repeats(rows) for name, rows in kept.items()},
        two_labels=_texts_with_two_labels(kept),
    )


def _repeats(records: list[Record]) -> int:
    return len(records) - len(_keys(records))


def _keys(records: list[Record]) -> set[bytes]:
    return {r.key for r in records}


def _texts_with_two_labels(splits: Splits) -> int:
    labels_of = defaultdict(set)
    for records in splits.values():
        for r in records:
            labels_of[r.key].add(r.label)
    return sum(len(labels) > 1 for labels in labels_of.values())


def _check_groups(splits: Splits, names: list[str]) -> None:
    """Raise InputError where a group is in two of the splits."""
    groups = {name: {r.group for r in splits[name] if r.group is not None} for name in names}
    for i, name in enumerate(names):
        for other in names[:i]:
            shared = groups[name] & groups[other]
            if shared:
                raise InputError(
                    f"data.group: {len(shared)} group(s) are in both {name} and {other}, such as "
                    f"{_examples(sorted(shared))}; rows of one group must be in one split"
                )


def _check_rows(name: str, records: list[Record], kept: Splits) -> None:
    """Raise InputError where a row of the split `name` is in one of `kept`."""
    for other in kept:
        keys = _keys(kept[other])
        shared = [r for r in records if r.key in keys]
        if shared:
            raise InputError(
                f"data.duplicates: {len(shared)} row(s) of {name} are also in {other}"
                " (case and white space ignored), such as"
                f" {_examples([r.shown for r in shared])}; remove them, or set"
                f" data.duplicates=drop to leave them out of {name}"
            )


def _examples(texts: list[str]) -> str:
    return ", ".join(shorten(text) for text in list(dict.fromkeys(texts))[:3])


def check_labels(splits: Splits) -> None:
    """Raise InputError unless train has at least two classes and every class that the other splits
    have.
    """
    counts = Counter(r.label for r in splits["train"] if r.label is not None)
    if len(counts) < 2:
        raise InputError(
            f"data.label: all {len(splits['train'])} rows of train have the same label,"
            f" {shorten(next(iter(counts)))}; classification needs at least two"
        )
    for name, records in splits.items():
        for record in records:
            if record.label not in counts:
                raise InputError(
                    f"data.{name}: {record.place}: label {shorten(record.label)} is nowhere in"
                    " train, which has"
                    f" {', '.join(shorten(label, 30) for label in sorted(counts)[:20])}"
                )
