"""Who may ask: a page that starts programs answers only who has its address with the token, and no
other website.
"""

import hmac

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from sweeps.use.serving.address import is_loopback

TOKEN = "token"
"""What the address that is printed ends with, before the page has set its cookie."""
READING = ("GET", "HEAD")

# NiceGUI compiles its templates in the browser, which takes eval; nothing comes from elsewhere
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:;"
    " frame-src 'self'; frame-ancestors 'self'; form-action 'self';"
    " base-uri 'none'; object-src 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Guard:
    """Before all that the page serves, files and sockets too."""

    def __init__(self, app: ASGIApp, *, token: str, cookie: str, only_loopback: bool) -> None:
        """cookie: its name, as cookies of one host are shared by all ports. only_loopback: whether
        the Host must be this machine as it calls itself.
        """
        self.app = app
        self._token, self._cookie, self._only_loopback = token, cookie, only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("type") == "lifespan":
            await self.app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        answer = self._refusal(asked) or self._welcome(asked)
        if answer is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope.get("type") == "websocket":
            await WebSocketClose(code=1008)(scope, receive, send)
        else:
            await answer(scope, receive, send)

    def _refusal(self, asked: HTTPConnection) -> Response | None:
        host, origin = asked.headers.get("host", ""), asked.headers.get("origin")
        if self._only_loopback and not is_loopback(_name(host)):
            return _refused(f"Host: must be 127.0.0.1 or localhost, got {host!r}")
        # of a browser that asks on behalf of a page, this one or another
        changes = asked.scope.get("method") not in READING
        if (origin is not None or changes) and (origin or "").partition("://")[2] != host:
            return _refused(f"Origin: must be this page's own, got {origin!r}")
        given = asked.cookies.get(self._cookie) or asked.query_params.get(TOKEN, "")
        if not self._is_token(given) and not self._is_token(asked.query_params.get(TOKEN, "")):
            return _refused(
                "The address must end with the token, as `python -m sweeps ui` has printed it"
            )
        return None

    def _welcome(self, asked: HTTPConnection) -> Response | None:
        """Keeps the token in a cookie, and takes it out of the address."""
        if TOKEN not in asked.query_params:
            return None
        answer = RedirectResponse(f"/{asked.url.path.lstrip('/')}", 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        return answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _name(host: str) -> str:
    """Without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 403)


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message.get("type") == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
