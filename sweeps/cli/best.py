"""`python -m sweeps best DIR`"""

import json
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.terminal import FAILED, console
from sweeps.ledger.leaderboard import leaderboard_json
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard


def best(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print the board as JSON")] = False,
) -> None:
    """Leaderboard, winner and reason, of a finished or a running sweep.

    Example: python -m sweeps best runs/quickstart-20260101-120000 --json
    """
    ledger, config = open_sweep(folder)
    board = leaderboard(ledger.load(), config.name, config.selection)
    if as_json:
        print(json.dumps(leaderboard_json(board), indent=1, allow_nan=False))
    else:
        from sweeps.reporting.console import print_board

        print_board(console(), board)
        if board.winner is not None and ledger.holds(board.winner.trial, board.winner.step):
            print(f"Checkpoint: {ledger.store.path('winner')}")
        if ledger.store.exists("report.html"):
            print(f"Report: {ledger.store.path('report.html')}")
    if board.winner is None:
        raise typer.Exit(FAILED)
