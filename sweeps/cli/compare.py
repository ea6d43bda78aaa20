"""`python -m sweeps compare DIR DIR...`"""

from typing import Annotated

import typer

from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import console


def compare(
    folders: Annotated[
        list[str], typer.Argument(help="folders of sweeps, two or more", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Several sweeps in one table: winners, losses, costs, and what data and base they share.

    Example: python -m sweeps compare runs/tickets-20260101-120000 runs/tickets-20260201-120000
    """
    from sweeps.reporting.compare import compare_sweeps, compared_table

    found = compare_sweeps(folders)
    if as_json:
        print_json(found)
        return
    console().print(compared_table(found))
    print("\n".join(found.notes))
