"""`python -m sweeps ui [STORAGE]`"""

from typing import Annotated

import typer

from trainables.errors import InputError


def ui(
    storage: Annotated[str, typer.Argument(help="the folder that sweeps lie in")] = "runs",
    host: Annotated[str, typer.Option(help="where it listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="where it listens")] = 8700,
    token: Annotated[
        str | None,
        typer.Option(
            help="a variable's name, or a file, with the token that browsers must have; required"
            " beyond loopback, else one is made",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="open it; else where there is a terminal"),
    ] = None,
) -> None:
    """A page in the browser: choose model and data, check, run, watch, resume and talk to winners;
    it starts programs, so it is for who has its address alone.

    Example: python -m sweeps ui runs
    """
    from sweeps.use.serving.address import Address, read_token

    address = Address(host=host, port=port, token=read_token(token))
    try:
        from sweeps.ui.server import can_show, serve, storage_folder
    except ModuleNotFoundError as error:
        if error.name != "nicegui":
            raise
        raise InputError("ui: needs the package nicegui; install '.[ui]'") from None
    show = can_show() if browser is None else browser
    serve(storage_folder(storage), address, show=show, say=lambda line: print(line, flush=True))
