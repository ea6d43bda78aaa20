"""Rows of a source text and the target text that is written for it."""

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trainables.data.asking import STAND_IN, asking
from trainables.data.config import PAIR, DataConfig
from trainables.data.records import (
    Encoded,
    Encoding,
    Noticed,
    Record,
    RowReader,
    Segment,
    batched,
    check_parts,
    duplicate_key,
    parts_of,
)
from trainables.data.rows import Row
from trainables.data.sources import Source
from trainables.errors import InputError
from trainables.tasks.declared import Words
from trainables.tasks.instruction.fields import Columns, Fields
from trainables.tasks.texts import Answered, arrays, check_room, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT = "targets_cut"
WORDS = {
    CUT: Words(
        "note",
        "the targets of {rows} row(s) are longer than data.max_length: what is beyond, and where"
        " they end, is not learnt",
        "raise data.max_length",
    )
}


class Pairs(Answered):
    columns = ("columns.source", "columns.target")

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no targets; seq2seq takes a table"
                " with columns 'source' and 'target'"
            )
        check_parts(source.columns, source.name, data)
        columns = Columns.of(source.columns, source.name, data)
        if not columns.have(PAIR):
            raise InputError(
                f"{source.key}: {source.name}: needed are columns 'source' and 'target', got"
                f" {columns.shown()}. Columns of other names are told by data.columns: {{source:"
                " ..., target: ...}"
            )
        return RowReader(name="source+target", read=partial(_read, columns=columns, data=data))

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        column = data.columns.get("target", "target")
        return asking(self.reader, source, data, lambda row: {**row, column: STAND_IN})

    def question(self, value: dict[str, Any]) -> tuple[str, str]:
        return value["source"], value["target"]

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        prefix = Segment(text=encoding.source_prefix, learnt=False)
        pieces = super().segments(record, tokenizer, encoding)
        return (prefix, *pieces) if prefix.text else pieces

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Sources longer than max_length are cut as the tokenizer does it, before its special
        tokens; of targets the first max_length tokens are kept: an end that is not theirs would
        teach to stop in the middle.
        """
        length, input_ids, target_ids, sources_cut = encoding.max_length, [], [], 0
        check_room(tokenizer, length, has_pairs=False)
        for batch in batched(records):
            texts = [encoding.source_prefix + each.value["source"] for each in batch]
            sources, cut = tokenise(texts, None, tokenizer, length)
            input_ids += arrays(sources.input_ids)
            target_ids += arrays(_targets([each.value["target"] for each in batch], tokenizer))
            sources_cut += cut
        long = [number for number, ids in enumerate(target_ids) if len(ids) > length]
        places = tuple(records[number].place for number in long[:3])
        return Encoded(
            input_ids=input_ids,
            target_ids=[ids[:length] for ids in target_ids],
            target_bytes=_bytes(records) if encoding.in_bytes else None,
            # where losses of texts compare, all of these must be there
            truncated=sources_cut + len(long) * encoding.in_bytes,
            noticed={CUT: Noticed(rows=len(long), messages=len(long), examples=places)}
            if long
            else {},
        )


def _targets(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Tokens of targets, which end with the end-of-sequence token, if there is one; some tokenizers
    put that of a language behind it.
    """
    eos = cast("int | None", tokenizer.eos_token_id)
    found = tokenizer(text_target=texts, return_attention_mask=False, verbose=False).input_ids
    return [ids if eos is None or eos in ids[-2:] else [*ids, eos] for ids in found]


def _bytes(records: list[Record]) -> np.ndarray:
    return np.array([float(len(record.value["target"].encode())) for record in records])


def _read(row: Row, columns: Columns, data: DataConfig) -> Record:
    fields = Fields(row=row, columns=columns)
    source, target = map(fields.text, PAIR)
    group, part = parts_of(row, data)
    return Record(
        value={"source": source, "target": target},
        place=row.place,
        key=duplicate_key(source, target),
        shown=source,
        group=group,
        slice=part,
        unused=fields.rest((data.group, data.slice)),
    )
