"""A setting changed in the text of a sweep file: what loads is as meant, and all else stays as it was."""

from pathlib import Path

import pytest
import yaml

from sweeps.ui.yaml_text import tree_of, value_at, with_value, without
from trainables.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "sweeps").glob("*.yaml"))
TEXT = """\
# head
name: a  # why
model: {name: x, revision: null}  # beside

data:
  train: rows.csv  # the rows
  # between
  columns:
    prompt: q

search:
empty:
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "b: c"),
        ("name", "yes"),
        ("model.name", "a, b}"),
        ("model.dtype", "float32"),
        ("data.train", ["a.csv", {"source": "b.csv", "weight": 2}]),
        ("data.text", "#1"),
        ("data.columns", {"prompt": "x"}),
        ("data.columns.completion", "answer\n"),
        ("search.trials", 3),
        ("search.early_stopping.overfit", False),
        (
            "search.space",
            {"method": {"lora": {"learning_rate": {"log_uniform": [0.0001, 0.1]}}}},
        ),
        ("train.epochs", 2),
        ("empty", None),
    ],
)
def test_one_place_is_changed_and_nothing_else(key, value):
    changed = with_value(TEXT, key, value)
    expected = yaml.safe_load(TEXT)
    *sections, last = key.split(".")
    inside = expected
    for section in sections:
        if inside.get(section) is None:
            inside[section] = {}
        inside = inside[section]
    inside[last] = value
    assert yaml.safe_load(changed) == expected
    comments = {"# head", "# why", "# beside", "# the rows", "# between"}
    lost = {"# between"} if key == "data.columns" else set()
    assert {each for each in comments if each not in changed} <= lost
    assert with_value(changed, key, value) == changed


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_what_is_added_to_a_shipped_file_can_be_taken_away_again(file):
    text = file.read_text(encoding="utf-8")
    for key in ("added", "model.added", "data.added", "search.added"):
        there = with_value(text, key, {"a": [1, 2]})
        assert value_at(tree_of(there), key) == {"a": [1, 2]}
        assert yaml.safe_load(without(there, key)) == yaml.safe_load(text)
        lines = [line for line in without(there, key).splitlines() if line.strip()]
        kept = [line for line in text.splitlines() if line.strip()]
        assert len(set(kept) - set(lines)) <= 1, "the section in braces is written anew, no more"


def test_the_only_setting_of_a_section_leaves_an_empty_section():
    assert tree_of(without("search:\n  trials: 3\nname: a\n", "search.trials")) == {
        "search": {},
        "name": "a",
    }
    assert without(TEXT, "data.columns.nothing") == TEXT
    assert without(TEXT, "nothing.at.all") == TEXT


@pytest.mark.parametrize("text", ["a: [", "a: b: c"])
def test_what_is_no_yaml_is_told_in_a_line(text):
    with pytest.raises(InputError, match="not valid YAML"):
        with_value(text, "a", 1)
    with pytest.raises(InputError, match="not valid YAML"):
        tree_of(text)


def test_an_empty_file_gets_its_first_setting():
    assert tree_of(with_value("", "search.trials", 3)) == {"search": {"trials": 3}}
    assert tree_of("[1, 2]") == {}
