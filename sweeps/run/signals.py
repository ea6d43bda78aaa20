"""Ctrl-C and SIGTERM."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class SignalHandler:
    """While it is entered, Ctrl-C and SIGTERM call `stop` once; a second one ends the process."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._before[number] if number == signal.SIGINT else signal.SIG_DFL)
        self._stop()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
