"""Rows of causal_lm: documents, cut into blocks of tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

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

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Whole documents, each of which begins with what the tokenizer puts before a text and ends
        with its end-of-sequence token, if it has one.
        """
        return Encoded(
            input_ids=_tokenise(records, tokenizer), origin=np.arange(len(records), dtype=np.int64)
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


def _blocks(documents: Encoded, length: int) -> Encoded:
    assert documents.origin is not None
    blocks = [
        (origin, ids[i : i + length])
        for origin, ids in zip(documents.origin, documents.input_ids, strict=True)
        for i in range(0, len(ids), length)
    ]
    return _kept(blocks)


def _kept(blocks: list[tuple[int, np.ndarray]]) -> Encoded:
    kept = [(origin, block) for origin, block in blocks if len(block) >= 2]
    return Encoded(
        input_ids=[block for _, block in kept],
        origin=np.array([origin for origin, _ in kept], dtype=np.int64),
        dropped=len(blocks) - len(kept),
    )


def _across(batches: Iterator[Encoded], length: int) -> Iterator[Encoded]:
    """A block is of the document that it begins in."""
    ids, origins = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    for documents in batches:
        assert documents.origin is not None
        of_tokens = np.repeat(documents.origin, [len(each) for each in documents.input_ids])
        ids = np.concatenate([ids, *documents.input_ids])
        origins = np.concatenate([origins, of_tokens])
        full = len(ids) // length * length
        yield _kept([(int(origins[i]), ids[i : i + length]) for i in range(0, full, length)])
        ids, origins = ids[full:], origins[full:]
    if len(ids):
        yield _kept([(int(origins[0]), ids)])


def _tokenise(records: list[Record], tokenizer: "PreTrainedTokenizerBase") -> list[np.ndarray]:
    eos, documents = tokenizer.eos_token_id, []
    for batch in batched(records, 100):
        texts = [r.value["text"] for r in batch]
        for ids in tokenizer(texts, return_attention_mask=False, verbose=False).input_ids:
            if eos is not None and (not ids or ids[-1] != eos):
                ids.append(eos)
            documents.append(np.array(ids, dtype=np.int32))
    return documents


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
