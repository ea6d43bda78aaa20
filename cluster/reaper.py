"""Ends the Ray that a process has started once that process is gone, however it ended.

Of Ray's own processes all notice within seconds that their driver was killed, but the node's two
agents then try for a minute to tell the head of it, which is gone too (`publish_error_to_driver`
of Ray 2.60). A process that is killed can do nothing about that, so another waits for its end.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ray._private.node import Node


@contextmanager
def reaped() -> Iterator[None]:
    """The Ray that this process has just started does not outlive it, nor the exit from here."""
    if not hasattr(os, "pidfd_open"):  # it is Linux's, as are the agents that linger
        yield
        return
    pids = [str(pid) for pid in _of_ray()]
    # of the standard library alone, for the little memory that it takes, and in a session of its
    # own: Ctrl-C, and what else is sent to the driver's group, is not for it
    command = [sys.executable, "-I", "-S", __file__, *pids]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def _of_ray() -> Iterator[int]:
    """Of the daemons that this process has started, and of what they have."""
    import psutil
    from ray._private.worker import global_worker

    node = cast("Node", global_worker.node)
    for started in node.all_processes.values():
        for each in started:
            with suppress(psutil.NoSuchProcess):
                daemon = psutil.Process(each.process.pid)
                yield from (process.pid for process in (daemon, *daemon.children(recursive=True)))


def wait_and_kill(pids: Iterable[int]) -> None:
    """Wait until nobody can write to stdin any more, and end what is left of the processes."""
    handles = []  # and not numbers, which the system may give to others meanwhile
    for pid in pids:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    while sys.stdin.read():
        pass
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    wait_and_kill(map(int, sys.argv[1:]))
