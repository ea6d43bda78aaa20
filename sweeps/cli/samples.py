"""`python -m sweeps samples DIR`"""

import sys
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED, console
from sweeps.ledger.opening import open_sweep
from trainables.errors import InputError
from trainables.evaluation.generation import writes_answers
from trainables.tasks import TASKS


def samples(
    folder: Folder,
    trial: Annotated[
        str | None, typer.Option(help="show this trial's answers in the winner's place")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="show so many rows")] = 10,
    as_json: AsJson = False,
) -> None:
    """What the untuned model, the default configuration and the winner answered to the same
    validation rows, beside the rows' own answers.

    Example: python -m sweeps samples runs/text-to-sql-20260101-120000 --rows 3
    """
    from sweeps.reporting.console import print_samples
    from sweeps.reporting.leaderboard import leaderboard
    from sweeps.reporting.samples import Samples, samples_of

    ledger, config = open_sweep(folder)
    if not writes_answers(TASKS[config.task]):
        raise InputError(
            f"{folder}: models of task {config.task} write no answers; `best` has its metrics"
        )
    board = leaderboard(ledger.load(), config.name, config.selection)
    found = samples_of(ledger, board, trial)
    if not found:
        print(
            "No answers were written: set `metrics` in the sweep file, and resume.", file=sys.stderr
        )
        raise typer.Exit(FAILED)
    if as_json:
        print_json(Samples(rows=found[:rows]))
    else:
        print_samples(console(), found[:rows])
