"""`chat` for a program: lines of JSON in and out. Run as `python -m sweeps.ui.talker DIR [--base]`.

in: {"say": LINE} or {"reset": ""}; out: {"ready": ""}, then for each {"text": PIECE} as it is
written, and {"end": ""} or {"no_answer": WHY}.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from trainables.data.rows import BadRow
from trainables.errors import InputError

SAY, RESET = "say", "reset"
READY, TEXT, END, NO_ANSWER = "ready", "text", "end", "no_answer"


class Pieces(io.StringIO):
    """What a console writes to: each piece is sent as it comes."""

    def __init__(self, send: Callable[[str, str], None]) -> None:
        super().__init__()
        self._send = send

    def write(self, text: str, /) -> int:
        if text:
            self._send(TEXT, text)
        return len(text)


def main(folder: str, *, beside_base: bool) -> None:
    from rich.console import Console

    from sweeps.use.chat import partner_of
    from sweeps.use.generation import Sampling
    from sweeps.use.trained import open_trained

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not part of the talk

    def send(kind: str, said: str) -> None:
        print(json.dumps({kind: said}), file=out, flush=True)

    console = Console(file=Pieces(send), force_terminal=False)
    with open_trained(folder) as trained:
        partner = partner_of(trained, Sampling(), beside_base=beside_base)
        send(READY, "")
        with _only_answers_are_broken_off() as answering:
            while line := sys.stdin.readline():
                said = json.loads(line)
                try:
                    if RESET in said:
                        partner.reset()
                    else:
                        with answering():
                            partner.answer(said.get(SAY, ""), console)
                    send(END, "")
                except BadRow as error:
                    send(NO_ANSWER, str(error).removeprefix("request: "))
                except KeyboardInterrupt:  # as an answer came to its end
                    send(END, "")


@contextmanager
def _only_answers_are_broken_off() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A SIGINT outside of `with answering():` does nothing: a line that is being read would be
    lost.
    """
    is_answering = False

    @contextmanager
    def answering() -> Iterator[None]:
        nonlocal is_answering
        is_answering = True
        try:
            yield
        finally:
            is_answering = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        if is_answering:
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield answering
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    try:
        main(sys.argv[1], beside_base="--base" in sys.argv[2:])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
