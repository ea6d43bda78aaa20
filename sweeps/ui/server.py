"""The page's server, from its start to Ctrl-C."""

import logging
import secrets
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import run, ui

from sweeps.reporting.watching import has_screen
from sweeps.ui.guard import TOKEN, Guard
from sweeps.ui.pages import new, sweep, sweeps, talk
from sweeps.ui.watching import routes
from sweeps.use.serving.address import Address, is_loopback, listening
from trainables.errors import InputError


def storage_folder(given: str) -> Path:
    """The folder that sweeps lie in, which is made where it is not there. Raises InputError."""
    if "://" in given:
        raise InputError(
            "STORAGE: must be a folder of this machine, where uploads and logs can lie, got"
            f" {given}"
        )
    folder = Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"STORAGE: {given} is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def serve(storage: Path, address: Address, *, show: bool, say: Callable[[str], None]) -> None:
    """Until Ctrl-C or SIGTERM. show: in a browser of this machine. Raises InputError for a port
    that is taken.
    """
    token = address.token or secrets.token_urlsafe(32)
    with listening(address) as listener:
        port = listener.getsockname()[1]
        address = replace(address, port=port)
        logging.getLogger("nicegui").setLevel(logging.ERROR)
        server = uvicorn.Server(
            uvicorn.Config(
                Guard(
                    _app(storage),
                    token=token,
                    cookie=f"finetune-sweeps-{port}",
                    only_loopback=is_loopback(address.host),
                ),
                log_level="warning",
                timeout_graceful_shutdown=2,
            )
        )
        url = address.url if address.token else f"{address.url}/?{TOKEN}={token}"
        say(f"Sweeps of {storage}: {url}")
        if address.token:
            say(f"Open it once with ?{TOKEN}= and the token behind it")
        say("Ctrl-C ends the page; sweeps that run go on")
        if show:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):  # uvicorn ends in order, and then raises it
            server.run(sockets=[listener])


def can_show() -> bool:
    """Whether somebody sits at this terminal who may have a browser."""
    return sys.stdout.isatty() and has_screen()


def _app(storage: Path) -> FastAPI:
    app = FastAPI(title="finetune-sweeps", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(routes(storage))
    for page in (sweeps, new, sweep, talk):
        page.build(storage)
    run.process_pool_start_method = "spawn"
    ui.run_with(
        app,
        title="Sweeps",
        language="en-GB",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=30.0,
    )
    return app
