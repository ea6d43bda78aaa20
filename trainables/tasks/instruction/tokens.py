"""Rendered conversations as tokens, and which of these are learnt."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from trainables.data.records import Record, batched
from trainables.data.rows import BadRow, shorten
from trainables.errors import InputError
from trainables.tasks.instruction.answers import weight_of
from trainables.tasks.instruction.layout import Span
from trainables.tasks.instruction.notices import Notice
from trainables.tasks.instruction.positions import ROWS_COMPARED, Encoder, Held, Placed
from trainables.tasks.instruction.rendering import Rendered, Renderer
from trainables.tasks.instruction.templates import chat_template, check_template

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A conversation of T tokens."""

    ids: np.ndarray
    """int32 [T]."""
    learnt: np.ndarray
    """bool [T]."""
    thought: np.ndarray
    """Of an answer, and kept without loss, bool [T]."""
    weights: np.ndarray | None
    """float32 [T], of those that are learnt; None: each counts fully."""
    endless: int
    """Turns to be learnt that no special token closes."""
    lost: tuple[str, ...]
    """What the template leaves out of the row, in words."""
    noticed: tuple[Notice, ...] = ()


class Tokeniser:
    """Of the conversations of a sweep."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        setting: str | None = None,
        *,
        reasoning: Literal["train", "keep", "drop"] = "train",
        train_on: Literal["all_answers", "last_answer"] = "all_answers",
        moment: str = "",
    ) -> None:
        """setting: `data.chat_template`; moment: `Encoding.moment`."""
        if not tokenizer.is_fast:
            raise InputError(
                f"model: {type(tokenizer).__name__} is a slow tokenizer, which cannot say which"
                " tokens the assistant's text became; instruction needs a fast one (a"
                " tokenizer.json)"
            )
        self._tokenizer = tokenizer
        self._specials = frozenset({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
        self._renderers: dict[bool, Renderer] = {}
        known: dict[str, Renderer] = {}
        for with_tools in (False, True):
            template = chat_template(tokenizer, setting, with_tools=with_tools)
            if template is None:
                continue
            if template not in known:
                check_template(template, "model: the chat template of its tokenizer")
                known[template] = Renderer(
                    tokenizer, template, reasoning=reasoning, train_on=train_on, moment=moment
                )
            self._renderers[with_tools] = known[template]
        self._encoder = Encoder(tokenizer)
        self._decoded_rows: Counter[bool] = Counter()

    def text(self, record: Record) -> tuple[str, list[Span]]:
        """A row as text, and what of it is learnt. Raises BadRow."""
        if "messages" in record.value:
            row = self._rendered(record)
            return row.text, row.spans
        prompt, completion = (str(record.value.get(key, "")) for key in ("prompt", "completion"))
        text = f"{prompt}{completion}{self._tokenizer.eos_token or ''}"
        weight = weight_of(record.value)
        return text, [Span(len(prompt), len(text), weight)] if weight else []

    def tokenise(self, records: Sequence[Record]) -> Iterator[Tokens | BadRow]:
        """In the place of a row that cannot be used stands what is wrong with it."""
        for batch in batched(list(records), 200):
            if all("messages" in record.value for record in batch):
                yield from self._conversations(batch)
            else:
                yield from (self._attempted(self._completion, record) for record in batch)

    def _conversations(self, records: Sequence[Record]) -> Iterator[Tokens | BadRow]:
        rendered = [self._attempted(self._rendered, record) for record in records]
        placed = self._encoder.placed([row for row in rendered if not isinstance(row, BadRow)])
        for record, row in zip(records, rendered, strict=True):
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                yield self._tokens(row, next(placed), record.place)
            except BadRow as error:
                yield error

    def _attempted(self, of: "Callable[[Record], Result]", record: Record) -> "Result | BadRow":
        try:
            return of(record)
        except BadRow as error:
            return error

    def _rendered(self, record: Record) -> Rendered:
        if not self._renderers:
            raise BadRow(
                f"{record.place}: data.chat_template: none takes rows with a prompt and a"
                " completion, and this one is a conversation"
            )
        return self._renderers[bool(record.value.get("tools"))].render(record.value, record.place)

    def _tokens(self, row: Rendered, placed: Placed, place: str) -> Tokens:
        ids = placed.ids
        learnt, thought = np.zeros((2, len(ids)), dtype=bool)
        weights = None
        if any(span.weight != 1 for span in row.spans):
            weights = np.ones(len(ids), dtype=np.float32)
        endless = 0
        is_ascii = row.text.isascii()
        decodes = self._decoded_rows[is_ascii] < ROWS_COMPARED[is_ascii]
        self._decoded_rows[is_ascii] += 1
        for span, held in zip(row.pieces, placed.held, strict=True):
            if not span.weight:
                thought[held.first : held.end] = True
                continue
            self._check(row.text, span, ids, held, place, decodes)
            learnt[held.first : held.end] = True
            if weights is not None:
                weights[held.first : held.end] = span.weight
            endless += int(ids[held.last]) not in self._specials
        return Tokens(
            ids=ids,
            learnt=learnt,
            thought=thought,
            weights=weights,
            endless=endless,
            lost=row.lost,
            noticed=row.noticed,
        )

    def _check(
        self, text: str, span: Span, ids: np.ndarray, held: Held, place: str, decodes: bool
    ) -> None:
        """Raise InputError unless the tokens are those of the span, and decode to just that."""
        fits = held.start == span.start and held.stop == span.end
        if fits and not decodes:
            return
        written, covered = text[span.start : span.end], text[held.start : held.stop]
        if not fits and not _same(covered, written):
            fault = covered
        elif decodes:
            fault = self._decoded(ids[held.first : held.end])
            # A tokenizer that loses characters (unknown ones, or case) decodes nothing faithfully:
            # then the offsets have to do.
            if _same(fault, covered) or not _same(self._decoded(ids), text):
                return
        else:
            return
        raise BadRow(
            f"{place}: the tokens of the assistant's answer do not add up to it:"
            f" {shorten(fault)} instead of {shorten(written)}"
        )

    def _decoded(self, ids: np.ndarray) -> str:
        return str(self._tokenizer.decode(ids.tolist()))

    # A prompt and its completion, as they are.

    def _completion(self, record: Record) -> Tokens:
        """The completion and the end of sequence are learnt; the prompt's tokens are those that the
        model is given when it is used.
        """
        prompt, completion = (str(record.value.get(key, "")) for key in ("prompt", "completion"))
        ids, given = self._joined(prompt, completion, record.place)
        eos = self._tokenizer.eos_token_id
        if isinstance(eos, int) and ids[-1:] != [eos]:
            ids = [*ids, eos]
        weight = weight_of(record.value)
        learnt = np.arange(len(ids)) >= given
        return Tokens(
            ids=np.array(ids, dtype=np.int32),
            learnt=learnt if weight else np.zeros(len(ids), dtype=bool),
            thought=np.zeros(len(ids), dtype=bool),
            weights=None if weight in (0, 1) else np.where(learnt, weight, 1).astype(np.float32),
            endless=int(ids[-1] not in self._specials),
            lost=(),
        )

    def _joined(self, prompt: str, completion: str, place: str) -> tuple[list[int], int]:
        """Tokens of both, and how many of them are the prompt's."""
        text = prompt + completion
        asked, whole = self._encoder.texts([prompt, text], add_special_tokens=True)
        before, ids = _without_end(asked), _without_end(whole)
        if ids[: len(before)] == before:
            return ids, len(before)
        # A token of the whole text reaches over the edge, or the prompt's end is read in another
        # way before the completion: the model is given the prompt's own tokens.
        (after,) = self._encoder.texts([completion], add_special_tokens=False)
        apart = [*before, *after.ids]
        if _same(self._decoded(np.array(apart)), self._decoded(np.array(ids))):
            return apart, len(before)
        raise BadRow(
            f"{place}: the tokens of the prompt and of the completion do not add up to both:"
            f" {shorten(completion)}"
        )


def tokeniser(
    tokenizer: "PreTrainedTokenizerBase",
    setting: str | None = None,
    *,
    reasoning: Literal["train", "keep", "drop"] = "train",
    train_on: Literal["all_answers", "last_answer"] = "all_answers",
    moment: str = "",
) -> Tokeniser:
    """The one that was made before for the same: rows come in batches, and it keeps what it has
    found out about a template.
    """
    template = str(tokenizer.chat_template)
    return _tokeniser(tokenizer, template, setting, reasoning, train_on, moment)


@lru_cache(maxsize=4)
def _tokeniser(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,  # which may have been set since
    setting: str | None,
    reasoning: Literal["train", "keep", "drop"],
    train_on: Literal["all_answers", "last_answer"],
    moment: str,
) -> Tokeniser:
    return Tokeniser(tokenizer, setting, reasoning=reasoning, train_on=train_on, moment=moment)


def _without_end(encoding: "Encoding") -> list[int]:
    """Without the special tokens that a tokenizer adds behind a text."""
    end = len(encoding.ids)
    while end and encoding.special_tokens_mask[end - 1] and encoding.offsets[end - 1] == (0, 0):
        end -= 1
    return encoding.ids[:end]


def _same(a: str, b: str) -> bool:
    """Equal but for white space: tokenizers add and drop spaces at the edges of a piece of text."""
    return a == b or "".join(a.split()) == "".join(b.split())
