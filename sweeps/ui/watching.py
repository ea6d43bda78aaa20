"""How a sweep is watched: the one place that knows what page there is of it."""

from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from sweeps.reporting.page_server import page_app
from sweeps.reporting.watched import Watched
from sweeps.ui.files import SWEEP_FILES, is_name
from sweeps.ui.listing import find_sweep
from sweeps.ui.pages.frame import aside, path_to
from trainables.errors import InputError

# what rows hold stands in this page: it has no part in ours
ALONE = {"content-security-policy": "sandbox allow-popups"}
WATCHED = 16
"""Sweeps whose live pages are kept in memory."""


def page_of(sweep: str) -> str:
    """Address of what shows how far a sweep is, and goes on with it."""
    return f"{path_to('live', sweep)}/"


def routes(storage: Path) -> APIRouter:
    """Of pages that the terminal has, too."""
    router = APIRouter()
    router.routes.append(Mount("/live/{sweep}", _Live(storage)))

    @router.get("/checked/{name}")
    def checked(name: str) -> Response:
        page = storage / SWEEP_FILES / f"{name}.check.html"
        if not is_name(name) or not page.is_file():
            return PlainTextResponse(f"{page}: no such file", 404)
        return HTMLResponse(page.read_bytes(), headers=ALONE)

    return router


class _Live:
    """The live page of each sweep, behind the same guard as ours."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._opened = lru_cache(maxsize=WATCHED)(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sweep = str(scope.get("path_params", {}).get("sweep"))
        try:
            app = await aside(self._opened, sweep)
        except (InputError, OSError) as error:
            app = PlainTextResponse(" ".join(str(error).split()), 404)
        await app(scope, receive, send)

    def _open(self, sweep: str) -> Starlette:
        find_sweep(self._storage, sweep)
        return page_app(Watched(str(self._storage / sweep)))
