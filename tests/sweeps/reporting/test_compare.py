"""Sweeps beside each other: what is compared was measured on the same rows, and what they share is said."""

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from sweeps.cli.app import main
from sweeps.cli.json_output import result_schema
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.compare import compare_sweeps
from sweeps.selection.statistics import paired_difference
from tests.sweeps.use.tiny_sweep import drawn, tiny_sweep
from trainables.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def sweeps(folder) -> dict[str, str]:
    model = drawn(folder / "model", "bert", "classification")
    tested = {"data": {"test": 0.3}}
    made = {
        "short": tiny_sweep(folder / "short", "classification", model, "lora", rank=2, **tested),
        "long": tiny_sweep(
            folder / "long", "classification", model, "lora", steps=12, rank=4, **tested
        ),
        "untested": tiny_sweep(folder / "untested", "classification", model, "lora", rank=2),
        "other": tiny_sweep(folder / "other", "regression", model, "lora", rank=2),
    }
    return {name: str(path.rename(path.with_name(name))) for name, path in made.items()}


def test_the_same_rows_are_compared_row_by_row_and_the_best_comes_first(sweeps):
    found = compare_sweeps([sweeps["short"], sweeps["long"]])
    split = found.split
    best, behind = found.sweeps
    losses = {
        each.sweep: each.test_loss if split == "test" else each.val_loss for each in found.sweeps
    }
    assert losses[best.sweep] <= losses[behind.sweep] and best.above is None
    rows = []
    for each in (best, behind):
        ledger, _ = open_sweep(each.folder)
        winner = json.loads((Path(each.folder) / "winner" / "winner.json").read_text())
        name = "baselines/test/winner" if split == "test" else winner["folder"]
        rows.append(ledger.row_losses(name))
    assert behind.above.mean == pytest.approx(paired_difference(*rows)[0])
    assert behind.above.mean == pytest.approx(losses[behind.sweep] - losses[best.sweep], rel=1e-4)
    assert "All have the same base model." in found.notes
    assert "All have the same validation rows." in found.notes


def test_of_other_rows_or_another_task_no_losses_are_compared(sweeps):
    found = compare_sweeps([sweeps["short"], sweeps["other"]])
    assert found.split is None and all(each.above is None for each in found.sweeps)
    assert any(note.startswith("Losses are not compared") for note in found.notes)
    found = compare_sweeps([sweeps["short"], sweeps["untested"]])
    assert found.split is None, "their splits are of other rows"


def test_it_takes_two(sweeps):
    for folders in ([sweeps["short"]], [sweeps["short"]] * 2):
        with pytest.raises(InputError, match="must be two sweeps' folders or more, got 1"):
            compare_sweeps(folders)


def test_as_text_and_as_json(sweeps, monkeypatch, capsys):
    said = []
    for more in ([], ["--json"]):
        arguments = ["sweeps", "compare", sweeps["short"], sweeps["long"], *more]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert not ended.value.code and not err
        said.append(out)
    text, found = said[0], json.loads(said[1])
    Draft202012Validator(result_schema("compare")).validate(found)
    names = [each["sweep"] for each in found["sweeps"]]
    assert names == sorted(names, key=text.index) and len(set(names)) == 2
    assert all(note in text for note in found["notes"])
