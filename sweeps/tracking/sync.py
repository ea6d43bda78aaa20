"""What stayed on this machine of a sweep's tracking, uploaded to Weights & Biases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.tracking.background import one_line
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import SweepEnd
from sweeps.tracking.wandb import SWEEP, Sink, pin_folders, read_end, run_id
from trainables.errors import InputError

if TYPE_CHECKING:
    from wandb.apis.public import Run

RUN_FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A run's log, of one process."""

    log: Path
    run: str

    @property
    def mark(self) -> Path:
        """W&B's own, for what has been uploaded."""
        return self.log.with_suffix(".wandb.synced")

    @property
    def waits(self) -> bool:
        return self.log.parent.name.startswith("offline-") and not self.mark.exists()


def sync(
    config: TrackingConfig,
    sweep: str,
    folder: Path,
    about: Mapping[str, object],
    end: SweepEnd | None = None,
) -> str:
    """Upload the runs that the server does not have, go on with those that it has in part, and do
    what only works online. No row is uploaded twice. Returns what was done, in a line.

    folder: of all that trackers write; end: of the finished sweep, None: what it told at its end,
    if it has ended. Raises InputError without a key, and OSError where the server does not do its
    part: what was uploaded stays so, and another call goes on.
    """
    if not folder.is_dir():
        raise InputError(f"{folder.parent}: it was not tracked, so there is nothing to upload")
    with _variables_restored():
        return _sync(replace(config, wandb="online"), sweep, folder.absolute(), about, end)


@contextmanager
def _variables_restored() -> Iterator[None]:
    """Of W&B, which this process' environment had before."""
    before = _variables()
    try:
        yield
    finally:
        for name in _variables().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _sync(
    config: TrackingConfig,
    sweep: str,
    folder: Path,
    about: Mapping[str, object],
    end: SweepEnd | None,
) -> str:
    pin_folders(folder)
    os.environ["WANDB_MODE"] = "online"
    sink = Sink(config, sweep, folder, about, lambda kind, line: None)
    sink.patient = True
    try:
        _check(sink.problem())
        return _upload(sink, sweep, folder, end or read_end(folder))
    except BaseException as error:
        sink.kill_service()  # so that nothing waits for what has not arrived
        if not isinstance(error, Exception) or isinstance(error, InputError | OSError):
            raise
        # wandb has errors of many kinds
        raise OSError(f"W&B: {one_line(error)}; another `sync` goes on") from error
    finally:
        with suppress(Exception):  # what is to be said of it has been said
            sink.do("close", ())


def _upload(sink: Sink, sweep: str, folder: Path, end: SweepEnd | None) -> str:
    pieces, known = list(_pieces(folder)), sink.runs_online()
    fresh = [piece for piece in pieces if piece.waits and piece.run not in known]
    _upload_whole(sink, fresh)
    whole = {piece.run for piece in fresh}
    completed = 0
    for run, trial in _trials(sweep, folder).items():
        if run not in whole:
            completed += _go_on(sink, trial, known.get(run), _of_run(pieces, run))
    words = _counted("uploaded", len(whole)) + _counted("completed", completed)
    if end is not None:
        words += sink.complete(end)
    return f"W&B: {', '.join(words) or 'nothing was left to upload'} ({sink.where()})"


def _counted(what: str, runs: int) -> list[str]:
    return [f"{runs} runs {what}"] if runs else []


def _of_run(pieces: Sequence[_Piece], run: str) -> list[_Piece]:
    return [piece for piece in pieces if piece.run == run]


def _trials(sweep: str, folder: Path) -> dict[str, str]:
    """By the ids of their runs."""
    states = (path.stem for path in sorted((folder / "state").glob("*.json")))
    return {run_id(sweep, trial): trial for trial in states if trial != SWEEP}


def _go_on(sink: Sink, trial: str, run: Run | None, pieces: Sequence[_Piece]) -> bool:
    """Upload what the server does not have of a trial; False where it has all."""
    if not any(piece.waits for piece in pieces) and not _lacks(run, sink.told(trial)):
        return False
    sink.go_on(trial, [row for piece in pieces for row in rows_of(piece.log)])
    for piece in pieces:
        piece.mark.touch()
    return True


def _pieces(folder: Path) -> Iterator[_Piece]:
    """In order of their start."""
    for log in sorted((folder / "wandb").glob("*run-*/*.wandb"), key=_started):
        if found := RUN_FOLDER.fullmatch(log.parent.name):
            yield _Piece(log=log, run=found[1])


def _started(log: Path) -> str:
    return log.parent.name.removeprefix("offline-")


def _lacks(run: Run | None, told: Mapping[str, Any]) -> bool:
    """Whether the server misses something of what a trial was told."""
    if run is None:
        return True
    has = run.summary_metrics
    return has.get("_step", -1) < told["last_step"] or any(
        has.get(name) != told["summary"].get(name) for name in ("status", "winner")
    )


def _upload_whole(sink: Sink, pieces: Sequence[_Piece]) -> None:
    """With W&B's own sync, which may mark as uploaded what the server has refused."""
    if not pieces:
        return
    command = [sys.executable, "-m", "wandb", "sync", *(str(piece.log) for piece in pieces)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    problem, why = sink.problem(), _trouble(done)
    if not problem and not why and all(piece.mark.exists() for piece in pieces):
        return
    for piece in pieces:
        piece.mark.unlink(missing_ok=True)
    _check(problem)
    raise OSError(
        f"W&B: not all was uploaded ({why or 'it does not say why'}); another `sync` goes on"
    )


def _trouble(done: subprocess.CompletedProcess[str]) -> str | None:
    """What W&B's own sync says is wrong, whatever its exit code; None where nothing is."""
    said = (done.stdout + done.stderr).splitlines()
    wrong = [line.partition("ERROR")[2].strip() for line in said if "ERROR" in line]
    if not wrong and done.returncode:
        wrong = said[-1:]
    return wrong[0][:200] if wrong else None


def rows_of(log: Path) -> list[dict[str, Any]]:
    """What was logged, read back by W&B's own reader."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    read = subprocess.run([*command, "--run-file", str(log)], capture_output=True, text=True)
    if read.returncode:
        raise OSError(f"{log}: could not be read: {(read.stderr or 'damaged').splitlines()[-1]}")
    records = map(json.loads, read.stdout.splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def _check(problem: str | None) -> None:
    if problem is not None:
        raise OSError(f"W&B: {problem}; what is here stays here")
