"""From a conversation to text, to what in it the assistant must learn, and to what of the row the
chat template leaves out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn, cast

from jinja2 import TemplateError

from trainables.data.rows import BadRow, shorten
from trainables.tasks.instruction import marks
from trainables.tasks.instruction.answers import learnt_messages
from trainables.tasks.instruction.generation import generated, raise_left_out
from trainables.tasks.instruction.layout import Layout, Row, Shape, Span, Template
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
from trainables.tasks.instruction.moulds import Form, Moulds, form_of
from trainables.tasks.instruction.notices import (
    DROPPED,
    EMPTY,
    KEPT,
    MISPLACED,
    THOUGHTLESS,
    Notice,
    Notices,
    control_marks,
    misplaced_results,
)
from trainables.tasks.instruction.turns import Turns

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

_CLOSING_TAG = re.compile(r"\s*(?:</[^<>\s]+>|<\|[^|<>]*\|>|\[/[^\[\]\s]+\])\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: list[Span]
    """In order, none reaching into another; [] where nothing is to be learnt."""
    lost: tuple[str, ...] = ()
    """What the template leaves out, in words; each once."""
    noticed: tuple[Notice, ...] = ()
    """What else is to be told of its messages."""
    thoughts: list[Span] = field(default_factory=list)
    """Of the turns that are learnt, where they are kept without loss."""

    @property
    def pieces(self) -> list[Span]:
        """`spans` and `thoughts`, in order."""
        return sorted([*self.spans, *self.thoughts])


class Renderer:
    """Of one chat template and tokenizer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: str,
        *,
        reasoning: Literal["train", "keep", "drop"] = "train",
        train_on: Literal["all_answers", "last_answer"] = "all_answers",
        moment: str = "",
    ) -> None:
        """moment: `Encoding.moment`."""
        clock = {"strftime_now": datetime.fromisoformat(moment).strftime} if moment else {}
        self._template = Template(template, {**tokenizer.special_tokens_map, **clock})
        added = tokenizer.added_tokens_decoder.values()
        self._turns = Turns(self._template, [*tokenizer.all_special_tokens, *map(str, added)])
        special = [*tokenizer.all_special_tokens, *(str(each) for each in added if each.special)]
        self._notices = Notices(
            control_marks(special, self._template),
            thoughts={"drop": DROPPED, "keep": KEPT}.get(reasoning),
            last_only=train_on == "last_answer",
        )
        self._reasoning = reasoning
        self._last_only = train_on == "last_answer"
        self._shape: Shape | None = None
        self._writes_thoughts = False
        self._moulds = Moulds()

    def render(self, value: Mapping[str, object], place: str) -> Rendered:
        """`value`: a conversation as it is stored. Raises InputError, naming `place`."""
        row = self._row(value)
        learnt = learnt_messages(value, row.messages, last_only=self._last_only)
        form = form_of(row, learnt)
        if form and (known := self._known(row, form)):
            return replace(known, noticed=tuple(self._notices.of(_messages(value))))
        try:
            layout, lost = self._layout(row)
        except TemplateError as error:
            raise BadRow(f"{place}: the chat template refuses this conversation: {error}") from None
        noticed = self._notices.of(_messages(value))
        if not layout.is_whole:
            meant = len(learnt)
            lost += self._left_out(layout, learnt, place)
            noticed += [(THOUGHTLESS, "")] * (meant - len(learnt))
        lost += self._unwritten(layout)
        noticed += self._noticed(layout)
        pieces = self._pieces(layout, learnt, place) if learnt else []
        spans, thoughts = _apart(pieces)
        if form and layout.is_whole:
            self._moulds.keep(form, layout, spans)
        return Rendered(
            text=layout.text,
            spans=spans,
            thoughts=thoughts,
            lost=tuple(dict.fromkeys(lost)),
            noticed=tuple(noticed),
        )

    def _known(self, row: Row, form: Form) -> Rendered | None:
        """By a row of the same form that was rendered before; None where that does not do."""
        text = self._template.attempt(row) if form in self._moulds else None
        spans = None if text is None else self._moulds.spans(form, text)
        return None if text is None or spans is None else Rendered(text=text, spans=spans)

    def _row(self, value: Mapping[str, object]) -> Row:
        messages = _messages(value)
        if self._reasoning == "drop":
            messages = list(map(_without_thought, messages))
        return Row(messages=messages, tools=value.get("tools"), documents=value.get("documents"))

    # How the row is put to the template

    def _layout(self, row: Row) -> tuple[Layout, list[str]]:
        """And how it had to be changed, in words. Raises TemplateError."""
        thinks = any("reasoning_content" in message for message in row.messages)
        shape = self._shape_of_thoughts() if thinks else Shape()
        if not any(message.get("role") == "developer" for message in row.messages):
            return self._shaped(row, shape), []
        as_system = shape._replace(developer_as_system=True)
        try:
            layout = self._shaped(row, shape)
        except TemplateError:
            return self._shaped(row, as_system), [AS_SYSTEM]
        if not _missing_developer(layout):
            return layout, []
        try:
            other = self._shaped(row, as_system)
        except TemplateError:
            return layout, []
        return (layout, []) if _missing_developer(other) else (other, [AS_SYSTEM])

    def _shaped(self, row: Row, shape: Shape) -> Layout:
        """Arguments of calls are put as objects, or as text where the template asks for that: it
        joins them to text of its own, as DeepSeek's does, or writes them as Python would.
        """
        if not any("tool_calls" in message for message in row.messages):
            return self._template.layout(row, shape)
        as_text = shape._replace(text_arguments=True)
        try:
            layout = self._template.layout(row, shape)
        except TemplateError as error:
            try:
                return self._template.layout(row, as_text)
            except TemplateError:
                raise error from None
        if not _writes_python(layout):
            return layout
        other = self._template.layout(row, as_text)
        return layout if _writes_python(other) else other

    def _shape_of_thoughts(self) -> Shape:
        """Whether the template takes thoughts apart from the content, or only in it."""
        if self._shape is None:
            thought, question = "\ue000", {"role": "user", "content": "x"}
            answer = {"role": "assistant", "content": "y", "reasoning_content": thought}
            apart = self._shape = Shape(has_thoughts=True)
            for shape in (apart, apart._replace(thoughts_in_content=True)):
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
        if self._reasoning == "train":
            _forget(learnt, {part.turn for part in missing if part.kind == THOUGHT}, place)
        for part in missing:
            if part.turn in learnt:
                _refuse(layout, part, place)
        thoughts = EARLIER_THOUGHTS if self._writes_thoughts else THOUGHTS
        return [
            thoughts if part.kind == THOUGHT else _name(layout, part, missing) for part in missing
        ]

    def _unwritten(self, layout: Layout) -> list[str]:
        """Names of who speaks that the text lacks, in words."""
        messages = layout.row.messages
        if not any("name" in message for message in messages):
            return []
        called = _called(messages)
        turns = [
            turn
            for turn, message in enumerate(messages)
            if "name" in message and not (_is_result(message) and message.get("name") in called)
        ]
        roles = (str(messages[turn].get("role")) for turn in self._unread(layout, turns, "name"))
        return [f"the name of {NAMES[role]}" for role in roles]

    def _noticed(self, layout: Layout) -> list[Notice]:
        """What the template makes of the row that is to be told."""
        messages = layout.row.messages
        noticed: list[Notice] = []
        if any(_is_empty_thought(message) for message in messages):
            thoughts = sum("reasoning_content" in message for message in messages)
            lacking = sum(part.kind == THOUGHT for part in _missing(layout))
            noticed += [(EMPTY, "")] * (thoughts - lacking - layout.text.count("<think>"))
        results = [turn for turn, message in enumerate(messages) if "tool_call_id" in message]
        if results and (count := misplaced_results(messages)):
            if self._unread(layout, results, "tool_call_id") == results:
                noticed += [(MISPLACED, "")] * count
        return noticed

    def _unread(self, layout: Layout, turns: list[int], key: str) -> list[int]:
        """Those of `turns` whose message's `key` changes nothing of the text."""
        if not turns:
            return []
        opened, closed = layout.marks.made_up
        others = {turn: f"{opened}{turn}{closed}" for turn in turns}
        messages = [
            {**message, key: others[turn]} if turn in others else message
            for turn, message in enumerate(layout.row.messages)
        ]
        text = self._template.attempt(layout.shape.row(layout.row._replace(messages=messages)))
        if text == layout.text:
            return turns
        found = [turn for turn in turns if text and others[turn] in text]
        return [turn for turn in turns if turn not in found] if found else []

    # What is to be learnt

    def _pieces(self, layout: Layout, learnt: dict[int, float], place: str) -> list[Span]:
        """Of the turns that are learnt, in order; a thought that is only kept has weight 0."""
        extents = self._turns.extents(layout)
        if layout.generated:
            extents_of = generated(layout, learnt, extents, place)
        elif layout.has_generation:
            raise_left_out(layout, min(learnt), place)
        else:
            extents_of = {turn: [extents[turn]] for turn in learnt if turn in extents}
        spans = []
        for turn, weight in learnt.items():
            if turn not in extents_of:
                _raise_unknown(turn, place)
            begin = self._after_thought(layout, turn)
            for start, end in extents_of[turn]:
                if start < begin:
                    spans.append(Span(start, min(begin, end), 0.0))
                if max(start, begin) < end:
                    spans.append(Span(max(start, begin), end, weight))
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


def _apart(pieces: list[Span]) -> tuple[list[Span], list[Span]]:
    """Those that are learnt, and those that are kept without loss."""
    learnt = [piece for piece in pieces if piece.weight]
    return learnt, [piece for piece in pieces if not piece.weight]


def _forget(learnt: dict[int, float], thoughtless: set[int], place: str) -> None:
    """An answer without its thought is context only: learning it would unlearn thinking."""
    had = bool(learnt)
    for turn in thoughtless:
        learnt.pop(turn, None)
    if had and not learnt:
        raise BadRow(
            f"{place}: the chat template leaves out the assistant's thoughts of every message that"
            " is to be learnt; data.reasoning: drop learns the answers without them"
        )


def _refuse(layout: Layout, part: Part, place: str) -> None:
    if part.kind in (NAME, ARGUMENT):
        raise BadRow(
            f"{place}: messages[{part.turn}]: the chat template does not write out tool"
            " calls; this data needs a model whose template does"
        )
    if part.kind == ANSWER and layout.has_generation:
        raise_left_out(layout, part.turn, place)
    if part.kind == ANSWER and part in (layout.parts[number] for number in layout.altered):
        _raise_unknown(part.turn, place)
    if part.kind == ANSWER:
        raise BadRow(
            f"{place}: messages[{part.turn}]: the chat template leaves out the assistant's"
            f" {shorten(part.text)}, or a part of it"
        )


def _messages(value: Mapping[str, object]) -> list[Message]:
    return cast("list[Message]", value.get("messages"))


def _without_thought(message: Message) -> Message:
    return {key: item for key, item in message.items() if key != "reasoning_content"}


def _is_empty_thought(message: Message) -> bool:
    thought = message.get("reasoning_content")
    return isinstance(thought, str) and not thought.strip()


def _is_result(message: Message) -> bool:
    return message.get("role") == "tool"


def _called(messages: list[Message]) -> list[object]:
    """Names of functions that are called: of their results a name says nothing more. No set: the
    name that a result has may be anything.
    """
    calls = [
        call
        for message in messages
        for call in cast("list[dict[str, dict[str, object]]]", message.get("tool_calls") or [])
    ]
    return [call.get("function", {}).get("name") for call in calls]


def _writes_python(layout: Layout) -> bool:
    """Whether the text has a call's arguments as Python writes them."""
    for message in layout.row.messages:
        for call in cast("list[dict[str, dict[str, object]]]", message.get("tool_calls") or []):
            given = call.get("function", {}).get("arguments")
            if given and isinstance(given, Mapping) and str(given) in layout.text:
                return True
    return False


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


def _raise_unknown(turn: int, place: str) -> NoReturn:
    raise BadRow(
        f"{place}: messages[{turn}]: cannot tell which part of the text that the chat template"
        " renders is the assistant's; a template with {% generation %} marks says so"
    )
