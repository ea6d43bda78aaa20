"""Whether a sweep runs, and why one ended."""

import os
from pathlib import Path

INTERRUPTED, NO_SLOT = "interrupted", "no slot could run"

STORAGE = "storage does not work"

ALIKE = "three trials failed with one cause, and none has succeeded"

UNFINISHED = (
    INTERRUPTED,
    NO_SLOT,
    STORAGE,
    ALIKE,
)  # reasons for stopping that leave running trials to be resumed

BY_HAND = "stopped by hand"  # the reason of a trial that somebody stopped

HEARTBEAT_S = 10.0

# a sweep of another machine that has not written its heartbeat for so long does not run

DEAD_AFTER_S = 60.0


def process_runs(pid: int, began: str | None) -> bool:
    """Whether the process that wrote the status still runs; a number that now names another process
    does not count.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process_start(pid) == began


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None without /proc, "" for one that ended
    and nobody waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return "" if fields[0] == "Z" else fields[19]
