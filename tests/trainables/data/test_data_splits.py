from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from trainables.data import splits
from trainables.data.records import Record, duplicate_key
from trainables.data.store import RowWriter
from trainables.errors import InputError


def records(labels, groups=None, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return [
        Record(
            value={"text": text},
            place=f"row {i + 1}",
            key=duplicate_key(text),
            shown=text,
            label=label,
            group=None if groups is None else str(groups[i]),
        )
        for i, (label, text) in enumerate(zip(labels, texts, strict=True))
    ]


@pytest.fixture(autouse=True)
def stored(tmp_path):
    """Records go through a store on disk, whose numbers the functions take and give."""
    STORES["folder"] = tmp_path


STORES = {}


def store_of(rows):
    writer = RowWriter(STORES["folder"] / f"rows-{len(list(STORES['folder'].iterdir()))}.arrow")
    for row in rows:
        writer.add(row)
    return writer.close()


def split_by_share(rows, shares, seed):
    found = splits.split_by_share(store_of(rows), np.arange(len(rows)), shares, seed)
    return {name: [rows[i] for i in numbers] for name, numbers in found.items()}


def separate(given, duplicates):
    every = [row for rows in given.values() for row in rows]
    ends = np.cumsum([len(rows) for rows in given.values()])
    numbers = {
        name: np.arange(end - len(rows), end)
        for (name, rows), end in zip(given.items(), ends, strict=True)
    }
    kept, found = splits.separate(store_of(every), numbers, duplicates)
    return {name: [every[i] for i in rows] for name, rows in kept.items()}, found


def draw_rows(rows, most, seed):
    return [rows[i] for i in splits.draw_rows(store_of(rows), np.arange(len(rows)), most, seed)]


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_kept_for_every_label(seed):
    labels = np.random.default_rng(seed).choice(["a", "b", "c"], 1000, p=[0.8, 0.15, 0.05])
    splits = split_by_share(records(labels), {"validation": 0.2, "test": 0.1}, seed)
    assert sum(map(len, splits.values())) == 1000
    for label, count in Counter(labels).items():
        for name, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
            assert abs(sum(r.label == label for r in splits[name]) - share * count) <= 1.5


def test_language_models_have_no_labels_and_shares_all_the_same():
    assert {
        k: len(v) for k, v in split_by_share(records([None] * 50), {"validation": 0.1}, 0).items()
    } == {
        "train": 45,
        "validation": 5,
    }


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_labels_keep_their_shares_closely(seed):
    random = np.random.default_rng(seed)
    groups = np.repeat(
        np.arange(150), random.integers(1, 40, 150)
    )  # some 3,000 rows, unlike in size
    lean = random.random(150)  # and unlike in labels
    labels = ["a" if random.random() < lean[g] else "b" for g in groups]
    splits = split_by_share(records(labels, groups), {"validation": 0.2, "test": 0.2}, seed)
    seen = [{r.group for r in rows} for rows in splits.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 150
    overall = labels.count("a") / len(labels)
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        rows = splits[name]
        assert abs(len(rows) / len(labels) - share) < 0.02
        assert abs(sum(r.label == "a" for r in rows) / len(rows) - overall) < 0.03


def test_a_large_group_does_not_land_in_a_small_split():
    groups = [0] * 500 + list(range(1, 501))
    for seed in range(10):
        splits = split_by_share(records(["a", "b"] * 500, groups), {"validation": 0.1}, seed)
        assert 80 <= len(splits["validation"]) <= 120


@pytest.mark.parametrize("is_grouped", [False, True])
def test_documents_and_groups_of_a_small_split_are_as_large_as_those_of_train(is_grouped):
    random = np.random.default_rng(0)
    sizes = random.integers(130, 256, 400)  # characters of a document
    rows = records([None] * 400)
    if is_grouped:  # or rows of a group
        sizes = random.integers(9, 16, 200)
        rows = records([None] * sizes.sum(), np.repeat(np.arange(200), sizes))
    else:
        rows = [replace(row, weight=int(size)) for row, size in zip(rows, sizes, strict=True)]

    def mean(rows):
        whole = sum(row.weight for row in rows)
        return whole / len({row.group if is_grouped else row.place for row in rows})

    means = []
    for seed in range(8):
        splits = split_by_share(rows, {"validation": 0.1, "test": 0.1}, seed)
        means.append([mean(each) for each in splits.values()])
    train, *others = np.mean(means, axis=0)
    assert np.abs(np.array(others) / train - 1).max() < 0.03


def test_rows_that_differ_in_case_and_white_space_stay_together():
    texts = [f"{'Some  TEXT' if i % 2 else 'some text'} {i // 4}" for i in range(400)]
    splits = split_by_share(records(["a", "b"] * 200, texts=texts), {"validation": 0.25}, 0)
    assert not {r.key for r in splits["train"]} & {r.key for r in splits["validation"]}
    assert len(splits["validation"]) == 100


def test_the_seed_decides_and_order_is_kept():
    rows = records(["a", "b"] * 100)
    first, again, other = (
        split_by_share(rows, {"validation": 0.3}, seed)["validation"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert [rows.index(r) for r in first] == sorted(rows.index(r) for r in first)


def test_a_class_of_one_row_cannot_be_split():
    with pytest.raises(InputError) as error:
        split_by_share(records(["a"] * 9 + ["rare"]), {"validation": 0.1, "test": 0.1}, 0)
    assert str(error.value) == (
        "data.label: 'rare' (row 10) has a single row, too few to be both in train and in validation or test; leave it "
        "out, or give data.validation as a file"
    )


def test_several_classes_of_one_row_are_named_together():
    rows = records(["a"] * 9 + ["cats", "dogs", "cows", "hens", "catz"])
    with pytest.raises(InputError) as error:
        split_by_share(rows, {"validation": 0.1}, 0)
    assert str(error.value) == (
        "data.label: 'cats' (row 10), 'dogs', 'cows' and 2 more have a single row, too few to be both in train and in "
        "validation; leave it out, or give data.validation as a file. Did you mean 'catz'?"
    )


def test_labels_that_train_lacks_are_counted_and_the_nearest_is_named():
    train = [f"class {i}" for i in range(30)]
    store = store_of(records(train + ["clas 7", "class 1", "clas 7", "other"]))
    parts = {"train": np.arange(30), "validation": np.arange(30, 34)}
    with pytest.raises(InputError) as error:
        splits.check_labels(store, parts)
    first = ", ".join(map(repr, sorted(train)[:20]))
    assert str(error.value) == (
        f"data.validation: row 31: label 'clas 7' is nowhere in train, which has {first} and 10 more; 3 rows of "
        "validation have 2 such label(s). Did you mean 'class 7'?"
    )


class _Counting(tuple):
    """Names of classes that count how often they are looked through."""

    looked = 0

    def index(self, *given):
        _Counting.looked += 1
        return super().index(*given)


def test_many_classes_are_checked_without_looking_each_up_among_all():
    store = store_of(records([f"class {i}" for i in range(300)] * 2))
    counting = replace(store, labels=replace(store.labels, names=_Counting(store.labels.names)))
    splits.check_labels(counting, {"train": np.arange(300), "validation": np.arange(300, 600)})
    assert _Counting.looked == 0


def test_duplicates_across_splits_are_refused_with_examples():
    splits = {
        "train": records(["a"] * 4, texts=["One", "two", "three", "four"]),
        "validation": records(["a"] * 3, texts=["TWO ", "one", "five"]),
    }
    with pytest.raises(InputError) as error:
        separate(splits, "error")
    assert str(error.value) == (
        "data.duplicates: 2 row(s) of train are also in validation (case and white space ignored), such as 'One', "
        "'two'; remove them, or set data.duplicates=drop to leave them out of train"
    )


def test_dropped_duplicates_leave_test_whole_and_train_last():
    splits = {
        "train": records(["a"] * 5, texts=["one", "two", "three", "own", "own"]),
        "validation": records(["a"] * 3, texts=["two", "three", "mine"]),
        "test": records(["a"] * 3, texts=["three", "THREE", "four"]),
    }
    kept, duplicates = separate(splits, "drop")
    assert {name: [r.shown for r in rows] for name, rows in kept.items()} == {
        "train": ["one", "own", "own"],
        "validation": ["two", "mine"],
        "test": ["three", "THREE", "four"],
    }
    assert list(kept) == ["train", "validation", "test"]
    assert duplicates.dropped == {"train": 2, "validation": 1, "test": 0}
    assert duplicates.inside == {"train": 1, "validation": 0, "test": 1}


def test_texts_with_two_labels_are_counted():
    _, duplicates = separate(
        {"train": records(["a", "b", "a", "a"], texts=["x", "X", "y", "y"])}, "error"
    )
    assert duplicates.two_labels == 1


@pytest.mark.parametrize("duplicates", ["error", "drop"])
def test_a_group_in_two_given_splits_is_always_refused(duplicates):
    splits = {
        "train": records(["a"] * 3, groups=[1, 2, 3], texts=["a", "b", "c"]),
        "validation": records(["a"] * 3, groups=[3, 2, 4], texts=["d", "e", "f"]),
    }
    with pytest.raises(InputError) as error:
        separate(splits, duplicates)
    assert str(error.value) == (
        "data.group: 2 group(s) are in both train and validation, such as '2', '3'; rows of one group must be in one "
        "split"
    )


def test_drawn_rows_are_exactly_as_many_keep_shares_and_nest():
    rows = records(["a"] * 700 + ["b"] * 300)
    drawn = draw_rows(rows, 101, seed=0)
    assert len(drawn) == 101
    assert abs(sum(r.label == "a" for r in drawn) - 70.7) <= 1
    assert drawn == draw_rows(rows, 101, seed=0) != draw_rows(rows, 101, seed=1)
    assert set(map(id, drawn)) < set(map(id, draw_rows(rows, 500, seed=0)))
    assert draw_rows(rows, 5000, seed=0) == rows


def test_a_class_of_one_row_that_is_likely_a_typo_is_told_so():
    with pytest.raises(InputError, match=r"as a file\. Did you mean 'billing'\?$"):
        split_by_share(
            records(["billing"] * 9 + ["other"] * 9 + ["biling"]), {"validation": 0.1}, 0
        )
