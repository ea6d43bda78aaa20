"""A conversation with a winner."""

from pathlib import Path

from nicegui import html, ui

from sweeps.ledger.opening import open_sweep
from sweeps.ui.listing import find_sweep
from sweeps.ui.pages.frame import WRONG, aside, command_line, framed, line_of, section, told
from sweeps.ui.talking import Conversation


def build(storage: Path) -> None:
    @ui.page("/talk/{name}")
    async def talk(name: str) -> None:
        with framed(f"Chat with {name}"):
            try:
                await aside(find_sweep, storage, name)
                _, config = await aside(open_sweep, str(storage / name))
            except WRONG as error:
                html.p(line_of(error)).classes("wrong")
                return
            room = Room(str(storage / name), config.data.text_pair)
        ui.context.client.on_delete(room.close)
        ui.timer(0.0, room.open, once=True)


class Room:
    """A conversation as one browser sees it; the model is a process of its own."""

    def __init__(self, folder: str, second: str | None) -> None:
        """second: the column of a second text, where an input has two."""
        self._folder = folder
        self._talk: Conversation | None = None
        self._left = False  # nobody is there to talk any more
        with section("The winner", "It runs on this machine, for this page alone."):
            self._state = ui.label().props("role=status")
            self._base = ui.checkbox("Show what the untuned model says beside it")
            self._base.on_value_change(told(self.open))
            self._said = html.div(role="log", aria_label="Conversation")
            self._line = ui.textarea("Say something" if second is None else "First text")
            self._line.props("autogrow outlined").classes("wide")
            self._line.on("keydown.enter.exact.prevent", told(self._send))
            self._second = None if second is None else ui.input(second).props("outlined")
            with html.div().classes("row"):
                self._button = ui.button("Send", on_click=told(self._send))
                self._stop = ui.button("Stop the answer", on_click=self._interrupt)
                self._stop.props("outline")
                ui.button("Forget what was said", on_click=told(self._forget)).props("outline")
            command_line(("chat", folder))
        self._ready(False)

    def _ready(self, ready: bool) -> None:
        self._button.set_enabled(ready)
        self._stop.set_enabled(not ready and self._talk is not None)

    def _tell(self, text: str, kind: str = "muted") -> None:
        self._state.text = text
        self._state.classes(replace=kind)

    async def open(self) -> None:
        """Start the model, with its base beside it where that is asked for."""
        await self._end()
        self._said.clear()
        self._ready(False)
        self._base.disable()  # one model is loaded at a time
        self._tell("Loading the model …")
        try:
            talk = await Conversation.begin(self._folder, beside_base=bool(self._base.value))
        except WRONG as error:
            self._tell(line_of(error), "wrong")
            return
        finally:
            self._base.enable()
        if self._left:
            await talk.end()
            return
        self._talk = talk
        self._tell("Ready.")
        self._ready(True)

    async def close(self) -> None:
        """The page is left for good."""
        self._left = True
        await self._end()

    async def _end(self) -> None:
        if self._talk is not None:
            talk, self._talk = self._talk, None
            await talk.end()

    async def _send(self) -> None:
        line = (self._line.value or "").strip()
        if not line or self._talk is None or not self._button.enabled:
            return
        if self._second is not None:
            line = f"{line}\t{self._second.value or ''}"
        self._line.value = ""
        self._ready(False)
        with self._said:
            html.div(line).classes("said me")
            answer = ui.label("…").classes("said it")
        self._tell("Answering …")
        text = ""
        try:
            async for piece in self._talk.answer(line):
                text += piece
                answer.text = text.rstrip("\n")
            self._tell("Ready.")
        except WRONG as error:
            self._tell(line_of(error), "wrong")
            if self._talk is not None and not self._talk.goes_on:
                self._tell(f"{line_of(error)}; reload this page to load it again", "wrong")
                return
        self._ready(True)

    def _interrupt(self) -> None:
        if self._talk is not None:
            self._talk.interrupt()

    async def _forget(self) -> None:
        if self._talk is not None and self._button.enabled:
            await self._talk.forget()
            self._said.clear()
