"""`python -m sweeps predict DIR FILE`"""

import sys
from typing import Annotated, Literal

import typer

from sweeps.cli.arguments import Address, Folder, Trial
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED


def predict(
    folder: Folder,
    file: Annotated[
        str,
        typer.Argument(
            help="rows to be answered: CSV, JSONL or Parquet; a path, folder, pattern or URL",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(help="the table to write: .csv, .jsonl or .parquet", show_default=False),
    ],
    trial: Trial = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="of a language model: tokens of an answer, at most")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="of a language model; 0: always the likeliest token")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="of what is drawn at a temperature above 0")] = 0,
    bad_rows: Annotated[
        Literal["error", "drop"] | None,
        typer.Option(
            help="rows that cannot be answered: refuse, or write them with an error; as the sweep's"
            " data.bad_rows, where it is not given",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="models side by side; as many as fit", show_default=False),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Answer the rows of a file with the winner. Called again after it was stopped, it goes on.

    Example: python -m sweeps predict runs/quickstart-20260101-120000 rows.csv --out answers.csv
    """
    from dataclasses import replace
    from functools import partial

    from sweeps.use.generation import Sampling
    from sweeps.use.predict import Job
    from sweeps.use.predict import predict as answer_all
    from sweeps.use.trained import open_trained

    job = Job(
        folder=folder,
        trial=trial,
        file=file,
        out=out,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed),
        bad_rows=bad_rows,
    )
    with open_trained(folder, trial) as trained:
        cluster = replace(
            trained.config.cluster, address=address, slots=workers or "auto", workers_per_slot=1
        )
        say = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
        say(f"{trained.words}: {trained.config.task}")
        try:
            counted = answer_all(job, trained, cluster, say)
        except KeyboardInterrupt:
            print("Interrupted. The same call goes on with what is missing.", file=sys.stderr)
            raise typer.Exit(FAILED) from None
    if as_json:
        print_json(counted)
        return
    if counted.kept:
        print(f"{counted.kept} of {counted.blocks} blocks were there from an earlier call")
    if counted.bad:
        print(f"{counted.bad} of {counted.rows} rows have an error in the place of an answer")
    print(out)
