"""Where every text of a conversation stands once a chat template has rendered it: each has a pair
of marks of its own inside its edges, and the marks are taken out again.

Marks are characters for private use, which no template trims, splits at or escapes. They are inside
what a text begins and ends with, since templates trim, and ask whether a text begins with a tag.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Message = dict[str, object]
"""As chat templates take it: OpenAI's format, whose keys a template may ask for by any name."""

ANSWER, THOUGHT, NAME, ARGUMENT = "answer", "thought", "name", "argument"
"""What an assistant's message has: its content, its reasoning, its calls of tools."""
CONTENT, TOOLS, DOCUMENTS = "content", "tools", "documents"
"""Contents of the other messages, and what a row has besides messages."""

LEVELS = (
    frozenset((ANSWER, THOUGHT, NAME, ARGUMENT, CONTENT, TOOLS, DOCUMENTS)),
    frozenset((ANSWER, THOUGHT, ARGUMENT, CONTENT, TOOLS, DOCUMENTS)),
    frozenset((ANSWER, THOUGHT, CONTENT)),
    frozenset((ANSWER, THOUGHT)),
    frozenset((ANSWER,)),
    frozenset(),
)
"""What is marked: ever less where marks change what a template renders."""

ROW = -1
"""Turn of what belongs to the whole row."""

BLOCK = 0x1000
BLOCKS = (0xE000, *range(0xF0000, 0xFF000, BLOCK), *range(0x100000, 0x10F000, BLOCK))
"""Code points of characters for private use; a row is marked with those of a block that it does not
use itself.
"""
MOST_PARTS = BLOCK // 2 - 2
"""Two more pairs: the template's own marks, and an answer that is made up."""

_LEADING = re.compile(r"(?:<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])+")
_TRAILING = re.compile(r"(?:<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\])+\Z")


class Part(NamedTuple):
    """A text of a row."""

    turn: int
    """Position of its message, or ROW."""
    kind: str
    text: str
    """Without white space around it."""
    ahead: int = 0
    """Characters of it before its first mark."""
    behind: int = 0


class Spot(NamedTuple):
    """Where a part stands in the rendered text: characters [start, end)."""

    part: int
    start: int
    end: int


class Marks:
    """Puts the marks into a row's texts, and finds them in what a template made of it."""

    def __init__(self, block: int, kinds: frozenset[str]) -> None:
        self.parts: list[Part] = []
        self.unmarked: list[Part] = []
        self._kinds = kinds
        self._first = block
        self.split = _splitter(block).split

    @property
    def generation(self) -> tuple[str, str]:
        """What {% generation %} writes at its edges."""
        return chr(self._first), chr(self._first + 1)

    @property
    def made_up(self) -> tuple[str, str]:
        return chr(self._first + 2), chr(self._first + 3)

    def put(self, text: str, turn: int, kind: str) -> str:
        core = text.strip()
        if not core:
            return text
        if kind not in self._kinds or len(self.parts) >= MOST_PARTS:
            self.unmarked.append(Part(turn, kind, core))
            return text
        ahead, behind = _tags(core) if core[0] in "<[" or core[-1] in ">]" else (0, 0)
        code = self._first + 4 + 2 * len(self.parts)
        self.parts.append(Part(turn, kind, core, ahead, behind))
        if ahead == behind == 0 and len(core) == len(text):
            return f"{chr(code)}{text}{chr(code + 1)}"
        before = len(text) - len(text.lstrip())
        start, end = before + ahead, before + len(core) - behind
        return f"{text[:start]}{chr(code)}{text[start:end]}{chr(code + 1)}{text[end:]}"

    def message(self, message: Message, turn: int) -> Message:
        """A copy, marked."""
        answers = message.get("role") == "assistant"
        content = message.get("content")
        marked = dict(message)
        if isinstance(content, str):
            marked["content"] = self.put(content, turn, ANSWER if answers else CONTENT)
        thought = message.get("reasoning_content")
        if isinstance(thought, str):
            marked["reasoning_content"] = self.put(thought, turn, THOUGHT)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            marked["tool_calls"] = [self._call(call, turn) for call in calls]
        return marked

    def _call(self, call: dict[str, object], turn: int) -> dict[str, object]:
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        marked = dict(function)
        if isinstance(name := function.get("name"), str):
            marked["name"] = self.put(name, turn, NAME)
        marked["arguments"] = self.texts(function.get("arguments", {}), turn, ARGUMENT)
        return {**call, "function": marked}

    def texts(self, value: object, turn: int, kind: str) -> object:
        """All texts inside `value`, but no names of its entries."""
        if isinstance(value, str):
            return self.put(value, turn, kind)
        if isinstance(value, list):
            return [self.texts(item, turn, kind) for item in value]
        if isinstance(value, Mapping):
            return {key: self.texts(item, turn, kind) for key, item in value.items()}
        return value

    def described(self, tools: object) -> object:
        """What tools and their parameters are called, and what they do."""
        if isinstance(tools, list):
            return [self.described(item) for item in tools]
        if not isinstance(tools, Mapping):
            return tools
        return {
            key: self.put(item, ROW, TOOLS)
            if isinstance(item, str) and key in ("name", "description")
            else self.described(item)
            for key, item in tools.items()
        }

    def found(self, pieces: Sequence[str]) -> tuple[list[Spot], list[tuple[int, int]]]:
        """Where the parts stand in the text whose `pieces` and marks take turns, and what the
        template's own marks hold.
        """
        spots: list[Spot] = []
        generated: list[tuple[int, int]] = []
        opened: dict[int, int] = {}
        position = 0
        for at in range(1, len(pieces), 2):
            position += len(pieces[at - 1])
            number, closes = divmod(ord(pieces[at]) - self._first, 2)
            if not closes:
                opened[number] = position
            elif number in opened:
                start = opened.pop(number)
                if number == 0:
                    generated.append((start, position))
                elif 1 < number < len(self.parts) + 2:
                    part = self.parts[number - 2]
                    spots.append(Spot(number - 2, start - part.ahead, position + part.behind))
        return spots, generated

    def behind(self, pieces: Sequence[str], at: int) -> str:
        """The piece at `at`, without what it still holds of the part before it."""
        if at == 0:
            return pieces[at]
        number = (ord(pieces[at - 1]) - self._first) // 2 - 2
        return pieces[at][self.parts[number].behind if 0 <= number < len(self.parts) else 0 :]


def block_for(text: str) -> int:
    """The first block that `text` has no character of."""
    if text.isascii():
        return BLOCKS[0]
    return next((block for block in BLOCKS if not _splitter(block).search(text)), BLOCKS[-1])


def is_written(part: Part, written: str) -> bool:
    """Whether `written` is the part as it is, or as JSON has it."""
    text = part.text
    return written == text or written in _forms(text)


def is_inside(part: Part, text: str) -> bool:
    """Whether the part stands anywhere in `text`."""
    return part.text in text or any(form in text for form in _forms(part.text))


def _forms(text: str) -> tuple[str, str]:
    return json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


_SPLITTERS: dict[int, re.Pattern[str]] = {}


def _splitter(block: int) -> re.Pattern[str]:
    if block not in _SPLITTERS:
        _SPLITTERS[block] = re.compile(f"([{chr(block)}-{chr(block + BLOCK - 1)}])")
    return _SPLITTERS[block]


def _tags(text: str) -> tuple[int, int]:
    """Characters of the tags that `text` begins and ends with; (0, 0) where it is nothing else."""
    first, last = _LEADING.match(text), _TRAILING.search(text)
    ahead, behind = (len(found[0]) if found else 0 for found in (first, last))
    return (ahead, behind) if ahead + behind < len(text) else (0, 0)
