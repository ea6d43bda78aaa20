"""control/: what people have asked of a sweep while it ran, and what came of it.

A command is a file, `control/<time>-<unique>.json`, and its answer stands beside it. Names sort in
the order of the commands. Whoever reaches the folder can steer; what has its answer is never done
again.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainables.errors import InputError
from trainables.evaluation.record import OptionalText
from trainables.storage.records import from_json, to_json
from trainables.storage.store import Store

CONTROL = "control"  # folder
ANSWER = ".answer.json"  # how the names of answers end

What = Literal["stop", "clone", "add", "pause", "go-on", "set"]
State = Literal["waiting", "begun", "done", "refused"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What somebody asks of a sweep."""

    what: What
    trial: str | None = None
    """That is to be stopped, or cloned."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Of a new trial, as `search.initial` takes them."""
    setting: str | None = None
    """Of the section search."""
    value: str | None = None
    """Of the setting; with a plus, how much is added."""
    by: str = ""
    time: float = 0.0

    @property
    def words(self) -> str:
        """As it is typed."""
        if self.what == "set":
            return f"{self.setting}={self.value}"
        pairs = (f"{name}={value}" for name, value in self.params.items())
        return " ".join([self.what, *([self.trial] if self.trial else []), *pairs])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a command. One that has begun and not ended says what it leads to, so that it
    comes to the same when it is taken up again.
    """

    state: State
    words: str
    trial: str | None = None
    """That the command made."""
    value: str | None = None
    """That the setting has then."""
    time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Steered:
    """A command with what came of it."""

    id: str
    command: str
    """As it was typed."""
    by: str
    """Who, and on which machine."""
    time: float
    state: State = "waiting"
    """waiting: the sweep has not taken it up."""
    words: str = ""
    """What came of it."""
    trial: OptionalText = None
    """That it was about, or that it made."""


class ControlBox:
    """Commands and answers of a sweep's folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commands: dict[str, Command | InputError] = {}
        self._answers: dict[str, Answer] = {}

    def put(self, command: Command) -> str:
        """Leave a command for the sweep; returns its id."""
        number = f"{time.time_ns():019d}-{uuid.uuid4().hex[:8]}"
        self._store.write_json(f"{CONTROL}/{number}.json", to_json(command))
        return number

    def answer(self, number: str, answer: Answer) -> None:
        self._store.write_json(f"{CONTROL}/{number}{ANSWER}", to_json(answer))
        self._answers[number] = answer

    def waiting(self) -> list[str]:
        """Commands that are still to be done, in their order."""
        return [number for number in self._numbers() if not self._is_answered(number)]

    def _numbers(self) -> list[str]:
        """Of all commands. What was answered for good is not read again."""
        names = [name.removeprefix(f"{CONTROL}/") for name in self._store.find(CONTROL)]
        answers = {name.removesuffix(ANSWER) for name in names if name.endswith(ANSWER)}
        found = [
            name.removesuffix(".json")
            for name in names
            if name.endswith(".json") and not name.endswith(ANSWER) and not name.startswith(".")
        ]
        for number in answers.intersection(found):
            if not self._is_answered(number):
                file = f"{CONTROL}/{number}{ANSWER}"
                content = self._store.read_json(file)
                self._answers[number] = from_json(Answer, content, self._store.path(file))
        return found

    def _is_answered(self, number: str) -> bool:
        known = self._answers.get(number)
        return known is not None and known.state != "begun"

    def command(self, number: str) -> Command:
        """Raises InputError for a file that is none."""
        if number not in self._commands:
            file = f"{CONTROL}/{number}.json"
            try:
                content = self._store.read_json(file)
                self._commands[number] = from_json(Command, content, self._store.path(file))
            except InputError as error:
                self._commands[number] = error
        found = self._commands[number]
        if isinstance(found, InputError):
            raise found
        return found

    def begun(self, number: str) -> Answer | None:
        """What an earlier process had begun to do of a command."""
        return self._answers.get(number)

    def steered(self) -> tuple[Steered, ...]:
        """All commands with what came of them."""
        return tuple(self.of(number) for number in self._numbers())

    def of(self, number: str) -> Steered:
        """As far as its answer was read."""
        answer = self._answers.get(number, Answer(state="waiting", words=""))
        try:
            command = self.command(number)
        except InputError as error:
            return Steered(
                id=number, command="?", by="", time=0.0, state=answer.state, words=str(error)
            )
        return Steered(
            id=number,
            command=command.words,
            by=command.by,
            time=command.time,
            state=answer.state,
            words=answer.words,
            trial=answer.trial or command.trial,
        )

    def is_paused(self) -> bool:
        """Whether the last that was done of pausing and going on was to pause."""
        done = [number for number in self._numbers() if self._answers.get(number) is not None]
        kinds = [
            self.command(number).what for number in done if self._answers[number].state == "done"
        ]
        return next((kind for kind in reversed(kinds) if kind in ("pause", "go-on")), "") == "pause"
