"""`python -m sweeps best DIR`"""

import json
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.opening import open_sweep
from sweeps.cli.terminal import FAILED, console


def best(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print the board as JSON")] = False,
) -> None:
    """Leaderboard, winner and reason, of a finished or a running sweep.

    Example: python -m sweeps best runs/quickstart-20260101-120000 --json
    """
    ledger, config = open_sweep(folder)
    board = ledger.load().board(config.name, config.selection)
    if as_json:
        print(json.dumps(board, indent=1, allow_nan=False))
    else:
        from sweeps.reporting.console import print_board

        print_board(console(), board)
        if board["winner"] is not None and ledger.holds(board["winner"]):
            print(f"Checkpoint: {ledger.store.path('winner')}")
        if ledger.store.exists("report.html"):
            print(f"Report: {ledger.store.path('report.html')}")
    if board["winner"] is None:
        raise typer.Exit(FAILED)
