"""What a command prints on, and how it ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from sweeps.cli.json_output import print_json

if TYPE_CHECKING:
    from sweeps.run.sweep import Outcome

FAILED = 1  # exit code: failed, interrupted, nothing selected, or a mismatch
WRONG_INPUT = 2  # exit code: what the user gave cannot be run; one line says why


def console(*, stderr: bool = False) -> Console:
    """Full lines where nobody watches a terminal, so that logs and the job page read well."""
    terminal = Console(stderr=stderr)
    if terminal.is_terminal:
        return terminal
    return Console(width=200, force_terminal=False, stderr=stderr)


def finish(outcome: Outcome, *, as_json: bool) -> None:
    """The last line is the sweep's folder; as JSON its board."""
    if as_json:
        print_json(outcome.board)
    else:
        print(outcome.folder, flush=True)
    if outcome.status == "interrupted":
        print(f"Interrupted. Go on with: python -m sweeps resume {outcome.folder}", file=sys.stderr)
    if outcome.status != "finished" or outcome.board.winner is None:
        raise typer.Exit(FAILED)
