"""`python -m sweeps pick SOURCE --to DIR`"""

import sys
from typing import Annotated

import typer

from sweeps.cli.json_output import AsJson, print_json


def pick(
    source: Annotated[
        str,
        typer.Argument(
            help="ENTITY/PROJECT/NAME:ALIAS or wandb-registry-NAME/COLLECTION:ALIAS of W&B, the URL"
            " of a run, group, artifact or report there, or a sweep's folder",
            show_default=False,
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", help="a folder that is not there yet, or is empty", metavar="DIR")
    ],
    as_json: AsJson = False,
) -> None:
    """Fetch a sweep's winner into a folder, from W&B or from where the sweep lies; its files are
    checked.

    Example: python -m sweeps pick me/p/tickets-20260101-120000-winner:winner --to model
    """
    from sweeps.use.pick import pick as fetch

    picked = fetch(source, to)
    if as_json:
        print_json(picked)
        return
    for note in picked.notes:
        print(note, file=sys.stderr)
    if picked.loading:
        print(f"Load it with:\n\n{picked.loading}\n")
    print(f"Check it with: {picked.check}")
    print(f"{picked.what}: {to}")
