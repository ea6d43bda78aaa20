"""Rows of classification: a text, perhaps a second one, and a class."""

import re
from collections.abc import Iterator
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
from trainables.data.rows import Row, shorten
from trainables.data.sources import Source
from trainables.errors import InputError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


class Labelled:
    default_length = 512

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no labels; classification takes a"
                f" table with columns {data.text!r} and {data.label!r}"
            )
        for setting in ("text", "text_pair", "label", "group", "slice"):
            source.check_column(getattr(data, setting), setting)

        def read(row: Row) -> Record:
            text, label = row.text(data.text), _class_name(row, data.label)
            pair = row.text(data.text_pair) if data.text_pair else None
            group, part = parts_of(row, data)
            return Record(
                value={"text": text, "label": label}
                | ({} if pair is None else {"text_pair": pair}),
                place=row.place,
                key=duplicate_key(text) if pair is None else duplicate_key(text, pair),
                shown=text,
                label=label,
                group=group,
                slice=part,
            )

        return RowReader(name="text+text_pair+label" if data.text_pair else "text+label", read=read)

    def question(self, value: dict[str, str]) -> tuple[str, str]:
        pair = [value["text_pair"]] if "text_pair" in value else []
        return "\n".join([value["text"], *pair]), value["label"]

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        text, label = self.question(record.value)
        return Segment(text=text, learnt=False), Segment(text=f"\n{label}", learnt=True)

    def arrange(self, batches: Iterator[Encoded], encoding: Encoding) -> Iterator[Encoded]:
        return batches

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose the end of their longer text."""
        has_pairs = "text_pair" in records[0].value
        _check_room(tokenizer, encoding.max_length, has_pairs)
        has_types = has_pairs and "token_type_ids" in tokenizer.model_input_names
        input_ids, type_ids, truncated = [], [], 0
        for batch in batched(records):
            texts = [r.value["text"] for r in batch]
            pairs = [r.value["text_pair"] for r in batch] if has_pairs else None
            tokens, cut = _tokenise(texts, pairs, tokenizer, encoding.max_length)
            truncated += cut
            input_ids += _arrays(tokens.input_ids)
            if has_types:
                type_ids += _arrays(tokens.token_type_ids)
        class_of = {label: i for i, label in enumerate(encoding.labels)}
        labels = np.array([class_of[str(r.label)] for r in records], dtype=np.int64)
        return Encoded(
            input_ids=input_ids,
            labels=labels,
            token_type_ids=type_ids if has_types else None,
            truncated=truncated,
        )


def _class_name(row: Row, column: str) -> str:
    """Raises BadRow unless the column names a class."""
    label = row.value(column)
    if not isinstance(label, str | int):
        raise row.error(
            f"{column!r} must be a string or an integer, got {type(label).__name__}"
            f" {shorten(label)}"
        )
    row.check_storable(label, repr(column))
    if not str(label).strip():
        raise row.error(f"{column!r} is empty")
    return str(label)


def _check_room(tokenizer: "PreTrainedTokenizerBase", max_length: int, has_pairs: bool) -> None:
    added = tokenizer.num_special_tokens_to_add(pair=has_pairs)
    if max_length <= added:
        raise InputError(
            f"data.max_length: must be more than the {added} tokens that the tokenizer puts"
            f" around a text, got {max_length}"
        )


def _tokenise(
    first: list[str],
    second: list[str] | None,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> tuple["BatchEncoding", int]:
    """Tokens of texts, perhaps each with a second one, and how many of them were cut."""
    tokens = tokenizer(first, second, return_attention_mask=False, verbose=False)
    long = [i for i, ids in enumerate(tokens.input_ids) if len(ids) > max_length]
    if long:
        cut = tokenizer(
            [first[i] for i in long],
            None if second is None else [second[i] for i in long],
            return_attention_mask=False,
            verbose=False,
            truncation="longest_first",
            max_length=max_length,
        )
        for name, values in cut.items():
            for i, row in zip(long, values, strict=True):
                tokens[name][i] = row
    return tokens, len(long)


def _arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """The classes in the order of their ids: by number where all are integers, else by the
    alphabet.
    """
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))
