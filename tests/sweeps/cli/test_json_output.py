"""What is printed as JSON, and its published schemas."""

import json
import sys

import pytest
from jsonschema import Draft202012Validator

from sweeps.cli.app import main
from sweeps.cli.json_output import RESULTS, result_schema
from sweeps.config.json_schema import sweep_schema


def printed(monkeypatch, capsys, *args: str) -> tuple[int | str | None, str, str]:
    monkeypatch.setattr(sys, "argv", ["sweeps", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code, *capsys.readouterr())


@pytest.mark.parametrize("name", ["sweep", *RESULTS])
def test_a_schema_is_printed_and_is_one(name, monkeypatch, capsys):
    code, out, err = printed(monkeypatch, capsys, "schema", name)
    found = json.loads(out)
    Draft202012Validator.check_schema(found)
    assert found == (sweep_schema() if name == "sweep" else result_schema(name))
    assert found["type"] == "object" and found["properties"] and not err and not code


def test_an_unknown_name_is_told_what_there_is(monkeypatch, capsys):
    code, out, err = printed(monkeypatch, capsys, "schema", "boards")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("NAME: must be one of sweep, board, check, ")


def test_the_verdicts_of_diagnose_are_as_their_schema_says(tmp_path, monkeypatch, capsys):
    curves = tmp_path / "curves.csv"
    losses = [(10, 1.0), (20, 0.8), (30, 0.7)]
    lines = [f"a,{samples},{loss},{loss}" for samples, loss in losses]
    curves.write_text("\n".join(["trial,samples_seen,probe_loss,val_loss", *lines]))
    code, out, _ = printed(monkeypatch, capsys, "diagnose", str(curves), "--json")
    Draft202012Validator(result_schema("diagnose")).validate(json.loads(out))
    assert [trial["id"] for trial in json.loads(out)["trials"]] == ["a"] and not code
