"""What of a conversation is to be learnt, before any chat template has rendered it."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from trainables.tasks.instruction.marks import Message

if TYPE_CHECKING:
    from collections.abc import Sequence


def weight_of(value: Mapping[str, object]) -> float:
    weight = value.get("weight")
    return float(weight) if isinstance(weight, int | float) else 1.0


def learnt_messages(
    value: Mapping[str, object], messages: "Sequence[Message]", *, last_only: bool
) -> dict[int, float]:
    """Weights of the messages that are to be learnt, by their positions. value: the row."""
    whole = weight_of(value)
    learnt = {
        turn: weight
        for turn, message in enumerate(messages)
        if message.get("role") == "assistant" and (weight := whole * weight_of(message)) > 0
    }
    if last_only and learnt:
        last = max(learnt)
        return {last: learnt[last]}
    return learnt


def answer_bytes(value: Mapping[str, object], *, thoughts: bool, last_only: bool) -> float:
    """Bytes in UTF-8 of the texts of a row that are to be learnt, times their weights. thoughts:
    whether these are learnt, too.
    """
    if "messages" not in value:
        return weight_of(value) * _bytes(str(value.get("completion", "")))
    messages = cast("list[Message]", value.get("messages"))
    learnt = learnt_messages(value, messages, last_only=last_only)
    return sum(
        weight * sum(map(_bytes, _texts(messages[turn], thoughts)))
        for turn, weight in learnt.items()
    )


def _bytes(text: str) -> float:
    return float(len(text.strip().encode()))


def _texts(message: Message, thoughts: bool) -> Iterator[str]:
    yield str(message.get("content") or "")
    if thoughts:
        yield str(message.get("reasoning_content") or "")
    if calls := message.get("tool_calls"):
        yield json.dumps(calls, ensure_ascii=False)
