"""Rows as a model reads them, with what of them is learnt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.data.config import DataConfig
from trainables.data.records import Encoding, Format, Record, Segment
from trainables.data.rows import BadRow
from trainables.data.sources import open_sources
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row in pieces, whose texts together are all of it, before it is cut to max_length."""

    place: str
    segments: tuple[Segment, ...]
    note: str = ""
    """What max_length or the chat template makes of it."""


def shown_rows(
    data: DataConfig,
    task: str,
    tokenizer: "PreTrainedTokenizerBase",
    encoding: Encoding,
    most: int,
) -> Iterator[ShownRow]:
    """The first usable rows of train's sources, in their order; at most so many."""
    form, left = TASKS[task].format, most
    for source in open_sources(data, "train"):
        reader = form.reader(source, data)
        for row in source.rows():
            if left == 0:
                return
            record = reader.attempt(row)
            if not isinstance(record, BadRow):
                left -= 1
                yield _shown(record, form, tokenizer, encoding)


def _shown(
    record: Record, form: Format, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
) -> ShownRow:
    encoded, length, note = form.encode([record], tokenizer, encoding), encoding.max_length, ""
    if encoded.bad:
        return ShownRow(place=record.place, segments=(), note=encoded.bad[0])
    if not encoded.input_ids:
        note = f"left out: nothing is learnt within data.max_length {length}"
    elif encoded.truncated:
        note = f"cut to data.max_length {length} tokens: what is beyond is not learnt"
    return ShownRow(
        place=record.place, segments=form.segments(record, tokenizer, encoding), note=note
    )
