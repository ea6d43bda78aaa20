"""Rows of a text, perhaps a second one, and what is to be said of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from transformers import BatchEncoding, PreTrainedTokenizerBase


class Answer(NamedTuple):
    """What is to be said of a row."""

    stored: Any
    """As JSON."""
    label: str | None = None
    """The row's class, by which splits are stratified."""


class Answered(ABC):
    """A format of rows that are read as a text, of which an answer is to be given."""

    default_length = 512

    @abstractmethod
    def question(self, value: dict[str, Any]) -> tuple[str, str]:
        """See `Format`."""

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        """The answer stands below what is read."""
        text, answer = self.question(record.value)
        return Segment(text=text, learnt=False), Segment(text=f"\n{answer}", learnt=True)

    def arrange(self, batches: Iterator[Encoded], encoding: Encoding) -> Iterator[Encoded]:
        return batches


class Texts(Answered):
    """A format of such rows. What a row's answer is, the task's own format says."""

    task: str
    setting = "label"
    """Of `data`, which names the column of the answer; in a stored row it is called the same."""

    stand_in: object
    """An answer that is read in the place of a row's own where it is to be answered; classes are
    then named by their numbers.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        return "text", "text_pair", self.setting

    @abstractmethod
    def answer(self, row: Row, data: DataConfig) -> Answer:
        """Raises BadRow where it cannot be used."""

    @abstractmethod
    def labels(self, records: list[Record], encoding: Encoding) -> np.ndarray | list[np.ndarray]:
        """Of rows, as `Encoded` has them."""

    def shown(self, value: dict[str, Any]) -> str:
        """The answer of a stored row as text."""
        return str(value[self.setting])

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        column = getattr(data, self.setting)
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no labels; {self.task} takes a"
                f" table with columns {data.text!r} and {column!r}"
            )
        for setting in ("text", "text_pair", self.setting, "group", "slice"):
            source.check_column(getattr(data, setting), setting)

        def read(row: Row) -> Record:
            text, answer = row.text(data.text), self.answer(row, data)
            pair = row.text(data.text_pair) if data.text_pair else None
            group, part = parts_of(row, data)
            return Record(
                value={"text": text, self.setting: answer.stored}
                | ({} if pair is None else {"text_pair": pair}),
                place=row.place,
                key=duplicate_key(text) if pair is None else duplicate_key(text, pair),
                shown=text,
                label=answer.label,
                group=group,
                slice=part,
            )

        pair = "text_pair+" if data.text_pair else ""
        return RowReader(name=f"text+{pair}{self.setting}", read=read)

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        column = getattr(data, self.setting)
        return asking(self.reader, source, data, lambda row: {**row, column: self.stand_in})

    def question(self, value: dict[str, Any]) -> tuple[str, str]:
        pair = [value["text_pair"]] if "text_pair" in value else []
        return "\n".join([value["text"], *pair]), self.shown(value)

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose the end of their longer text."""
        has_pairs = "text_pair" in records[0].value
        check_room(tokenizer, encoding.max_length, has_pairs)
        has_types = has_pairs and "token_type_ids" in tokenizer.model_input_names
        input_ids, type_ids, truncated = [], [], 0
        for batch in batched(records):
            texts = [r.value["text"] for r in batch]
            pairs = [r.value["text_pair"] for r in batch] if has_pairs else None
            tokens, cut = tokenise(texts, pairs, tokenizer, encoding.max_length)
            truncated += cut
            input_ids += arrays(tokens.input_ids)
            if has_types:
                type_ids += arrays(tokens.token_type_ids)
        return Encoded(
            input_ids=input_ids,
            labels=self.labels(records, encoding),
            token_type_ids=type_ids if has_types else None,
            truncated=truncated,
        )


def check_room(tokenizer: "PreTrainedTokenizerBase", max_length: int, has_pairs: bool) -> None:
    """Raise InputError where a row has no room for any of its text."""
    added = tokenizer.num_special_tokens_to_add(pair=has_pairs)
    if max_length <= added:
        raise InputError(
            f"data.max_length: must be more than the {added} tokens that the tokenizer puts"
            f" around a text, got {max_length}"
        )


def tokenise(
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


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]
