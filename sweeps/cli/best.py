"""`python -m sweeps best DIR`"""

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED, console
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard


def best(
    folder: Folder,
    as_json: AsJson = False,
) -> None:
    """Leaderboard, winner and reason, of a finished or a running sweep.

    Example: python -m sweeps best runs/quickstart-20260101-120000 --json
    """
    ledger, config = open_sweep(folder)
    board = leaderboard(ledger.load(), config.name, config.selection)
    if as_json:
        print_json(board)
    else:
        from sweeps.reporting.console import print_board

        print_board(console(), board)
        if board.winner_folder is not None:
            print(f"Checkpoint: {board.winner_folder}")
        if ledger.store.exists("report.html"):
            print(f"Report: {ledger.store.path('report.html')}")
    if board.winner is None:
        raise typer.Exit(FAILED)
