"""Rows of conversations as people have them, read into one form (`Record.value`):

    {"messages": [{"role": ..., "content": ...}, ...], "tools"?: [...], "documents"?: [...],
     "weight"?: 0 to 1}

or, without a chat template, {"prompt": ..., "completion": ...}. Whatever of a row has no place in
it is named in `Record.unused`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from trainables.data.config import DataConfig
from trainables.data.records import Record, RowReader, check_parts, duplicate_key, parts_of
from trainables.data.rows import Row, shorten
from trainables.errors import InputError
from trainables.tasks.instruction.calls import read_tools
from trainables.tasks.instruction.fields import Columns, Fields, Message, is_blank
from trainables.tasks.instruction.messages import (
    read_message,
    read_messages,
    read_system,
    read_weight,
)
from trainables.tasks.instruction.shapes import OPENINGS, Shape, conversation_shape, opening_of


def conversation_reader(columns: Sequence[str], key: str, name: str, data: DataConfig) -> RowReader:
    """Of the source `name`, which the setting `key` names and which has these columns. Raises
    InputError where they are no format of conversations.
    """
    check_parts(columns, name, data)
    named = Columns.of(columns, name, data)
    shape = conversation_shape(named, key, name, data)
    value_of = _plain_value if data.chat_template == "none" else _chat_value
    return RowReader(
        name=shape.name,
        read=partial(_read, columns=named, data=data, value_of=partial(value_of, shape=shape)),
    )


def preference_reader(columns: Sequence[str], key: str, name: str, data: DataConfig) -> RowReader:
    """Of pairs of answers to one prompt: its records hold {"messages": [... the prompt],
    "chosen": [messages], "rejected": [messages]}.
    """
    check_parts(columns, name, data)
    named = Columns.of(columns, name, data)
    if not named.have(("chosen", "rejected")):
        raise InputError(
            f"{key}: {name}: not a format of preference pairs; needed are columns 'chosen' and"
            f" 'rejected', and 'prompt' unless they hold it; got {named.shown()}."
        )
    shape = Shape(opening=opening_of(named, data), answer="chosen")
    return RowReader(
        name="+".join(filter(None, (shape.opening, "chosen", "rejected"))),
        read=partial(_read, columns=named, data=data, value_of=partial(_pair_value, shape=shape)),
    )


Value = dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a row holds, and by what one recognises it."""

    value: Value
    messages: list[Message]

    @property
    def key(self) -> bytes:
        """Of who said and called what, and thought what where that is known."""
        return duplicate_key(*(text for message in self.messages for text in _said(message)))

    @property
    def shown(self) -> str:
        users = [message for message in self.messages if message.get("role") == "user"]
        return _content(users[0] if users else self.messages[-1])


def _said(message: Message) -> list[str]:
    calls = json.dumps(message.get("tool_calls")) if message.get("tool_calls") else ""
    thought = [str(message.get("reasoning_content"))] if message.get("reasoning_content") else []
    return [str(message.get("role")), _content(message), calls, *thought]


def _content(message: Message) -> str:
    return str(message.get("content"))


def _read(
    row: Row, columns: Columns, data: DataConfig, value_of: Callable[[Fields], Said]
) -> Record:
    fields = Fields(row=row, columns=columns)
    try:
        said = value_of(fields)
        for name, item in said.value.items():
            row.check_storable(item, name)
        group, part = parts_of(row, data)
        return Record(
            value=said.value,
            place=row.place,
            key=said.key,
            shown=said.shown,
            group=group,
            slice=part,
            unused=fields.rest((data.group, data.slice)),
        )
    except RecursionError:  # JSON nested in itself some hundred times
        raise row.error("nested too deeply to be read") from None


# A conversation.


def _chat_value(fields: Fields, shape: Shape) -> Said:
    messages = _opened(fields, shape)
    if shape.answer:
        messages = _joined(messages, _answer(fields, shape.answer, alone=not messages))
    value, messages = _completed(fields, messages)
    weights = [each.get("weight") for each in messages if each.get("role") == "assistant"]
    if not weights:
        raise fields.error(NO_ANSWER)
    if all(weight == 0 for weight in weights):
        raise fields.error(f"nothing to learn from: {_all_weigh_nothing(len(weights))}")
    _check_weight(fields, value)
    return Said(value=value, messages=messages)


NO_ANSWER = "no assistant message to learn from"


def _all_weigh_nothing(count: int) -> str:
    return (
        "its assistant message has weight 0"
        if count == 1
        else f"all its {count} assistant messages have weight 0"
    )


def _check_weight(fields: Fields, value: Value) -> None:
    if value.get("weight") == 0:
        raise fields.error(
            f"nothing to learn from: the row's {fields.columns.name('weight')!r} is 0"
        )


def _opened(fields: Fields, shape: Shape) -> list[Message]:
    return OPENINGS[shape.opening](fields) if shape.opening else []


def _answer(fields: Fields, ours: str, alone: bool) -> list[Message]:
    """The messages of a column that holds an answer: text, a message or a list of them. alone:
    there is no prompt beside it.
    """
    column = fields.columns.name(ours)
    given = fields.get(ours)
    if isinstance(given, Mapping):
        return [read_message(fields, given, column)]
    if isinstance(given, list):
        return read_messages(fields, given, column)
    if alone:  # a text alone may be a whole talk, of which nobody knows who said what
        return read_messages(fields, _talk(fields, ours), column)
    return [read_message(fields, {"role": "assistant", "content": fields.text(ours)}, column)]


def _talk(fields: Fields, ours: str) -> object:
    text, column = fields.text(ours), fields.columns.name(ours)
    if not text.lstrip().startswith("["):
        raise fields.error(
            f"{column!r} is text without a prompt beside it; it must be a list of messages, or"
            f" data.columns must name the prompt's column; got {shorten(text)}"
        )
    return fields.parsed(text, column)


def _joined(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """Both, or the answer where it holds the prompt, perhaps after a system's message."""
    if not prompt:
        return answer
    count = len(prompt)
    begin = int(bool(answer) and _is_systems(answer[0]) and not _is_systems(prompt[0]))
    holds = len(answer) > begin + count and answer[begin : begin + count] == prompt
    return answer if holds else prompt + answer


def _is_systems(message: Message) -> bool:
    return message.get("role") in ("system", "developer")


def _completed(fields: Fields, messages: list[Message]) -> tuple[Value, list[Message]]:
    """With what stands in columns of its own beside the messages."""
    messages = _with_thought(fields, _with_system(fields, messages))
    value: Value = {"messages": messages}
    if tools := read_tools(fields):
        value["tools"] = tools
    if documents := _documents(fields):
        value["documents"] = documents
    return value | _row_weight(fields), messages


def _row_weight(fields: Fields) -> Value:
    if is_blank(given := fields.get("weight")):
        return {}
    return {"weight": read_weight(fields, given, repr(fields.columns.name("weight")))}


def _with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    text = read_system(fields)
    if text is None:
        return messages
    if not _is_systems(messages[0]):
        return [{"role": "system", "content": text}, *messages]
    if _content(messages[0]).strip() != text.strip():
        raise fields.error(
            f"{fields.columns.name('system')!r} and the conversation's own system message differ"
        )
    return messages


def _with_thought(fields: Fields, messages: list[Message]) -> list[Message]:
    """The column of thoughts is about the last answer."""
    text = fields.optional_text("reasoning_content")
    if text is None:
        return messages
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not answers:
        raise fields.error(NO_ANSWER)
    last = messages[answers[-1]]
    if last.get("reasoning_content", text) != text:
        column = fields.columns.name("reasoning_content")
        raise fields.error(f"{column!r} and the last answer's own thoughts differ")
    return [
        {**message, "reasoning_content": text} if i == answers[-1] else message
        for i, message in enumerate(messages)
    ]


def _documents(fields: Fields) -> list[object]:
    """As templates for retrieval take them; what else is in a column of that name is not used."""
    found = fields.row.columns.get(fields.columns.name("documents"))
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        return []
    fields.get("documents")
    return found


# A prompt and its completion as they are.


def _plain_value(fields: Fields, shape: Shape) -> Said:
    prompt, completion = shape.texts(fields)
    value: Value = {"prompt": prompt, "completion": completion} | _row_weight(fields)
    _check_weight(fields, value)
    turns: list[Message] = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    return Said(value=value, messages=turns)


# Preference pairs.


def _pair_value(fields: Fields, shape: Shape) -> Said:
    prompt = _opened(fields, shape)
    whole = [_joined(prompt, _answer(fields, side, alone=not prompt)) for side in SIDES]
    count = _shared(*whole)
    if count == 0:
        raise fields.error("'chosen' and 'rejected' have no prompt in common")
    value, messages = _completed(fields, whole[0][:count])
    answers = [each[count:] for each in whole]
    for side, answer in zip(SIDES, answers, strict=True):
        if not any(message.get("role") == "assistant" for message in answer):
            raise fields.error(f"{fields.columns.name(side)!r} has no assistant message")
    _check_pair(fields, value, messages, *answers)
    value |= dict(zip(SIDES, answers, strict=True))
    return Said(value=value, messages=[*messages, *answers[0], *answers[1]])


def _check_pair(fields: Fields, value: Value, *parts: list[Message]) -> None:
    """Raise BadRow for a pair that says nothing, and for weights: all pairs count alike."""
    _, chosen, rejected = parts
    if chosen == rejected:
        raise fields.error("'chosen' and 'rejected' are the same")
    for each in (value, *(message for part in parts for message in part)):
        if each.get("weight", 1) != 1:
            raise fields.error(
                f"a pair and its messages have no weights but 1, got {each.get('weight')}"
            )


SIDES = ("chosen", "rejected")


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with, the last of either left out."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)
