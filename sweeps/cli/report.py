"""`python -m sweeps report DIR`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.ledger.opening import open_sweep


def report(
    folder: Folder,
    wandb: Annotated[bool, typer.Option("--wandb", help="publish it as a W&B Report too")] = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html, one self-contained page, into the sweep's folder. With --wandb again, the
    same W&B Report is renewed.

    Example: python -m sweeps report runs/quickstart-20260101-120000
    """
    from sweeps.reporting.leaderboard import leaderboard
    from sweeps.reporting.publish import Published, publish_report, write_report

    ledger, config = open_sweep(folder)
    board = leaderboard(ledger.load(), config.name, config.selection)
    page = write_report(ledger, config, board)
    url = publish_report(ledger, config, board) if wandb else None
    if as_json:
        print_json(Published(page=page, wandb=url))
    else:
        print(url or page)
