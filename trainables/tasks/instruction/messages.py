"""Messages as the formats have them, OpenAI's and ShareGPT's, and the one form that is kept."""

from collections.abc import Mapping

from trainables.data.rows import shorten
from trainables.errors import did_you_mean
from trainables.tasks.instruction.calls import Call, read_bare_calls, read_calls
from trainables.tasks.instruction.fields import Fields, Message, is_blank

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
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
        content = _content(fields, left.pop(content_key, ""), where, f"{path}.{content_key}[]")
    weight = _weight(fields, left, where)
    thought = None
    if role == "assistant":
        thought, content = _part_thought(_thought(fields, left, where), content)
    if not (content.strip() or calls or _may_be_empty(role, weight)):
        raise fields.error(f"{where}: the content of the {role}'s message is empty")
    parts: Message = {"reasoning_content": thought, "tool_calls": calls or None, "weight": weight}
    return {
        "role": role,
        "content": content,
        **_without_null(parts),
        **_others(fields, left, path),
    }


def _without_null(message: Mapping[str, object]) -> Message:
    return {key: value for key, value in message.items() if value is not None}


def _may_be_empty(role: str, weight: float | None) -> bool:
    """A tool may well return nothing, and nobody learns from an answer of no weight."""
    return role == "tool" or (role == "assistant" and weight == 0)


def _role(fields: Fields, left: Message, where: str) -> tuple[object, str]:
    """As the row has it, and as we have it."""
    key = "role" if "role" in left or "from" not in left else "from"
    said = left.pop(key, None)
    role = ALIASES.get(said, said) if isinstance(said, str) else None
    if role in ROLES:
        return said, role
    allowed = ROLES if key == "role" else (*ROLES, *ALIASES)
    hint = did_you_mean(said, allowed) if isinstance(said, str) else ""
    raise fields.error(
        f"{where}: {key} must be one of {', '.join(allowed)}, got {shorten(said)}.{hint}"
    )


def _calls(fields: Fields, left: Message, where: str) -> list[Call]:
    calls = read_calls(fields, left.pop("tool_calls", None), f"{where}.tool_calls")
    old = left.pop("function_call", None)
    if is_blank(old):
        return calls
    if calls:
        raise fields.error(f"{where}: has both tool_calls and function_call")
    return read_bare_calls(fields, old, f"{where}.function_call")


def _content(fields: Fields, content: object, where: str, path: str) -> str:
    if isinstance(content, list):
        content = "".join(_text_part(fields, part, where, path) for part in content)
    if not isinstance(content, str):
        raise fields.error(
            f"{where}: content must be text, got {type(content).__name__} {shorten(content)}"
        )
    return content


def _text_part(fields: Fields, part: object, where: str, path: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(part, Mapping) or not isinstance(text, str):
        raise fields.error(f"{where}: content may hold text parts only, got {shorten(part)}")
    for key, value in part.items():
        if key not in ("type", "text"):
            fields.note_unused(path, key, value)
    return text


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
    them. A content with several thoughts or an open one stays as it is.
    """
    head = content.lstrip()
    if not head.startswith("<think>") or head.count("<think>") != 1 or head.count("</think>") != 1:
        return thought, content
    inner, _, answer = head.removeprefix("<think>").partition("</think>")
    inner = inner.strip("\r\n")
    if thought is not None and thought.strip("\r\n") != inner:
        return thought, content
    return inner, answer.lstrip("\r\n")


def _others(fields: Fields, left: Message, path: str) -> Message:
    """The keys of a message that no format defines: kept where that can be, since a template may
    know them.
    """
    kept: Message = {}
    for key, value in left.items():
        if key not in KEPT:
            fields.note_unused(path, key, value)
        # nobody but the assistant has thoughts that a template may write
        if key in KEPT or (key not in REASONING and fields.can_store({key: value})):
            kept[key] = value
    return kept
