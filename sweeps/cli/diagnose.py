"""`python -m sweeps diagnose CSV`"""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.json_output import AsJson, print_json


def diagnose(
    curves: Annotated[
        Path,
        typer.Argument(
            help="CSV with columns trial, samples_seen, train_loss, probe_loss, val_loss",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
    untuned_loss: Annotated[
        float | None,
        typer.Option(
            help="validation loss of the untuned model, where no line at 0 samples says it"
        ),
    ] = None,
    prior_loss: Annotated[
        float | None, typer.Option(help="validation loss of always answering with the label shares")
    ] = None,
) -> None:
    """A verdict for each trial of a CSV of curves: healthy, overfit, underfit, collapsed, ...; from
    any trainer.

    Example: python -m sweeps diagnose curves.csv --json
    """
    from sweeps.selection.config import SelectionConfig
    from sweeps.selection.diagnose import diagnose as judge

    found = judge(curves, SelectionConfig(), untuned_loss=untuned_loss, prior_loss=prior_loss)
    if as_json:
        print_json(found)
        return
    width = max(len(trial.id) for trial in found.trials)
    for trial in found.trials:
        print(f"{trial.id:<{width}}  {trial.verdict:<17}  {trial.verdict_reason}")
