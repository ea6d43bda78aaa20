"""Rows of causal_lm: documents, cut into blocks of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainables.data.asking import asking
from trainables.data.config import DataConfig
from trainables.data.records import (
    Encoded,
    Encoding,
    Record,
    RowReader,
    Segment,
    batched,
    duplicate_key,
    parts_of,
)
from trainables.data.rows import Row
from trainables.data.sources import Source
from trainables.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Documents:
    default_length = 512
    columns = ("text",)

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        """A .txt file is one document; of a table, each row's text column is one."""
        if source.is_document:
            if data.slice is not None:
                raise InputError(
                    f"data.slice: {source.name} is one document, which has no columns; give a table"
                )
            return RowReader(name="document", read=lambda row: _document(row, "text", None, None))
        for setting in ("text", "group", "slice"):
            source.check_column(getattr(data, setting), setting)
        return RowReader(
            name="text", read=lambda row: _document(row, data.text, *parts_of(row, data))
        )

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        """A text that is to be gone on with has no answer."""
        return asking(self.reader, source, data, lambda row: row)

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Whole documents, each of which begins with what the tokenizer puts before a text and ends
        with its end-of-sequence token, if it has one.
        """
        documents = list(_tokenise(records, tokenizer, encoding.in_bytes))
        return Encoded(
            input_ids=[document.ids for document in documents],
            token_bytes=[document.sizes for document in documents] if encoding.in_bytes else None,
            origin=np.arange(len(records), dtype=np.int64),
        )

    def question(self, value: dict[str, str]) -> tuple[str, str]:
        return value["text"], ""

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        text, _ = self.question(record.value)
        return (Segment(text=text, learnt=True),)

    def arrange(self, batches: Iterator[Encoded], encoding: Encoding) -> Iterator[Encoded]:
        """Blocks of max_length consecutive tokens; what is left of a document (across documents: of
        all) is a shorter block, or dropped where it is a single token, which predicts nothing.
        """
        if encoding.cross_documents:
            return _across(batches, encoding.max_length)
        return (_blocks(documents, encoding.max_length) for documents in batches)


def _document(row: Row, column: str, group: str | None, part: str | None) -> Record:
    text = row.text(column)
    return Record(
        value={"text": text},
        place=row.place,
        key=duplicate_key(text),
        shown=text,
        group=group,
        slice=part,
        weight=len(text),
    )


class _Tokens(NamedTuple):
    """Some tokens of a document, or of several."""

    ids: np.ndarray
    """int32 [T]."""
    origins: np.ndarray
    """The record of each, int64 [T]."""
    sizes: np.ndarray
    """Bytes of the text that each stands for, float64 [T]; none, where nobody asks."""

    def cut(self, length: int) -> "list[_Tokens]":
        starts = range(0, len(self.ids), length)
        return [self._make(each[i : i + length] for each in self) for i in starts]

    @classmethod
    def joined(cls, parts: "Sequence[_Tokens]") -> "_Tokens":
        return cls._make(np.concatenate(each) for each in zip(*parts, strict=True))


def _documents(encoded: Encoded) -> list[_Tokens]:
    assert encoded.origin is not None
    sizes = encoded.token_bytes or [np.zeros(0)] * len(encoded.input_ids)
    return [
        _Tokens(ids, np.full(len(ids), origin, dtype=np.int64), of_ids)
        for ids, origin, of_ids in zip(encoded.input_ids, encoded.origin, sizes, strict=True)
    ]


def _blocks(documents: Encoded, length: int) -> Encoded:
    cut = [block for document in _documents(documents) for block in document.cut(length)]
    return _kept(cut, documents.token_bytes is not None)


def _kept(blocks: list[_Tokens], in_bytes: bool) -> Encoded:
    """A block's first token is no target."""
    kept = [block for block in blocks if len(block.ids) >= 2]
    return Encoded(
        input_ids=[block.ids for block in kept],
        target_bytes=np.array([block.sizes[1:].sum() for block in kept]) if in_bytes else None,
        origin=np.array([block.origins[0] for block in kept], dtype=np.int64),
        dropped=len(blocks) - len(kept),
    )


def _across(batches: Iterator[Encoded], length: int) -> Iterator[Encoded]:
    """A block is of the document that it begins in."""
    left, in_bytes = _Tokens(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0)), False
    for documents in batches:
        in_bytes = documents.token_bytes is not None
        *full, left = _Tokens.joined([left, *_documents(documents)]).cut(length) or [left]
        if len(left.ids) == length:
            full, left = [*full, left], _Tokens._make(each[:0] for each in left)
        yield _kept(full, in_bytes)
    if len(left.ids):
        yield _kept([left], in_bytes)


def _tokenise(
    records: list[Record], tokenizer: "PreTrainedTokenizerBase", in_bytes: bool
) -> Iterator[_Tokens]:
    eos = tokenizer.eos_token_id
    for batch in batched(records, 100):
        texts = [r.value["text"] for r in batch]
        found = tokenizer(
            texts,
            return_attention_mask=False,
            return_offsets_mapping=in_bytes,
            verbose=False,
        )
        offsets = found["offset_mapping"] if in_bytes else [[]] * len(texts)
        for text, ids, at in zip(texts, found.input_ids, offsets, strict=True):
            sizes = _sizes(text, at)
            if eos is not None and (not ids or ids[-1] != eos):
                ids.append(eos)
                sizes = np.append(sizes, 0.0) if in_bytes else sizes
            yield _Tokens(np.array(ids, dtype=np.int32), np.zeros(0, np.int64), sizes)


def _sizes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes in UTF-8 of the text that tokens at these offsets stand for; together, those of the
    whole text.
    """
    if not offsets:
        return np.zeros(0)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(width)])
    # a special token has no place in the text, and tokens of one character have the same
    ends = before[np.maximum.accumulate([end for _, end in offsets])]
    ends[-1] = before[-1]
    return np.diff(ends, prepend=0).astype(np.float64)


def cut_tail(document: Record, shares: dict[str, float]) -> dict[str, list[Record]]:
    """Split one document by position: train, then the other splits in the order of `shares`, at the
    end of a line.

    Its end, not blocks drawn at random: neighbouring blocks share sentences, names and subject, so
    that a random validation block has half been read in training.
    """
    text = document.value["text"]
    names, cuts, position = ["train", *shares], [0], 1.0 - sum(shares.values())
    for share in shares.values():
        at = int(len(text) * position)
        line_end = text.find("\n", at)
        cuts.append(line_end + 1 if 0 <= line_end < len(text) - 1 else at)
        position += share
    cuts.append(len(text))
    parts = {}
    for name, start, end in zip(names, cuts[:-1], cuts[1:], strict=True):
        part = text[start:end]
        parts[name] = (
            [
                replace(
                    document,
                    value={"text": part},
                    key=duplicate_key(part),
                    shown=part,
                    weight=len(part),
                    place=f"{document.place}, characters {start} to {end}",
                )
            ]
            if part.strip()
            else []
        )
    return parts
