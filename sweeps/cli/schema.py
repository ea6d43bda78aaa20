"""`python -m sweeps schema [NAME]`"""

import json
from typing import Annotated

import typer

from sweeps.cli.json_output import RESULTS, result_schema
from trainables.errors import InputError

SWEEP = "sweep"


def schema(
    name: Annotated[
        str, typer.Argument(help="sweep (the sweep file), or a result: board, check, ...")
    ] = SWEEP,
) -> None:
    """JSON Schema of the sweep file, for completion in editors, or of what a command prints with
    --json; that of run, resume and best is the board.

    Example: python -m sweeps schema > sweep.schema.json
    """
    if name == SWEEP:
        from sweeps.config.json_schema import sweep_schema

        found = sweep_schema()
    elif name in RESULTS:
        found = result_schema(name)
    else:
        raise InputError(f"NAME: must be one of {', '.join((SWEEP, *RESULTS))}, got {name!r}")
    print(json.dumps(found, indent=1, ensure_ascii=False))
