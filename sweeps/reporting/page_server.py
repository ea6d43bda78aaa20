"""The live page of a sweep, for browsers of this machine."""

import asyncio
import secrets
import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from sweeps.reporting.html import plotly_js
from sweeps.reporting.watched import Source, Watched
from trainables.errors import InputError

HOST = "127.0.0.1"
STOP_S = 5.0  # that an open connection may keep the server from its end


def page_app(source: Source) -> Starlette:
    """The page at `/`, what it is followed by at `/version`."""
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}

    async def page(_: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(source.page), headers=headers)

    async def version(_: Request) -> Response:
        told = await run_in_threadpool(source.page_version)
        return PlainTextResponse(told, headers=headers)

    async def plotly(_: Request) -> Response:
        script = await run_in_threadpool(plotly_js)
        return Response(
            script,
            media_type="text/javascript",
            headers={"Cache-Control": "private, max-age=86400"},
        )

    routes = [Route("/", page), Route("/version", version), Route("/plotly.js", plotly)]
    return Starlette(routes=routes)


class PageServer:
    """Serves one page until it is closed, in a thread of its own. Its address has a secret in it,
    which other pages of the browser do not know, nor other users of the machine who do not see its
    processes' arguments.
    """

    def __init__(self, source: Source, port: int = 0) -> None:
        """port: 0 takes one that is free. Raises InputError for one that is taken."""
        self._listener = _listen(port)
        secret = secrets.token_urlsafe(16)
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}/{secret}/"
        app = Starlette(
            routes=[Mount(f"/{secret}", page_app(source))],
            # another site's name that leads here is another site all the same
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, timeout_graceful_shutdown=int(STOP_S)
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def serve_page(folder: str, port: int = 0) -> PageServer:
    """The live page of the sweep in a folder, or at a URL; its address is `url`, and `close` ends
    it. Raises InputError.
    """
    return PageServer(Watched(folder), port)


def _listen(port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise InputError(f"--port: must be from 1 to 65535, got {port}")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # a browser may come before the server does
    except OSError as error:
        listener.close()
        raise InputError(f"--port: cannot listen at {HOST}:{port}: {error.strerror}") from error
    return listener
