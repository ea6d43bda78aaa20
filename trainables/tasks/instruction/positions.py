"""Which tokens stand for which characters of a text."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from trainables.tasks.instruction.layout import Span
from trainables.tasks.instruction.rendering import Rendered

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

ROWS_COMPARED = {True: 100, False: 1000}
"""Rows in ASCII and beyond, of which it is checked that both ways find the same tokens, and that
those of an answer decode to it: a fault shows in the first rows, or in the first of many
characters.
"""
MOST_REFUSED = 0.2
"""Share of rows that the fast way may leave to the other before it is not worth its while."""


class Held(NamedTuple):
    """Tokens [first, end) of a span, and the characters [start, stop) that they hold."""

    first: int
    end: int
    start: int
    stop: int
    last: int
    """The last token of the span that is no white space behind its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """The tokens of a rendered row."""

    ids: np.ndarray
    """int32 [T]."""
    held: list[Held]
    """Of each of the row's spans."""


class Encoder:
    """Of a fast tokenizer. Keeping track of characters takes the tokenizer a third of its time;
    where each of its tokens is a number of bytes, those are added up instead.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._backend = cast("Tokenizer", tokenizer.backend_tokenizer)
        self._lengths = _byte_lengths(self._backend)
        self._rows: Counter[bool] = Counter()
        self._refused = 0

    def texts(self, texts: Sequence[str], *, add_special_tokens: bool) -> "list[Encoding]":
        self._prepare()
        return self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)

    def placed(self, rows: Sequence[Rendered]) -> Iterator[Placed]:
        """The tokens of rows, whose texts have all their special tokens, in order."""
        if self._lengths is None:
            yield from self._by_offsets(rows)
            return
        self._prepare()
        texts = [row.text for row in rows]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        for row, encoding in zip(rows, encodings, strict=True):
            yield self._checked(row, _ids(encoding))

    def _checked(self, row: Rendered, ids: np.ndarray) -> Placed:
        found = None if self._lengths is None else _by_bytes(row, ids, self._lengths)
        is_ascii = row.text.isascii()
        self._rows[is_ascii] += 1
        self._refused += found is None
        if found is not None and self._rows[is_ascii] > ROWS_COMPARED[is_ascii]:
            return found
        (other,) = self._by_offsets([row])
        if found is not None and (found.held != other.held or (found.ids != other.ids).any()):
            self._lengths = None
        elif self._refused > MOST_REFUSED * max(self._rows.total(), ROWS_COMPARED[True]):
            self._lengths = None
        return other

    def _by_offsets(self, rows: Sequence[Rendered]) -> Iterator[Placed]:
        encodings = self.texts([row.text for row in rows], add_special_tokens=False)
        for row, encoding in zip(rows, encodings, strict=True):
            held = [_held(encoding, row.text, span) for span in row.pieces]
            yield Placed(ids=_ids(encoding), held=held)

    def _prepare(self) -> None:
        self._backend.no_truncation()
        self._backend.no_padding()


def _ids(encoding: "Encoding") -> np.ndarray:
    return np.frombuffer(array("i", encoding.ids), dtype=np.int32)  # faster than np.array


# By numbers of bytes.


def _byte_lengths(backend: "Tokenizer") -> np.ndarray | None:
    """Of each token [V]; None unless the tokenizer works on the bytes of a text, a character of its
    vocabulary for each.
    """
    rules = json.loads(backend.to_str())
    if not (_is_of_bytes(rules.get("pre_tokenizer")) and _is_of_bytes(rules.get("decoder"))):
        return None
    added = {number: str(token) for number, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        lengths[number] = len(token)
    for number, token in added.items():
        lengths[number] = len(token.encode())
    return lengths


def _is_of_bytes(rule: dict[str, object] | None) -> bool:
    if not rule:
        return False
    parts = rule.get("pretokenizers") or rule.get("decoders") or []
    return rule.get("type") == "ByteLevel" or any(map(_is_of_bytes, cast("list[dict]", parts)))


def _by_bytes(row: Rendered, ids: np.ndarray, lengths: np.ndarray) -> Placed | None:
    """None where the tokens' bytes are not those of the text (the tokenizer alters it), or a token
    reaches over the edge of a span.
    """
    text = row.text
    is_ascii = text.isascii()
    edges = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(lengths[ids], out=edges[1:])
    if edges[-1] != (len(text) if is_ascii else len(text.encode())):
        return None
    held = []
    for span in row.pieces:
        characters = (span.start, span.end, _last_character(text, span) + 1)
        places = characters if is_ascii else [len(text[:each].encode()) for each in characters]
        first, end = edges.searchsorted(places[:2]).tolist()
        if edges[first] != places[0] or edges[end] != places[1]:
            return None
        last = int(edges.searchsorted(places[2])) - 1
        held.append(Held(first, end, span.start, span.end, last))
    return Placed(ids=ids, held=held)


def _last_character(text: str, span: Span) -> int:
    """That is no white space; of a span that is nothing else, the first."""
    return span.start + max(len(text[span.start : span.end].rstrip()), 1) - 1


# By the characters that the tokenizer says.


def _held(encoding: "Encoding", text: str, span: Span) -> Held:
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
        return _held_by_all(encoding, text, span)
    start, behind = _characters(encoding, first)
    if start < span.start and first + 1 < end and not text[span.start : behind].strip():
        first, start = first + 1, behind
    stop = _characters(encoding, end - 1)[1]
    return Held(first, end, start, stop, _last(encoding, text, span, end))


def _characters(encoding: "Encoding", token: int) -> tuple[int, int]:
    return encoding.token_to_chars(token) or (0, 0)


def _held_by_all(encoding: "Encoding", text: str, span: Span) -> Held:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    inside = np.flatnonzero((offsets[:, 1] > span.start) & (offsets[:, 0] < span.end))
    if not len(inside):
        return Held(0, 0, 0, 0, _last(encoding, text, span, 0))
    first, last = int(inside[0]), int(inside[-1])
    start, stop = int(offsets[first, 0]), int(offsets[last, 1])
    return Held(first, last + 1, start, stop, _last(encoding, text, span, last + 1))


def _last(encoding: "Encoding", text: str, span: Span, end: int) -> int:
    at = _last_character(text, span)
    if at == span.end - 1:
        return end - 1
    token = encoding.char_to_token(at)
    if token is None:
        return end - 1
    while token + 1 < end and _characters(encoding, token + 1)[0] <= at:
        token += 1  # of several that a character is cut into
    return token
