"""Rows of preference: one conversation and two ways to go on, each rendered with it."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data.asking import asking
from trainables.data.config import DataConfig
from trainables.data.records import Encoded, Encoding, Noticed, Record, RowReader, Segment
from trainables.data.sources import Source
from trainables.errors import InputError
from trainables.tasks.instruction.asking import with_sides
from trainables.tasks.instruction.format import Chat
from trainables.tasks.instruction.reading import SIDES, preference_reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.tasks.instruction.fields import Message


SAME = "same_answers"
"""Pairs whose answers are the same tokens; a notice."""


class Pairs(Chat):
    """A row has two sequences, chosen and rejected; what is learnt of each is its answer alone."""

    columns = ("columns.prompt", "columns.chosen", "columns.rejected")

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no preference pairs; preference"
                " takes rows with columns 'chosen' and 'rejected'"
            )
        if data.chat_template == "none":
            raise InputError(
                "data.chat_template: preference renders its pairs with a chat template, got none"
            )
        return preference_reader(source.columns, source.key, source.name, data)

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        return asking(self.reader, source, data, partial(with_sides, data=data))

    def question(self, value: dict[str, object]) -> tuple[str, str]:
        """The prompt, and the chosen answer."""
        return _contents(value, "messages"), _contents(value, SIDES[0])

    def conversations(self, record: Record) -> tuple[Record, ...]:
        return tuple(_conversation(record, side) for side in SIDES)

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        encoded = super().encode(records, tokenizer, encoding)
        assert encoded.origin is not None, "conversations say which row they are of"
        same = [
            records[origin].place
            for ids, at, origin in zip(
                encoded.input_ids, _starts(encoded), encoded.origin, strict=True
            )
            if np.array_equal(ids[:at], ids[at:])
        ]
        if not same:
            return encoded
        found = Noticed(rows=len(same), messages=2 * len(same), examples=tuple(same[:3]))
        return dataclasses.replace(encoded, noticed={**encoded.noticed, SAME: found})

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        found: list[Segment] = []
        for side, each in zip(SIDES, self.conversations(record), strict=True):
            first, *rest = super().segments(each, tokenizer, encoding)
            found += [dataclasses.replace(first, heading=side), *rest]
        return tuple(found)


def _starts(encoded: Encoded) -> list[int]:
    """Where the second sequence of each row begins."""
    return [] if encoded.second is None else encoded.second.tolist()


def _messages(value: dict[str, object], part: str) -> "Sequence[Message]":
    return cast("Sequence[Message]", value.get(part))


def _contents(value: dict[str, object], part: str) -> str:
    return "\n".join(str(each.get("content") or "") for each in _messages(value, part))


def _conversation(record: Record, side: str) -> Record:
    """The prompt, of whose answers nothing is learnt, and one of the two answers."""
    prompt = [
        {**each, "weight": 0} if each.get("role") == "assistant" else each
        for each in _messages(record.value, "messages")
    ]
    messages = [*prompt, *_messages(record.value, side)]
    beside = {name: each for name, each in record.value.items() if name not in SIDES}
    return dataclasses.replace(record, value={**beside, "messages": messages})
