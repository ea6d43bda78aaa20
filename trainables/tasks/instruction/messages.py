"""Messages as the formats have them, OpenAI's and ShareGPT's, and the one form that is kept."""

from collections.abc import Mapping

from trainables.data.rows import shorten
from trainables.errors import did_you_mean
from trainables.tasks.instruction.calls import Call, read_bare_calls, read_calls
from trainables.tasks.instruction.fields import Fields, Message, is_blank, printable

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLING = ("function_call", "tool_call")
"""Roles whose content is a call, as JSON."""
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "training")
"""OpenAI's number, or true and false under the names that other trainers have for it."""
KEPT = ("name", "tool_call_id")
"""Of OpenAI's format, for templates."""
REFUSAL = "refusal"
"""What OpenAI's models say in the place of a content that they refuse."""
THINKING = "thinking"
PARTS = {
    None: "text",
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    REFUSAL: REFUSAL,
    THINKING: THINKING,
}
"""Types of the parts of a content that are text, and the key that it is under: of OpenAI's two
interfaces and Anthropic's; Bedrock's parts have no type.
"""
OTHER_PARTS = {
    "tool_use": "; OpenAI's format has calls in tool_calls",
    "tool_result": "; OpenAI's format has a result in a message of role tool",
}


def read_messages(fields: Fields, given: object, column: str) -> list[Message]:
    """A list of messages, perhaps as JSON text. column: the file's name of it."""
    messages = fields.parsed(given, column)
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(message, Mapping) for message in messages)
    ):
        raise fields.error(
            f'{column!r} must be a list of messages like {{"role": "user", "content": ...}}, got'
            f" {shorten(messages)}"
        )
    return [
        read_message(fields, message, f"{column}[{i}]", f"{column}[]")
        for i, message in enumerate(messages)
    ]


def read_message(
    fields: Fields, given: Mapping[str, object], where: str, path: str = ""
) -> Message:
    """One message. path: of what is unused in it, where that is not `where`."""
    path = path or where
    left = _without_null(given)
    said, role = _role(fields, left, where)
    content_key = "content" if "content" in left or "value" not in left else "value"
    if said in CALLING:
        calls, content = read_bare_calls(fields, left.pop(content_key, None), where), ""
    else:
        calls = _calls(fields, left, where)
        content = _content(fields, left, role, content_key, where, f"{path}.{content_key}[]")
    weight = _weight(fields, left, where)
    thought = None
    if role == "assistant":
        thought, content = _part_thought(_thought(fields, left, where), content)
        if not content.strip() and isinstance(refusal := left.get(REFUSAL), str):
            content = refusal
    if not (content.strip() or calls or _may_be_empty(role, weight)):
        raise fields.error(f"{where}: {_nothing_said(given, role, thought)}")
    parts: Message = {"reasoning_content": thought, "tool_calls": calls or None, "weight": weight}
    return {
        "role": role,
        "content": content,
        **_without_null(parts),
        **_others(fields, left, path, content),
    }


def _without_null(message: Mapping[str, object]) -> Message:
    return {key: value for key, value in message.items() if value is not None}


def _may_be_empty(role: str, weight: float | None) -> bool:
    """A tool may well return nothing, and nobody learns from an answer of no weight."""
    return role == "tool" or (role == "assistant" and weight == 0)


def _nothing_said(given: Mapping[str, object], role: str, thought: str | None) -> str:
    if thought and thought.strip():
        return f"the {role}'s message is a thought without an answer"
    if not {"content", "value"} & set(given):
        key = "content" if "role" in given else "value"
        return f"the {role}'s message has no {key!r}, only {', '.join(map(printable, given))}"
    return f"the content of the {role}'s message is empty"


def _role(fields: Fields, left: Message, where: str) -> tuple[object, str]:
    """As the row has it, but for capitals, and as we have it."""
    key = "role" if "role" in left or "from" not in left else "from"
    given = left.pop(key, None)
    said = given.lower() if isinstance(given, str) else given
    role = ALIASES.get(said, said) if isinstance(said, str) else None
    if role in ROLES:
        return said, role
    allowed = ROLES if key == "role" else (*ROLES, *ALIASES)
    hint = did_you_mean(said, allowed) if isinstance(said, str) else ""
    raise fields.error(
        f"{where}: {key} must be one of {', '.join(allowed)}, got {shorten(given)}.{hint}"
    )


def _calls(fields: Fields, left: Message, where: str) -> list[Call]:
    calls = read_calls(fields, left.pop("tool_calls", None), f"{where}.tool_calls")
    old = left.pop("function_call", None)
    if is_blank(old):
        return calls
    if calls:
        raise fields.error(f"{where}: has both tool_calls and function_call")
    return read_bare_calls(fields, old, f"{where}.function_call")


def _content(fields: Fields, left: Message, role: str, key: str, where: str, path: str) -> str:
    """Taken out of `left`."""
    content = left.pop(key, "")
    if isinstance(content, list):
        content = _joined(fields, content, left, role, where, path)
    if not isinstance(content, str):
        hint = "; an object is written as JSON text" if role == "tool" else ""
        raise fields.error(
            f"{where}: content must be text, got {type(content).__name__} {shorten(content)}{hint}"
        )
    return content


def _joined(
    fields: Fields, parts: list[object], left: Message, role: str, where: str, path: str
) -> str:
    """The texts of a content's parts with nothing between them, as chat templates join them. An
    assistant's thoughts and refusals go into `left`, where others have them.
    """
    found: dict[str, str] = {}
    for part in parts:
        key, text = _text_part(fields, part, where, path)
        if key != "text" and (role != "assistant" or (key == THINKING and "text" in found)):
            raise fields.error(f"{where}: has a part of type {key!r} where none can be")
        found[key] = found.get(key, "") + text
    content = found.pop("text", "")
    for key, text in found.items():
        if left.setdefault(key, text) != text:
            raise fields.error(f"{where}: {key} and the parts of its type differ")
    return content


def _text_part(fields: Fields, part: object, where: str, path: str) -> tuple[str, str]:
    """The key that its text is under, and the text."""
    kind = part.get("type") if isinstance(part, Mapping) else ""
    key = PARTS.get(kind) if kind is None or isinstance(kind, str) else None
    text = part.get(key) if isinstance(part, Mapping) and key else None
    if not isinstance(part, Mapping) or key is None or not isinstance(text, str):
        raise fields.error(
            f'{where}: content may hold text parts only, like {{"type": "text", "text": ...}}, got'
            f" {shorten(part)}{OTHER_PARTS.get(str(kind), '')}"
        )
    for other, value in part.items():
        if other not in ("type", key):
            fields.note_unused(path, other, value)
    return key, text


def read_system(fields: Fields) -> str | None:
    """Of the column `system`, in parts as Anthropic's and Bedrock's formats have it; None where
    there is nothing in it.
    """
    if not isinstance(given := fields.get("system"), list):
        return fields.optional_text("system")
    column = fields.columns.name("system")
    return _joined(fields, given, {}, "system", column, f"{column}[]") or None


def _weight(fields: Fields, left: Message, where: str) -> float | None:
    """How much a message's loss counts, 0 to 1; None: not said."""
    given = {key: left.pop(key) for key in WEIGHTS if key in left}
    weights = {
        read_weight(fields, value, f"{where}.{key}")
        if key == "weight"
        else _flag(fields, value, f"{where}.{key}")
        for key, value in given.items()
    }
    if len(weights) > 1:
        raise fields.error(f"{where}: {' and '.join(given)} contradict each other")
    return next(iter(weights), None)


def read_weight(fields: Fields, given: object, where: str) -> float:
    number = given
    if isinstance(given, str):  # CSV, and columns of Parquet that hold more than numbers
        try:
            number = float(given)
        except ValueError:
            pass
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise fields.error(f"{where} must be a number from 0 to 1, got {shorten(given)}")
    return float(number)


def _flag(fields: Fields, given: object, where: str) -> float:
    if not isinstance(given, bool):
        raise fields.error(f"{where} must be true or false, got {shorten(given)}")
    return float(given)


def _thought(fields: Fields, left: Message, where: str) -> str | None:
    given = {key: left.pop(key) for key in REASONING if key in left}
    for key, value in given.items():
        if not isinstance(value, str):
            raise fields.error(
                f"{where}.{key} must be text, got {type(value).__name__} {shorten(value)}"
            )
    thoughts = [value for value in given.values() if isinstance(value, str)]
    if len(set(thoughts)) > 1:
        raise fields.error(f"{where}: {' and '.join(given)} differ")
    return thoughts[0] if thoughts else None


def _part_thought(thought: str | None, content: str) -> tuple[str | None, str]:
    """The thought that a content begins with, and the rest, as Qwen's and DeepSeek's templates part
    them. A content whose thought is open, or another than the message has, stays as it is.
    """
    head = content.lstrip()
    if not head.startswith("<think>"):
        return thought, content
    inner, closed, answer = head.removeprefix("<think>").partition("</think>")
    inner = inner.strip("\r\n")
    if not closed or "<think>" in inner:
        return thought, content
    if thought is not None and thought.strip("\r\n") != inner:
        return thought, content
    return inner, answer.lstrip("\r\n")


def _others(fields: Fields, left: Message, path: str, content: str) -> Message:
    """The keys of a message that no format defines: kept where that can be, since a template may
    know them.
    """
    kept: Message = {}
    for key, value in left.items():
        is_used = key in KEPT or (key == REFUSAL and value == content)
        if not is_used:
            fields.note_unused(path, key, value)
        # nobody but the assistant has thoughts that a template may write
        if key in KEPT or (key not in REASONING and fields.can_store({key: value})):
            kept[key] = value
    return kept
