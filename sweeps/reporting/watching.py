"""A sweep followed in a terminal and, where asked for, in a browser."""

import os
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from sweeps.ledger.leaderboard import Leaderboard
from sweeps.reporting.live import Display
from sweeps.reporting.watched import Source

EARLIER = 20  # lines of what happened before, that are shown


def follow(
    watched: Source, console: Console, *, browser: bool = False, port: int = 0
) -> Leaderboard | None:
    """Show lines and table until the sweep ends, and with a browser until Ctrl-C; returns how it
    stands then, where that can be told.
    """
    display = Display(console, name=watched.name, selection=watched.selection)
    with _page(watched, display, browser=browser, port=port):
        try:
            ended = _follow(watched, display)
            if ended and browser:
                display.show("The page stays until Ctrl-C.")
                while True:
                    time.sleep(watched.looks_every_s)
        except KeyboardInterrupt:
            if watched.look().status == "running":
                display.show(f"{watched.name} goes on without us.")
    return watched.board()


def _follow(watched: Source, display: Display) -> bool:
    look = watched.look()
    shown = max(0, len(look.story) - EARLIER)
    if shown:
        display.show(f"... {shown} lines before these in {watched.log}")
    display.start()
    try:
        while True:
            for line in look.story[shown:]:
                display.show(line)
            shown = len(look.story)
            if look.status != "running":
                return True
            if look.progress is not None and display.console.is_terminal:
                display.refresh(look.curves, look.progress)
            time.sleep(watched.looks_every_s)
            look = watched.look()
    finally:
        display.stop()


@contextmanager
def _page(watched: Source, display: Display, *, browser: bool, port: int) -> Iterator[None]:
    if not browser:
        yield
        return
    from sweeps.reporting.page_server import PageServer

    server = PageServer(watched, port)
    try:
        display.show(f"The live page, on this machine alone: {server.url}")
        if has_screen():  # else a browser of the terminal would take it over
            webbrowser.open(server.url)
        yield
    finally:
        server.close()


def has_screen() -> bool:
    """Whether a browser has where to show itself."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
