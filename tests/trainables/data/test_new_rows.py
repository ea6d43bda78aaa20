"""Rows that came after a sweep are read as its own were."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers

from trainables.data.config import DataConfig
from trainables.data.new_rows import tokenise_new
from trainables.data.prepare import open_split, prepare
from trainables.errors import InputError

TASKS = {
    "classification": lambda n: {"text": f"text number {n} of many", "label": "ab"[n % 2]},
    "regression": lambda n: {"text": f"text number {n} of many", "label": n / 2},
    "multi_label": lambda n: {"text": f"text number {n} of many", "labels": ["a", "b"][: n % 3]},
    "token_classification": lambda n: {"tokens": ["word", str(n)], "tags": ["O", "N"]},
    "instruction": lambda n: {"prompt": f"what is {n}", "completion": f"it is {n} and no more"},
    "causal_lm": lambda n: {"text": f"a document about the number {n}, " * 3},
    "seq2seq": lambda n: {"source": f"number {n}", "target": f"nummer {n}"},
}
ANSWERS = ("label", "labels", "tags", "completion", "target")


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path):
    return transformers.AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def prepared(tmp_path: Path, task: str, tokenizer, **settings: object):
    rows = [TASKS[task](n) for n in range(40)]
    data = DataConfig(
        train=write(tmp_path / "train.jsonl", rows[:30]),
        validation=write(tmp_path / "validation.jsonl", rows[30:]),
        max_length=64,
        **settings,  # type: ignore[arg-type]
    )
    folder = tmp_path / "data"
    return folder, prepare(data, task, tokenizer, 0, folder)


@pytest.mark.parametrize("task", TASKS)
def test_they_become_the_same_tokens(task, tmp_path, tokenizer):
    folder, manifest = prepared(tmp_path, task, tokenizer)
    (new := tmp_path / "new").mkdir()
    given = str(tmp_path / "validation.jsonl")
    found = tokenise_new(given, manifest, "new", tokenizer, new, labelled=True)
    assert found.fingerprint == manifest.validation.fingerprint
    own, again = open_split(folder, "validation"), open_split(new, "new")
    assert len(again) == len(own) == found.rows


@pytest.mark.parametrize("task", TASKS)
def test_no_answer_is_needed(task, tmp_path, tokenizer):
    folder, manifest = prepared(tmp_path, task, tokenizer)
    (new := tmp_path / "new").mkdir()
    asked = [
        {name: value for name, value in TASKS[task](n).items() if name not in ANSWERS}
        for n in range(30, 40)
    ]
    given = write(tmp_path / "asked.jsonl", asked)
    tokenise_new(given, manifest, "new", tokenizer, new, labelled=False)
    own, again = open_split(folder, "validation"), open_split(new, "new")
    for with_answer, without in zip(own.rows(range(10)), again.rows(range(10)), strict=True):
        shared = min(len(with_answer["input_ids"]), len(without["input_ids"]))
        if task == "instruction":  # up to where the answer begins
            shared = int(np.flatnonzero(without["labels"] != -100)[0])
        same = with_answer["input_ids"][:shared] == without["input_ids"][:shared]
        assert same.all() and shared > 3


def test_a_conversation_may_end_with_the_user(tmp_path, tokenizer):
    _, manifest = prepared(tmp_path, "instruction", tokenizer)
    (new := tmp_path / "new").mkdir()
    said = [{"role": "user", "content": "what is 7"}]
    more = [*said, {"role": "assistant", "content": "it is 7"}]
    given = write(tmp_path / "chats.jsonl", [{"messages": said}, {"messages": more}])
    tokenise_new(given, manifest, "new", tokenizer, new, labelled=False)
    open_row, answered = open_split(new, "new").rows([0, 1])
    assert answered["input_ids"].tolist() == open_row["input_ids"].tolist()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": '[{"role": "user", "content": "what is 7"}]'},
        {"conversations": [{"from": "human", "value": "what is 7"}]},
        {"instruction": "what is 7", "input": ""},
        {"prompt": "what is 7", "completion": "it is 7"},
    ],
)
def test_requests_of_every_form_are_read(row, tmp_path, tokenizer):
    _, manifest = prepared(tmp_path, "instruction", tokenizer)
    (new := tmp_path / "new").mkdir()
    given = write(tmp_path / "form.jsonl", [row, {**row}])
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "what is 7"}])
    tokenise_new(given, manifest, "new", tokenizer, new, labelled=False)
    tokenise_new(asked, manifest, "asked", tokenizer, new, labelled=False)
    (found, _), (wanted,) = (
        open_split(new, "new").rows([0, 1]),
        open_split(new, "asked").rows([0]),
    )
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()


def test_groups_are_kept_and_their_column_may_be_missing(tmp_path, tokenizer):
    rows = [{**TASKS["classification"](n), "author": f"a{n // 4}"} for n in range(40)]
    train = write(tmp_path / "rows.jsonl", rows)
    data = DataConfig(train=train, validation=0.3, group="author", max_length=64)
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "data")
    for name, given, groups in (
        ("with", rows, 10),
        ("without", [TASKS["classification"](n) for n in range(40)], None),
    ):
        (new := tmp_path / name).mkdir()
        file = write(tmp_path / f"{name}.jsonl", given)
        found = tokenise_new(file, manifest, "new", tokenizer, new, labelled=True)
        assert found.groups == groups


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("classification", {"text": "a text", "label": "c"}, "does not know the label(s) c, only"),
        ("multi_label", {"text": "a text", "labels": ["a", "c"]}, "know the label(s) c, only a, b"),
        (
            "token_classification",
            {"tokens": ["x"], "tags": ["Q"]},
            "know the label(s) Q, only N, O",
        ),
        ("classification", {"words": "a text"}, "rows.jsonl"),
        ("classification", {"text": "", "label": "a"}, "rows.jsonl line 1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(task, row, words, tmp_path, tokenizer):
    _, manifest = prepared(tmp_path, task, tokenizer)
    (new := tmp_path / "new").mkdir()
    given = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError) as caught:
        tokenise_new(given, manifest, "new", tokenizer, new, labelled=True)
    assert words in str(caught.value) and "data.test" not in str(caught.value)
