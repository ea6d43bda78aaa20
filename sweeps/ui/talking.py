"""A winner that answers, as a process of its own: the page stays quick, and its memory is given
back at the end.
"""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sweeps.ui.processes import ended_by
from sweeps.ui.talker import END, NO_ANSWER, READY, RESET, SAY, TEXT
from trainables.errors import InputError

LONGEST = 1 << 24  # bytes of a line between the processes


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """With one winner."""

    _process: Process

    @classmethod
    async def begin(cls, folder: str, *, beside_base: bool) -> "Conversation":
        """Once the model is loaded. Raises InputError where it cannot be."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sweeps.ui.talker",
            folder,
            *(["--base"] if beside_base else []),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=LONGEST,
        )
        found = cls(_process=process)
        try:
            await found._heard(READY)
        except BaseException:
            await found.end()
            raise
        return found

    async def answer(self, line: str) -> AsyncIterator[str]:
        """Its pieces. Raises InputError where there is none."""
        self._say({SAY: line})
        while True:
            said = await self._read()
            if NO_ANSWER in said:
                raise InputError(f"no answer: {said.get(NO_ANSWER)}")
            if END in said:
                return
            yield said.get(TEXT, "")

    async def forget(self) -> None:
        self._say({RESET: ""})
        await self._heard(END)

    @property
    def goes_on(self) -> bool:
        return self._process.returncode is None

    def interrupt(self) -> None:
        """Ends the answer, not the talk."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def _say(self, said: dict[str, str]) -> None:
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(json.dumps(said).encode() + b"\n")

    async def _heard(self, what: str) -> None:
        while what not in await self._read():
            pass

    async def _read(self) -> dict[str, str]:
        assert self._process.stdout is not None, "it is a pipe"
        if line := await self._process.stdout.readline():
            return json.loads(line)
        assert self._process.stderr is not None, "it is a pipe"
        said = (await self._process.stderr.read()).decode(errors="replace").strip()
        if (code := await self._process.wait()) < 0:
            raise InputError(ended_by(-code, "the model's process"))
        raise InputError(said.rpartition("\n")[2] or "the model's process has ended")
