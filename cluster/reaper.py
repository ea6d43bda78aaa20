"""Ends the Ray that a process has started once that process is gone, however it ended, and says
what it could not say itself.

Of Ray's own processes all notice within seconds that their driver was killed, but the node's two
agents then try for a minute to tell the head of it, which is gone too (`publish_error_to_driver`
of Ray 2.60). And Ray itself ends a driver at once, with code 1 and no word, when the raylet of its
node is gone. A process can do nothing about either, so another waits for its end.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ray._private.node import Node


TOLD = b"."


@contextmanager
def reaped(*, own: bool, last_words: str = "") -> Iterator[Callable[[], None]]:
    """own: the Ray that this process has just started does not outlive it, nor the exit from here.
    last_words: printed on stderr where the process ends in here. Yields what to call where it has
    told its end itself.
    """
    # pidfd_open is Linux's, as are the agents that linger
    pids = [str(pid) for pid in _of_ray()] if own and hasattr(os, "pidfd_open") else []
    if not pids and not last_words:
        yield lambda: None
        return
    # of the standard library alone, for the little memory that it takes, and in a session of its
    # own: Ctrl-C, and what else is sent to the driver's group, is not for it
    command = [sys.executable, "-I", "-S", __file__, last_words, *pids]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:

        def tell() -> None:
            with suppress(OSError, ValueError):  # somebody has killed it, or it was told before
                os.write(cast("IO[bytes]", process.stdin).fileno(), TOLD)

        try:
            yield tell
        finally:
            tell()


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


def wait_and_kill(last_words: str, pids: Iterable[int]) -> None:
    """Wait until nobody can write to stdin any more, and end what is left of the processes."""
    for sent in (signal.SIGTERM, signal.SIGINT):  # to a job with all that it has started
        signal.signal(sent, signal.SIG_IGN)
    handles = []  # and not numbers, which the system may give to others meanwhile
    for pid in pids:
        with suppress(OSError):  # it is gone, or this kernel has no handles
            handles.append(os.pidfd_open(pid))
    told = sys.stdin.buffer.read()
    if last_words and not told:
        with suppress(OSError):  # the terminal is gone too
            print(last_words, file=sys.stderr, flush=True)
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    wait_and_kill(sys.argv[1], map(int, sys.argv[2:]))
