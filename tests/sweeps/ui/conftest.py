"""The page as a user has it: its server as a command, and Chromium."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
expect.set_options(timeout=120_000)  # only to end what hangs
URL = re.compile(r"http://\S+\?token=\S+")


@dataclass(frozen=True, kw_only=True)
class Server:
    """`python -m sweeps ui`, as it runs."""

    url: str
    """As it prints it, with the token."""
    process: subprocess.Popen[bytes]

    def page(self, path: str) -> str:
        """Address of one of its pages, without the token."""
        return self.url.split("?")[0] + path

    def page_with_token(self, path: str) -> str:
        return self.url.replace("/?", f"/{path}?")


@pytest.fixture
def open_server(start_sweeps, tmp_path: Path) -> Callable[[Path], Server]:
    """Starts `ui` for a STORAGE."""

    def start(storage: Path) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        log = tmp_path / f"ui-{port}.log"
        process = start_sweeps(log, "ui", storage, "--port", port, "--no-browser")
        while (found := URL.search(log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        return Server(url=found[0], process=process)

    return start


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a tab, also of another size or in dark mode; at the end nothing has gone wrong in it, and
    nothing was asked of another machine.
    """
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(**settings: object) -> Page:
        context = chromium.new_context(**settings)  # type: ignore[arg-type]
        contexts.append(context)
        context.on("request", lambda sent: wrong.extend(elsewhere(sent.url)))
        context.on("weberror", lambda found: wrong.append(str(found.error)))
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.set_default_timeout(120_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def elsewhere(url: str) -> list[str]:
    here = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")
    return [] if url.startswith(here) else [url]
