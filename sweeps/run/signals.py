"""Ctrl-C and SIGTERM."""

import signal
import threading
from collections.abc import Callable
from typing import Any


class SignalHandler:
    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        signal.signal(number, self._before[number] if number == signal.SIGINT else signal.SIG_DFL)
        self._stop()

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
