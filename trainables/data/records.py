"""What every data format turns its rows into, before and after tokenisation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.rows import BadRow, Row, check_column, is_missing
from trainables.data.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that has no loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One checked row, not yet tokenised."""

    value: dict[str, Any]
    """What is stored of it (JSON)."""
    place: str
    """Where it came from: `train.csv row 12`."""
    key: bytes
    """Equal for rows that are the same but for case and white space."""
    shown: str
    """Text by which the user will know it."""
    label: str | None = None
    group: str | None = None
    slice: str | None = None
    """Value of the column whose values are also measured one by one."""
    weight: int = 1
    """What a split by share counts: rows, or characters where rows are whole documents."""
    unused: tuple[str, ...] = ()
    """What the row has besides that its format does not use: names of keys."""
    rest: Mapping[str, object] = field(default_factory=dict)
    """Short values of other columns, by which the doctor tells where rows come from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowReader:
    """How the rows of one source are read."""

    name: str
    """Of the format that the source's columns turned out to have: `messages`, `text+label`."""
    read: Callable[[Row], Record]
    """Raises BadRow for what cannot be used or stored (`Row.check_storable`)."""

    def attempt(self, row: Row | BadRow) -> Record | BadRow:
        """Of what a source gives: in the place of what cannot be used, why not."""
        if isinstance(row, BadRow):
            return row
        try:
            return self.read(row)
        except BadRow as error:
            return error


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything but the tokenizer that turns records into tokens; kept in the manifest so that the
    test split can follow later.
    """

    max_length: int = 0
    source_prefix: str = ""
    labels: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    """Values of `data.slice` in what is measured; a row's slice is its position here."""
    cross_documents: bool = False
    chat_template: str | None = None
    """"none": a prompt and its completion are not rendered. None: with the tokenizer's template."""
    reasoning: Literal["train", "keep", "drop"] = "train"
    train_on: Literal["all_answers", "last_answer"] = "all_answers"
    moment: str = ""
    """What a chat template that asks for the date is told (ISO 8601); empty: now."""
    in_bytes: bool = False
    """Whether losses are told in bits per byte, so that the bytes of targets are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noticed:
    """Rows of which something is to be told."""

    rows: int = 0
    messages: int = 0
    """Of those rows, that it is about."""
    examples: tuple[str, ...] = ()
    """Places of the first three."""

    def __add__(self, other: "Noticed") -> "Noticed":
        return Noticed(
            rows=self.rows + other.rows,
            messages=self.messages + other.messages,
            examples=(*self.examples, *other.examples)[:3],
        )


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Tokenised rows. `labels` is [N] classes or numbers, N rows of either (of tokens, -100: no
    loss), or None where the labels are the tokens.
    """

    input_ids: list[np.ndarray]
    labels: np.ndarray | list[np.ndarray] | None = None
    target_ids: list[np.ndarray] | None = None
    """Tokens of the texts that a decoder is to write, in the place of `labels`."""
    token_type_ids: list[np.ndarray] | None = None
    weights: list[np.ndarray] | None = None
    """Of each token's loss, float32 like the labels; None: all count fully."""
    thought: np.ndarray | None = None
    """Tokens without loss right before a row's last answer that belong to it, int32 [N]; None: no
    row has such a thought.
    """
    target_bytes: np.ndarray | None = None
    """Of the text that a row's targets are, in UTF-8, weighted as they are, float64 [N]; the same
    with every tokenizer.
    """
    token_bytes: list[np.ndarray] | None = None
    """Of documents that are not yet blocks: bytes of the text that each token stands for, float64.
    """
    second: np.ndarray | None = None
    """Of rows that are pairs of sequences, one after the other: where the second begins, int32 [N];
    None: each is one sequence.
    """
    origin: np.ndarray | None = None
    """The record that each row is of, by position [N]; None: every record is one row."""
    truncated: int = 0
    """Rows that were cut to max_length."""
    dropped: int = 0
    """Rows that have no target."""
    endings_cut: int = 0
    """Conversations whose last end of turn was cut off with what is beyond max_length."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """What the chat template leaves out ("the developer's message", "tools"), and of how many
    rows.
    """
    noticed: Mapping[str, Noticed] = field(default_factory=dict)
    """What else is to be told of conversations, by its kind."""
    bad: tuple[str, ...] = ()
    """What is wrong with rows that cannot be rendered."""
    endless_answers: int = 0
    """Turns of an assistant that no special token closes: a model trained on them does not learn to
    stop.
    """

    @property
    def tokens(self) -> list[np.ndarray]:
        """All of each row, of both texts where it has two."""
        if self.target_ids is None:
            return self.input_ids
        return list(map(np.concatenate, zip(self.input_ids, self.target_ids, strict=True)))

    @property
    def targets(self) -> np.ndarray | list[np.ndarray]:
        """What is learnt of each row: `labels` as a batch has them."""
        found = self.labels if self.target_ids is None else self.target_ids
        return self.input_ids if found is None else found


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a row's text."""

    text: str
    learnt: bool
    weight: float = 1.0
    """How much its loss counts, where it is learnt."""
    heading: str = ""
    """What the text is that begins here, where a row is several."""


class Format(Protocol):
    """How the rows of a task are checked and tokenised."""

    default_length: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Settings below `data` that name the columns of a row, as far as names may differ."""
        ...

    def reader(self, source: Source, data: DataConfig) -> RowReader:
        """Raises InputError where no row of the source could be used, such as for want of a
        column.
        """
        ...

    def asking(self, source: Source, data: DataConfig) -> RowReader:
        """Like `reader`, of rows that are to be answered: an answer that they may have is not
        looked at, and another stands in its place that can be encoded (`asking.numbered`). Slices
        are not read, and groups where their column is there.
        """
        ...

    def encode(
        self, records: list[Record], tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> Encoded:
        """Some of a split's rows."""
        ...

    def question(self, value: dict[str, Any]) -> tuple[str, str]:
        """What the model is given of a stored row, and what it is to answer; all of a plain text is
        given.
        """
        ...

    def segments(
        self, record: Record, tokenizer: "PreTrainedTokenizerBase", encoding: Encoding
    ) -> tuple[Segment, ...]:
        """A row as the model reads it, and what of it is learnt."""
        ...

    def arrange(self, batches: Iterator[Encoded], encoding: Encoding) -> Iterator[Encoded]:
        """What is done with all rows of a split together, in order: nothing, or documents become
        blocks. `origin` is there, and is kept.
        """
        ...


def duplicate_key(*texts: str) -> bytes:
    return blake2b(
        "\x1f".join(" ".join(text.split()).casefold() for text in texts).encode(), digest_size=16
    ).digest()


def check_parts(columns: Sequence[str], name: str, data: DataConfig) -> None:
    """Raise InputError where the source `name` lacks the columns that `parts_of` needs."""
    check_column(columns, name, data.group, "group")
    check_column(columns, name, data.slice, "slice")


def parts_of(row: Row, data: DataConfig) -> tuple[str | None, str | None]:
    """A row's group and its slice: "" where its column is empty, None where no column is set."""
    group = None if data.group is None else _part(row, data.group, row.value(data.group))
    part = None if data.slice is None else _part(row, data.slice, row.columns.get(data.slice))
    return group, part


def _part(row: Row, column: str, value: object) -> str:
    try:
        text = "" if is_missing(value) else str(value)
    except ValueError:
        raise row.error(f"{column!r} is an integer too long to read") from None
    row.check_storable(text, repr(column))
    return text


def batched(items: list, size: int = 1000) -> list[list]:
    """`items` in pieces that a fast tokenizer spreads over its threads, without holding Python
    lists of all tokens at once.
    """
    return [items[i : i + size] for i in range(0, len(items), size)]
