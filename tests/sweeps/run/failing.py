"""Whole sweeps whose storage fails: their processes, and what they came to."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.sweeps.conftest import ROOT, environment

IN_ORDER = """
rehearse: false
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 1}
cluster: {slots: 1, trials_per_slot: 1}
tracking: {wandb: "off"}
search:
  trials: 2
  scheduler: none
  early_stopping: {overfit: false}
  initial: [{learning_rate: 0.001}, {learning_rate: 0.002}]
  space: {learning_rate: {choice: [0.001, 0.002]}}
"""


class Running:
    """A sweep's process, and what it prints."""

    def __init__(self, tmp: Path, log: Path, *arguments: object, wait_s: float | None = None):
        """wait_s: for how long it tries storage that fails, where that is another than usual."""
        program = ["-m", "sweeps"]
        if wait_s is not None:
            patched = f"import trainables.storage.patience as p; p.WAIT_S = {wait_s}"
            program = ["-c", f"{patched}; from sweeps.cli.app import main; main()"]
        self._log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                cwd=ROOT,
                env=environment(tmp),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives as soon as it gives something; the process must not end before."""
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        return found

    def told(self, words: str) -> None:
        self.until(lambda: words in self.log)

    def waits_for_storage(self) -> None:
        """Its own process does, or a slot: whoever has something to write first."""
        self.until(lambda: "; tried again for " in self.log or "waits for storage: " in self.log)

    def end(self, within_s: float) -> int:
        return self.process.wait(within_s)

    def below(self) -> list[psutil.Process]:
        """What it has started and what is still there, by their session: also what has lost its parent."""
        found = []
        for each in psutil.process_iter():
            try:
                if os.getsid(each.pid) == self.process.pid and each.pid != self.process.pid:
                    found.append(each)
            except (ProcessLookupError, PermissionError):
                continue
        return found

    def gone(self, within_s: float) -> None:
        """All that it has started ends by itself."""
        end = time.monotonic() + within_s
        while (left := self.below()) and time.monotonic() < end:
            time.sleep(0.2)
        assert not left, [each.name() for each in left]

    def kill(self) -> None:
        for each in self.below():
            each.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def folder_of(storage: Path) -> Path | None:
    return next(iter(sorted(storage.glob("*-*"))), None) if storage.is_dir() else None


def evaluated(storage: Path, count: int = 1) -> Path | None:
    """The sweep's folder, once it has so many evaluations."""
    folder = folder_of(storage)
    enough = folder and len([*folder.glob("trials/*/attempt-*/step-*/evaluation.json")]) >= count
    return folder if enough else None


def results(board: str) -> dict[str, Any]:
    """What must be the same, of what `best --json` prints."""
    read = json.loads(board)
    trials = {
        trial["id"]: (
            trial["status"],
            trial["params"],
            [(each["step"], each["val_loss"], each["probe_loss"]) for each in trial["evaluations"]],
        )
        for trial in read["trials"]
    }
    winner = {name: read["winner"][name] for name in ("trial", "step", "val_loss")}
    return {"trials": trials, "winner": winner, "test": read["test"], "status": read["status"]}
