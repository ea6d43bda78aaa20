"""`python -m sweeps samples DIR`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.terminal import FAILED, console
from sweeps.ledger.opening import open_sweep


def samples(
    folder: Folder,
    trial: Annotated[
        str | None, typer.Option(help="show this trial's answers in the winner's place")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="show so many rows")] = 10,
) -> None:
    """What the untuned model, the default configuration and the winner answered to the same
    validation rows, beside the rows' own answers.

    Example: python -m sweeps samples runs/text-to-sql-20260101-120000 --rows 3
    """
    from sweeps.reporting.console import print_samples
    from sweeps.reporting.leaderboard import leaderboard
    from sweeps.reporting.samples import samples_of

    ledger, config = open_sweep(folder)
    board = leaderboard(ledger.load(), config.name, config.selection)
    found = samples_of(ledger, board, trial)
    if not found:
        print("No answers were written: set `metrics` in the sweep file, and resume.")
        raise typer.Exit(FAILED)
    print_samples(console(), found[:rows])
