"""What can be done with a sweep: stop it, go on with it, talk with its winner."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from nicegui import ui

from sweeps.ui.listing import STARTING, Listed, find_sweep
from sweeps.ui.pages.frame import aside, path_to, told
from sweeps.ui.processes import start, stop
from trainables.errors import InputError

RESUMABLE = ("interrupted", "failed")


def orders(storage: Path, each: Listed, after: Callable[[], Awaitable[None]]) -> None:
    """Buttons; after: what renews what is shown."""

    async def stop_it() -> None:
        now = await aside(find_sweep, storage, each.name)  # another process may have it by now
        process = now.process if now.is_sweep else now.started
        assert process is not None, "what was shown as running has had a process"
        if now.process is not None and now.process.ending:
            ui.notify(f"{each.name}: is stopping already")  # a second signal would end it at once
            return
        await aside(stop, process.pid, process.began, process.host)
        ui.notify(f"{each.name}: stopping; its trials end in order")
        await after()

    async def resume() -> None:
        now = await aside(find_sweep, storage, each.name)  # another page may have been quicker
        if now.status not in RESUMABLE:
            raise InputError(f"{each.name}: is {now.status}")
        command = ("resume", str(storage / each.name))
        await aside(start, storage, each.name, command, each.name)
        ui.notify(f"{each.name}: goes on")
        await after()

    if each.status in ("running", STARTING):
        ui.button("Stop", on_click=told(stop_it)).props(
            f'outline dense padding="2px 12px" aria-label="Stop {each.name}"'
        )
    if each.status in RESUMABLE:
        ui.button("Resume", on_click=told(resume)).props(
            f'outline dense padding="2px 12px" aria-label="Resume {each.name}"'
        )
    if each.has_winner:
        talk = path_to("talk", each.name)
        ui.button("Chat", on_click=lambda: ui.navigate.to(talk)).props(
            f'outline dense padding="2px 12px" aria-label="Chat with the winner of {each.name}"'
        )
