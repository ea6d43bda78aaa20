"""Sweeps whose processes are killed, and what came of their trials."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

Records = list[tuple[int, float, float]]


def evaluations(folder: Path) -> dict[str, Records]:
    """Of every configuration, over all its attempts; nothing is evaluated twice."""
    found = {}
    for trial in sorted(folder.glob("trials/*")):
        params = json.loads((trial / "trial.json").read_text())["params"]
        told = [
            json.loads(path.read_text()) for path in trial.glob("attempt-*/step-*/evaluation.json")
        ]
        records = sorted((each["step"], each["val_loss"], each["probe_loss"]) for each in told)
        steps = [step for step, *_ in records]
        assert steps == sorted(set(steps)), (trial.name, steps)
        found[json.dumps(params, sort_keys=True)] = records
    return found


def same(ours: Mapping[str, Records], results: dict[str, Records]) -> None:
    """Bit for bit, as far as each goes; what is new joins the results."""
    for configuration, records in ours.items():
        known = results.get(configuration, [])
        both = min(len(known), len(records))
        assert records[:both] == known[:both], configuration
        results[configuration] = max(known, records, key=len)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, log: Path) -> Any:
    """What `condition` gives as soon as it gives something; `process` must not end before."""
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found


def of_the_sweep(parent: int, named: str) -> psutil.Process:
    """Of Ray's processes below one the one whose title has a name."""
    for child in psutil.Process(parent).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and named in title:
            return child
    raise AssertionError(named)


@contextmanager
def without_memory() -> Iterator[Callable[[int], None]]:
    """Gives what leaves a process no memory, so that the kernel's OOM killer ends it; skips where
    nobody may make a control group of memory.
    """
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = root / f"no-memory-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs a control group of memory: {error}")
    try:
        try:
            (group / limit).write_text(str(2**20))
        except OSError as error:
            pytest.skip(f"needs a control group of memory: {error}")

        def take(process: int) -> None:
            (group / "cgroup.procs").write_text(f"{process}\n")

        yield take
    finally:
        group.rmdir()
