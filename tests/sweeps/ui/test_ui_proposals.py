"""What is proposed for a file of rows, and that each file that the form makes is one that loads as it says."""

import json
import re
from pathlib import Path

import pytest

from sweeps.config.schema import SweepConfig
from sweeps.ui.drafts import read
from sweeps.ui.files import claim, plain_name
from sweeps.ui.looking import Look, look
from sweeps.ui.presets import (
    OF_AUTO,
    SHORT_FILE,
    begun_from,
    methods_of,
    name_from,
    presets_for,
    shipped,
    spaces_for,
    with_space,
)
from sweeps.ui.yaml_text import with_value
from trainables.errors import InputError
from trainables.tasks import TASKS

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rows(folder: Path, *given: dict[str, object], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in given), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("given", "task", "settings"),
    [
        ([{"messages": CHAT}], "instruction", {}),
        ([{"prompt": "a", "completion": "b"}], "instruction", {}),
        ([{"instruction": "a", "input": "", "output": "b"}], "instruction", {}),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "preference", {}),
        ([{"tokens": ["a"], "tags": ["O"]}], "token_classification", {}),
        ([{"source": "a", "target": "b"}], "seq2seq", {}),
        ([{"text": "a", "labels": ["x", "y"]}], "multi_label", {}),
        (
            [{"question": f"what {n}", "sql": f"SELECT {n}", "split": "train"} for n in range(9)],
            "instruction",
            {"data.columns.prompt": "question", "data.columns.completion": "sql"},
        ),
        (
            [{"id": n, "message": f"my wifi {n}", "team": "ab"[n % 2]} for n in range(20)],
            "classification",
            {"data.text": "message", "data.label": "team"},
        ),
        (
            [{"review": f"good {n}", "stars": n / 4} for n in range(20)],
            "regression",
            {"data.text": "review", "data.label": "stars"},
        ),
        ([{"body": f"a long text {n}"} for n in range(5)], "causal_lm", {"data.text": "body"}),
    ],
)
def test_task_and_columns_follow_from_the_rows(tmp_path, given, task, settings):
    found = look(rows(tmp_path, *given))
    assert (found.task, dict(found.settings)) == (task, settings), found.why
    assert found.columns == tuple(given[0]) and found.rows[0] == given[0]


def test_a_text_goes_on(tmp_path):
    (tmp_path / "play.txt").write_text("A play.\n\nIts end.")
    assert look(str(tmp_path / "play.txt")).task == "causal_lm"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "data.train: .*: no such file"),
        ("a.docx", "x", "data.train: .*"),
        ("empty.jsonl", "", "empty"),
        ("bad.jsonl", "{", "line 1"),
    ],
)
def test_what_cannot_be_read_is_told_as_the_terminal_tells_it(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        look(str(tmp_path / name))


def looked(folder: Path, task: str) -> Look:
    keys = TASKS[task].format.columns
    columns = {key.rpartition(".")[2]: "a" for key in keys}
    file = rows(folder, columns, name="My rows (new).jsonl")
    settings = {f"data.{key}": key.rpartition(".")[2] for key in keys}
    return Look(source=file, columns=tuple(columns), rows=(), task=task, settings=settings, why="")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_whatever_is_chosen_makes_a_file_that_loads(tmp_path, task):
    """Each preset with each search space, all methods and one, its own epochs and given ones."""
    found, tried = looked(tmp_path, task), 0
    for preset in presets_for(task):
        begun = begun_from(preset, found, task, "some/model", str(tmp_path))
        check(read(begun, tmp_path), found)
        for space in spaces_for(task):
            for methods in ([], methods_of(space)[:1]):
                for epochs in (None, 3):
                    config = read(with_space(begun, space, methods, epochs), tmp_path)
                    check(config, found)
                    tried += 1
                    if space == "auto":
                        fixed = methods[0] if methods else None
                        assert (config.train.method, config.train.epochs) == (fixed, epochs)
                        continue
                    tries = {str(draw.get("method")) for draw in config.draws()}
                    assert tries <= set(methods or methods_of(space)) and tries
                    if epochs is not None:
                        assert {draw.get("epochs") for draw in config.draws()} == {3}
    assert tried >= 4 and "auto" in spaces_for(task)


def check(config: SweepConfig, found: Look) -> None:
    assert (config.task, config.name) == (found.task, "My-rows-new")
    assert (config.model.name, config.data.train) == ("some/model", found.source)
    for key, column in found.settings.items():
        where, _, name = key.removeprefix("data.").partition(".")
        value = getattr(config.data, where)
        assert (value[name] if name else value) == column


def test_presets_are_the_shipped_files_and_the_usual_one_comes_first():
    assert {each.name for each in shipped()} >= {"chat", "preference", "domain_text", "quickstart"}
    assert next(iter(presets_for("instruction"))) == "chat"
    assert presets_for("instruction")["chat"] == (
        "chat: A small chat model learns from your conversations"
    )
    assert next(iter(presets_for("classification"))) == SHORT_FILE
    assert [*spaces_for("preference")] == ["auto"] and methods_of("auto") == [*OF_AUTO]
    assert "seq2seq" in spaces_for("seq2seq") and "llm_small" in spaces_for("causal_lm")


def test_what_the_form_sets_is_what_is_loaded(tmp_path):
    text = begun_from("chat", looked(tmp_path, "instruction"), "instruction", "m", str(tmp_path))
    for key, value in {"search.trials": 7, "search.time_budget": "8h", "name": "mine"}.items():
        text = with_value(text, key, value)
    config = read(text, tmp_path)
    assert (config.search.trials, config.search.time_budget, config.name) == (7, "8h", "mine")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("search.trials", 0, "search.trials: must be at least 1, got 0"),
        ("search.trials", 1.5, "search.trials: must be a whole number, got 1.5"),
        ("name", "a b", "name: must be 1 to 64 letters, .*, got 'a b'"),
        ("storage", "elsewhere", "storage: must be .*, whose sweeps this page shows, .*"),
        ("data.train", "none.csv", "data.train: none.csv: no such file .*"),
        ("search.space", "llm", "search.space: no preset and no file 'llm'.*"),
        ("data.txt", "a", "data.txt: unknown key.*"),
    ],
)
def test_errors_are_those_of_the_terminal_and_begin_with_the_setting(tmp_path, key, value, line):
    text = begun_from(
        SHORT_FILE, looked(tmp_path, "classification"), "classification", "m", str(tmp_path)
    )
    with pytest.raises(InputError) as found:
        read(with_value(text, key, value), tmp_path)
    assert re.fullmatch(line, str(found.value)), found.value


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "name: x"])
def test_a_file_that_is_none_is_told_in_a_line(tmp_path, text):
    with pytest.raises(InputError) as found:
        read(text, tmp_path)
    assert str(tmp_path) not in str(found.value) and "\n" not in str(found.value)


def test_uploads_are_never_written_over(tmp_path):
    names = [claim(tmp_path / "uploads", "rows.csv.gz").name for _ in range(3)]
    assert names == ["rows.csv.gz", "rows-2.csv.gz", "rows-3.csv.gz"]


@pytest.mark.parametrize(
    ("given", "name"),
    [("rows.csv", "rows.csv"), ("../../a b.csv", "a b.csv"), ("C:\\x\\y.csv", "y.csv")],
)
def test_an_upload_lies_beside_the_sweeps_whatever_it_is_called(given, name):
    assert plain_name(given) == name


@pytest.mark.parametrize("given", ["", "..", "a/", "a\n.csv", "x" * 300])
def test_what_is_no_name_is_refused(given):
    with pytest.raises(InputError, match="must be a name of a file"):
        plain_name(given)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/My rows (1).csv.gz", "My-rows-1"),
        ("hf:owner/name?split=train", "name"),
        ("---.csv", "sweep"),
        ("folder/", "folder"),
    ],
)
def test_a_sweep_is_named_after_its_rows(source, name):
    assert name_from(source) == name
