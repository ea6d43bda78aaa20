"""A sweep file that is being written: read as the terminal reads it, checked by the command that
checks it, and started.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path

from sweeps.config.loading import load
from sweeps.config.schema import SweepConfig
from sweeps.run.plan import Plan
from sweeps.ui.files import SWEEP_FILES, claim
from sweeps.ui.processes import Started, ended_by, start
from trainables.data.sources import check_sources
from trainables.errors import InputError
from trainables.storage.records import from_json

ROWS = 3  # of the data, that the page of a check shows


def read(text: str, storage: Path) -> SweepConfig:
    """What the file configures. Raises InputError, without the name of a file."""
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        file = Path(scratch) / "sweep.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            config = load(file)
        except ValueError as error:
            raise InputError(without_file(str(error), file)) from None
    if Path(config.storage).expanduser().absolute() != storage.absolute():
        raise InputError(
            f"storage: must be {storage}, whose sweeps this page shows, got {config.storage}; the"
            " terminal takes any"
        )
    check_sources(config.data)
    return config


def without_file(line: str, file: Path) -> str:
    """An error without the file that it begins with."""
    return line.removeprefix(f"{file}: ")


@dataclass(kw_only=True)
class Draft:
    """One page's file: its own until it is run."""

    storage: Path
    file: Path | None = None
    _checking: Process | None = None

    def write(self, text: str, name: str) -> Path:
        """Into STORAGE/sweep-files, by the sweep's name."""
        if self.file is None or self.file.stem.rpartition("-")[0] != name != self.file.stem:
            self.file = claim(self.storage / SWEEP_FILES, f"{name}.yaml")
        self.file.write_text(text, encoding="utf-8")
        return self.file

    @property
    def page(self) -> Path:
        """What a check writes."""
        assert self.file is not None, "what is checked has been written"
        return self.file.with_suffix(".check.html")

    @property
    def check_command(self) -> tuple[str, ...]:
        return ("check", str(self.file), "--rows", str(ROWS), "--html", str(self.page))

    @property
    def run_command(self) -> tuple[str, ...]:
        return ("run", str(self.file))

    async def check(self) -> Plan:
        """By the command, in a process of its own. Raises InputError with the line that it says."""
        assert self.file is not None, "what is checked has been written"
        self._checking = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sweeps",
            *self.check_command,
            "--json",
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # a group of its own, with all that it starts
        )
        out, said = await self._checking.communicate()
        assert self._checking.returncode is not None, "it has ended"
        if self._checking.returncode < 0:  # what it said last has nothing to do with it
            raise InputError(ended_by(-self._checking.returncode, "the check"))
        if self._checking.returncode != 0:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise InputError(without_file(last or "the check was ended", self.file))
        return from_json(Plan, json.loads(out), str(self.file))

    def cancel(self) -> None:
        """End a check that goes on."""
        if self._checking is not None and self._checking.returncode is None:
            os.killpg(self._checking.pid, signal.SIGKILL)

    def run(self) -> Started:
        """Start the sweep; the file is its own from now on."""
        assert self.file is not None, "what is run has been checked"
        started = start(self.storage, self.file.stem, self.run_command)
        self.file = None
        return started
