"""Conversations that are to be answered: what is read of a row, and what of it a model is given."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from trainables.data.asking import STAND_IN, Columns
from trainables.data.config import DataConfig
from trainables.data.records import Record
from trainables.data.rows import BadRow
from trainables.tasks.instruction.fields import Message
from trainables.tasks.instruction.shapes import OPENINGS, SHAPES

ANSWER: Message = {"role": "assistant", "content": STAND_IN}
TALKS = ("messages", "conversations")
"""Columns of whole conversations."""


def with_stand_in(columns: Columns, data: DataConfig) -> Columns:
    """A row with an answer to its conversation, be it in a column of its own or behind the
    messages; without the weight that the row has in training.
    """
    names = data.columns
    found = {name: each for name, each in columns.items() if name != names.get("weight", "weight")}
    for talk in TALKS:
        name = names.get(talk, talk)
        if name in found:
            found[name] = _answered(found[name])
    for shape in SHAPES:
        if shape.answer and shape.opening and names.get(shape.opening, shape.opening) in found:
            found[names.get(shape.answer, shape.answer)] = STAND_IN
    named = names.get("completion")
    if named is not None and _has_opening(found, names):
        found[named] = STAND_IN
    return found


def with_sides(columns: Columns, data: DataConfig) -> Columns:
    """A row with two answers to its prompt, where it has a prompt; else both hold it."""
    if not _has_opening(columns, data.columns):
        return columns
    sides = {"chosen": STAND_IN, "rejected": STAND_IN * 2}
    return {**columns, **{data.columns.get(side, side): each for side, each in sides.items()}}


def _has_opening(columns: Columns, names: Mapping[str, str]) -> bool:
    return any(names.get(opening, opening) in columns for opening in OPENINGS)


def _answered(talk: object) -> object:
    """With one more message, which `asked` takes away again."""
    import json

    if isinstance(talk, str):
        try:
            talk = json.loads(talk)
        except ValueError:
            return talk
    return [*talk, dict(ANSWER)] if isinstance(talk, list) else talk


def asked(record: Record) -> Record:
    """`answered_once`, where the stand-in is the only thing that is learnt, so that where it begins
    the model's own words begin. Raises BadRow likewise.
    """
    record = answered_once(record)
    if "messages" not in record.value:
        return record
    *before, answer = _messages(record)
    before = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in before]
    kept = {name: record.value[name] for name in ("tools", "documents") if name in record.value}
    return replace(record, value={**kept, "messages": [*before, answer]})


def answered_once(record: Record) -> Record:
    """The conversation up to the assistant's turn, with a stand-in for what it is to say there.
    Raises BadRow where there is nothing to be answered.
    """
    if "messages" not in record.value:
        return record
    messages = list(_messages(record))
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not messages:
        raise BadRow(f"{record.place}: there is no message that could be answered")
    return replace(record, value={**record.value, "messages": [*messages, dict(ANSWER)]})


def _messages(record: Record) -> Sequence[Message]:
    return cast("Sequence[Message]", record.value.get("messages"))
