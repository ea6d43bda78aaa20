"""The exit code of `run` and `resume`: 0 is of a sweep that has finished and has a winner."""

from types import SimpleNamespace

import pytest
import typer

from sweeps.cli.terminal import FAILED, finish
from sweeps.run.sweep import Outcome


def outcome(status: str, winner: object) -> Outcome:
    return Outcome(board=SimpleNamespace(winner=winner), folder="runs/s-1", status=status)  # type: ignore[arg-type]


@pytest.mark.parametrize("winner", [None, "t0001"])
@pytest.mark.parametrize("status", ["failed", "interrupted", "finished"])
def test_a_sweep_that_has_not_finished_with_a_winner_never_exits_with_0(status, winner, capsys):
    if status == "finished" and winner is not None:
        finish(outcome(status, winner), as_json=False)
    else:
        with pytest.raises(typer.Exit) as ended:
            finish(outcome(status, winner), as_json=False)
        assert ended.value.exit_code == FAILED != 0
    assert capsys.readouterr().out == "runs/s-1\n"
