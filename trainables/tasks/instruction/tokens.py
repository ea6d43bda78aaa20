"""Rendered conversations as tokens, and which of these are learnt."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import numpy as np

from trainables.data.records import Record, batched
from trainables.data.rows import BadRow, shorten
from trainables.errors import InputError
from trainables.tasks.instruction.notices import Notice
from trainables.tasks.instruction.rendering import Rendered, Renderer, Span, weight_of
from trainables.tasks.instruction.templates import chat_template, check_template

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")

ROWS_DECODED = {True: 100, False: 1000}
"""Rows in ASCII and beyond, of which it is checked that the tokens of an answer decode to it: a
fault of a tokenizer's offsets shows in the first rows, or in the first of many characters.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A conversation of T tokens."""

    ids: np.ndarray
    """int32 [T]."""
    learnt: np.ndarray
    """bool [T]."""
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
    ) -> None:
        """setting: `data.chat_template`."""
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
                    tokenizer, template, reasoning=reasoning, train_on=train_on
                )
            self._renderers[with_tools] = known[template]
        self._checked: Counter[bool] = Counter()

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
        texts = [row.text for row in rendered if not isinstance(row, BadRow)]
        encodings = iter(self._encode(texts, add_special_tokens=False))
        for record, row in zip(records, rendered, strict=True):
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                yield self._tokens(row, next(encodings), record.place)
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

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> "list[Encoding]":
        backend = cast("Tokenizer", self._tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        return backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _tokens(self, row: Rendered, encoding: "Encoding", place: str) -> Tokens:
        ids = np.frombuffer(array("i", encoding.ids), dtype=np.int32)  # faster than np.array
        learnt = np.zeros(len(ids), dtype=bool)
        weights = None
        if any(span.weight != 1 for span in row.spans):
            weights = np.ones(len(ids), dtype=np.float32)
        endless = 0
        is_ascii = row.text.isascii()
        decodes = self._checked[is_ascii] < ROWS_DECODED[is_ascii]
        self._checked[is_ascii] += 1
        for span in row.spans:
            held = _held(encoding, row.text, span)
            self._check(row.text, span, ids, held, place, decodes)
            learnt[held.first : held.end] = True
            if weights is not None:
                weights[held.first : held.end] = span.weight
            last = _last(encoding, row.text, span, held.end)
            endless += int(ids[last]) not in self._specials
        return Tokens(
            ids=ids,
            learnt=learnt,
            weights=weights,
            endless=endless,
            lost=row.lost,
            noticed=row.noticed,
        )

    def _check(
        self, text: str, span: Span, ids: np.ndarray, held: "_Held", place: str, decodes: bool
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
            weights=None if weight in (0, 1) else np.where(learnt, weight, 1).astype(np.float32),
            endless=int(ids[-1] not in self._specials),
            lost=(),
        )

    def _joined(self, prompt: str, completion: str, place: str) -> tuple[list[int], int]:
        """Tokens of both, and how many of them are the prompt's."""
        text = prompt + completion
        asked, whole = self._encode([prompt, text], add_special_tokens=True)
        before, ids = _without_end(asked), _without_end(whole)
        if ids[: len(before)] == before:
            return ids, len(before)
        # A token of the whole text reaches over the edge, or the prompt's end is read in another
        # way before the completion: the model is given the prompt's own tokens.
        (after,) = self._encode([completion], add_special_tokens=False)
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
) -> Tokeniser:
    """The one that was made before for the same: rows come in batches, and it keeps what it has
    found out about a template.
    """
    return _tokeniser(tokenizer, str(tokenizer.chat_template), setting, reasoning, train_on)


@lru_cache(maxsize=4)
def _tokeniser(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,  # which may have been set since
    setting: str | None,
    reasoning: Literal["train", "keep", "drop"],
    train_on: Literal["all_answers", "last_answer"],
) -> Tokeniser:
    return Tokeniser(tokenizer, setting, reasoning=reasoning, train_on=train_on)


def _without_end(encoding: "Encoding") -> list[int]:
    """Without the special tokens that a tokenizer adds behind a text."""
    end = len(encoding.ids)
    while end and encoding.special_tokens_mask[end - 1] and encoding.offsets[end - 1] == (0, 0):
        end -= 1
    return encoding.ids[:end]


class _Held(NamedTuple):
    """Tokens [first, end) of a span, and the characters [start, stop) that they hold."""

    first: int
    end: int
    start: int
    stop: int


def _held(encoding: "Encoding", text: str, span: Span) -> _Held:
    """A token at the span's beginning that holds nothing of it but white space is left to what
    stands before.
    """
    first = encoding.char_to_token(span.start)
    last = encoding.char_to_token(span.end - 1)
    end = len(encoding) if span.end == len(text) else encoding.char_to_token(span.end)
    if end is None and last is not None and _characters(encoding, last)[1] <= span.end:
        end = last + 1  # no token holds the character behind the end, such as a line break
    # a character that no token holds, or a token that holds both sides of the end
    if first is None or last is None or end is None or last >= end:
        return _held_by_offsets(encoding, span)
    start, behind = _characters(encoding, first)
    if start < span.start and first + 1 < end and not text[span.start : behind].strip():
        first, start = first + 1, behind
    return _Held(first, end, start, _characters(encoding, end - 1)[1])


def _characters(encoding: "Encoding", token: int) -> tuple[int, int]:
    return encoding.token_to_chars(token) or (0, 0)


def _held_by_offsets(encoding: "Encoding", span: Span) -> _Held:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    inside = np.flatnonzero((offsets[:, 1] > span.start) & (offsets[:, 0] < span.end))
    if not len(inside):
        return _Held(0, 0, 0, 0)
    first, last = int(inside[0]), int(inside[-1])
    return _Held(first, last + 1, int(offsets[first, 0]), int(offsets[last, 1]))


def _last(encoding: "Encoding", text: str, span: Span, end: int) -> int:
    """The last token of the span that is no white space behind its end."""
    written = text[span.start : span.end].rstrip()
    if len(written) == span.end - span.start:
        return end - 1
    token = encoding.char_to_token(span.start + len(written) - 1)
    return end - 1 if token is None else token


def _same(a: str, b: str) -> bool:
    """Equal but for white space: tokenizers add and drop spaces at the edges of a piece of text."""
    return a == b or "".join(a.split()) == "".join(b.split())
