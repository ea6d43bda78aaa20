"""Which characters of a rendered conversation the assistant has to write in each of its turns.

A turn begins where the template's generation prompt ends: what the template puts between that and
the message (an empty thought, the name of a channel) the model has to write. It ends with what
closes it. Both are found by rendering the conversation up to the turn. As this is the same for most
rows, what was found is kept by the template's own text between two marked ones.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from trainables.tasks.instruction.layout import Layout, Row, Run, Template
from trainables.tasks.instruction.marks import NAME

MOST_KEPT = 20_000
"""Gaps that are remembered; a template may write a row's own numbers in them."""


class Extent(NamedTuple):
    """What the assistant writes in a turn: characters [start, end)."""

    start: int
    end: int


class Turns:
    """Of one template, with the special tokens of a tokenizer."""

    def __init__(self, template: Template, special_tokens: Iterable[str]) -> None:
        self._template = template
        longest_first = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._heads: dict[tuple[object, ...], int | None] = {}
        self._ends: dict[tuple[object, ...], int] = {}

    def extents(self, layout: Layout) -> dict[int, Extent]:
        """Of the assistant's turns, by the positions of their messages; a turn of which this cannot
        be told is not among them.
        """
        layout = _own_only(self, layout)
        text, runs = layout.text, layout.runs()
        answers = [
            turn for turn, m in enumerate(layout.row.messages) if m.get("role") == "assistant"
        ]
        known = set(answers) - _more_than_once(runs)
        extents: dict[int, Extent] = {}
        before, last = 0, None
        for at, (turn, start, end) in enumerate(runs):
            if turn in known:
                head = self._head(layout, turn, text[before:start], last)
                if head is not None:
                    after = runs[at + 1].start if runs[at + 1 :] else len(text)
                    end += self._end(layout, turn, text[end:after])
                    extents[turn] = Extent(before + head, end)
            before, last = runs[at].end, turn
        if len(extents) < len(answers):
            extents |= self._unmarked(layout, set(answers) - set(extents))
        return _apart(extents)

    def _unmarked(self, layout: Layout, turns: set[int]) -> dict[int, Extent]:
        found = {turn: self._by_prefix(layout, turn) for turn in turns}
        return {turn: extent for turn, extent in found.items() if extent}

    def _head(self, layout: Layout, turn: int, gap: str, before: int | None) -> int | None:
        """Characters of `gap`, which is between the turn's texts and those before, that the model
        is given.
        """
        messages = layout.row.messages
        last = messages[turn - 1] if turn else {}
        key = (
            gap,
            before is not None and turn - before,
            turn == 0,
            last.get("role"),
            "tool_calls" in last,
            layout.row.tools is not None,
            "tool_calls" in messages[turn] and not messages[turn].get("content"),
            layout.shape,
        )
        if key not in self._heads:
            if len(self._heads) >= MOST_KEPT:
                self._heads.clear()
            find = self._after_prompt if self._template.has_prompt else self._after_header
            self._heads[key] = find(layout, turn, gap)
        return self._heads[key]

    def _after_prompt(self, layout: Layout, turn: int, gap: str) -> int | None:
        before = layout.marked.messages[:turn]
        tail = self._template.tail(layout, before, add_generation_prompt=True)
        if tail is None or not gap.startswith(tail):
            return _behind(gap, self._prompt(layout, turn)) or _plain(layout, turn, gap)
        if tail != self._template.tail(layout, before):
            return len(tail)
        # no prompt after these messages: that of others, should the template write it here
        return len(tail) + (_behind(gap[len(tail) :], self._prompt(layout, turn)) or 0)

    def _prompt(self, layout: Layout, turn: int) -> str:
        """What the template adds for the model to go on from; that of any question where it refuses
        this conversation cut off.
        """
        question: dict[str, object] = {"role": "user", "content": "x"}
        for messages in (layout.marked.messages[:turn], [question]):
            row = Row(messages=messages, tools=layout.marked.tools)
            asked = self._template.attempt(row)
            prompt = self._template.attempt(row, add_generation_prompt=True)
            if asked and prompt and prompt != asked and prompt.startswith(asked):
                return prompt[len(asked) :]
        return ""

    def _after_header(self, layout: Layout, turn: int, gap: str) -> int | None:
        """Of a template without a generation prompt: what comes before any answer."""
        opened, closed = layout.marks.made_up
        answer: dict[str, object] = {"role": "assistant", "content": f"{opened}x{closed}"}
        question: dict[str, object] = {"role": "user", "content": "x"}
        for before in (layout.marked.messages[:turn], [question]):
            pieces = self._template.pieces(layout, [*before, answer])
            if pieces is not None and opened in pieces:
                header = layout.marks.behind(pieces, pieces.index(opened) - 1)
                if gap.startswith(header):
                    return len(header)
                found = _behind(gap, header)
                if found is not None:
                    return found + len(gap[found:]) - len(gap[found:].lstrip())
        return _plain(layout, turn, gap)

    def _end(self, layout: Layout, turn: int, gap: str) -> int:
        """Characters of `gap`, which is between the turn's texts and those after, that close it."""
        is_last = turn == len(layout.row.messages) - 1
        if is_last:
            return len(gap.rstrip())
        following = layout.row.messages[turn + 1].get("role")
        key = (gap, following, "tool_calls" in layout.row.messages[turn], layout.shape)
        if key not in self._ends:
            if len(self._ends) >= MOST_KEPT:
                self._ends.clear()
            self._ends[key] = len(gap[: self._closed(layout, turn, gap)].rstrip())
        return self._ends[key]

    def _closed(self, layout: Layout, turn: int, gap: str) -> int:
        tail = self._template.tail(layout, layout.marked.messages[: turn + 1])
        if tail is not None and gap.startswith(tail):
            return len(tail)
        tail = tail or ""
        common = _cut(gap, len(os.path.commonprefix([gap, tail])))
        if self._special.search(gap, 0, common):
            return common
        # the last turn may be closed by another token than those before it
        ends = [found.end() for found in self._special.finditer(gap)]
        count = max(1, len(self._special.findall(tail)))
        return ends[count - 1] if len(ends) >= count else common

    def _by_prefix(self, layout: Layout, turn: int) -> Extent | None:
        """Of a turn that has no mark: from the end of the prompt to the end of the conversation cut
        off after it.
        """
        messages, text, render = layout.marked.messages, layout.text, self._template.pieces
        before = "".join((render(layout, messages[:turn]) or [""])[::2]) if turn else ""
        asked = render(layout, messages[:turn], add_generation_prompt=True) if turn else None
        through = render(layout, messages[: turn + 1])
        if through is None:
            return None
        prompt = "".join(asked[::2]) if asked is not None else before
        whole = "".join(through[::2]).rstrip()
        start = len(os.path.commonprefix([prompt, text]))
        if start < len(prompt):
            start = _cut(text, start)
        if not len(before) <= start < len(whole) or not text.startswith(whole):
            return None
        start += len(text[start:]) - len(text[start:].lstrip())
        return Extent(start, len(whole))

    def counts(self, layout: Layout, turn: int) -> Counter[int]:
        """How often each text of the turn stands in the conversation cut off after it."""
        pieces = self._template.pieces(layout, layout.marked.messages[: turn + 1])
        found = [] if pieces is None else layout.marks.found(pieces)[0]
        return Counter(spot.part for spot in found if layout.parts[spot.part].turn == turn)


def _own_only(turns: Turns, layout: Layout) -> Layout:
    """Without what is said of an assistant's turn in later ones, such as which function a result is
    of.
    """
    if len(layout.spots) == len({spot.part for spot in layout.spots}):
        return layout
    left: Counter[int] = Counter()
    repeated = set()
    for turn, message in enumerate(layout.row.messages):
        own = Counter(spot.part for spot in layout.spots_of(turn))
        if message.get("role") == "assistant" and own.total() > len(own):
            repeated |= set(own)
            left |= Counter(dict.fromkeys(own, 1)) | turns.counts(layout, turn)
    spots = []
    for spot in layout.spots:
        if spot.part not in repeated or left[spot.part] > 0:
            spots.append(spot)
            left[spot.part] -= 1
    return replace(layout, spots=spots)


def _more_than_once(runs: list[Run]) -> set[int]:
    turns = [run.turn for run in runs]
    return set() if len(set(turns)) == len(turns) else {t for t in turns if turns.count(t) > 1}


def _behind(gap: str, prompt: str) -> int | None:
    """Where the last of `prompt` ends in `gap`, or of as much of it as stands there."""
    for end in range(len(prompt), 0, -1):
        if end == _cut(prompt, end) and prompt[:end].strip():
            at = gap.rfind(prompt[:end])
            if at >= 0:
                return at + end
    return None


def _cut(text: str, end: int) -> int:
    """The last position up to `end` that is not inside a tag."""
    while 0 < end < len(text) and not (text[end - 1].isspace() or text[end - 1] in ">]"):
        end -= 1
    return end


def _plain(layout: Layout, turn: int, gap: str) -> int | None:
    """All of the gap, where an answer follows; a call begins with the template's own words."""
    (first, *_) = layout.spots_of(turn)
    return None if layout.parts[first.part].kind == NAME else len(gap)


def _apart(extents: dict[int, Extent]) -> dict[int, Extent]:
    """None reaches into the next."""
    ordered = sorted(extents.items())
    for (turn, extent), (_, following) in pairwise(ordered):
        extents[turn] = extent._replace(end=min(extent.end, max(extent.start, following.start)))
    return extents
