"""From sources to tokens: rows that cannot be used, mixtures, what is seen of tokens, what is kept for the next time."""

import csv
import errno
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainables.data import cache, processes, readers
from trainables.data.config import DataConfig
from trainables.data.doctor.examine import Examination
from trainables.data.manifest import read_manifest, source_words
from trainables.data.prepare import open_split, prepare, tokenise_split
from trainables.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word: w0 .. w99; all others are unknown."""
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *(f"w{i}" for i in range(100))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", model_max_length=64
    )


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *rows])
    return str(path)


def rows_of(count, start=0):
    return [(f"w{i % 100} w{i // 100} w{i % 7}", "ab"[i % 2]) for i in range(start, start + count)]


def kinds(manifest):
    return {finding.kind: finding for finding in manifest.findings}


# --- rows that cannot be used ---


BAD = [*rows_of(20), ("", "a"), *rows_of(10, 20), ("  ", "b"), ("w1 w2", ""), ("w1 w3", " ")]


def test_bad_rows_are_counted_and_the_first_are_named(tokenizer, tmp_path):
    file = write(tmp_path / "a.csv", BAD)
    with pytest.raises(InputError) as error:
        prepare(DataConfig(train=file), "classification", tokenizer, 0, tmp_path / "out")
    assert str(error.value) == (
        f"data.train: {file} row 21: 'text' is empty; 3 more row(s) cannot be used either: {file} row 32: 'text' is empty; "
        f"{file} row 33: 'label' is empty; mend them, or set data.bad_rows=drop to leave them out"
    )


def test_bad_rows_may_be_left_out_and_are_told_of(tokenizer, tmp_path):
    data = DataConfig(train=write(tmp_path / "a.csv", BAD), bad_rows="drop")
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert manifest.train.rows + manifest.validation.rows == 30
    finding = kinds(manifest)["bad_rows"]
    assert finding.rows == 4 and "row 21" in finding.examples[0]


def test_lines_that_are_no_rows_may_be_left_out_too(tokenizer, tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows_of(20)]
    file.write_text("\n".join([*lines[:5], "{oops", "[1]", *lines[5:]]))
    data = DataConfig(train=str(file), bad_rows="drop")
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert manifest.train.rows + manifest.validation.rows == 20
    assert kinds(manifest)["bad_rows"].rows == 2


# --- several sources ---


def test_several_files_are_one_split(tokenizer, tmp_path):
    files = [write(tmp_path / f"{i}.csv", rows_of(30, 30 * i)) for i in range(3)]
    whole = write(tmp_path / "whole.csv", rows_of(90))
    several = prepare(DataConfig(train=files), "classification", tokenizer, 0, tmp_path / "a")
    pattern = DataConfig(train=str(tmp_path / "[0-9].csv"))
    globbed = prepare(pattern, "classification", tokenizer, 0, tmp_path / "b")
    one = prepare(DataConfig(train=whole), "classification", tokenizer, 0, tmp_path / "c")
    assert several.train.fingerprint == globbed.train.fingerprint == one.train.fingerprint
    assert list(several.sources) == ["train[0]", "train[1]", "train[2]"]
    assert [of.source for of in several.sources_of("validation")] == files
    assert source_words(several.sources_of("train")) == ", ".join(files)
    assert source_words(several.sources_of("train") * 4) == f"12 sources below {tmp_path}"
    assert several.fingerprint == globbed.fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("seed", "changed"),
    [
        (0, {"validation": 0.2}),
        (0, {"test": 0.2}),
        (0, {"rows": 40}),
        (0, {"max_length": 4}),
        (1, {}),
    ],
)
def test_the_fingerprint_of_data_covers_what_they_depend_on(tokenizer, tmp_path, seed, changed):
    given = {"train": write(tmp_path / "a.csv", rows_of(90)), "validation": 0.1}
    one = prepare(DataConfig(**given), "classification", tokenizer, 0, tmp_path / "a")
    other = DataConfig(**(given | changed))
    made = prepare(other, "classification", tokenizer, seed, tmp_path / "b")
    assert made.fingerprint != one.fingerprint


def test_the_fingerprint_covers_how_a_test_split_will_become_tokens(tokenizer, tmp_path):
    files = {
        "train": write(tmp_path / "a.csv", rows_of(90)),
        "test": write(tmp_path / "b.csv", rows_of(9, 90)),
    }
    one, other = (
        prepare(
            DataConfig(**files, max_length=longest), "classification", tokenizer, 0, tmp_path / "c"
        )
        for longest in (63, 64)
    )
    assert one.splits == other.splits and one.fingerprint != other.fingerprint


@pytest.mark.parametrize(("weight", "most", "least"), [(2, 2, 2), (0.5, 1, 0), (1.5, 2, 1)])
def test_a_weight_says_how_often_a_row_stands_in_an_epoch(tokenizer, tmp_path, weight, most, least):
    one, other = write(tmp_path / "a.csv", rows_of(40)), write(tmp_path / "b.csv", rows_of(40, 40))
    data = DataConfig(train=[one, {"source": other, "weight": weight}], validation=0.1)
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    plain = prepare(DataConfig(train=[one, other]), "classification", tokenizer, 0, tmp_path / "p")
    counts, found = Counter(), Counter()
    for folder, counter in ((tmp_path / "out", counts), (tmp_path / "p", found)):
        split = open_split(folder, "train")
        counter.update(tuple(row["input_ids"].tolist()) for row in split.rows(range(len(split))))
    second = {tuple(tokenizer(text).input_ids) for text, _ in rows_of(40, 40)}
    times = [counts[ids] for ids in found if ids in second]
    assert {counts[ids] for ids in found if ids not in second} == {1}
    assert max(times) == most and min(times) == least
    assert sum(times) == round(weight * len(times))
    assert manifest.validation.fingerprint == plain.validation.fingerprint


@pytest.mark.parametrize("rows", [None, 30])
def test_weights_that_leave_a_class_out_are_named(tokenizer, tmp_path, rows):
    """And not the number of rows, which may be right."""
    one = write(tmp_path / "a.csv", rows_of(40))
    other = write(tmp_path / "b.csv", [(f"w{i} w3 w{i}", "c") for i in range(4)])
    held_out = write(tmp_path / "c.csv", [*rows_of(10, 60), ("w9 w9", "c")])
    data = DataConfig(train=[one, {"source": other, "weight": 0.1}], validation=held_out, rows=rows)
    with pytest.raises(InputError) as error:
        prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert str(error.value) == (
        "data.train: at weights below 1 no row of the label(s) c is left; raise the weights of the"
        " sources that have them"
    )


# --- what is seen of the tokens ---


def test_rows_that_no_model_can_tell_apart_are_told(tokenizer, tmp_path):
    rows = [*rows_of(40), ("😀", "a"), ("😡", "b"), ("😀 😀", "a"), ("😡 w1", "b")]
    manifest = prepare(
        DataConfig(
            train=write(tmp_path / "a.csv", rows),
            validation=write(tmp_path / "b.csv", [("😱", "a"), *rows_of(9, 60)]),
        ),
        "classification",
        tokenizer,
        0,
        tmp_path / "out",
    )
    messages = [f.line for f in manifest.findings if f.kind == "same_tokens"]
    assert len(messages) == 2
    assert "train: 2 row(s) have the same tokens as a row with another label" in messages[0]
    assert "a.csv row 41 and" in messages[0] and "a.csv row 42" in messages[0]
    assert (
        "validation: 1 row(s) have the same tokens as a row of train with another text"
        in messages[1]
    )


def test_labels_of_the_same_tokens_are_told(tokenizer, tmp_path):
    rows = [(text, {"a": "😀", "b": "😡"}[label]) for text, label in rows_of(40)]
    manifest = prepare(
        DataConfig(train=write(tmp_path / "a.csv", rows)),
        "classification",
        tokenizer,
        0,
        tmp_path / "o",
    )
    assert "'😀', '😡' are the same tokens" in kinds(manifest)["same_names"].message


# --- many rows ---


@pytest.fixture
def many(monkeypatch, tmp_path):
    """Few rows count as many: several processes tokenise them, and they are kept for the next time."""
    monkeypatch.setattr(processes, "MANY", 50)
    monkeypatch.setattr(readers, "PIECE_ROWS", 40)
    monkeypatch.setattr(processes.Processes, "count", 2)
    monkeypatch.setattr(cache, "ROWS", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "cross"), [("classification", False), ("causal_lm", False), ("causal_lm", True)]
)
def test_several_processes_give_what_one_gives(tokenizer, tmp_path, many, monkeypatch, task, cross):
    data = DataConfig(
        train=write(tmp_path / "a.csv", rows_of(400)),
        max_length=7,
        cross_documents=cross,
        duplicates="drop",
    )
    several = prepare(data, task, tokenizer, 0, tmp_path / "several")
    monkeypatch.setattr(processes, "MANY", 10**9)
    monkeypatch.setattr(readers, "PIECE_ROWS", 10**6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    one = prepare(data, task, tokenizer, 0, tmp_path / "one")
    assert several == one
    for name in ("train", "validation"):
        a, b = open_split(tmp_path / "several", name), open_split(tmp_path / "one", name)
        assert all(
            np.array_equal(x["input_ids"], y["input_ids"])
            and np.array_equal(x["labels"], y["labels"])
            for x, y in zip(a.rows(range(len(a))), b.rows(range(len(b))), strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_several_processes_read_what_one_reads(tokenizer, tmp_path, many, monkeypatch, kind):
    """With their places, what is wrong with some, and what is not used."""
    rows = [*rows_of(150), ("", "a"), *rows_of(150, 150), ("w1", ""), *rows_of(60, 300)]
    file = write(tmp_path / "a.csv", rows)
    if kind == ".jsonl":
        lines = [json.dumps({"text": text, "label": label, "more": 1}) for text, label in rows]
        lines[200] = "{"
        file = str(tmp_path / "a.jsonl")
        (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    data = DataConfig(train=file, bad_rows="drop", duplicates="drop")
    several = prepare(data, "classification", tokenizer, 0, tmp_path / "several")
    monkeypatch.setattr(processes, "MANY", 10**9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    one = prepare(data, "classification", tokenizer, 0, tmp_path / "one")
    assert several == one and "bad_rows" in kinds(one)
    for name in ("train.arrow", "validation.arrow", "validation.jsonl"):
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def exits(number):
    os._exit(1) if number == 3 else None
    return number


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of():
    with processes.Processes() as several:
        assert list(several.map(exits, range(3))) == [0, 1, 2]
        with pytest.raises(InputError, match="was killed, perhaps for want of memory"):
            list(several.map(exits, range(5)))


OWN = """
import json
import os

from transformers import PreTrainedTokenizer

from .words import words


class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "words.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, **options):
        with open(vocab_file) as file:
            self.numbers = json.load(file)
        super().__init__(**options)

    @property
    def vocab_size(self):
        return len(self.numbers)

    def get_vocab(self):
        return {**self.numbers, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return words(text)

    def _convert_token_to_id(self, token):
        return self.numbers.get(token, 0)

    def _convert_id_to_token(self, number):
        return next(word for word, i in self.numbers.items() if i == number)
"""


@pytest.mark.slow
def test_a_tokenizer_that_came_with_its_model_serves_several_processes(tmp_path, many, monkeypatch):
    """They cannot import its code, which transformers has put somewhere."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", f"{tmp_path}/modules")
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    (folder / "words.py").write_text("def words(text):\n    return text.split()\n")
    numbers = {w: i for i, w in enumerate(["<unk>", "</s>", *(f"w{i}" for i in range(100))])}
    (folder / "words.json").write_text(json.dumps(numbers))
    settings = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]},
        "unk_token": "<unk>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    own = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(200)), max_length=64)
    several = prepare(data, "classification", own, 0, tmp_path / "several")
    monkeypatch.setattr(processes, "MANY", 10**9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert prepare(data, "classification", own, 0, tmp_path / "one") == several


@pytest.mark.parametrize("system", ["Linux", "others"])
def test_processes_are_counted_on_every_system(tokenizer, tmp_path, monkeypatch, system):
    if system != "Linux":  # where an affinity is not known, or not in this way
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    assert prepare(data, "classification", tokenizer, 0, tmp_path / "out").train.rows == 135


@pytest.fixture
def read(monkeypatch):
    """Counts how often sources are collected."""
    import trainables.data.prepare as module

    calls, collect = [], module.collect
    monkeypatch.setattr(module, "collect", lambda *args: calls.append(1) or collect(*args))
    return calls


def test_the_same_data_are_prepared_once(tokenizer, tmp_path, many, read, monkeypatch):
    monkeypatch.setattr(processes, "MANY", 10**9)
    file = write(tmp_path / "a.csv", rows_of(150))
    first = prepare(DataConfig(train=file), "classification", tokenizer, 0, tmp_path / "1")
    again = prepare(DataConfig(train=file), "classification", tokenizer, 0, tmp_path / "2")
    assert first == again and len(read) == 1
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    ["file", "seed", "setting", "tokenizer", "tokenizer's setting", "library", "python", "damaged"],
)
def test_other_data_are_prepared_anew(tokenizer, tmp_path, many, read, monkeypatch, change):
    monkeypatch.setattr(processes, "MANY", 10**9)
    file = write(tmp_path / "a.csv", rows_of(150))
    prepare(DataConfig(train=file), "classification", tokenizer, 0, tmp_path / "1")
    data, seed = DataConfig(train=file), 0
    if change == "file":
        write(tmp_path / "a.csv", rows_of(151))
    elif change == "seed":
        seed = 1
    elif change == "setting":
        data = DataConfig(train=file, max_length=2)
    elif change == "tokenizer":
        import copy

        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(["w100"])
    elif change == "tokenizer's setting":
        import copy

        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs["split_special_tokens"] = True
    elif change == "library":
        monkeypatch.setattr(cache, "version", lambda name: f"{name} 99")
    elif change == "python":
        monkeypatch.setattr(cache, "python_version", lambda: "3.99.0")
    else:
        for path in (tmp_path / "cache").rglob("manifest.json"):
            path.unlink()
    prepare(data, "classification", tokenizer, seed, tmp_path / "2")
    assert len(read) == 2


def test_files_that_are_not_read_are_told_also_of_what_was_kept(
    tokenizer, tmp_path, many, read, monkeypatch
):
    monkeypatch.setattr(processes, "MANY", 10**9)
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "a.csv", rows_of(150))
    data, told = DataConfig(train=str(tmp_path / "d")), []
    for number in range(3):
        manifest = prepare(data, "classification", tokenizer, 0, tmp_path / str(number))
        told.append("unread_files" in kinds(manifest))
        (tmp_path / "d" / "b.md").write_text("x")
    assert told == [False, True, True] and len(read) == 2


def test_tokenizers_of_other_code_are_other_tokenizers(
    tokenizer, tmp_path, many, read, monkeypatch
):
    monkeypatch.setattr(processes, "MANY", 10**9)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.syspath_prepend(code)
    for number, line in enumerate(["pass", "pass", "split = 1"]):
        (code / "own_tokenizer.py").write_text(
            f"from transformers import PreTrainedTokenizerFast\n"
            f"class PreTrainedTokenizerFast(PreTrainedTokenizerFast):\n    {line}\n"
        )
        sys.modules.pop("own_tokenizer", None)
        importlib.invalidate_caches()
        made = importlib.import_module("own_tokenizer").PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", eos_token="</s>"
        )
        prepare(data, "classification", made, 0, tmp_path / str(number))
    sys.modules.pop("own_tokenizer")
    assert len(read) == 2


def test_a_file_that_is_written_to_between_its_fingerprint_and_its_rows_is_not_kept(
    tokenizer, tmp_path, many, monkeypatch
):
    import trainables.data.prepare as module

    monkeypatch.setattr(processes, "MANY", 10**9)
    file, collect = write(tmp_path / "a.csv", rows_of(150)), module.collect

    def collected(*args):
        write(tmp_path / "a.csv", rows_of(150, 1))
        return collect(*args)

    monkeypatch.setattr(module, "collect", collected)
    with pytest.raises(InputError, match="was changed while it was read"):
        prepare(DataConfig(train=file), "classification", tokenizer, 0, tmp_path / "1")
    assert not cache.cache_folder().exists() and not (tmp_path / "1" / "manifest.json").exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tokenizer, tmp_path, many, monkeypatch
):
    monkeypatch.setattr(processes, "MANY", 10**9)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    assert prepare(data, "classification", tokenizer, 0, tmp_path / "1").train.rows == 135


@pytest.mark.parametrize("fault", ["taken away", "cut off", "no manifest"])
def test_what_is_kept_and_not_whole_is_prepared_anew(
    tokenizer, tmp_path, many, read, monkeypatch, fault
):
    monkeypatch.setattr(processes, "MANY", 10**9)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    first = prepare(data, "classification", tokenizer, 0, tmp_path / "1")
    (kept,) = cache.cache_folder().iterdir()
    if fault == "taken away":  # by another process, while this one copies
        copied, copyfile = [], cache.shutil.copyfile

        def taken(source, target):
            if copied:
                raise FileNotFoundError(source)
            copied.append(copyfile(source, target))

        monkeypatch.setattr(cache.shutil, "copyfile", taken)
    elif fault == "cut off":
        (kept / "train.arrow").write_bytes((kept / "train.arrow").read_bytes()[:-200])
    else:
        (kept / "manifest.json").write_text("{")
    again = prepare(data, "classification", tokenizer, 0, tmp_path / "2")
    assert again == first and len(read) == 2
    assert len(open_split(tmp_path / "2", "train")) == first.train.rows
    if fault != "taken away":
        prepare(data, "classification", tokenizer, 0, tmp_path / "3")
        assert len(read) == 2  # what was damaged is replaced


def test_only_the_last_are_kept(tokenizer, tmp_path, many, monkeypatch):
    monkeypatch.setattr(processes, "MANY", 10**9)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    for seed in range(cache.KEPT + 2):
        prepare(data, "classification", tokenizer, seed, tmp_path / str(seed))
    assert len(list(cache.cache_folder().iterdir())) == cache.KEPT


@pytest.fixture
def alone(many, monkeypatch):
    """Kept by one process."""
    monkeypatch.setattr(processes, "MANY", 10**9)


def free(monkeypatch, size):
    """Let so many bytes be free on the cache's disk while nothing is kept."""

    def usage(path):
        held = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return SimpleNamespace(free=size - held)

    monkeypatch.setattr(cache.shutil, "disk_usage", usage)


def kept():
    """Sizes of what is kept; nothing else may lie there."""
    found = list(cache.cache_folder().iterdir()) if cache.cache_folder().exists() else []
    assert all((path / "manifest.json").exists() for path in found)
    return sum(sum(file.stat().st_size for file in path.iterdir()) for path in found), len(found)


def test_what_is_kept_takes_a_tenth_of_the_free_disk_at_most(
    tokenizer, tmp_path, alone, monkeypatch
):
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    prepare(data, "classification", tokenizer, 0, tmp_path / "0")
    one = kept()[0]
    free(monkeypatch, 25 * one)
    for seed in range(1, 4):
        prepare(data, "classification", tokenizer, seed, tmp_path / str(seed))
        held, count = kept()
        assert count == 2 and held <= 2.5 * one
    free(monkeypatch, 12 * one)  # as others fill the disk
    prepare(data, "classification", tokenizer, 4, tmp_path / "4")
    assert kept()[1] == 1
    free(monkeypatch, 9 * one)
    prepare(data, "classification", tokenizer, 5, tmp_path / "5")
    assert kept() == (0, 0)
    (cache.cache_folder() / ".DS_Store").write_text("")  # who looks into it
    free(monkeypatch, 25 * one)
    prepare(data, "classification", tokenizer, 6, tmp_path / "6")
    (cache.cache_folder() / ".DS_Store").unlink()
    assert kept()[1] == 1


@pytest.mark.parametrize("fails", ["copyfile", "mkdir", "replace", "home"])
def test_a_cache_on_a_full_or_broken_disk_costs_time_and_no_more(
    tokenizer, tmp_path, alone, monkeypatch, fails
):
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    copied, copyfile = [], cache.shutil.copyfile

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def at_last(source, target):
        copied.append(source)
        return copyfile(source, target) if len(copied) < 3 else full()

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as broken:
        if fails == "copyfile":
            broken.setattr(cache.shutil, "copyfile", at_last)
        elif fails == "mkdir":
            broken.setattr(cache.tempfile, "TemporaryDirectory", full)
        elif fails == "replace":
            replace = os.replace
            own = str(cache.cache_folder())
            broken.setattr(os, "replace", lambda a, b: full() if own in str(b) else replace(a, b))
        else:
            broken.delenv("XDG_CACHE_HOME")
            broken.setattr(Path, "home", homeless)
        first = prepare(data, "classification", tokenizer, 0, tmp_path / "1")
    assert first.train.rows == 135 and kept() == (0, 0)
    prepare(data, "classification", tokenizer, 0, tmp_path / "2")
    assert kept()[1] == 1


def test_a_cache_that_can_only_be_read_is_read(tokenizer, tmp_path, alone, read, monkeypatch):
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    first = prepare(data, "classification", tokenizer, 0, tmp_path / "1")

    def refused(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert prepare(data, "classification", tokenizer, 0, tmp_path / "2") == first
    assert len(read) == 1


@pytest.mark.parametrize("moment", ["copied", "moved"])
def test_two_that_prepare_the_same_at_once_both_get_all(
    tokenizer, tmp_path, alone, read, monkeypatch, moment
):
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    of_module, name = (cache, "_copy") if moment == "copied" else (os, "replace")
    plain, others = getattr(of_module, name), []

    def while_another_is_faster(source, target):
        if not others and str(cache.cache_folder()) in str(target):
            others.append(None)
            others.append(prepare(data, "classification", tokenizer, 0, tmp_path / "other"))
        return plain(source, target)

    monkeypatch.setattr(of_module, name, while_another_is_faster)
    mine = prepare(data, "classification", tokenizer, 0, tmp_path / "mine")
    assert others == [None, mine] and len(read) == 2 and kept()[1] == 1
    assert prepare(data, "classification", tokenizer, 0, tmp_path / "later") == mine
    assert len(read) == 2
    for folder in ("mine", "other", "later"):
        assert len(open_split(tmp_path / folder, "train")) == mine.train.rows


@pytest.mark.slow
def test_processes_that_prepare_the_same_at_once_all_get_all(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "a.csv", rows_of(150))
    script = tmp_path / "prepares.py"
    script.write_text(PREPARES)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(number)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n")[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0] and len(set(told)) == 1
    (found,) = (tmp_path / "cache" / "finetune-sweeps" / "data").iterdir()
    assert read_manifest(found).train.rows == 135


PREPARES = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from trainables.data import cache
from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare

folder, number = Path(sys.argv[1]), sys.argv[2]
cache.ROWS = 100
tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
print("ready", flush=True)
sys.stdin.readline()
for i in range(10):
    out = folder / f"{number}-{i}"
    manifest = prepare(DataConfig(train=str(folder / "a.csv")), "classification", tokenizer, 0, out)
    assert len(open_split(out, "train")) == manifest.train.rows == 135
print(manifest.train.fingerprint, manifest.validation.fingerprint)
"""


# --- conversations ---


def chat(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversations(count, **more):
    return [
        {"prompt": f"w{i} w{i // 100} ", "completion": f"w{i % 50} w1 w2", **more}
        for i in range(count)
    ]


def test_a_template_of_the_sweep_lies_beside_the_data_and_serves_the_test_split(
    tokenizer, tmp_path
):
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role[:1] + ' ' + m.content + ' ' }}{% if m.role == 'assistant' %}{{ eos_token + ' ' }}"
        "{% endif %}{% endfor %}"
    )
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", conversations(60)), test=0.2, chat_template=str(template)
    )
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    assert manifest.chat_template == str(template)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template.read_text()
    template.unlink()  # as on another machine
    tokenise_split(tmp_path / "out", "test", tokenizer)
    row = open_split(tmp_path / "out", "test").rows([0])[0]
    text = tokenizer.decode(row["input_ids"])
    assert text.startswith("<unk> w") and text.endswith("</s>")  # u w... a w... </s>
    assert tokenizer.chat_template is None  # what the caller holds is as it was


@pytest.mark.parametrize("setting", ["tokenizer", "default", "none"])
def test_other_templates_need_no_file_or_are_written_too(tokenizer, tmp_path, setting):
    import copy

    own = copy.deepcopy(tokenizer)
    if setting == "tokenizer":
        own.chat_template = "{% for m in messages %}{{ m.content + ' ' + eos_token }}{% endfor %}"
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", conversations(60)),
        chat_template="none" if setting == "none" else None,
    )
    manifest = prepare(data, "instruction", own, 0, tmp_path / "out")
    assert manifest.chat_template == setting
    assert (tmp_path / "out" / "chat_template.jinja").exists() == (setting == "default")


def test_weights_in_some_rows_only_are_written_for_all(tokenizer, tmp_path, monkeypatch):
    """The first batches of the file have none."""
    monkeypatch.setattr("trainables.data.store.ROWS", 10)
    rows = [*conversations(45), *conversations(90, weight=0.25)[45:]]
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", rows),
        validation=chat(tmp_path / "b.jsonl", conversations(120)[100:]),
    )
    prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    for number, row in enumerate(split.rows(range(len(split)))):
        weights = row["weights"][row["labels"] != -100]
        assert set(weights.tolist()) == {0.25 if number >= 45 else 1.0}
    assert "weights" not in open_split(tmp_path / "out", "validation").rows([0])[0]


def test_endings_that_are_cut_off_are_told(tokenizer, tmp_path):
    rows = [{"prompt": f"w{i}", "completion": "w1 " * 40 + f"w{i}"} for i in range(40)]
    data = DataConfig(train=chat(tmp_path / "a.jsonl", rows), max_length=20)
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    assert any("36 of 36 conversations lose their end" in note for note in manifest.notes)


LEFT_OUT = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content + ' ' + eos_token + ' ' }}{% endif %}{% endfor %}"


def test_what_a_template_leaves_out_is_told_or_refused(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(LEFT_OUT)
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", conversations(60, system="w9")),
        chat_template=str(tmp_path / "t.jinja"),
    )
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    assert kinds(manifest)["unrendered"].message.startswith(
        "validation: the chat template leaves out the system message of 6"
    )
    with pytest.raises(
        InputError,
        match=r"^data.train: the chat template leaves out the system message of 54 row\(s\)",
    ):
        prepare(replace(data, unrendered="error"), "instruction", tokenizer, 0, tmp_path / "out")


def test_rows_that_a_template_refuses_are_bad_rows(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% if 'w3' in messages[0].content %}{{ raise_exception('no w3') }}{% endif %}" + LEFT_OUT
    )
    file = chat(tmp_path / "a.jsonl", conversations(30))
    data = DataConfig(
        train=file,
        validation=chat(tmp_path / "b.jsonl", conversations(50)[40:]),
        chat_template=str(tmp_path / "t.jinja"),
    )
    with pytest.raises(InputError) as error:
        prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    assert str(error.value) == (
        f"data.train: {file} line 4: the chat template refuses this conversation: no w3; mend it, or"
        " set data.bad_rows=drop to leave it out"
    )
    manifest = prepare(
        replace(data, bad_rows="drop"), "instruction", tokenizer, 0, tmp_path / "out"
    )
    assert manifest.train.rows == 29 and kinds(manifest)["bad_rows"].rows == 1


@pytest.fixture
def today(monkeypatch):
    """What the clock of a chat template shows."""
    import trainables.data.prepare as module
    from trainables.tasks.instruction import templates

    shown = ["2025-01-31T23:59:59"]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(shown[-1])

    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(templates, "datetime", Clock)
    return shown


DATED = (
    "{{ 'w' + strftime_now('%d') + ' ' }}{% for m in messages %}{{ m.content + ' ' + eos_token + ' ' }}"
    "{% endfor %}"
)


def test_all_rows_are_rendered_on_one_day(tokenizer, tmp_path, today):
    """Also those of the test split, however long the sweep takes."""
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = DATED
    data = DataConfig(train=chat(tmp_path / "a.jsonl", conversations(60)), test=0.2)
    manifest = prepare(data, "instruction", own, 0, tmp_path / "out")
    assert kinds(manifest)["dated"].message.endswith("all rows are rendered with 2025-01-31")
    today.append("2025-02-01T00:00:01")
    counted = tokenise_split(tmp_path / "out", "test", own)
    assert counted.tokens == manifest.splits["test"].tokens
    for name in ("train", "validation", "test"):
        split = open_split(tmp_path / "out", name)
        assert {own.decode(row["input_ids"][:1]) for row in split.rows(range(len(split)))} == {
            "w31"
        }


def test_rows_with_the_date_are_prepared_anew_on_another_day(
    tokenizer, tmp_path, many, read, today, monkeypatch
):
    import copy

    monkeypatch.setattr(processes, "MANY", 10**9)
    own = copy.deepcopy(tokenizer)
    file = chat(tmp_path / "a.jsonl", conversations(150))
    for template, days in ((PLAIN, 1), (DATED, 2)):
        own.chat_template = template
        for moment in ("2025-01-31T08:00:00", "2025-01-31T09:00:00", "2025-02-01T08:00:00"):
            today.append(moment)
            prepare(DataConfig(train=file), "instruction", own, 0, tmp_path / f"{days} {moment}")
        assert len(read) == days
        read.clear()


PLAIN = "{% for m in messages %}{{ m.content + ' ' + eos_token + ' ' }}{% endfor %}"


def test_without_rendering_the_template_of_the_tokenizer_does_not_matter(tokenizer, tmp_path):
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = PLAIN
    file = chat(tmp_path / "a.jsonl", conversations(60))
    prepare(
        DataConfig(train=file, test=0.2, chat_template="none"),
        "instruction",
        own,
        0,
        tmp_path / "out",
    )
    assert tokenise_split(tmp_path / "out", "test", own).rows == 12


@pytest.fixture
def refusing(tokenizer, tmp_path):
    """A tokenizer whose template refuses one row of the test split, and the data."""
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% if 'w13' in messages[0].content and 'w77' in messages[0].content %}"
        "{{ raise_exception('no') }}{% endif %}" + PLAIN
    )
    test = chat(
        tmp_path / "b.jsonl",
        [{"prompt": f"w{i} w77 ", "completion": "w5 w6 w7"} for i in range(10, 20)],
    )
    return own, DataConfig(train=chat(tmp_path / "a.jsonl", conversations(60)), test=test)


def test_rows_that_the_template_refuses_are_left_out_of_the_test_split_too(refusing, tmp_path):
    own, data = refusing
    data = replace(data, bad_rows="drop")
    manifest = prepare(data, "instruction", own, 0, tmp_path / "out")
    (finding,) = [each for each in manifest.findings if each.kind == "bad_rows"]
    assert (finding.split, finding.rows) == ("test", 1) and "b.jsonl line 4" in finding.line
    assert [path.name for path in (tmp_path / "out").glob("test*")] == ["test.jsonl"]
    scored = tokenise_split(tmp_path / "out", "test", own)
    assert scored.rows == 9
    counted = manifest.splits["test"]
    for name in ("rows", "tokens", "targets", "truncated", "dropped", "longest", "mean_length"):
        assert getattr(counted, name) == getattr(scored, name)


def test_a_test_split_that_the_template_refuses_is_refused_in_preparation(refusing, tmp_path):
    """Not when it is scored, hours later."""
    own, data = refusing
    with pytest.raises(InputError, match=r"b\.jsonl line 4: the chat template refuses"):
        prepare(data, "instruction", own, 0, tmp_path / "out")


def test_a_test_split_of_which_no_answer_is_left_is_refused_in_preparation(tokenizer, tmp_path):
    long = [{"prompt": "w1 " * 40 + f"w{i}", "completion": "w5"} for i in range(10)]
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", conversations(60)),
        test=chat(tmp_path / "b.jsonl", long),
        max_length=20,
    )
    with pytest.raises(
        InputError, match=r"^data\.max_length: in none of 10 rows \(.*b\.jsonl line 1 "
    ):
        prepare(data, "instruction", tokenizer, 0, tmp_path / "out")


def test_what_is_cut_and_left_out_of_the_test_split_is_told(tokenizer, tmp_path):
    rows = [
        {"prompt": "w1 " * (40 if i < 3 else 5) + f"w{i}", "completion": "w5"} for i in range(10)
    ]
    data = DataConfig(
        train=chat(tmp_path / "a.jsonl", conversations(60)),
        test=chat(tmp_path / "b.jsonl", rows),
        max_length=20,
    )
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    told = {each.kind: each.rows for each in manifest.findings if each.split == "test"}
    assert told["no_answer"] == 3 and told["truncated"] == 3
    assert tokenise_split(tmp_path / "out", "test", tokenizer).dropped == 3


def test_a_template_of_former_data_in_the_folder_is_not_taken(tokenizer, tmp_path):
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = PLAIN
    data = DataConfig(train=chat(tmp_path / "a.jsonl", conversations(60)), test=0.2)
    prepare(replace(data, chat_template="chatml"), "instruction", own, 0, tmp_path / "out")
    prepare(data, "instruction", own, 0, tmp_path / "out")
    assert tokenise_split(tmp_path / "out", "test", own).rows == 12


def test_what_rows_are_compared_with_is_part_of_what_is_kept(
    tokenizer, tmp_path, many, monkeypatch
):
    monkeypatch.setattr(processes, "MANY", 10**9)
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)))
    told = []

    class Watched(Examination):
        def __call__(self, prepared):
            told.extend(self.others)
            return iter(())

    for name in ("one", "other", "one"):
        look = Watched(others={name: [f"{name} w1 w2"]})
        prepare(data, "classification", tokenizer, 0, tmp_path / "out", None, look)
    assert told == ["one", "other"]


def test_another_end_of_sequence_is_another_tokenizer(tokenizer, tmp_path, many, monkeypatch):
    import copy

    monkeypatch.setattr(processes, "MANY", 10**9)
    both = copy.deepcopy(tokenizer)
    both.add_special_tokens({"additional_special_tokens": ["<end>"]})
    other = copy.deepcopy(both)
    other.eos_token = "<end>"  # only the settings beside the tokenizer's rules say so
    data = DataConfig(train=write(tmp_path / "a.csv", rows_of(150)), duplicates="drop")
    last = []
    for number, each in enumerate((both, other)):
        prepare(data, "causal_lm", each, 0, tmp_path / str(number))
        last.append(open_split(tmp_path / str(number), "train").rows([0])[0]["input_ids"][-1])
    assert last == [both.eos_token_id, other.eos_token_id] and last[0] != last[1]


# --- what is measured, and what rows belong to ---


def test_what_is_measured_has_no_weight(tmp_path):
    with pytest.raises(InputError, match=r"^data.validation: a weight says how often"):
        DataConfig(train="a.csv", validation=[{"source": "b.csv", "weight": 2}])


def test_unknown_tokens_are_those_of_the_rows_that_are_kept(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"x{i}" for i in range(2000)))
    other = chat(tmp_path / "b.jsonl", [{"text": "w1 w2 w3"}])
    data = DataConfig(train=str(tmp_path / "a.txt"), validation=other, max_length=8, rows=10)
    train = prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out").train
    assert (
        train.rows == 10 and train.tokens - 1 <= train.unknown <= train.tokens
    )  # one may be the end


@pytest.mark.parametrize("is_first", [True, False])
def test_text_files_beside_grouped_rows_are_each_for_themselves(tokenizer, tmp_path, is_first):
    table = chat(
        tmp_path / "a.jsonl",
        [{"text": f"w{i} w{i + 1} w{i % 9} " * 3, "author": f"p{i % 8}"} for i in range(40)],
    )
    files = []
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"w{i * j % 100}" for j in range(1, 18)))
        files.append(str(tmp_path / f"{i}.txt"))
    train = [*files, table] if is_first else [table, *files]
    data = DataConfig(train=train, group="author", validation=0.25, max_length=8)
    manifest = prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    lines = (tmp_path / "out" / "validation.jsonl").read_text().splitlines()
    groups = [json.loads(line).get("group") for line in lines]
    assert 0 < groups.count(None) < 20  # some of the files, not all or none
    assert manifest.validation.groups == groups.count(None) + len({*groups} - {None})


def test_documents_cannot_follow_themselves_in_a_block(tokenizer, tmp_path):
    source = {"source": write(tmp_path / "a.csv", rows_of(40)), "weight": 2}
    with pytest.raises(
        InputError, match="^data.cross_documents: cannot be combined with a weight above 1"
    ):
        prepare(
            DataConfig(train=[source], cross_documents=True),
            "causal_lm",
            tokenizer,
            0,
            tmp_path / "o",
        )


def test_what_becomes_of_a_row_is_shown_with_it(tokenizer, tmp_path):
    from trainables.data.showing import shown_rows

    rows = [
        {"prompt": "w1 " * 40, "completion": "w2"},
        {"prompt": "w1", "completion": "w2 " * 40},
        {"prompt": "w1", "completion": "w2"},
    ]
    data = DataConfig(train=chat(tmp_path / "a.jsonl", rows + conversations(20)), max_length=20)
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path / "out")
    shown = list(shown_rows(data, "instruction", tokenizer, manifest.encoding, 3))
    assert [row.note for row in shown] == [
        "left out: nothing is learnt within data.max_length 20",
        "cut to data.max_length 20 tokens: what is beyond is not learnt",
        "",
    ]
