"""What all pages share: head, words of a status, a command for a terminal, how errors are told."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

from nicegui import html, ui

from cluster import ClusterError
from search_spaces import SpaceError
from sweeps.ui.processes import in_a_terminal
from trainables.errors import InputError

WRONG = (InputError, SpaceError, ClusterError, OSError)
"""What the terminal tells in one line."""

P = ParamSpec("P")
Found = TypeVar("Found")
Action = Callable[[], Coroutine[object, object, None]]


def path_to(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


@contextmanager
def framed(title: str, *, home: bool = True) -> Iterator[None]:
    """A page with a heading. home: whether there is a way back to the list."""
    ui.page_title(f"{title} · Sweeps")
    ui.add_css(Path(__file__).with_name("style.css"))
    with html.div().classes("sheet"):
        if home:
            with html.nav(aria_label="Pages"):
                html.a("All sweeps", href="/")
        html.h1(title)
        yield


@contextmanager
def section(title: str, note: str = "") -> Iterator[None]:
    with html.section(aria_label=title):
        html.h2(title)
        if note:
            html.p(note).classes("muted")
        yield


def pill(status: str) -> None:
    html.span(status).classes(f"pill {status.replace(' ', '-')}")


def command_line(command: Sequence[str], does: str = "In a terminal") -> None:
    """What does the same in a terminal."""
    with html.p().classes("command"):
        html.span(f"{does}:").classes("muted")
        html.code(in_a_terminal(command))


def tell(error: BaseException) -> None:
    """In the line that the terminal has for it."""
    ui.notify(line_of(error), type="negative", timeout=0, close_button="Close", multi_line=True)


def line_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def aside(work: Callable[P, Found], *args: P.args, **kwargs: P.kwargs) -> Found:
    """In a thread, so that the page answers meanwhile."""
    return await asyncio.to_thread(work, *args, **kwargs)


def told(action: Action) -> Action:
    """With what goes wrong told on the page."""

    async def run_it() -> None:
        try:
            await action()
        except WRONG as error:
            tell(error)

    return run_it
