"""Which rows are for training, for validation and for the test: disjoint, stratified, seeded."""

from collections import Counter, defaultdict
from dataclasses import dataclass

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
    for label, count in Counter(record.label for record in records).items():
        if count == 1 and label is not None:
            raise InputError(
                f"data.label: {shorten(label)} has a single row, too few to be both in train and in"
                f" {' or '.join(list(shares)[1:])}; leave it out, or give data.validation as a file"
            )
    units: dict[object, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        units[record.key if record.group is None else record.group].append(i)
    members = list(units.values())
    weights: list[Counter] = [Counter() for _ in members]  # of each label
    totals: Counter = Counter()
    for unit, weight in zip(members, weights, strict=True):
        for i in unit:
            weight[records[i].label] += records[i].weight
        totals.update(weight)
    sizes = [sum(weight.values()) for weight in weights]
    whole = sum(sizes)
    have: dict[str, Counter] = {name: Counter() for name in shares}
    filled = dict.fromkeys(shares, 0)
    chosen: dict[str, list[int]] = {name: [] for name in shares}

    def added_distance(name: str, unit: int) -> float:
        """How much the unit lengthens the distance of the split from its share of every label and
        of the whole.
        """
        share, size = shares[name], sizes[unit]
        by_label = sum(
            weight
            * (weight + 2 * (have[name][label] - share * totals[label]))
            / (share * totals[label])
            for label, weight in weights[unit].items()
        )
        return by_label + size * (size + 2 * (filled[name] - share * whole)) / (share * whole)

    order = stream("split", seed).permutation(len(members)).tolist()
    for unit in sorted(
        order, key=lambda unit: -sizes[unit].bit_length()
    ):  # stable: random among units of like size
        name = min(shares, key=lambda name, unit=unit: added_distance(name, unit))
        have[name].update(weights[unit])
        filled[name] += sizes[unit]
        chosen[name] += members[unit]
    return {name: [records[i] for i in sorted(indices)] for name, indices in chosen.items()}


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
    for i, name in enumerate(names):
        for other in names[:i]:
            shared = {r.group for r in splits[name]} & {r.group for r in splits[other]} - {None}
            if shared:
                raise InputError(
                    f"data.group: {len(shared)} group(s) are in both {name} and {other}, such as "
                    f"{_examples(sorted(shared))}; rows of one group must be in one split"
                )
    kept: Splits = {}
    dropped = {}
    for name in names:
        for other in kept:
            keys = {r.key for r in kept[other]}
            shared_rows = [r for r in splits[name] if r.key in keys]
            if shared_rows and duplicates == "error":
                raise InputError(
                    f"data.duplicates: {len(shared_rows)} row(s) of {name} are also in {other}"
                    " (case and white space ignored), such as"
                    f" {_examples([r.shown for r in shared_rows])}; remove them, or set"
                    f" data.duplicates=drop to leave them out of {name}"
                )
        elsewhere = {r.key for other in kept for r in kept[other]}
        kept[name] = [r for r in splits[name] if r.key not in elsewhere]
        dropped[name] = len(splits[name]) - len(kept[name])
    labels_of = defaultdict(set)
    for rows in kept.values():
        for r in rows:
            labels_of[r.key].add(r.label)
    return {name: kept[name] for name in splits}, Duplicates(
        dropped={name: dropped[name] for name in splits},
        inside={name: len(kept[name]) - len({r.key for r in kept[name]}) for name in splits},
        two_labels=sum(len(labels) > 1 for labels in labels_of.values()),
    )


def _examples(texts: list[str]) -> str:
    return ", ".join(shorten(text) for text in list(dict.fromkeys(texts))[:3])


def check_labels(splits: Splits) -> None:
    """Raise InputError unless train has at least two classes and every class that the other splits
    have.
    """
    counts = Counter(r.label for r in splits["train"])
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
