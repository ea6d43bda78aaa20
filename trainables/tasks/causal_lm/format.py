"""Rows of causal_lm: documents, cut into blocks of tokens."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import (
    Encoded,
    Encoding,
    Record,
    batched,
    duplicate_key,
    groups,
    slices,
)
from trainables.data.sources import Table
from trainables.errors import InputError
from trainables.streams import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Documents:
    default_length = 512

    def read(self, table: Table, data: DataConfig) -> tuple[str, list[Record]]:
        """A .txt file is one document; of a table, each row's text column is one."""
        texts = table.texts("text" if table.is_document else data.text, "text")
        if table.is_document and data.slice is not None:
            raise InputError(
                f"data.slice: {table.name} is one document, which has no columns; give a table"
            )
        parts = (
            ([None], [None]) if table.is_document else (groups(table, data), slices(table, data))
        )
        return "document" if table.is_document else "text", [
            Record(
                value={"text": text},
                place=table.place(i),
                key=duplicate_key(text),
                shown=text[:200],
                group=group,
                slice=part,
                weight=len(text),
            )
            for i, (text, group, part) in enumerate(zip(texts, *parts, strict=True))
        ]

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Each document begins with what the tokenizer puts before a text and ends with its
        end-of-sequence token, if it has one.

        A block is max_length consecutive tokens; what is left of a document is a shorter block, or
        dropped where it is a single token, which predicts nothing.
        """
        documents = _tokenise(records, tokenizer)
        starts = np.zeros(1, dtype=np.int64)  # of documents, in tokens of what is cut into blocks
        if encoding.cross_documents:
            starts = np.cumsum([0, *(len(ids) for ids in documents[:-1])])
            documents = [np.concatenate(documents)]
        blocks = [
            (
                number + int(np.searchsorted(starts, i, side="right")) - 1,
                ids[i : i + encoding.max_length],
            )
            for number, ids in enumerate(documents)
            for i in range(0, len(ids), encoding.max_length)
        ]
        kept = [(number, block) for number, block in blocks if len(block) >= 2]
        return Encoded(
            input_ids=[block for _, block in kept],
            origin=np.array([number for number, _ in kept], dtype=np.int64),
            dropped=len(blocks) - len(kept),
        )


def _tokenise(records: list[Record], tokenizer: "PreTrainedTokenizerBase") -> list[np.ndarray]:
    eos, documents = tokenizer.eos_token_id, []
    for batch in batched(records, 100):
        texts = [r.value["text"] for r in batch]
        for ids in tokenizer(texts, return_attention_mask=False, verbose=False).input_ids:
            if eos is not None and (not ids or ids[-1] != eos):
                ids.append(eos)
            documents.append(np.array(ids, dtype=np.int32))
    return documents


def draw_blocks(encoded: Encoded, rows: int, seed: int) -> Encoded:
    """At most `rows` blocks of `encoded`, in their order."""
    if len(encoded.input_ids) <= rows:
        return encoded
    chosen = np.sort(stream("blocks", seed).choice(len(encoded.input_ids), rows, replace=False))
    origin = None if encoded.origin is None else encoded.origin[chosen]
    return replace(encoded, input_ids=[encoded.input_ids[i] for i in chosen], origin=origin)


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
                    shown=part[:200],
                    weight=len(part),
                    place=f"{document.place}, characters {start} to {end}",
                )
            ]
            if part.strip()
            else []
        )
    return parts
