"""A real browser, the system's Chromium."""

import shutil
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """Skips where there is none; ends before another module, whose event loops it would be in the way of."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium on PATH (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
