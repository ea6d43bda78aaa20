"""What it takes to watch a large sweep: reading its folder, the board, the page, and the page in a browser.

    .venv/bin/python tests/benchmarks/watching.py --trials 1000

Makes a folder of that many trials by what a sweep's process writes them with: every trial's evaluations with the losses
of each row, one checkpoint kept, log.txt, the study, and progress.json. The last 16 trials run. Needs Chromium.
"""

import argparse
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import optuna
import psutil
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))

from sweeps.config.loading import from_folder
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.progress import Progress, RunningTrial
from sweeps.ledger.story import Story
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.page_server import PageServer
from sweeps.reporting.publish import report_page
from sweeps.reporting.watched import Watched
from sweeps.run.onlookers import PROGRESS_S, REPORT_S, REPORT_SHARE, Onlookers
from sweeps.search.study import STUDY, TRIAL, open_study
from trainables.evaluation.record import MeasuredEvaluation, UntunedResults
from trainables.storage.checkpoints import CHECKPOINT, STATE, begin_attempt, write_evaluation

ROOT = Path(__file__).parents[2]
SWEEP = """
name: large
task: classification
model: {{name: tiny}}
data: {{train: rows.csv}}
search:
  trials: {trials}
  space:
    method: lora
    learning_rate: {{log_uniform: [1e-5, 1e-2]}}
    rank: {{choice: [4, 8, 16, 32]}}
    dropout: {{uniform: [0.0, 0.2]}}
    batch_size: {{choice: [8, 16, 32]}}
    epochs: {{int: [1, 4]}}
tracking: {{wandb: "off"}}
"""
DOMAINS = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "rank": CategoricalDistribution(["4", "8", "16", "32"]),
    "dropout": FloatDistribution(0.0, 0.2),
    "batch_size": CategoricalDistribution(["8", "16", "32"]),
    "epochs": IntDistribution(1, 4),
}
RUNNING = 16
RENEWALS = 5


class Large:
    """The folder, and what goes on in it."""

    def __init__(self, folder: Path, rows: int, trials: int) -> None:
        self.ledger = Ledger(str(folder))
        text = SWEEP.format(trials=trials).encode()
        self.ledger.store.write_bytes("sweep.yaml", text)
        self.config: SweepConfig = from_folder(text, (), "sweep.yaml")
        self.story = Story(self.ledger.store)
        self.onlookers = Onlookers(self.config, self.ledger, self.story)
        self._rows, self._trials = rows, trials
        self._drawn = np.random.default_rng(0)
        self._study = open_study(folder / STUDY, "large", self.config.search, 0)
        self.ledger.set_status("running", 1.0)
        self.ledger.write_untuned(UntunedResults(val_loss=2.6, probe_loss=2.6))

    def trial(self, number: int, evaluations: int) -> None:
        drawn, name = self._drawn, f"t{number:04d}"
        found = {
            "learning_rate": float(10 ** drawn.uniform(-5, -2)),
            "rank": str(drawn.choice([4, 8, 16, 32])),
            "dropout": float(drawn.uniform(0.0, 0.2)),
            "batch_size": str(drawn.choice([8, 16, 32])),
            "epochs": int(drawn.integers(1, 5)),
        }
        params = {
            "method": "lora",
            "targets": "attention",
            "alpha": 2 * int(found["rank"]),
            **found,
        }
        self.ledger.begin(
            name, params | {"rank": int(found["rank"]), "batch_size": int(found["batch_size"])}
        )
        self.story.tell(f"{name} starts: lora learning_rate={found['learning_rate']:.3g}")
        begin_attempt(self.ledger.store, name)
        floor = 1.0 + abs(math.log10(found["learning_rate"]) + 3.3) / 4 + drawn.uniform(0, 0.2)
        rise = drawn.uniform(0, 0.1) if number % 4 == 0 else 0.0
        for step in range(1, evaluations + 1):
            up = rise * max(0, step - 4)
            self.evaluate(name, floor + 1.5 * math.exp(-0.6 * step) + up, up)
        if number > self._trials - RUNNING:
            return
        self.ledger.finish(name, "complete", None)
        self.ledger.prune(name, self.config.selection)
        losses = [point.val_loss for point in self.ledger.curve(name).points]
        told = create_trial(
            params=found,
            distributions=DOMAINS,
            value=min(loss for loss in losses if loss is not None),
            user_attrs={TRIAL: name},
        )
        self._study.add_trial(told)
        self.story.tell(f"{name} complete")

    def evaluate(self, name: str, val_loss: float, up: float = 0.0) -> None:
        step = 1 + len(self.ledger.curve(name).points)
        made = MeasuredEvaluation(
            step=100 * step,
            samples_seen=1600 * step,
            epoch=step / 4,
            val_loss=val_loss,
            probe_loss=val_loss - 0.05 - 2 * up,
            train_loss=val_loss,
            learning_rate=1e-3,
            metrics={"accuracy": 1 / (1 + val_loss), "macro_f1": 0.9 / (1 + val_loss)},
            trainable_parameters=100_000,
            losses=np.stack(
                [self._drawn.gamma(2.0, val_loss / 2, self._rows), np.ones(self._rows)], 1
            ).astype(np.float32),
        )
        written = write_evaluation(self.ledger.store, name, 1, made, checkpoint)
        self.ledger.record(name, written)
        self.ledger.prune(name, self.config.selection)
        self.story.tell(f"{name} epoch {step / 4:g}: val loss {val_loss:.4f}, probe loss ...")

    def progress(self) -> Progress:
        running = {
            name: RunningTrial(
                samples_seen=16_000, total_samples=32_000, samples_per_s=25.0, slot=f"slot{k % 4}"
            )
            for k, name in enumerate(self.ledger.unfinished())
        }
        return Progress(
            time=time.time(), trials=self._trials, elapsed_s=9e3, left_s=900.0, running=running
        )


def checkpoint(folder: Path) -> None:
    (folder / CHECKPOINT).mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (folder / CHECKPOINT / name).write_bytes(b"x" * 1000)
    (folder / STATE).write_bytes(b"x" * 1000)


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def of_the_folder(large: Large) -> dict[str, str]:
    read = Ledger(large.ledger.store.url)
    found = {"`Ledger.load`, first, s": f"{timed(read.load):.2f}"}
    found["again, nothing changed, s"] = f"{timed(read.load):.2f}"
    large.evaluate(large.ledger.unfinished()[0], 1.5)
    found["again, one evaluation more, s"] = f"{timed(read.load):.2f}"
    selection = large.config.selection
    found["`leaderboard`, s"] = f"{timed(lambda: leaderboard(read, 'large', selection)):.2f}"
    board = leaderboard(read, "large", selection)
    pages: list[str] = []
    seconds = timed(lambda: pages.append(report_page(read, large.config, board)))
    found["`report_page`, s"] = f"{seconds:.2f}"
    found["report.html, MB"] = f"{len(pages[0].encode()) / 1e6:.1f}"
    live = report_page(read, large.config, board, live="1")
    found["the same of the live page, MB"] = f"{len(live.encode()) / 1e6:.1f}"
    watched = Watched(large.ledger.store.url)
    watched.look()
    watched._due = 0.0
    found["a look of `watch`, nothing changed, s"] = f"{timed(watched.look):.2f}"
    return found


def of_onlookers(large: Large) -> dict[str, str]:
    def cpu(do: Callable[[], object]) -> float:
        began = time.process_time()
        do()
        return time.process_time() - began

    telling = cpu(lambda: large.onlookers.tell(large.progress()))
    large.onlookers._due = 0.0
    began = time.perf_counter()
    writing = cpu(large.onlookers.renew_report)
    took = time.perf_counter() - began
    every = max(REPORT_S, took / REPORT_SHARE)
    share = telling / PROGRESS_S + writing / every
    return {
        "the sweep's own report.html, CPU s": f"{writing:.2f}",
        "which it writes every, s": f"{every:.0f}",
        "of one core for onlookers, in the sweep": f"{share:.2%}",
    }


def of_the_browser(large: Large, report: Path) -> dict[str, str]:
    found = {}
    drawn = "document.documentElement.dataset.drawn !== undefined"
    server = PageServer(Watched(large.ledger.store.url))
    try:
        with sync_playwright() as playwright:
            program = shutil.which("chromium") or "chromium"
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for name, url in (("report.html", report.as_uri()), ("the live page", server.url)):
                urllib.request.urlopen(server.url).close()  # it is made for others already
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                devtools = page.context.new_cdp_session(page)
                devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
                began = time.perf_counter()
                page.goto(url)
                while not page.evaluate(drawn):
                    time.sleep(0.02)
                found[f"{name} is drawn in Chromium after, s"] = (
                    f"{time.perf_counter() - began:.2f}"
                )
                told = devtools.send("Performance.getMetrics")["metrics"]
                (cpu,) = (each["value"] for each in told if each["name"] == "TaskDuration")
                found[f"the same of {name}, CPU s"] = f"{cpu:.2f}"
            renew = """async () => {
              const text = await (await fetch("")).text(), began = performance.now();
              await renew(text);
              return (performance.now() - began) / 1000;
            }"""
            seconds = [page.evaluate(renew) for _ in range(RENEWALS)]
            found["a renewal of it, s"] = f"{np.median(seconds):.2f}"
            select = """async () => {
              const began = performance.now();
              focusOn("t0500");
              await draw();
              return (performance.now() - began) / 1000;
            }"""
            found["selecting a trial, s"] = f"{page.evaluate(select):.2f}"
            browser.close()
    finally:
        server.close()
    return found


def of_watch(large: Large, seconds: float) -> dict[str, str]:
    """CPU of `watch` beside a sweep whose progress is written as ever; with a page, one that asks as the browser does."""
    found = {}
    for name, more in (("`watch`", []), ("`watch --open` with a reader", ["--open"])):
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "watch", large.ledger.store.url, *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BROWSER": "true", "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        url = None
        for line in process.stdout:  # until it has read the folder
            url = line.split()[-1] if "live page" in line else url
            if "t1000 " in line or " epoch " in line:
                break
        own = psutil.Process(process.pid)
        before, began, shown, told = own.cpu_times(), time.monotonic(), "", 0.0
        while time.monotonic() - began < seconds:
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                large.onlookers.tell(large.progress())
            if url is not None:
                with urllib.request.urlopen(f"{url}version") as answer:
                    version = answer.read().decode()
                if version != shown:
                    urllib.request.urlopen(url).read()
                    shown = version
            time.sleep(1.0)
        after, took = own.cpu_times(), time.monotonic() - began
        process.kill()
        process.wait()
        share = (after.user + after.system - before.user - before.system) / took
        found[f"of one core for {name}"] = f"{share:.1%}"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=10, help="of each trial")
    parser.add_argument("--rows", type=int, default=1000, help="of validation")
    parser.add_argument("--seconds", type=float, default=60.0, help="that `watch` is watched")
    asked = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        large = Large(Path(scratch) / "large-20260101-120000", asked.rows, asked.trials)
        for number in range(1, asked.trials + 1):
            large.trial(number, asked.evaluations)
        large.onlookers.tell(large.progress())
        print(f"load of the machine before: {os.getloadavg()[0]:.1f}; {platform.python_version()}")
        print("| measured | value |\n|---|---|", flush=True)
        report = Path(large.ledger.store.path("report.html"))
        parts: list[Callable[[], dict[str, str]]] = [
            lambda: of_the_folder(large),
            lambda: of_onlookers(large),
            lambda: of_the_browser(large, report),
            lambda: of_watch(large, asked.seconds),
        ]
        for part in parts:
            for name, value in part().items():
                print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
