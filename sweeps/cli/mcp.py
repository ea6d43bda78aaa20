"""`python -m sweeps mcp`"""

from typing import Annotated

import typer

from trainables.errors import InputError


def mcp(
    storage: Annotated[str, typer.Argument(help="the folder or URL that sweeps lie in")] = "runs",
) -> None:
    """A server of the Model Context Protocol on stdin and stdout, by which agents read sweeps; it
    changes nothing.

    Example: claude mcp add sweeps -- python -m sweeps mcp runs
    """
    try:
        from sweeps.reporting.mcp import server
    except ModuleNotFoundError as error:
        if error.name != "mcp":
            raise
        raise InputError("mcp: needs the package mcp; install '.[mcp]'") from None
    server(storage).run("stdio")
