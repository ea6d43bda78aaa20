"""`python -m sweeps submit FILE`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import File, Overrides
from sweeps.cli.terminal import FAILED
from sweeps.config.loading import load


def submit(
    file: File,
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(
            help="the cluster's dashboard, such as http://127.0.0.1:8265", show_default=False
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="follow the job's log to its end")] = False,
) -> None:
    """Run a sweep as a Ray job on a cluster.

    Example: python -m sweeps submit sweeps/quickstart.yaml --address http://127.0.0.1:8265 --wait
    """
    from sweeps.run.remote import submit_sweep

    config = load(file, overrides or [])
    outcome = submit_sweep(
        config, address=address, wait=wait, print_line=lambda line: print(line, flush=True)
    )
    if outcome.status in ("FAILED", "STOPPED"):
        raise typer.Exit(FAILED)
