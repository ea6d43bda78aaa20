"""`python -m sweeps watch DIR`"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.arguments import Verify
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED, console
from trainables.errors import InputError

if TYPE_CHECKING:
    from sweeps.reporting.watched import Source


def watch(
    sweep: Annotated[
        str,
        typer.Argument(
            help="the sweep's folder; with --address the job that runs it", show_default=False
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="the dashboard of the cluster that runs the job", show_default=False),
    ] = None,
    verify: Verify = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="show it in the browser too, on this machine alone")
    ] = False,
    port: Annotated[
        int, typer.Option(help="of the page; 0: one that is free", show_default=False)
    ] = 0,
    as_json: AsJson = False,
    relay: Annotated[bool, typer.Option("--relay", hidden=True)] = False,
) -> None:
    """Follow a sweep from another terminal: what happens, what runs, and at the end what won. The
    sweep does not notice; Ctrl-C ends the watching alone.

    Example: python -m sweeps watch runs/quickstart-20260101-120000 --open
    """
    from sweeps.reporting.console import print_board
    from sweeps.reporting.relay import relay as say_on
    from sweeps.reporting.watched import Watched
    from sweeps.reporting.watching import follow

    if relay:
        say_on(Watched(sweep), lambda line: print(line, flush=True), pages=open_page)
        return
    if port and not open_page:
        raise InputError("--port: is of the page, which --open shows")
    terminal = console(stderr=as_json)
    with _source(sweep, address, verify, pages=open_page, say=terminal.print) as source:
        board = follow(source, terminal, browser=open_page, port=port)
    if board is not None and as_json:
        print_json(board)
    elif board is not None:
        print_board(terminal, board)
    if board is None or board.status != "finished" or board.winner is None:
        raise typer.Exit(FAILED)


@contextmanager
def _source(
    sweep: str,
    address: str | None,
    verify: str | None,
    *,
    pages: bool,
    say: "Callable[[str], None]",
) -> "Iterator[Source]":
    from sweeps.reporting.watched import Watched

    if address is None:
        yield Watched(sweep)
        return
    from sweeps.run.watch_job import watched_job

    with watched_job(address, sweep, verify=verify, pages=pages, say=say) as found:
        yield found
