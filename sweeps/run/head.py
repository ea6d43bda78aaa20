"""Whether the cluster's head answers. Ray waits a minute for one that does not, and then ends this
process without a word of the sweep: before that, the sweep is broken off in order.
"""

import os
import threading
import time
from collections.abc import Callable

import psutil

LOOK_S = 2.0  # between questions
SILENT_S = 6.0  # of the head, before it is told
RAY_WAITS_S = 60.0  # where its variable says nothing else
RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
TO_END_S = 20.0  # that are left then to write down how the sweep ended
END_STEP_S = 8.0  # for each step of that: a question to the cluster may wait for ever


class ClusterLost(Exception):
    """Nothing can be done on the cluster any more."""


class HeadWatch:
    """Asks the head of a cluster whether it is there."""

    def __init__(
        self,
        address: str,
        say: Callable[[str], None],
        give_up: Callable[[ClusterLost], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """address: host:port; give_up: called once, where it does not come back."""
        self._address, self._say, self._give_up, self._clock = address, say, give_up, clock
        waits_s = float(os.environ.get(RAY_WAITS, RAY_WAITS_S))
        self._patience_s = max(SILENT_S, waits_s - TO_END_S)
        self._since: float | None = None  # when it was first found silent
        self._told = self._gave_up = False

    def look(self) -> None:
        from cluster.connect import answers

        asked = self._clock()
        if answers(self._address):
            if self._told:
                self._say(f"The cluster's head answers again at {self._address}")
            self._since, self._told = None, False
            return
        self._since = asked if self._since is None else self._since
        silent_s = self._clock() - self._since
        if silent_s >= SILENT_S and not self._told:
            self._told = True
            self._say(
                f"The cluster's head does not answer at {self._address}; where it does not within"
                f" {self._patience_s:.0f} s, the sweep is broken off"
            )
        if silent_s >= self._patience_s and not self._gave_up:
            self._gave_up = True
            self._give_up(ClusterLost(f"the cluster's head has not answered for {silent_s:.0f} s"))


def end_process(code: int, *steps: Callable[[], None], own: bool) -> None:
    """End this process, whose other threads wait for the cluster, after `steps`. own: with the Ray
    that it has started.
    """
    for step in steps:
        thread = threading.Thread(target=step, daemon=True)
        thread.start()
        thread.join(END_STEP_S)
    if own:
        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
    os._exit(code)
