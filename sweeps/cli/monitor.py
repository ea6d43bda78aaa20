"""`python -m sweeps monitor DIR NEW`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED
from trainables.errors import InputError


def monitor(
    folder: Folder,
    new: Annotated[
        str, typer.Argument(help="the new rows: a file, as data.train names it", show_default=False)
    ],
    labels: Annotated[
        bool, typer.Option("--labels", help="the new rows have their labels")
    ] = False,
    level: Annotated[
        float, typer.Option(help="chance of an alarm where nothing has changed")
    ] = 0.01,
    rows: Annotated[int, typer.Option(help="rows of either side that are looked at")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Whether new rows are still those that the winner was trained for; 0: nothing has changed, 1:
    drifted.

    Without labels by the base's embeddings and the winner's answers, with them by its loss, too.

    Example: python -m sweeps monitor runs/tickets-20260101-120000 this_week.csv --labels
    """
    if not 0 < level < 0.5:
        raise InputError(f"--level: must be above 0 and below 0.5, got {level:g}")
    if rows < 1:
        raise InputError(f"--rows: must be at least 1, got {rows}")
    from sweeps.use.monitor import monitor as look
    from sweeps.use.monitor import table

    found = look(folder, new, labelled=labels, level=level, most=rows)
    if as_json:
        print_json(found)
    else:
        print("\n".join([*table(found), found.words]))
    if found.drifted:
        raise typer.Exit(FAILED)
