"""Rows of instruction: conversations, and which of their tokens the assistant wrote."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from trainables.data.asking import asking
from trainables.data.config import DataConfig
from trainables.data.records import (
    IGNORED,
    Encoded,
    Encoding,
    Noticed,
    Record,
    RowReader,
    Segment,
)
from trainables.data.rows import BadRow
from trainables.data.sources import Source
from trainables.errors import InputError
from trainables.tasks.instruction.answers import answer_bytes
from trainables.tasks.instruction.asking import answered_once, with_stand_in
from trainables.tasks.instruction.notices import Notice
from trainables.tasks.instruction.reading import conversation_reader
from trainables.tasks.instruction.templates import default_chat_template
from trainables.tasks.instruction.tokens import Tokeniser, Tokens, tokeniser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainables.tasks.instruction.fields import Message

__all__ = ["Chat", "default_chat_template"]


class Chat:
    default_length = 1024
    columns: tuple[str, ...] = ("columns.prompt", "columns.completion")

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no conversations; instruction takes"
                " rows with columns, such as 'messages' or 'prompt' and 'completion'"
            )
        return conversation_reader(source.columns, source.key, source.name, data)

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        found = asking(self.reader, source, data, partial(with_stand_in, data=data))
        return replace(found, read=lambda row: answered_once(found.read(row)))

    def question(self, value: dict[str, object]) -> tuple[str, str]:
        if "messages" not in value:
            return str(value.get("prompt")), str(value.get("completion"))
        messages = cast("Sequence[Message]", value.get("messages"))
        last = max(i for i, each in enumerate(messages) if each.get("role") == "assistant")
        contents = [str(each.get("content") or "") for each in messages]
        return "\n".join(contents[:last]), contents[last]

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        text, spans = _tokeniser(tokenizer, encoding).text(record)
        pieces: list[Segment] = []
        at = 0
        for start, end, weight in spans:
            pieces.append(Segment(text=text[at:start], learnt=False))
            pieces.append(Segment(text=text[start:end], learnt=True, weight=weight))
            at = end
        pieces.append(Segment(text=text[at:], learnt=False))
        return tuple(piece for piece in pieces if piece.text)

    def conversations(self, record: Record) -> tuple[Record, ...]:
        """What of a row is rendered, one after the other."""
        return (record,)

    def arrange(self, batches: Iterator[Encoded], encoding: Encoding) -> Iterator[Encoded]:
        return batches

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose their end; a row that has no token of the assistant left
        is dropped, and one that the template refuses is told of.
        """
        kept: list[_Kept] = []
        truncated = endless = endings_cut = 0
        lost: Counter[str] = Counter()
        noticed: dict[str, Noticed] = {}
        bad: list[str] = []
        for number, rows in enumerate(self._tokens(records, tokenizer, encoding)):
            if isinstance(rows, BadRow):
                bad.append(str(rows))
                continue
            endless += sum(row.endless for row in rows)
            lost.update({what for row in rows for what in row.lost})
            for kind, each in _noticed(rows, records[number].place):
                noticed[kind] = noticed.get(kind, Noticed()) + each
            cut = np.concatenate([row.learnt[encoding.max_length :] for row in rows])
            truncated += len(cut) > 0
            endings_cut += bool(cut.any())
            if all(row.learnt[1 : encoding.max_length].any() for row in rows):
                kept.append(_Kept.of(rows, number, encoding.max_length))
        return Encoded(
            input_ids=[row.input_ids for row in kept],
            labels=[row.labels for row in kept],
            weights=_weights(kept),
            thought=_thoughts(kept) if encoding.reasoning == "keep" else None,
            target_bytes=_answer_bytes(records, kept, encoding) if encoding.in_bytes else None,
            second=_second(kept),
            origin=np.array([row.origin for row in kept], dtype=np.int64),
            truncated=truncated,
            dropped=len(records) - len(kept) - len(bad),
            endless_answers=endless,
            endings_cut=endings_cut,
            lost=dict(lost),
            noticed=noticed,
            bad=tuple(bad),
        )

    def _tokens(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Iterator[list[Tokens] | BadRow]:
        """Of each row all that is rendered of it; in its place what is wrong with it."""
        parts = [self.conversations(record) for record in records]
        found = _tokeniser(tokenizer, encoding).tokenise([each for of in parts for each in of])
        for each in parts:
            rows = list(islice(found, len(each)))
            bad = [row for row in rows if isinstance(row, BadRow)]
            yield bad[0] if bad else [row for row in rows if not isinstance(row, BadRow)]


def _noticed(rows: Sequence[Tokens], place: str) -> Iterator[tuple[str, Noticed]]:
    """Of one row, by kind. What several conversations have in common counts once."""
    most: Counter[Notice] = Counter()
    for row in rows:
        most |= Counter(row.noticed)
    notices = list(most.elements())
    for kind, count in Counter(kind for kind, _ in notices).items():
        what = next(text for each, text in notices if each == kind)
        example = f"{place} ({what})" if what else place
        yield kind, Noticed(rows=1, messages=count, examples=(example,))


def _tokeniser(tokenizer: "PreTrainedTokenizerBase", encoding: Encoding) -> Tokeniser:
    return tokeniser(
        tokenizer,
        encoding.chat_template,
        reasoning=encoding.reasoning,
        train_on=encoding.train_on,
        moment=encoding.moment,
    )


class _Kept(NamedTuple):
    """What is stored of a row."""

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    thought: int
    """Tokens, right before the last answer of the first conversation."""
    second: int | None
    origin: int

    @classmethod
    def of(cls, rows: Sequence[Tokens], origin: int, length: int) -> "_Kept":
        """`rows`: one conversation, or the two of a pair, each cut to `length`."""
        ids = np.concatenate([row.ids[:length] for row in rows])
        learnt = np.concatenate([row.learnt[:length] for row in rows])
        first = rows[0]
        weights = None if first.weights is None else first.weights[:length]
        return cls(
            input_ids=ids,
            labels=np.where(learnt, ids, IGNORED).astype(np.int32),
            weights=weights,
            thought=_thought_before(first.learnt[:length], first.thought[:length]),
            second=len(first.ids[:length]) if rows[1:] else None,
            origin=origin,
        )


def _thought_before(learnt: np.ndarray, thought: np.ndarray) -> int:
    """Tokens of a thought right before the last run of those that are learnt; both bool [T]."""
    end = int(np.flatnonzero(learnt)[-1])
    start = int(np.flatnonzero(~learnt[:end])[-1]) + 1 if not learnt[:end].all() else 0
    others = np.flatnonzero(~thought[:start])
    return start - (int(others[-1]) + 1 if len(others) else 0)


def _thoughts(kept: list[_Kept]) -> np.ndarray:
    return np.array([row.thought for row in kept], dtype=np.int32)


def _second(kept: list[_Kept]) -> np.ndarray | None:
    found = [row.second for row in kept if row.second is not None]
    return np.array(found, dtype=np.int32) if found else None


def _answer_bytes(
    records: Sequence[Record], kept: Sequence[_Kept], encoding: Encoding
) -> np.ndarray:
    """Of what is to be learnt as it was given, whatever a chat template writes around it."""
    return np.array(
        [
            answer_bytes(
                records[row.origin].value,
                thoughts=encoding.reasoning == "train",
                last_only=encoding.train_on == "last_answer",
            )
            for row in kept
        ]
    )


def _weights(kept: list[_Kept]) -> list[np.ndarray] | None:
    if all(row.weights is None for row in kept):
        return None
    return [
        np.ones(len(row.input_ids), np.float32) if row.weights is None else row.weights
        for row in kept
    ]
