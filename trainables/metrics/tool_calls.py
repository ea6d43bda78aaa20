"""Whether an answer calls the tools that the reference calls, with the same arguments."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainables.metrics import Answer
from trainables.metrics.rows import of_each

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
BEGIN = re.compile(r'\{\s*["}]|\[\s*\{')
NAMED = re.compile(  # where the name of a function stands before its arguments
    r"(?:<function=|to=functions\.)([\w.-]+)[^{\n]*\n?\s*$|([\w.-]+)\s*\[ARGS\]\s*$"
)
ARGUMENTS = ("arguments", "parameters")
NAMES = ("name", "tool_name")
MOST_NAME = 200  # characters before arguments in which a name is looked for
Call = tuple[str, str]
"""A name, and its arguments as JSON with sorted keys."""


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """1 where the answer makes the calls of the reference and no others, in any order: the same
    names, and arguments that are the same JSON whatever the order of keys. NaN where the reference
    calls nothing; with `refrain` such a row has 1 where the answer calls nothing either.
    """

    name: str = "tool_calls"
    refrain: bool = False
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        return of_each(answers, self._of_row)

    def _of_row(self, answer: Answer) -> float:
        wanted = read_calls(answer.reference)
        if not wanted and not self.refrain:
            return math.nan
        return float(Counter(read_calls(answer.text)) == Counter(wanted))


def read_calls(text: str) -> list[Call]:
    """All calls in a text, whatever is around them: JSON objects with a name and arguments, alone
    or in lists, as Hermes and Qwen (`<tool_call>`), Llama 3 (`parameters`), Mistral, Granite,
    Command R and OpenAI (`tool_calls`, `function`, arguments as a string of JSON) write them; or
    arguments after a name, as gpt-oss (`to=functions.`), Llama 3.1 (`<function=`) and later
    Mistrals (`[ARGS]`) do. What is thought (`<think>`) does not count.
    """
    text = THOUGHT.sub("", text)
    found: list[Call] = []
    try:
        for before, value in _values(text):
            named = NAMED.search(before[-MOST_NAME:])
            if named and isinstance(value, Mapping):
                found += _call(named[1] or named[2], value)
            else:
                found += _calls(value)
    except RecursionError:  # nobody's arguments are that deep
        return []
    return found


def _values(text: str) -> Iterator[tuple[str, object]]:
    """The JSON objects and lists of objects that stand in a text, each with the text since the one
    before.
    """
    decoder, end, at = json.JSONDecoder(), 0, 0
    while found := BEGIN.search(text, at):
        try:
            value, after = decoder.raw_decode(text, found.start())
        except ValueError:
            at = found.start() + 1
            continue
        yield text[end : found.start()], value
        end = at = after


def _calls(value: object) -> Iterator[Call]:
    if isinstance(value, Mapping):
        yield from _of_object(value)
    elif isinstance(value, list):
        for each in value:
            yield from _calls(each)


def _of_object(value: Mapping[str, object]) -> Iterator[Call]:
    for key in ("tool_calls", "function", "function_call"):
        if isinstance(inner := value.get(key), list | dict):
            yield from _calls(inner)
            return
    name = next((value[key] for key in NAMES if isinstance(value.get(key), str)), None)
    given = next((value[key] for key in ARGUMENTS if key in value), None)
    if isinstance(name, str) and given is not None:
        yield from _call(name, given)


def _call(name: str, arguments: object) -> Iterator[Call]:
    """Nothing where the arguments are no object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return
    if isinstance(arguments, Mapping):
        yield name, json.dumps(_plain(arguments), sort_keys=True)


def _plain(value: object) -> object:
    """Whole numbers are written in one way."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
    return value
