"""`python -m sweeps ctl DIR COMMAND`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Verify
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED, console
from trainables.errors import InputError


def ctl(
    sweep: Annotated[
        str,
        typer.Argument(
            help="the sweep's folder; with --address its job, by the beginning of the id",
            show_default=False,
        ),
    ],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="stop TRIAL | clone TRIAL key=value... | add key=value... | pause | go-on |"
            " trials=+10 (or time_budget, device_hours, cost; without the plus it is set)",
            show_default=False,
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="the dashboard of the cluster that runs the job", show_default=False),
    ] = None,
    verify: Verify = None,
    as_json: AsJson = False,
    by: Annotated[str | None, typer.Option("--by", hidden=True)] = None,
) -> None:
    """Steer a sweep while it runs, from anywhere that reaches its folder or its cluster. What is
    asked is done once, in order, and told; a sweep that does not run does it when it is resumed.

    Example: python -m sweeps ctl runs/quickstart-20260101-120000 clone t0003 learning_rate=1e-4
    """
    from sweeps.run.commands import whoever
    from sweeps.run.ctl import steer, steer_job

    terminal, by = console(stderr=as_json), by or whoever()
    if verify is not None and address is None:
        raise InputError("--verify: is of the dashboard's address, which --address names")
    if address is None:
        found = steer(sweep, words, by=by)
    else:
        found = steer_job(address, sweep, words, verify=verify, by=by, say=terminal.print)
    if as_json:
        print_json(found)
    if found.state == "refused":
        raise InputError(found.words)
    if not as_json:
        terminal.print(f"{found.state}: {found.words}", highlight=False, markup=False)
    if found.state != "done":
        raise typer.Exit(FAILED)
