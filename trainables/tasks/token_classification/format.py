"""Rows of token_classification: words, and a tag for each.

A row is read as its words with a space between them, as a user's own text is. A word's tag is that
of its first token; what else there is of it has no loss.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    batched,
    duplicate_key,
    parts_of,
)
from trainables.data.rows import Row, shorten
from trainables.data.sources import Source
from trainables.errors import InputError
from trainables.tasks.classification.format import class_name
from trainables.tasks.declared import Words
from trainables.tasks.texts import Answered, check_room

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT, UNREAD = "words_cut", "words_unread"
WORDS = {
    CUT: Words(
        "warning",
        "{messages} word(s) of {rows} row(s) are beyond the length that is kept, and are neither"
        " learnt nor measured",
        "data.max_length: raise it",
    ),
    UNREAD: Words(
        "warning",
        "{messages} word(s) of {rows} row(s) are nothing to the tokenizer, and are neither learnt"
        " nor measured",
    ),
}


class TaggedWords(Answered):
    columns = ("tokens", "tags")

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        if source.is_document:
            raise InputError(
                f"{source.key}: {source.name}: a .txt file has no tags; token_classification takes"
                f" rows with lists, {data.tokens!r} and {data.tags!r}"
            )
        for setting in ("tokens", "tags", "group", "slice"):
            source.check_column(getattr(data, setting), setting)

        def read(row: Row) -> Record:
            words, tags = _list(row, data.tokens), _list(row, data.tags)
            if len(words) != len(tags):
                raise row.error(
                    f"{data.tokens!r} has {len(words)} words, {data.tags!r} has {len(tags)} tags"
                )
            if not words:
                raise row.error(f"{data.tokens!r} is empty")
            for i, word in enumerate(words):
                if not isinstance(word, str):
                    raise row.error(
                        f"{data.tokens}[{i}] must be text, got {type(word).__name__}"
                        f" {shorten(word)}"
                    )
                row.check_text(word, f"{data.tokens}[{i}]")
            names = [class_name(row, tag, f"{data.tags}[{i}]") for i, tag in enumerate(tags)]
            group, part = parts_of(row, data)
            text = " ".join(map(str, words))
            return Record(
                value={"tokens": list(words), "tags": names},
                place=row.place,
                key=duplicate_key(text),
                shown=text,
                group=group,
                slice=part,
            )

        return RowReader(name="tokens+tags", read=read)

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        """The tag of each word is its number."""

        def fill(row: Mapping[str, object]) -> Mapping[str, object]:
            words = as_list(row.get(data.tokens))
            count = len(words) if isinstance(words, Sequence) and not isinstance(words, str) else 0
            return {**row, data.tags: list(map(str, range(count)))}

        return asking(self.reader, source, data, fill)

    def question(self, value: dict[str, Any]) -> tuple[str, str]:
        return " ".join(value["tokens"]), " ".join(value["tags"])

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Rows longer than max_length lose their last words, which are counted."""
        if not tokenizer.is_fast:
            raise InputError(
                "task: token_classification needs a fast tokenizer, which tells where in a text its"
                f" tokens stand; got {type(tokenizer).__name__}"
            )
        check_room(tokenizer, encoding.max_length, has_pairs=False)
        class_of = {label: i for i, label in enumerate(encoding.labels)}
        input_ids, labels, truncated = [], [], 0
        noticed: dict[str, Noticed] = {}
        for batch in batched(records):
            rows = _tokenised([r.value["tokens"] for r in batch], tokenizer, encoding.max_length)
            for record, row in zip(batch, rows, strict=True):
                classes = np.array([class_of[tag] for tag in record.value["tags"]])
                own = np.full(len(row.ids), IGNORED, dtype=np.int32)
                own[row.first] = classes[row.words]
                input_ids.append(row.ids)
                labels.append(own)
                truncated += row.is_cut
                if lost := len(classes) - len(row.words):
                    kind = CUT if row.is_cut else UNREAD
                    seen = Noticed(rows=1, messages=lost, examples=(record.place,))
                    noticed[kind] = noticed.get(kind, Noticed()) + seen
        return Encoded(input_ids=input_ids, labels=labels, truncated=truncated, noticed=noticed)


def _list(row: Row, column: str) -> Sequence[object]:
    """Raises BadRow unless the column holds a list, be it as JSON."""
    value = as_list(row.value(column))
    if not isinstance(value, list | tuple):
        raise row.error(f"{column!r} must be a list, got {type(value).__name__} {shorten(value)}")
    return value


def as_list(value: object) -> object:
    """A list that is given as JSON or as an array; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.tolist() if isinstance(value, np.ndarray) else value


class _Tokenised(NamedTuple):
    ids: np.ndarray
    first: np.ndarray
    """Positions of the first tokens of words [W]."""
    words: np.ndarray
    """Which words those are of, rising [W]."""
    is_cut: bool


def _tokenised(
    rows: list[list[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[_Tokenised]:
    texts = [" ".join(words) for words in rows]
    found = tokenizer(
        texts, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    for words, text, ids, offsets in zip(
        rows, texts, found.input_ids, found.offset_mapping, strict=True
    ):
        is_cut = len(ids) > max_length
        if is_cut:
            cut = tokenizer(
                text,
                return_offsets_mapping=True,
                truncation=True,
                max_length=max_length,
                verbose=False,
            )
            ids, offsets = cut.input_ids, cut.offset_mapping
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        begin, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        read = np.flatnonzero(end > begin)  # special tokens stand nowhere in the text
        of_word = np.searchsorted(starts, end[read] - 1, side="right") - 1
        known, first = np.unique(of_word, return_index=True)
        yield _Tokenised(np.array(ids, dtype=np.int32), read[first], known, is_cut)
