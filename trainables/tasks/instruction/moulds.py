"""Conversations of one form, which a chat template writes alike but for their texts: what was found
of one of them is true of every other whose text is that of the first with other texts in it.

Finding where texts stand takes several renderings of a row. Of most rows one is enough, which is
held against what the form foretells, character by character.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from trainables.tasks.instruction.layout import Layout, Row, Span

ROLES = frozenset(("system", "user", "assistant"))
KEYS = frozenset(("role", "content", "weight"))
"""Of messages that are a text and nothing else."""
MOST_KEPT = 20_000


class Form(NamedTuple):
    """What two conversations must have in common, and what is each one's own."""

    key: tuple[tuple[object, ...], ...]
    """Of each message its role, the white space around its text, and its weight where it is learnt.
    """
    texts: list[str]
    """Without white space around them."""


def form_of(row: Row, learnt: dict[int, float]) -> Form | None:
    """None where the row is more than texts in turns."""
    if row.tools or row.documents:
        return None
    key: list[tuple[object, ...]] = []
    texts: list[str] = []
    for turn, message in enumerate(row.messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str) or not KEYS.issuperset(message):
            return None
        text = content.strip()
        if not text:
            return None
        before, _, behind = content.partition(text) if len(text) < len(content) else ("", "", "")
        key.append((role, before, behind, learnt.get(turn)))
        texts.append(text)
    return Form(tuple(key), texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mould:
    """Of the conversations of one form."""

    between: list[str]
    """What the template writes before the first text, between two, and behind the last."""
    edges: list[tuple[int, int, int, int, float]]
    """Of each span: of its start and of its end the piece of `between` in which it is, and the
    characters of that before it; and the span's weight.
    """

    @classmethod
    def of(cls, layout: Layout, spans: Sequence[Span]) -> "Mould | None":
        """None where the text is not made of the row's texts, each once and in order."""
        text, spots = layout.text, layout.spots
        if [spot.part for spot in spots] != list(range(len(layout.row.messages))):
            return None
        ends = [0, *(spot.end for spot in spots)]
        starts = [*(spot.start for spot in spots), len(text)]
        pieces = list(zip(ends, starts, strict=True))
        edges = [
            (*start, *end, span.weight)
            for span in spans
            if (start := _place(span.start, pieces)) and (end := _place(span.end, pieces))
        ]
        if len(edges) < len(spans):
            return None
        return cls(between=[text[start:end] for start, end in pieces], edges=edges)

    def spans(self, texts: Sequence[str], rendered: str) -> list[Span] | None:
        """Of the conversation with these texts; None where it was rendered to something else."""
        woven = [*self.between, *texts]
        woven[::2], woven[1::2] = self.between, texts
        if "".join(woven) != rendered:
            return None
        at = [0, *accumulate(map(len, woven))][::2]
        return [
            Span(at[first] + ahead, at[last] + behind, weight)
            for first, ahead, last, behind, weight in self.edges
        ]


def _place(position: int, pieces: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The piece that a position is in, and the characters of that before it."""
    for number, (start, end) in enumerate(pieces):
        if start <= position <= end:
            return number, position - start
    return None


class Moulds:
    """Of one template."""

    def __init__(self) -> None:
        self._of_form: dict[object, Mould] = {}

    def __contains__(self, form: Form) -> bool:
        return form.key in self._of_form

    def keep(self, form: Form, layout: Layout, spans: Sequence[Span]) -> None:
        if (mould := Mould.of(layout, spans)) is None:
            return
        if len(self._of_form) >= MOST_KEPT:
            self._of_form.clear()
        self._of_form[form.key] = mould

    def spans(self, form: Form, rendered: str) -> list[Span] | None:
        """None where no conversation of the form is known, or this one was rendered otherwise."""
        mould = self._of_form.get(form.key)
        return None if mould is None else mould.spans(form.texts, rendered)
