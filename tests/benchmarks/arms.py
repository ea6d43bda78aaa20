"""What the benchmarks share: an arm is a Python process, with all that it starts, that does one side of a comparison."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SAMPLE_S, MEMORY_SAMPLE_S = 0.2, 0.5
SAMPLE_SHARE = 0.05  # reading PSS walks a process's pages: 2 ms for 200 MiB
ARM_TIMEOUT_S = 1800.0
# the proportional set size (man 5 proc) counts a page that several processes share once, the resident one in each
MEMORY = "PSS" if os.access("/proc/self/smaps_rollup", os.R_OK) else "RSS"


class TreeClock:
    """Samples the CPU time of a process and all its descendants, dead ones included, and the memory of the living.

    Pages of shared memory, as those of Ray's object store in /dev/shm, count where a process has touched them.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._seconds: dict[psutil.Process, float] = {}  # a Process is its id and its start time
        self._samples: list[tuple[float, float]] = []
        self._peak = 0
        self._at_peak: dict[psutil.Process, int] = {}
        self._most: dict[psutil.Process, int] = {}
        self._titles: dict[psutil.Process, str] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._watch, args=(every, sample), name="tree clock", daemon=True
            )
            for every, sample in (
                (SAMPLE_S, self._sample_cpu),
                (MEMORY_SAMPLE_S, self._sample_memory),
            )
        ]

    def __enter__(self) -> "TreeClock":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def at(self, when: float) -> float:
        """CPU seconds of the tree up to `when` (time.time())."""
        times, seconds = zip(*self._samples, strict=True)
        return float(np.interp(when, times, seconds))

    @property
    def peak(self) -> int:
        """The most memory that the tree had at once, in bytes of `MEMORY`."""
        return self._peak

    def processes(self) -> list[tuple[str, float, int]]:
        """Of every process that was seen: its last title (ps shows it), CPU seconds, and the bytes that it had at the
        tree's peak.
        """
        return [
            (
                self._titles.get(process, "gone before it was looked at"),
                seconds,
                self._at_peak.get(process, 0),
            )
            for process, seconds in self._seconds.items()
        ]

    def most(self, words: str) -> int:
        """The most bytes that those processes had, each by itself, whose titles have `words`."""
        return sum(
            held for process, held in self._most.items() if words in self._titles.get(process, "")
        )

    def cpu(self, words: str) -> float:
        """CPU seconds of the same."""
        return sum(seconds for title, seconds, _ in self.processes() if words in title)

    def alive(self) -> list[psutil.Process]:
        """What the tree has left running, whoever its parent is now."""
        return [process for process in list(self._seconds) if process.is_running()]

    def _watch(self, every: float, sample: Callable[[], None]) -> None:
        """Sample `every` so many seconds, less often where it would use more than `SAMPLE_SHARE` of a core."""
        pause = every
        while not self._stop.wait(pause):
            began = time.thread_time()
            sample()
            pause = max(every, (time.thread_time() - began) / SAMPLE_SHARE)

    def _sample_cpu(self) -> None:
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        for process in {*found, *self._seconds}:
            try:
                used = process.cpu_times()
            except psutil.Error:  # it has ended: its last sample stays
                continue
            self._seconds[process] = used.user + used.system
        self._samples.append((time.time(), sum(self._seconds.values())))

    def _sample_memory(self) -> None:
        found = {process: memory(process) for process in self.alive()}
        for process, held in found.items():
            self._most[process] = max(held, self._most.get(process, 0))
            with contextlib.suppress(psutil.Error):
                self._titles[process] = " ".join(process.cmdline()) or self._titles.get(process, "")
        if sum(found.values()) > self._peak:
            self._peak, self._at_peak = sum(found.values()), found


def memory(process: psutil.Process) -> int:
    """Bytes of `MEMORY` that `process` holds; 0 once it has ended."""
    try:
        if MEMORY == "RSS":
            return process.memory_info().rss
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except (OSError, psutil.Error):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def environment(work: Path, extra: dict[str, str]) -> dict[str, str]:
    """Of an arm: a Ray of its own, and no network."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **inherited,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(work),
        "RAY_TRAIN_V2_ENABLED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **extra,
    }


def run_arm(
    arguments: Sequence[str], log: Path, env: dict[str, str], timeout_s: float = ARM_TIMEOUT_S
) -> tuple[TreeClock, float]:
    """Run a Python process to its end, its output going to `log`; nothing that it started is left running.

    Returns its tree's clock, and the wall-clock seconds from its start to its end.
    """
    began = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=env,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with TreeClock(psutil.Process(process.pid)) as clock:
            try:
                code = process.wait(timeout=timeout_s)
                wall = time.perf_counter() - began
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                psutil.wait_procs(clock.alive(), timeout=10)
                for left in clock.alive():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        left.kill()
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{log.read_text()[-3000:]}")
    return clock, wall


def open_group(sweep: Path) -> tuple[Any, Any]:
    """A finished sweep's configuration, and a `TrialGroup` on the CPU that trains its trials without Ray."""
    import torch

    from sweeps.config.loading import load
    from trainables.engine import group as group
    from trainables.models.files import load_tokenizer

    config = load(sweep / "sweep.yaml")
    return config, group.open_group(
        sweep / "data",
        model=config.model,
        task=config.task,
        pad_token_id=load_tokenizer(config.model).pad_token_id,
        settings=group.GroupSettings(probe_rows=config.train.probe_rows, seed=config.seed),
        device=torch.device("cpu"),
    )


def require(*paths: Path) -> None:
    """End the benchmark with one line where its data are missing."""
    for path in paths:
        if not path.exists():
            raise SystemExit(
                f"{path}: not there; this benchmark needs the data laid beside the repository"
            )


def ratio(other: float, own: float) -> str:
    """How many times `own` goes into `other`; nothing has no ratio."""
    return f"{other / own:.1f}" if own > 0 else "-"


def machine() -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("ray", "optuna", "torch", "transformers")
    )
    return (
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"load {os.getloadavg()[0]:.2f} before the start, Python {platform.python_version()}, {versions}"
    )
