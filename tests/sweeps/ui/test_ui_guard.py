"""Who may ask the page: only who has the token, and no other website on their behalf."""

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from sweeps.ui.guard import Guard

TOKEN = "a-token-that-nobody-guesses"
OWN = "http://127.0.0.1:8700"
SOCKET = "ws://127.0.0.1:8700/socket"


async def answer(request):
    return PlainTextResponse("the page")


async def framed(request):
    return HTMLResponse("a report", headers={"content-security-policy": "sandbox"})


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("the socket")
    await socket.close()


def asking(host: str = OWN, *, only_loopback: bool = True) -> TestClient:
    app = Starlette(
        routes=[
            Route("/report", framed),
            Route("/{rest:path}", answer, methods=["GET", "POST"]),
            WebSocketRoute("/socket", echo),
        ]
    )
    guarded = Guard(app, token=TOKEN, cookie="sweeps-8700", only_loopback=only_loopback)
    return TestClient(guarded, base_url=host, follow_redirects=False)


@pytest.fixture
def known() -> TestClient:
    """A browser that has opened the address that was printed."""
    client = asking()
    assert client.get(f"/?token={TOKEN}").status_code == 303
    return client


def test_the_address_with_the_token_is_taken_once_and_kept_as_a_cookie():
    client = asking()
    first = client.get(f"/new?token={TOKEN}")
    assert (first.status_code, first.headers["location"]) == (303, "/new")
    kept = first.headers["set-cookie"].lower()
    assert "httponly" in kept and "samesite=lax" in kept and "sweeps-8700=" in kept
    assert client.get("/new").text == "the page"


@pytest.mark.parametrize("path", ["/", "/new", "/_nicegui/x.js", "/?token=", "/?token=wrong"])
def test_nothing_is_told_without_the_token(path):
    refused = asking().get(path)
    assert refused.status_code == 403 and "the page" not in refused.text
    assert refused.text.startswith("The address must end with the token")


def test_no_socket_without_the_token(known):
    own = {"origin": OWN}
    with known.websocket_connect(SOCKET, headers=own) as socket:
        assert socket.receive_text() == "the socket"
    with pytest.raises(WebSocketDisconnect), asking().websocket_connect(SOCKET, headers=own):
        pass


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:8701", "http://localhost:8700", None],
)
def test_no_other_website_can_change_anything(known, origin):
    """Also not one on another port of this machine, which has the same cookies."""
    headers = {} if origin is None else {"origin": origin}
    assert known.post("/upload", headers=headers).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        known.websocket_connect(SOCKET, headers=headers),
    ):
        pass
    assert known.post("/upload", headers={"origin": OWN}).text == "the page"


@pytest.mark.parametrize("host", ["http://evil.example:8700", "http://10.0.0.1:8700"])
def test_a_name_that_leads_here_from_elsewhere_is_refused(host):
    """DNS rebinding: the browser believes that this machine is the other website."""
    client = asking(host)
    assert client.get(f"/?token={TOKEN}").text.startswith("Host: must be 127.0.0.1 or localhost")
    assert asking(host, only_loopback=False).get(f"/?token={TOKEN}").status_code == 303


@pytest.mark.parametrize("host", [OWN, "http://localhost:9000", "http://[::1]:8700"])
def test_this_machine_may_be_called_by_any_of_its_names(host):
    """Through a tunnel with another port, too."""
    client = asking(host)
    assert client.get(f"/?token={TOKEN}").status_code == 303
    assert client.get("/").text == "the page"
    assert client.post("/", headers={"origin": host}).text == "the page"


def test_nothing_comes_from_elsewhere_and_no_other_site_may_frame_it(known):
    policy = known.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy
    assert "http" not in policy and "*" not in policy
    assert known.get("/report").headers["content-security-policy"] == "sandbox"
