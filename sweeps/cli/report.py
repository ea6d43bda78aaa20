"""`python -m sweeps report DIR`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.ledger.opening import open_sweep


def report(
    folder: Folder,
    wandb: Annotated[bool, typer.Option("--wandb", help="publish it as a W&B Report too")] = False,
) -> None:
    """Write report.html, one self-contained page, into the sweep's folder.

    Example: python -m sweeps report runs/quickstart-20260101-120000
    """
    from sweeps.reporting.publish import write_report

    ledger, config = open_sweep(folder)
    print(write_report(ledger.load(), config, wandb=wandb))
