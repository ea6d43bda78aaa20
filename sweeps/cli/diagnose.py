"""`python -m sweeps diagnose CSV`"""

import json
from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    curves: Annotated[
        Path,
        typer.Argument(
            help="CSV with columns trial, samples_seen, train_loss, probe_loss, val_loss",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON")] = False,
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

    trials = judge(curves, SelectionConfig(), untuned_loss=untuned_loss, prior_loss=prior_loss)
    if as_json:
        print(json.dumps({"trials": trials}, indent=1))
        return
    lines = [tuple(trial.values()) for trial in trials]
    width = max(len(trial) for trial, *_ in lines)
    for trial, verdict, reason in lines:
        print(f"{trial:<{width}}  {verdict:<17}  {reason}")
