"""A conversation as a chat template renders it, and where each of its texts stands in that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jinja2 import TemplateError

from trainables.tasks.instruction import marks
from trainables.tasks.instruction.marks import Marks, Message, Part, Spot
from trainables.tasks.instruction.templates import (
    GENERATION_CLOSE,
    GENERATION_OPEN,
    compiled,
    has_generation,
)


class Row(NamedTuple):
    """What a template is given of a row."""

    messages: list[Message]
    tools: object = None
    documents: object = None


class Shape(NamedTuple):
    """How a row is put to a template that does not take it as it is."""

    has_thoughts: bool = False
    thoughts_in_content: bool = False
    text_arguments: bool = False
    """Arguments of tool calls as text of JSON, for a template that joins them to its own."""
    developer_as_system: bool = False

    def row(self, row: Row) -> Row:
        return row._replace(messages=list(map(self.of, row.messages))) if any(self) else row

    def of(self, message: Message) -> Message:
        """The message so shaped: a copy, or itself where nothing needs to change."""
        if self.developer_as_system and message.get("role") == "developer":
            message = {**message, "role": "system"}
        thought = message.get("reasoning_content")
        if thought is not None:
            message = (
                _with_thought(message, thought)
                if self.thoughts_in_content
                # as transformers does, for templates that know it by its older name
                else {"thinking": thought, **message}
            )
        if self.text_arguments and "tool_calls" in message:
            message = _with_text_arguments(message)
        return message


def _with_thought(message: Message, thought: object) -> Message:
    rest = {key: item for key, item in message.items() if key != "reasoning_content"}
    return {**rest, "content": f"<think>\n{thought}\n</think>\n\n{message.get('content', '')}"}


def _with_text_arguments(message: Message) -> Message:
    def in_text(call: dict[str, dict[str, object]]) -> dict[str, object]:
        function = call.get("function", {})
        given = function.get("arguments", {})
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    calls = message.get("tool_calls")
    assert isinstance(calls, list)
    return {**message, "tool_calls": [in_text(call) for call in calls]}


class Run(NamedTuple):
    """Texts of one turn that stand together, from the first character of theirs to the last."""

    turn: int
    start: int
    end: int


class Span(NamedTuple):
    """What must be learnt: characters [start, end) of the rendered text, and how much each counts
    (0..1].
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A rendered row."""

    text: str
    row: Row
    shape: Shape
    marked: Row
    """The row with marks in it, shaped."""
    marks: Marks
    spots: list[Spot]
    """Where its parts stand, in the order of the text; a part may stand there more than once."""
    generated: list[tuple[int, int]]
    """What the template's {% generation %} holds."""
    has_generation: bool
    """Whether the template marks what the assistant writes."""
    altered: frozenset[int] = frozenset()
    """Contents that stand there, but not as they were given."""

    @property
    def parts(self) -> list[Part]:
        return self.marks.parts

    @property
    def is_whole(self) -> bool:
        """Whether every text of the row stands there as it was given."""
        return (
            not self.marks.unmarked
            and not self.altered
            and len({spot.part for spot in self.spots}) == len(self.parts)
        )

    def spots_of(self, turn: int) -> list[Spot]:
        return [spot for spot in self.spots if self.parts[spot.part].turn == turn]

    def runs(self) -> list[Run]:
        runs: list[Run] = []
        parts = self.marks.parts
        last = None
        for part, start, end in self.spots:
            turn = parts[part].turn
            if turn == last:
                start = runs.pop().start
            runs.append(Run(turn, start, end))
            last = turn
        return runs


class Template:
    """A chat template with the variables that a tokenizer gives it."""

    def __init__(self, text: str, variables: Mapping[str, object]) -> None:
        self.text = text
        self.has_prompt = "add_generation_prompt" in text
        self.marks_spans = has_generation(text)
        self._template = compiled(text)
        # what every rendering starts from; putting it together each time costs as much as a row
        self._variables = {**self._template.globals, **variables}

    def render(
        self,
        row: Row,
        *,
        add_generation_prompt: bool = False,
        generation: tuple[str, str] = ("", ""),
    ) -> str:
        """Raises TemplateError, whatever the row made the template fail with."""
        given = {
            **self._variables,
            "messages": row.messages,
            "tools": row.tools,
            "documents": row.documents,
            "add_generation_prompt": add_generation_prompt,
            GENERATION_OPEN: generation[0],
            GENERATION_CLOSE: generation[1],
        }
        template = self._template
        context = template.environment.context_class(
            template.environment, given, template.name, template.blocks
        )
        try:
            return "".join(template.root_render_func(context))
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TemplateError(str(error)) from error

    def layout(self, row: Row, shape: Shape) -> Layout:
        """With as many of the row's texts marked as leave the template's text as it is."""
        text = self.render(shape.row(row))
        block = marks.block_for(text)
        for generation in (True, False) if self.marks_spans else (False,):
            for kinds in marks.LEVELS:
                layout = self._marked(row, shape, text, Marks(block, kinds), generation)
                if layout is not None:
                    return layout
        raise TemplateError("it renders another text every time")

    def _marked(
        self, row: Row, shape: Shape, text: str, put: Marks, generation: bool
    ) -> Layout | None:
        """None where marks change the text."""
        marked = shape.row(_marked(row, put))
        edges = put.generation if generation else ("", "")
        try:
            pieces = put.split(self.render(marked, generation=edges))
        except TemplateError:
            return None
        if "".join(pieces[::2]) != text:
            return None
        spots, generated = put.found(pieces)
        return Layout(
            text=text,
            row=row,
            shape=shape,
            marked=marked,
            marks=put,
            spots=spots,
            generated=generated,
            has_generation=generation,
            altered=_altered(text, put, spots),
        )

    def pieces(
        self, layout: Layout, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[str] | None:
        """The text of other messages than the layout's, made of its marked ones, in turns with the
        marks; None where the template refuses them.
        """
        row = Row(
            messages=list(messages), tools=layout.marked.tools, documents=layout.marked.documents
        )
        text = self.attempt(row, add_generation_prompt=add_generation_prompt)
        return None if text is None else layout.marks.split(text)

    def tail(
        self, layout: Layout, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> str | None:
        """What the template writes behind the last of these messages' texts."""
        pieces = self.pieces(layout, messages, add_generation_prompt=add_generation_prompt)
        return None if pieces is None else layout.marks.behind(pieces, len(pieces) - 1)

    def attempt(self, row: Row, *, add_generation_prompt: bool = False) -> str | None:
        """None where the template refuses the row."""
        try:
            return self.render(row, add_generation_prompt=add_generation_prompt)
        except TemplateError:
            return None


def _altered(text: str, put: Marks, spots: Sequence[Spot]) -> frozenset[int]:
    altered = []
    for number, start, end in spots:
        part = put.parts[number]
        if text[start:end] != part.text and not marks.is_written(part, text[start:end]):
            if part.kind in (marks.ANSWER, marks.CONTENT):
                altered.append(number)
    return frozenset(altered)


def _marked(row: Row, put: Marks) -> Row:
    messages = [put.message(message, turn) for turn, message in enumerate(row.messages)]
    tools, documents = row.tools, row.documents
    if tools:
        tools = put.described(tools)
    if documents:
        documents = put.texts(documents, marks.ROW, marks.DOCUMENTS)
    return Row(messages=messages, tools=tools, documents=documents)
