"""Rows of classification: a text, perhaps a second one, and a class."""

import re
from typing import Any

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
from trainables.data.sources import Table, shorten
from trainables.errors import InputError


class Labelled:
    default_length = 512

    def read(self, table: Table, data: DataConfig) -> tuple[str, list[Record]]:
        if table.is_document:
            raise InputError(
                f"{table.key}: {table.name}: a .txt file has no labels; classification takes a"
                f" table with columns {data.text!r} and {data.label!r}"
            )
        texts = table.texts(data.text, "text")
        pairs = table.texts(data.text_pair, "text_pair") if data.text_pair else None
        labels = table.column(data.label, "label")
        records = []
        parts = groups(table, data), slices(table, data)
        for i, (text, label, group, part) in enumerate(zip(texts, labels, *parts, strict=True)):
            if not isinstance(label, str | int):
                raise table.error(
                    i,
                    f"{data.label!r} must be a string or an integer, got {type(label).__name__}"
                    f" {shorten(label)}",
                )
            if not str(label).strip():
                raise table.error(i, f"{data.label!r} is empty")
            value = {"text": text, "label": str(label)}
            if pairs:
                value["text_pair"] = pairs[i]
            records.append(
                Record(
                    value=value,
                    place=table.place(i),
                    key=duplicate_key(text, *(pairs[i : i + 1] if pairs else ())),
                    shown=text,
                    label=str(label),
                    group=group,
                    slice=part,
                )
            )
        return "text+text_pair+label" if pairs else "text+label", records

    def encode(self, records: list[Record], tokenizer: Any, encoding: Encoding) -> Encoded:
        """Rows longer than max_length lose the end of their longer text."""
        has_pairs = "text_pair" in records[0].value
        type_ids: list[np.ndarray] | None = (
            [] if has_pairs and "token_type_ids" in tokenizer.model_input_names else None
        )
        added = tokenizer.num_special_tokens_to_add(pair=has_pairs)
        if encoding.max_length <= added:
            raise InputError(
                f"data.max_length: must be more than the {added} tokens that the tokenizer puts"
                f" around a text, got {encoding.max_length}"
            )
        input_ids, truncated = [], 0
        for batch in batched(records):
            texts = [
                [r.value[column] for r in batch]
                for column in (("text", "text_pair") if has_pairs else ("text",))
            ]
            tokens = tokenizer(*texts, return_attention_mask=False, verbose=False)
            long = [
                i for i, ids in enumerate(tokens["input_ids"]) if len(ids) > encoding.max_length
            ]
            if long:
                cut = tokenizer(
                    *([column[i] for i in long] for column in texts),
                    return_attention_mask=False,
                    verbose=False,
                    truncation="longest_first",
                    max_length=encoding.max_length,
                )
                for name, values in cut.items():
                    for i, row in zip(long, values, strict=True):
                        tokens[name][i] = row
                truncated += len(long)
            input_ids += [np.array(ids, dtype=np.int32) for ids in tokens["input_ids"]]
            if type_ids is not None:
                type_ids += [np.array(ids, dtype=np.int32) for ids in tokens["token_type_ids"]]
        class_of = {label: i for i, label in enumerate(encoding.labels)}
        labels = np.array([class_of[r.label] for r in records], dtype=np.int64)
        return Encoded(
            input_ids=input_ids, labels=labels, token_type_ids=type_ids, truncated=truncated
        )


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """The classes in the order of their ids: by number where all are integers, else by the
    alphabet.
    """
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))
