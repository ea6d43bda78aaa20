"""One sweep: how far it is, what it says, and what can be done with it."""

from pathlib import Path

from nicegui import html, ui

from sweeps.ledger.story import read_story
from sweeps.ui.listing import NOT_BEGUN, STARTING, Listed, find_sweep, model_and_task
from sweeps.ui.pages.frame import (
    WRONG,
    aside,
    command_line,
    framed,
    line_of,
    path_to,
    pill,
    section,
)
from sweeps.ui.pages.ordering import orders
from sweeps.ui.processes import log_of
from sweeps.ui.watching import page_of
from trainables.storage.store import Store

EVERY_S = 1.0
LINES = 200


def build(storage: Path) -> None:
    @ui.page("/sweep/{name}")
    async def sweep(name: str) -> None:
        with framed(name):
            try:
                found = await aside(find_sweep, storage, name)
            except WRONG as error:
                html.p(line_of(error)).classes("wrong")
                return
            watched = Watched(storage, found)
            await watched.draw()
        ui.timer(EVERY_S, watched.renew, immediate=False)


class Watched:
    """A sweep as one browser sees it."""

    def __init__(self, storage: Path, found: Listed) -> None:
        self._storage, self._found = storage, found
        self._head = html.div()
        self._page = html.div()
        with section("What it says", "The end of its output."):
            self._log = ui.label().classes("log")
            self._log.props('tabindex=0 role=log aria-label="Output"')
        with section("In a terminal"):
            self._commands = html.div()

    async def renew(self) -> None:
        found = await aside(find_sweep, self._storage, self._found.name)
        if found.name != self._found.name:  # a command that has become a sweep
            ui.navigate.to(path_to("sweep", found.name))
            return
        if found != self._found:
            self._found = found
            await self.draw()
        else:
            await self._say()

    async def draw(self) -> None:
        each = self._found
        words = ""
        if each.is_sweep:
            words = await aside(model_and_task, self._storage, each.name)
        self._head.clear()
        with self._head:
            with html.div().classes("row"):
                pill(each.status)
                html.span(words).classes("muted")
            with html.div().classes("row"):
                orders(self._storage, each, self.renew)
            if each.status == STARTING:
                html.p("Data are read and every method is tried at a size of seconds first.")
            if each.status == NOT_BEGUN:
                html.p("It has ended before it began; what it says tells why.").classes("wrong")
        self._draw_page()
        self._commands.clear()
        with self._commands:
            self._draw_commands()
        await self._say()

    def _draw_page(self) -> None:
        self._page.clear()
        if not self._found.is_sweep:
            return
        address = page_of(self._found.name)
        with self._page, section("How far it is"):
            with html.div().classes("row"):
                html.a("Open it alone", href=address, target="_blank")
            html.iframe(src=address, title=f"Report of {self._found.name}").classes("page")

    def _draw_commands(self) -> None:
        each, folder = self._found, str(self._storage / self._found.name)
        if not each.is_sweep:
            assert each.started is not None, "what is no sweep yet was started here"
            command_line(each.started.command, "Run it")
            return
        command_line(("watch", folder), "How far it is")
        command_line(("best", folder), "What has won")
        command_line(("resume", folder), "Go on with it")
        if each.has_winner:
            command_line(("chat", folder), "Talk with the winner")
            command_line(("serve", folder), "Serve it")
            command_line(("export", folder, "--to", "OUT"), "Hand it on")

    async def _say(self) -> None:
        self._log.text = await aside(_said, self._storage, self._found)


def _said(storage: Path, each: Listed) -> str:
    """The end of its output; of a sweep that somebody else has run last, of its log."""
    last, process = each.started, each.process
    if last is not None and (last.runs or process is None or last.has_written(process)):
        return log_of(storage, last)
    return "\n".join(read_story(Store(str(storage / each.name)))[-LINES:])
