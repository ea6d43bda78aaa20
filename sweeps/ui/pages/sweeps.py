"""The first page: all sweeps of a STORAGE, the latest first."""

from datetime import datetime
from pathlib import Path

from nicegui import html, ui

from sweeps.ui.listing import Listed, list_sweeps, model_and_task
from sweeps.ui.pages.frame import aside, framed, path_to, pill, section
from sweeps.ui.pages.ordering import orders

PAGE = 25
EVERY_S = 3.0


def build(storage: Path) -> None:
    @ui.page("/")
    async def sweeps() -> None:
        with framed("Sweeps", home=False):
            html.p(f"Those that lie in {storage}.").classes("muted")
            ui.button("New sweep", on_click=lambda: ui.navigate.to("/new"))
            shown = Shown(storage)
            await shown.renew()
        ui.timer(EVERY_S, shown.renew, immediate=False)


class Shown:
    """The list as one browser sees it."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._all: list[Listed] = []
        self._words: dict[str, str] = {}
        with section("All sweeps"):
            self._find = ui.input("Find by name", on_change=self._first_page).props("clearable")
            self._count = ui.label().classes("muted")
            self._list = html.ul().classes("list")
            self._pages = ui.pagination(1, 1, direction_links=True, on_change=self._draw)
            self._pages.props("max-pages=5 boundary-numbers")

    async def renew(self) -> None:
        """Draw anew where something is otherwise than before."""
        found = await aside(list_sweeps, self._storage)
        if found != self._all or not self._count.text:
            self._all = found
            await self._draw()

    async def _first_page(self) -> None:
        self._pages.value = 1
        await self._draw()

    async def _draw(self) -> None:
        wanted = (self._find.value or "").strip().lower()
        found = [each for each in self._all if wanted in each.name.lower()]
        self._pages.max = max(1, -(-len(found) // PAGE))
        self._pages.set_visibility(self._pages.max > 1)
        at = min(self._pages.value or 1, self._pages.max)
        rows = found[(at - 1) * PAGE : at * PAGE]
        await self._learn(rows)
        self._count.text = f"{len(found)} of {len(self._all)}" if wanted else f"{len(found)}"
        self._list.clear()
        with self._list:
            for each in rows:
                self._row(each)
            if not rows:
                html.li("There is none yet." if not self._all else "None has this name.")

    async def _learn(self, rows: list[Listed]) -> None:
        """What they are of, where that is not known yet."""
        for each in rows:
            if each.is_sweep and each.name not in self._words:
                words = await aside(model_and_task, self._storage, each.name)
                self._words[each.name] = words

    def _row(self, each: Listed) -> None:
        with html.li():
            with html.div().classes("row"):
                html.a(each.name, href=path_to("sweep", each.name))
                pill(each.status)
                when = datetime.fromtimestamp(each.modified)
                html.span(f"{when:%Y-%m-%d %H:%M}").classes("muted")
            html.p(self._words.get(each.name, "")).classes("muted")
            with html.div().classes("row"):
                orders(self._storage, each, self.renew)
