"""Rows of instruction: conversations, and which of their tokens the assistant wrote."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import (
    IGNORED,
    Encoded,
    Encoding,
    Record,
    duplicate_key,
)
from trainables.data.records import (
    group_and_slice as groups,
)
from trainables.data.rows import is_missing, shorten
from trainables.errors import InputError, did_you_mean
from trainables.tasks.instruction.templates import default_chat_template
from trainables.tasks.instruction.tokens import Tokeniser, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Table = object

Message = dict[str, Any]
"""As chat templates take it: OpenAI's format, whose keys a template may ask for by any name."""

__all__ = ["Chat", "default_chat_template"]

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A checked message, as far as one must know who wrote what."""

    role: str
    content: str
    calls: Any
    """Its tool calls, or ""."""
    has_weight: bool
    """OpenAI's format leaves out an assistant's message by giving it weight 0."""

    @classmethod
    def of(cls, message: Message) -> "Turn":
        return cls(
            role=message["role"],
            content=message["content"],
            calls=message.get("tool_calls", ""),
            has_weight=message.get("weight", 1) != 0,
        )

    @property
    def is_assistants(self) -> bool:
        return self.role == "assistant"

    @property
    def is_learnt(self) -> bool:
        return self.is_assistants and self.has_weight

    @property
    def called(self) -> list[str]:
        """Names of the functions that it calls."""
        return [call["function"]["name"] for call in self.calls]


class Chat:
    default_length = 1024

    def read(self, table: "Table", data: DataConfig) -> tuple[str, list[Record]]:
        name, convert = _recognise(table)
        records = []
        parts = groups(table, data), groups(table, data)
        for i, (row, group, part) in enumerate(zip(table.rows, *parts, strict=True)):
            value = convert(table, i, row)
            turns = [Turn.of(message) for message in value["messages"]]
            if not any(turn.is_learnt for turn in turns):
                raise table.error(i, "no assistant message to learn from")
            said = [
                text for turn in turns for text in (turn.role, turn.content, json.dumps(turn.calls))
            ]
            first_user = next((t.content for t in turns if t.role == "user"), turns[-1].content)
            records.append(
                Record(
                    value=value,
                    place=table.place(i),
                    key=duplicate_key(*said),
                    shown=first_user,
                    group=group,
                    slice=part,
                )
            )
        return name, records

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose their end; a row that has no token of the assistant left
        is dropped.
        """
        kept: list[_Kept] = []
        truncated = endless = endings_cut = 0
        lost: Counter[str] = Counter()
        for number, row in enumerate(Tokeniser(tokenizer).tokenise(records)):
            endless += row.endless
            lost.update(row.lost)
            cut = row.learnt[encoding.max_length :]
            truncated += len(cut) > 0
            endings_cut += bool(cut.any())
            if row.learnt[1 : encoding.max_length].any():
                kept.append(_Kept.of(row, number, encoding.max_length))
        if not kept:
            raise InputError(
                f"data.max_length: in none of {len(records)} rows ({records[0].place} and on) do"
                f" the first {encoding.max_length} tokens reach the assistant's answer; raise it"
            )
        return Encoded(
            input_ids=[row.input_ids for row in kept],
            labels=[row.labels for row in kept],
            weights=_weights(kept),
            origin=np.array([row.origin for row in kept]),
            truncated=truncated,
            dropped=len(records) - len(kept),
            endless_answers=endless,
            endings_cut=endings_cut,
            lost=dict(lost),
        )


class _Kept(NamedTuple):
    """What is stored of a row."""

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    origin: int

    @classmethod
    def of(cls, row: Tokens, origin: int, length: int) -> "_Kept":
        ids, learnt = row.ids[:length], row.learnt[:length]
        weights = None if row.weights is None else row.weights[:length]
        return cls(ids, np.where(learnt, ids, IGNORED).astype(np.int32), weights, origin)


def _weights(kept: list[_Kept]) -> list[np.ndarray] | None:
    if all(row.weights is None for row in kept):
        return None
    return [
        np.ones(len(row.input_ids), np.float32) if row.weights is None else row.weights
        for row in kept
    ]


# Reading: three formats, one shape.

Columns = Mapping[str, object]
Convert = Callable[[Any, int, Columns], dict[str, Any]]


def _recognise(table: "Table") -> tuple[str, Convert]:
    columns = table.columns()
    for needed, (name, convert) in FORMATS.items():
        if set(needed) <= set(columns):
            return name, convert
    wanted = [column for needed in FORMATS for column in needed]
    guess = next((hint for column in columns if (hint := did_you_mean(column, wanted))), "")
    raise InputError(
        f"{table.key}: {table.name}: not a format of instruction data; allowed are columns"
        " 'messages' (OpenAI chat), 'prompt' and 'completion', or 'instruction', 'output' and"
        f" perhaps 'input'; got {', '.join(columns)}.{guess}"
    )


def _from_messages(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    value = {"messages": _messages(table, index, row.get("messages"), "messages")}
    tools = _without_missing(row.get("tools"))
    if isinstance(
        tools, str
    ):  # Parquet files keep them as JSON, since no two tools have the same columns
        tools = _json(table, index, tools, "tools")
    if tools:
        value["tools"] = tools
    return value


def _from_prompt(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        return {
            "messages": (
                _messages(table, index, prompt, "prompt")
                + _messages(table, index, completion, "completion")
            )
        }
    return {
        "messages": [
            {"role": "user", "content": _text(table, index, row, "prompt")},
            {"role": "assistant", "content": _text(table, index, row, "completion")},
        ]
    }


def _from_instruction(table: "Table", index: int, row: Columns) -> dict[str, Any]:
    question = _text(table, index, row, "instruction")
    extra = row.get("input")
    if not is_missing(extra) and extra != "":
        question += "\n\n" + _text(table, index, row, "input")
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _text(table, index, row, "output")},
        ]
    }


FORMATS: dict[tuple[str, ...], tuple[str, Convert]] = {
    ("messages",): ("messages", _from_messages),
    ("prompt", "completion"): ("prompt+completion", _from_prompt),
    ("instruction", "output"): ("instruction+input+output", _from_instruction),
}


def _text(table: "Table", index: int, row: Columns, column: str) -> str:
    text = row.get(column)
    if is_missing(text):
        raise table.error(index, f"{column!r} is missing")
    if not isinstance(text, str):
        raise table.error(
            index, f"{column!r} must be text, got {type(text).__name__} {shorten(text)}"
        )
    table.check_text(index, text, repr(column))
    return text


def _messages(table: "Table", index: int, messages: object, column: str) -> list[Message]:
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) for m in messages)
    ):
        raise table.error(
            index,
            f'{column!r} must be a list of messages like {{"role": "user", "content": ...}}, got'
            f" {shorten(messages)}",
        )
    return [
        _message(table, index, message, f"{column}[{number}]")
        for number, message in enumerate(messages)
    ]


def _message(table: "Table", index: int, given: object, where: str) -> Message:
    message = _without_missing(given)
    role = message.get("role")
    if role not in ROLES:
        raise table.error(
            index,
            f"{where}: role must be one of {', '.join(ROLES)}, got {shorten(role)}."
            + (did_you_mean(role, ROLES) if isinstance(role, str) else ""),
        )
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [
            _tool_call(table, index, call, f"{where}.tool_calls[{k}]")
            for k, call in enumerate(calls)
        ]
    may_be_empty = bool(calls) or role == "tool"  # a tool may well return nothing
    message["content"] = _content(table, index, message, where, may_be_empty)
    return message


def _content(table: "Table", index: int, message: Message, where: str, may_be_empty: bool) -> str:
    content = message.get("content", "")
    if isinstance(content, list):
        content = "".join(_text_part(table, index, part, where) for part in content)
    if not isinstance(content, str):
        raise table.error(
            index,
            f"{where}: content must be text, got {type(content).__name__} {shorten(content)}",
        )
    if content.strip():
        table.check_text(index, content, where)
    elif not may_be_empty:
        role = message.get("role")
        raise table.error(index, f"{where}: the content of the {role}'s message is empty")
    return content


def _text_part(table: "Table", index: int, part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise table.error(index, f"{where}: content may hold text parts only, got {shorten(part)}")
    return text


def _tool_call(table: "Table", index: int, call: object, where: str) -> dict[str, Any]:
    """Chat templates write the arguments out as JSON themselves; OpenAI's format has them as a
    string of JSON.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise table.error(
            index,
            f'{where}: must be like {{"type": "function", "function": {{"name": ..., "arguments":'
            f" ...}}}}, got {shorten(call)}",
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(table, index, arguments or "{}", f"{where}.function.arguments")
    return {**cast("Message", call), "function": {**function, "arguments": arguments}}


def _json(table: "Table", index: int, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise table.error(index, f"{where}: not JSON: {error.msg}: {shorten(text)}") from None


def _without_missing(value: Any) -> Any:
    """Without null entries: a Parquet reader fills every row's objects with the keys that other
    rows have.
    """
    if isinstance(value, dict):
        return {key: _without_missing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_missing(item) for item in value]
    return value
