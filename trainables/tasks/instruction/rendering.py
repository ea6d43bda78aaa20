"""From a conversation to text, to what in it the assistant must learn, and to what of the row the
chat template leaves out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, cast

from trainables.data.rows import BadRow, shorten
from trainables.tasks.instruction import marks
from trainables.tasks.instruction.layout import REFUSALS, Layout, Row, Shape, Template
from trainables.tasks.instruction.marks import (
    ANSWER,
    ARGUMENT,
    DOCUMENTS,
    NAME,
    ROW,
    THOUGHT,
    TOOLS,
    Message,
    Part,
)
from trainables.tasks.instruction.turns import Extent, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AS_SYSTEM = "the developer's message, rendered as the system's"
THOUGHTS = "the assistant's thoughts"
EARLIER_THOUGHTS = "thoughts of earlier turns"
NAMES = {
    "system": "the system message",
    "developer": "the developer's message",
    "user": "a user's message",
    "tool": "tool results",
    "assistant": "an assistant's message",
    NAME: "the assistant's tool calls",
    ARGUMENT: "the assistant's tool calls",
    TOOLS: "tools",
    DOCUMENTS: "documents",
}

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
_CLOSING_TAG = re.compile(r"\s*(?:</[^<>\s]+>|<\|[^|<>]*\|>|\[/[^\[\]\s]+\])\s*")


class Span(NamedTuple):
    """What must be learnt: characters [start, end) of the rendered text, and how much each counts
    (0..1].
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: list[Span]
    """In order, none reaching into another; [] where nothing is to be learnt."""
    lost: tuple[str, ...] = ()
    """What the template leaves out, in words; each once."""


class Renderer:
    """Of one chat template and tokenizer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: str,
        *,
        reasoning: Literal["train", "keep", "drop"] = "train",
        train_on: Literal["all_answers", "last_answer"] = "all_answers",
    ) -> None:
        self._template = Template(template, tokenizer.special_tokens_map)
        added = (str(token) for token in tokenizer.added_tokens_decoder.values())
        self._turns = Turns(self._template, [*tokenizer.all_special_tokens, *added])
        self._reasoning = reasoning
        self._last_only = train_on == "last_answer"
        self._shape: Shape | None = None
        self._writes_thoughts = False

    def render(self, value: Mapping[str, object], place: str) -> Rendered:
        """`value`: a conversation as it is stored. Raises InputError, naming `place`."""
        row = self._row(value)
        try:
            layout, lost = self._layout(row)
        except REFUSALS as error:
            raise BadRow(f"{place}: the chat template refuses this conversation: {error}") from None
        learnt = self._learnt(value, row)
        if not layout.is_whole:
            lost += self._left_out(layout, learnt, place)
        spans = self._spans(layout, learnt, place) if learnt else []
        return Rendered(text=layout.text, spans=spans, lost=tuple(dict.fromkeys(lost)))

    def _row(self, value: Mapping[str, object]) -> Row:
        messages = [
            _prepared(message, drops=self._reasoning == "drop")
            for message in cast("list[Message]", value.get("messages"))
        ]
        return Row(messages=messages, tools=value.get("tools"), documents=value.get("documents"))

    def _learnt(self, value: Mapping[str, object], row: Row) -> dict[int, float]:
        """Weights of the messages that are to be learnt, by their positions."""
        whole = _weight(value)
        learnt = {
            turn: weight
            for turn, message in enumerate(row.messages)
            if message.get("role") == "assistant" and (weight := whole * _weight(message)) > 0
        }
        if self._last_only and learnt:
            last = max(learnt)
            return {last: learnt[last]}
        return learnt

    # How the row is put to the template

    def _layout(self, row: Row) -> tuple[Layout, list[str]]:
        """And how it had to be changed, in words. Raises one of REFUSALS."""
        thinks = any("reasoning_content" in message for message in row.messages)
        shape = self._shape_of_thoughts() if thinks else Shape()
        if not any(message.get("role") == "developer" for message in row.messages):
            return self._shaped(row, shape), []
        as_system = shape._replace(developer_as_system=True)
        try:
            layout = self._shaped(row, shape)
        except REFUSALS:
            return self._shaped(row, as_system), [AS_SYSTEM]
        if not _missing_developer(layout):
            return layout, []
        try:
            other = self._shaped(row, as_system)
        except REFUSALS:
            return layout, []
        return (layout, []) if _missing_developer(other) else (other, [AS_SYSTEM])

    def _shaped(self, row: Row, shape: Shape) -> Layout:
        try:
            return self._template.layout(row, shape)
        except TypeError:  # a template that joins a call's arguments to its text, as DeepSeek's
            return self._template.layout(row, shape._replace(text_arguments=True))

    def _shape_of_thoughts(self) -> Shape:
        """Whether the template takes thoughts apart from the content, or only in it."""
        if self._shape is None:
            thought, question = "\ue000", {"role": "user", "content": "x"}
            answer = {"role": "assistant", "content": "y", "reasoning_content": thought}
            self._shape = Shape()
            for shape in (Shape(), Shape(thoughts_in_content=True)):
                text = self._template.attempt(
                    Row(messages=[dict(question), shape.of(dict(answer))])
                )
                if text is not None and thought in text:
                    self._shape, self._writes_thoughts = shape, True
                    break
        return self._shape

    # What is left out

    def _left_out(self, layout: Layout, learnt: dict[int, float], place: str) -> list[str]:
        """What the text lacks of the row, in words. Takes turns whose thoughts it lacks out of
        `learnt`. Raises InputError where it lacks what is to be learnt.
        """
        missing = _missing(layout)
        forgotten = {part.turn for part in missing if part.kind == THOUGHT}
        if self._reasoning == "train" and forgotten & set(learnt):
            for turn in forgotten:
                learnt.pop(turn, None)
            if not learnt:
                raise BadRow(
                    f"{place}: the chat template leaves out the assistant's thoughts of every"
                    " message that is to be learnt; data.reasoning: drop learns the answers"
                    " without them"
                )
        for part in missing:
            if part.turn in learnt:
                _refuse(layout, part, place)
        thoughts = EARLIER_THOUGHTS if self._writes_thoughts else THOUGHTS
        return [
            thoughts if part.kind == THOUGHT else _name(layout, part, missing) for part in missing
        ]

    # What is to be learnt

    def _spans(self, layout: Layout, learnt: dict[int, float], place: str) -> list[Span]:
        extents = self._turns.extents(layout)
        if layout.generated:
            extents_of = self._generated(layout, learnt, extents, place)
        elif layout.has_generation:
            _raise_left_out(layout, min(learnt), place)
        else:
            extents_of = {turn: [extents[turn]] for turn in learnt if turn in extents}
        spans = []
        for turn, weight in learnt.items():
            if turn not in extents_of:
                _raise_unknown(turn, place)
            begin = self._after_thought(layout, turn)
            spans += [
                Span(max(start, begin), end, weight)
                for start, end in extents_of[turn]
                if max(start, begin) < end
            ]
        return sorted(spans)

    def _after_thought(self, layout: Layout, turn: int) -> int:
        """Where what has a loss may begin: behind a thought that is only kept."""
        if self._reasoning != "keep" or "reasoning_content" not in layout.row.messages[turn]:
            return 0
        ends = [
            spot.end for spot in layout.spots_of(turn) if layout.parts[spot.part].kind == THOUGHT
        ]
        if not ends:
            return 0
        tag = _CLOSING_TAG.match(layout.text, ends[-1])
        return tag.end() if tag else ends[-1]

    def _generated(
        self, layout: Layout, learnt: dict[int, float], extents: dict[int, Extent], place: str
    ) -> dict[int, list[Extent]]:
        """What the template's {% generation %} marks hold of each turn, held to the messages: all
        that the assistant said, and nothing that others said.
        """
        pieces = _merged(layout)
        for turn, message in enumerate(layout.row.messages):
            spots = [
                spot
                for spot in layout.spots_of(turn)
                if layout.parts[spot.part].kind not in (THOUGHT, ARGUMENT)
            ]
            if turn in learnt and not all(_is_inside(spot[1:], pieces) for spot in spots):
                _raise_left_out(layout, turn, place)
            if message.get("role") != "assistant" and any(
                start < spot.end and spot.start < end for spot in spots for start, end in pieces
            ):
                raise BadRow(
                    f"{place}: the chat template's {{% generation %}} marks take in"
                    f" messages[{turn}], the {message.get('role')}'s"
                    f" {shorten(message.get('content'))}"
                )
        return _by_turn(pieces, extents)


def _refuse(layout: Layout, part: Part, place: str) -> None:
    if part.kind in (NAME, ARGUMENT):
        raise BadRow(
            f"{place}: messages[{part.turn}]: the chat template does not write out tool"
            " calls; this data needs a model whose template does"
        )
    if part.kind == ANSWER and layout.has_generation:
        _raise_left_out(layout, part.turn, place)
    if part.kind == ANSWER:
        _raise_unknown(part.turn, place)


def _prepared(message: Message, *, drops: bool) -> Message:
    """Without what is null, and with the thoughts that stand in an answer apart from it."""
    prepared = message
    if None in message.values():
        prepared = {key: item for key, item in message.items() if item is not None}
    if prepared.get("role") != "assistant":
        return prepared
    content = prepared.get("content")
    if isinstance(content, str) and "<think>" in content and "reasoning_content" not in prepared:
        found = _THOUGHT.fullmatch(content)
        if found:
            thought = found[1].strip("\r\n")
            thoughts = {"reasoning_content": thought} if thought.strip() else {}
            prepared = {**prepared, "content": found[2], **thoughts}
    if drops:
        names = ("reasoning_content", "thinking", "reasoning")
        return {key: item for key, item in prepared.items() if key not in names}
    return prepared


def _weight(value: Mapping[str, object]) -> float:
    weight = value.get("weight")
    return float(weight) if isinstance(weight, int | float) else 1.0


def _missing(layout: Layout) -> list[Part]:
    """Parts that the text lacks, or has otherwise than they were given; of those that could not be
    marked, which stand nowhere in it.
    """
    found = {spot.part for spot in layout.spots} - layout.altered
    lacking = [part for number, part in enumerate(layout.parts) if number not in found]
    unmarked = layout.marks.unmarked
    return lacking + [part for part in unmarked if not marks.is_inside(part, _around(layout, part))]


def _around(layout: Layout, part: Part) -> str:
    """The text between what is known to be of other messages than the part's."""
    if part.turn == ROW:
        return layout.text
    runs = [run for run in layout.runs() if run.turn != ROW]
    start = max((run.end for run in runs if run.turn < part.turn), default=0)
    end = min((run.start for run in runs if run.turn > part.turn), default=len(layout.text))
    return layout.text[start:end]


def _missing_developer(layout: Layout) -> bool:
    messages = layout.row.messages
    return any(
        part.turn != ROW and messages[part.turn].get("role") == "developer"
        for part in _missing(layout)
    )


def _name(layout: Layout, part: Part, missing: list[Part]) -> str:
    """In words."""
    name = NAMES.get(part.kind) or NAMES[str(layout.row.messages[part.turn].get("role"))]
    if part in (layout.parts[number] for number in layout.altered):
        return f"{name}, which it changes"
    if part.kind in (TOOLS, DOCUMENTS):
        every = [p for p in (*layout.parts, *layout.marks.unmarked) if p.kind == part.kind]
        lacking = sum(each.kind == part.kind for each in missing)
        return name if lacking == len(every) else f"parts of the {name}"
    return name


def _merged(layout: Layout) -> list[tuple[int, int]]:
    """What the template marks; it may mark a turn in pieces."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(layout.generated):
        if not layout.text[start:end].strip():
            continue
        if merged and merged[-1][1] >= start:
            start, end = merged[-1][0], max(merged.pop()[1], end)
        merged.append((start, end))
    return merged


def _by_turn(
    pieces: Iterable[tuple[int, int]], extents: dict[int, Extent]
) -> dict[int, list[Extent]]:
    """Each piece goes to the turn that it holds something of; one that holds several is cut."""
    found: dict[int, list[Extent]] = {}
    ordered = sorted(extents.items())
    for start, end in pieces:
        held = [turn for turn, extent in ordered if extent.start < end and start < extent.end]
        for turn, following in zip(held, [*held[1:], None], strict=True):
            edge = end if following is None else extents[turn].end
            found.setdefault(turn, []).append(Extent(start, edge))
            start = edge if following is None else extents[following].start
    return found


def _is_inside(spot: tuple[int, int], pieces: list[tuple[int, int]]) -> bool:
    return any(start <= spot[0] and spot[1] <= end for start, end in pieces)


def _raise_unknown(turn: int, place: str) -> NoReturn:
    raise BadRow(
        f"{place}: messages[{turn}]: cannot tell which part of the text that the chat template"
        " renders is the assistant's; a template with {% generation %} marks says so"
    )


def _raise_left_out(layout: Layout, turn: int, place: str) -> NoReturn:
    raise BadRow(
        f"{place}: the chat template's {{% generation %}} marks leave out messages[{turn}], the"
        f" assistant's {shorten(layout.row.messages[turn].get('content'))}"
    )
