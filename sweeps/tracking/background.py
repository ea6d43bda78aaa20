"""Jobs that may fail or wait, done one after another beside the sweep."""

import queue
import threading
from collections.abc import Callable

MAX_FAILURES = 3
"""Jobs that may fail in a row before the rest is given up."""


class Background:
    """A queue and the daemon thread that works it off. Whatever a job raises is said in one line,
    each kind once, and reaches nobody else.
    """

    def __init__(
        self,
        name: str,
        log: Callable[[str], None],
        words: Callable[[Exception], str] | None = None,
    ) -> None:
        """name: before every line. log: takes one line for people, also from the thread. words:
        an error in one line; None: its type and the first line of its message.
        """
        self._name, self._log, self._words = name, log, words or one_line
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], object]] | None] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._ended = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, what: str, job: Callable[[], object]) -> None:
        """Have a job done after those before it; after `close` nothing is done. what: the job in
        words.
        """
        if not self._closed:
            self._jobs.put((what, job))

    def say(self, kind: str, line: str) -> None:
        """A line for people, once for each kind."""
        if kind not in self._said:
            self._said.add(kind)
            self._log(f"{self._name}: {line}")

    def give_up(self, line: str) -> None:
        """Do nothing more, for a reason."""
        self._ended.set()
        self.say("gave up", line)

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs, and wait for those that there are; whether all were done in time."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(max(0.0, timeout_s))
        late = self._thread.is_alive()
        self._ended.set()
        return not late

    def _work(self) -> None:
        failures = 0
        while (entry := self._jobs.get()) is not None:
            if self._ended.is_set():
                continue
            what, job = entry
            try:
                job()
                failures = 0
            except Exception as error:  # the border to the outside world
                failures += 1
                self.say(f"failed {type(error).__name__}", f"{what} failed ({self._words(error)})")
            if failures == MAX_FAILURES:
                self.give_up(f"gave up after {failures} failures in a row; the sweep goes on")


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__
