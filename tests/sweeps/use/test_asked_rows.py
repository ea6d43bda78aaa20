"""Rows of a file that are to be answered need neither a group nor a label, whatever the sweep's had."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from sweeps.use.rows import open_file, read_rows
from sweeps.use.serving.models import Classifier
from trainables.data.config import DataConfig
from trainables.data.records import Record
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from sweeps.use.heads import Heads

TALK = {"messages": [{"role": "user", "content": "hello"}]}
GIVEN: dict[str, dict[str, Any]] = {
    "classification": {"text": "hello"},
    "multi_label": {"text": "hello"},
    "regression": {"text": "hello"},
    "token_classification": {"tokens": ["hello"]},
    "causal_lm": {"text": "hello"},
    "instruction": TALK,
    "preference": TALK,
    "seq2seq": {"source": "hello"},
}


DATA = DataConfig(train="train.jsonl", group="author")


@pytest.mark.parametrize("task", GIVEN)
@pytest.mark.parametrize(
    "authors", [[], [None, "one"], ["\ud800", [1]]], ids=["none", "some", "no text"]
)
def test_a_row_without_a_group_and_a_label_is_read(
    task: str, authors: list[object], tmp_path: Path
) -> None:
    """Also beside rows that have one, and where it is what no group of training could be."""
    file, row = tmp_path / "asked.jsonl", GIVEN[task]
    rows = [row, *({**row, "author": each} for each in authors)]
    file.write_text("\n".join(map(json.dumps, rows)))
    (source,) = open_file(str(file))
    found = [asked.record for asked in read_rows(source, TASKS[task], DATA)]
    assert len(found) == len(rows)
    assert all(isinstance(each, Record) and each.group is None for each in found), found


@pytest.mark.parametrize("more", [{}, {"author": "\ud800"}], ids=["none", "no text"])
def test_nor_does_a_request(more: dict[str, object]) -> None:
    heads = cast("Heads", None)  # which nobody asks here
    task = TASKS["classification"]
    model = Classifier(name="", words="", task=task, data=DATA, heads=heads)
    assert model.record({"text": "hello", **more}, "rows[0]").group is None
