"""Which columns hold a conversation, and what to say where none of a source's do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainables.data.config import DataConfig
from trainables.data.rows import shorten
from trainables.errors import InputError, did_you_mean
from trainables.tasks.instruction.fields import Columns, Fields, Message
from trainables.tasks.instruction.messages import read_messages


def _prompt(fields: Fields) -> list[Message]:
    """A text, or messages."""
    if isinstance(given := fields.get("prompt"), list):
        return read_messages(fields, given, fields.columns.name("prompt"))
    return [{"role": "user", "content": fields.text("prompt")}]


def _messages(fields: Fields) -> list[Message]:
    return read_messages(fields, fields.get("messages"), fields.columns.name("messages"))


def _conversations(fields: Fields) -> list[Message]:
    return read_messages(fields, fields.get("conversations"), "conversations")


def _instruction(fields: Fields) -> list[Message]:
    """Alpaca's, with the turns before it in `history`, as LLaMA-Factory has them."""
    return [*_history(fields), {"role": "user", "content": _question(fields)}]


def _question(fields: Fields) -> str:
    question = fields.text("instruction")
    if fields.get("input") in (None, ""):
        return question
    return f"{question}\n\n{fields.text('input')}"


def _history(fields: Fields) -> list[Message]:
    if (given := fields.get("history")) in (None, ""):
        return []
    column = fields.columns.name("history")
    turns = fields.parsed(given, column)
    if not isinstance(turns, list):
        raise fields.error(
            f"{column!r} must be a list of [question, answer] pairs, got {shorten(turns)}"
        )
    messages = []
    for i, pair in enumerate(turns):
        if not isinstance(pair, list) or len(pair) != 2:
            raise fields.error(f"{column}[{i}] must be [question, answer], got {shorten(pair)}")
        said = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        messages += read_messages(fields, said, f"{column}[{i}]")
    return messages


OPENINGS: dict[str, Callable[[Fields], list[Message]]] = {
    "prompt": _prompt,
    "messages": _messages,
    "conversations": _conversations,
    "instruction": _instruction,
}
"""Columns that a conversation begins with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The columns of a conversation, by our names."""

    opening: str | None
    answer: str | None = None
    """None: it is in the opening."""

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.opening, self.answer)))

    @property
    def is_plain(self) -> bool:
        """Whether it is a prompt and an answer, which may do without a chat template."""
        return self.answer is not None and self.opening in ("prompt", "instruction")

    @property
    def name(self) -> str:
        """In the manifest."""
        return "+".join(self.needed).replace("instruction+", "instruction+input+")

    def texts(self, fields: Fields) -> tuple[str, str]:
        """Where neither column may hold messages. Raises BadRow where one does."""
        question = _question(fields) if self.opening == "instruction" else fields.text("prompt")
        return question, fields.text(self.answer or "completion")


SHAPES = (
    Shape(opening="messages"),
    Shape(opening="conversations"),
    Shape(opening="prompt", answer="completion"),
    Shape(opening="instruction", answer="output"),
)


def opening_of(columns: Columns, data: DataConfig) -> str | None:
    """Beside answers in a column of their own; those that `data.columns` names go first."""
    there = [ours for ours in OPENINGS if columns.have([ours])]
    return min(there, key=lambda ours: ours not in data.columns, default=None)


def conversation_shape(columns: Columns, key: str, name: str, data: DataConfig) -> Shape:
    """Raises InputError where the columns are no format of conversations."""
    shapes = _shapes(columns, data)
    if not shapes or _are_pairs(columns, data):
        raise InputError(f"{key}: {name}: {_unknown(columns, data)}")
    return min(shapes, key=lambda shape: not set(shape.needed) & set(data.columns))


def _shapes(columns: Columns, data: DataConfig) -> list[Shape]:
    """All that the columns have, the usual one first."""
    shapes = [shape for shape in SHAPES if columns.have(shape.needed)]
    if "completion" in data.columns and columns.have(["completion"]):
        shapes = [Shape(opening=opening_of(columns, data), answer="completion"), *shapes]
        shapes = shapes if data.chat_template == "none" else shapes[:1]
    return [shape for shape in shapes if shape.is_plain or data.chat_template != "none"]


def _are_pairs(columns: Columns, data: DataConfig) -> bool:
    """Whether these are preference pairs of which the user has not said what to train on."""
    named = {"messages", "completion"} & set(data.columns)
    answered = columns.have(["prompt", "completion"]) or columns.have(["instruction", "output"])
    return columns.have(["chosen", "rejected"]) and not (answered or named)


TALKS = (
    "conversation", "conversations", "messages", "dialog", "dialogue", "dialogs", "dialogues",
    "chat", "chats", "turns",
)  # fmt: skip
QUESTIONS = ("prompt", "instruction", "question", "query", "input", "problem", "user", "source")
ANSWERS = (
    "completion", "output", "answer", "response", "solution", "assistant", "target", "reply",
)  # fmt: skip


def _unknown(columns: Columns, data: DataConfig) -> str:
    """What is wrong with columns that are no format, and what to do."""
    if _are_pairs(columns, data):
        return (
            f"preference pairs ({columns.shown()}), which task: preference trains on;"
            " data.columns: {completion: chosen} trains on the chosen answers alone"
        )
    if data.chat_template == "none":
        return (
            "data.chat_template: none takes texts in columns 'prompt' and 'completion', or"
            f" 'instruction', 'output' and perhaps 'input'; got {columns.shown()}."
            f"{_pair_hint(columns.found)}"
        )
    return (
        "not a format of instruction data; allowed are columns 'messages' (OpenAI chat),"
        " 'conversations' (ShareGPT), 'prompt' and 'completion', or 'instruction', 'output' and"
        f" perhaps 'input'; got {columns.shown()}.{_hint(columns.found)}"
    )


def _hint(found: Sequence[str]) -> str:
    if talk := next(
        (column for column in found if column.lower().removesuffix("_json") in TALKS), None
    ):
        return _messages_hint(talk)
    if hint := _pair_hint(found) or _misspelt(found):
        return hint
    if "text" in found and "label" not in found:
        return " Text without turns is trained on by task: causal_lm"
    if len(found) == 1:
        return _messages_hint(found[0])
    return " Columns of other names are told by data.columns: {prompt: ..., completion: ...}"


def _messages_hint(column: str) -> str:
    return (
        f" If {column!r} holds conversations (lists of messages, or JSON text of them), set"
        f" data.columns: {{messages: {column}}}"
    )


def _pair_hint(found: Sequence[str]) -> str:
    lower = {column.lower(): column for column in reversed(found)}
    question = next((lower[name] for name in QUESTIONS if name in lower), None)
    answer = next((lower[name] for name in ANSWERS if name in lower), None)
    if question is None or answer is None:
        return ""
    parts = [f"completion: {answer}"]
    if question not in ("prompt", "instruction"):
        parts.insert(0, f"prompt: {question}")
    return f" Set data.columns: {{{', '.join(parts)}}}"


def _misspelt(found: Sequence[str]) -> str:
    wanted = {column for shape in SHAPES for column in shape.needed}
    unknown = [column for column in found if column not in wanted]
    return next((hint for column in unknown if (hint := did_you_mean(column, wanted))), "")
