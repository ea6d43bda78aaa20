"""Rows of an earlier sweep among those of train."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from tests.trainables.data.test_data_prepare import tokenizer, words  # noqa: F401
from trainables.data.arrow import Split, split_fingerprint
from trainables.data.config import DataConfig, Replay
from trainables.data.prepare import prepare
from trainables.data.replay import with_replay
from trainables.errors import InputError


def write(path, texts, labels=("no", "yes")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, labels[i % len(labels)]) for i, text in enumerate(texts))
    return str(path)


class Two:
    """What two sweeps have prepared, the second with some of the first one's rows in what it measures."""

    def __init__(self, folder, tokenizer, task="classification", **changes):  # noqa: F811
        random = np.random.default_rng(0)
        labels = (0.5, 1.5, 3.0) if task == "regression" else ("no", "yes")
        old = [words(random, 5 + i % 4) for i in range(60)]
        new = [words(random, 5 + i % 4) for i in range(60)]
        measured = [f"  {old[0]} ", old[1], *new[40:50]]
        self.folder, self.tokenizer, self.old = folder, tokenizer, old
        first = DataConfig(
            train=write(folder / "old.csv", old[:50], labels),
            validation=write(folder / "old_validation.csv", old[50:], labels),
            max_length=16,
        )
        second = DataConfig(
            train=write(folder / "new.csv", new[:40], changes.pop("labels", labels)),
            validation=write(folder / "validation.csv", measured, labels),
            test=write(folder / "test.csv", [old[2], old[3], *new[50:]], labels),
            max_length=16,
        )
        prepare(first, changes.pop("former", task), tokenizer, 0, folder / "earlier" / "data")
        self.manifest = prepare(second, task, tokenizer, 0, folder / "later")

    def replayed(self, share, **changes):
        return with_replay(
            replace(self.manifest, **changes),
            self.folder / "later",
            self.folder / "earlier" / "data",
            Replay(share=share),
            self.tokenizer,
        )


def texts(split, tokenizer):  # noqa: F811
    ids = [row["input_ids"].tolist() for row in split.rows(range(len(split)))]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("task", ["classification", "regression", "causal_lm"])
def test_a_share_of_the_rows_is_the_earlier_sweeps(tmp_path, tokenizer, task):  # noqa: F811
    two = Two(tmp_path, tokenizer, task)
    before = Split(tmp_path / "later" / "train.arrow")
    own, rows = before.rows(range(len(before))), len(before)
    manifest = two.replayed(0.2)
    after = Split(tmp_path / "later" / "train.arrow")
    count = round(rows * 0.25)
    assert len(after) == rows + count and manifest.train.replayed == count
    for row, kept in zip(own, after.rows(range(rows)), strict=True):
        assert row.keys() == kept.keys()
        assert all(np.array_equal(row[name], kept[name]) for name in row)
    earlier = Split(tmp_path / "earlier" / "data" / "train.arrow")
    known = [
        (row["input_ids"].tobytes(), np.asarray(row["labels"]).tobytes())
        for row in earlier.rows(range(len(earlier)))
    ]
    taken = [
        (row["input_ids"].tobytes(), np.asarray(row["labels"]).tobytes())
        for row in after.rows(range(rows, len(after)))
    ]
    assert len(set(taken)) == count and set(taken) <= set(known)
    train = manifest.train
    assert train.rows == len(after) and train.tokens == after.lengths.sum()
    assert train.fingerprint == split_fingerprint(tmp_path / "later" / "train.arrow")
    assert train.targets == (train.rows if task != "causal_lm" else train.tokens - train.rows)
    if task == "classification":
        assert sum((train.label_counts or {}).values()) == train.rows


def test_rows_that_are_measured_are_not_taken(tmp_path, tokenizer):  # noqa: F811
    """Neither those of validation, whatever their white space, nor those of test."""
    two = Two(tmp_path, tokenizer)
    manifest = two.replayed(46 / 86)
    found = texts(Split(tmp_path / "later" / "train.arrow"), tokenizer)[40:]
    assert sorted(found) == sorted(two.old[4:50])
    assert "4 of its rows are measured here and left out" in manifest.findings[-1].message
    assert not (tmp_path / "later" / "test.arrow").exists()


def test_the_seed_draws_them(tmp_path, tokenizer):  # noqa: F811
    found = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        Two(folder, tokenizer).replayed(0.2, seed=seed)
        found.append(texts(Split(folder / "later" / "train.arrow"), tokenizer)[40:])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("share", "changes", "message"),
    [
        (0.9, {}, "a share of 0.9 beside 40 rows takes 360 of the 46 rows .* be at most 0.534"),
        (0.001, {}, "takes 0 of the 46 rows .* must take one or more"),
        (0.1, {"former": "causal_lm"}, "its task is causal_lm, and this one's classification"),
        (0.1, {"labels": ("no", "yes", "new")}, "its labels are no, yes, and these new, no, yes"),
    ],
)
def test_rows_that_do_not_suit_are_refused(tmp_path, tokenizer, share, changes, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        Two(tmp_path, tokenizer, **changes).replayed(share)


@pytest.mark.parametrize(
    "given", [0, 1.0, True, "0.1", {"source": "runs/first"}, {"share": 0.1, "weight": 2}]
)
def test_what_replay_may_be(given):
    with pytest.raises(InputError, match=r"^data.replay: must be the share .*, got "):
        DataConfig(train="x.csv", replay=given)


def test_replay_names_another_sweep():
    assert Replay.of({"share": 0.1, "source": "runs/a"}) == Replay(share=0.1, source="runs/a")


@pytest.mark.parametrize("task", ["seq2seq", "preference"])
def test_all_that_a_row_has_is_replayed(tmp_path, tokenizer, task):  # noqa: F811
    """Its target, where that is another text, and where the second of two answers begins."""
    random = np.random.default_rng(0)

    def row():
        one, two, three = (words(random, 5) for _ in range(3))
        if task == "seq2seq":
            return {"source": one, "target": two}
        return {"prompt": one, "chosen": two, "rejected": three}

    for name in ("earlier", "later"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(row()) for _ in range(40)))
        data = DataConfig(train=str(file), validation=0.2, max_length=64)
        manifest = prepare(data, task, tokenizer, 0, tmp_path / name / "data")
    earlier, own = (
        Split(tmp_path / name / "data" / "train.arrow") for name in ("earlier", "later")
    )
    rows, before = len(own), [shown(each) for each in own.rows(range(len(own)))]
    with_replay(
        manifest,
        tmp_path / "later" / "data",
        tmp_path / "earlier" / "data",
        Replay(share=0.2),
        tokenizer,
    )
    after = Split(tmp_path / "later" / "data" / "train.arrow")
    found = [shown(each) for each in after.rows(range(len(after)))]
    known = [shown(each) for each in earlier.rows(range(len(earlier)))]
    assert found[:rows] == before and len(found) > rows
    assert all(each in known for each in found[rows:])


def shown(row):
    return {name: np.asarray(value).tolist() for name, value in row.items()}
