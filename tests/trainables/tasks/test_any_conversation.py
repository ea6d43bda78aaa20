"""Any row at all: it is read whole, or refused in one line."""

import json
import re
from datetime import datetime

import pytest

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

from tests.trainables.tasks.test_conversations import read, strings  # noqa: E402
from trainables.errors import InputError  # noqa: E402
from trainables.tasks.instruction.messages import ALIASES, ROLES  # noqa: E402
from trainables.tasks.instruction.reading import (  # noqa: E402
    conversation_reader,
    preference_reader,
)


def often(usual, seldom, share=8):
    return st.integers(0, share).flatmap(lambda i: seldom if i == share else usual)


words = st.integers(0, 10**9).map(lambda n: f"w{n}x")
"""Texts that one finds again."""
texts = often(
    words,
    st.one_of(
        st.tuples(words, words).map(lambda w: f"<think>\n{w[0]}\r\n</think>\n\n{w[1]}"),
        st.tuples(words, words).map(lambda w: f" <think>{w[0]}</think>{w[1]}<think>"),
        words.map(lambda w: f"<think>{w}</think>"),
        words.map(lambda w: f"<think>{w}"),
        words.map(lambda w: f"\t{w}\n"),
        words.map(lambda w: w + "\ud83d"),
        words.map(lambda w: json.dumps({"name": w, "arguments": {"a": None, "b": w}})),
        words.map(lambda w: json.dumps([{"role": "assistant", "content": w}])),
        words.map(lambda w: "[" + w),
        st.sampled_from(
            [
                "",
                " ",
                "0",
                "0.25",
                "nan",
                "1e999",
                "true",
                "null",
                "[]",
                "{}",
                "[" * 9999,
                "text",
                "[" + "1" * 5000 + "]",
            ]
        ),
        st.text(max_size=5),
    ),
)
leaves = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([datetime(2020, 1, 1), b"x", {1, 2}, -0.0]),
)
names = often(
    st.sampled_from(
        "role content from value weight loss train training reasoning reasoning_content thinking"
        " tool_calls function_call tool_call_id name type text function arguments id mood".split()
    ),
    st.one_of(st.text(max_size=3), words, st.integers()),
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def mostly(usual):
    return often(usual, anything, share=20)


def as_text(usual):
    """Now and then as JSON."""

    def dumped(value):
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return value

    return often(usual, usual.map(dumped))


arguments = as_text(st.dictionaries(st.sampled_from("abc"), anything, max_size=2))
functions = st.fixed_dictionaries({"name": mostly(texts), "arguments": mostly(arguments)})
calls = st.fixed_dictionaries({"function": mostly(functions)}, optional={"id": anything})
parts = st.fixed_dictionaries(
    {"type": mostly(st.just("text")), "text": mostly(texts)}, optional={"cache": anything}
)
contents = often(texts, st.one_of(st.lists(parts, max_size=3), functions, anything))
flags = mostly(st.booleans() | st.none())
roles = mostly(often(st.sampled_from(ROLES), st.sampled_from([*ALIASES])))
optional = {
    "weight": mostly(st.sampled_from([0, 1, 0.5, "0.5", None])),
    "loss": flags,
    "training": flags,
    "reasoning_content": mostly(texts),
    "thinking": mostly(texts),
    "tool_calls": mostly(as_text(st.lists(mostly(calls), max_size=2))),
    "function_call": mostly(functions),
    "name": anything,
    "mood": anything,
    "role": roles,
    "value": contents,
}


def seldom(options):
    """Of `options` few, since each that is wrong is enough to refuse a row."""
    chosen = st.lists(st.sampled_from([*options]), max_size=2, unique=True)
    few = chosen.flatmap(lambda keys: st.fixed_dictionaries({key: options[key] for key in keys}))
    return often(st.just({}), few, share=2)


def merged(*dictionaries):
    return st.tuples(*dictionaries).map(lambda each: {k: v for d in each for k, v in d.items()})


openais = st.fixed_dictionaries({"role": roles, "content": contents})
sharegpts = st.fixed_dictionaries({"from": roles, "value": contents})
messages = merged(openais | sharegpts, seldom(optional))
talks = mostly(as_text(st.lists(mostly(messages), min_size=1, max_size=4)))
tools = mostly(as_text(st.lists(mostly(as_text(functions)), max_size=2)))
answers = often(texts, st.one_of(talks, messages, anything), share=3)
beside = {
    "system": mostly(texts),
    "tools": tools,
    "functions": tools,
    "documents": mostly(st.lists(st.dictionaries(names, texts, max_size=2), max_size=2)),
    "history": mostly(as_text(st.lists(mostly(st.lists(texts, min_size=2, max_size=2))))),
    "weight": mostly(st.sampled_from([0, 1, 0.5, "0.5", None])),
    "reasoning_content": mostly(texts),
    "input": mostly(texts),
    "group": anything,
    "id": anything,
    "messages": talks,
    "chosen": answers,
    "rejected": answers,
}
openings = {"prompt": answers, "messages": talks, "conversations": talks, "instruction": texts}
pairs = merged(
    st.one_of([st.fixed_dictionaries({key: each}) for key, each in openings.items()]),
    st.fixed_dictionaries({"chosen": answers, "rejected": answers}),
)
kinds = st.one_of(
    st.fixed_dictionaries({"messages": talks}),
    st.fixed_dictionaries({"conversations": talks}),
    st.fixed_dictionaries({"prompt": answers, "completion": answers}),
    st.fixed_dictionaries({"instruction": texts, "output": texts}),
    pairs,
)
more = (seldom(beside), seldom({"mood": anything, "\ud83d": anything, "a\nb": texts}))
SETTINGS = (
    {},
    {"columns": {"completion": "chosen"}},
    {"columns": {"messages": "chosen", "reasoning_content": "input"}},
    {"columns": {"prompt": "completion", "completion": "prompt"}},
    {"group": "id", "slice": "group"},
    {"chat_template": "none"},
)


def found(value):
    """The words in it."""
    return {word for text in strings(value) for word in re.findall(r"w\d+x", text)}


def kept(row, unused, path=""):
    """What of a row is not told to be unused."""
    if isinstance(row, dict):
        return {
            key: kept(item, unused, name)
            for key, item in row.items()
            for name in [f"{path}.{shown(key)}" if path else shown(key)]
            if name not in unused
        }
    if isinstance(row, list):
        return [kept(item, unused, f"{path}[]") for item in row]
    if isinstance(row, str) and row.strip()[:1] in ("[", "{"):
        try:
            return kept(json.loads(row), unused, path)
        except (ValueError, RecursionError):
            return row
    return row


def shown(key):
    return key if isinstance(key, str) and key and key.isprintable() else repr(key)


@hypothesis.given(row=merged(kinds, *more), settings=st.sampled_from(SETTINGS))
@hypothesis.settings(deadline=None, suppress_health_check=[*hypothesis.HealthCheck])
def test_any_conversation_is_read_whole_or_refused_in_one_line(row, settings):
    check(conversation_reader, row, settings)


@hypothesis.given(row=merged(pairs, *more), settings=st.sampled_from(SETTINGS))
@hypothesis.settings(deadline=None, suppress_health_check=[*hypothesis.HealthCheck])
def test_any_pair_is_read_whole_or_refused_in_one_line(row, settings):
    check(preference_reader, row, settings)


def check(reader, row, settings):
    named = {*settings.get("columns", {}).values(), settings.get("group"), settings.get("slice")}
    if not named - {None} <= set(row):
        settings = {}
    try:
        _, record = read(row, reader, **settings)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(error).encode()
        hypothesis.event(re.sub(r"w\d+x|\d+", "", str(error))[:60])
        return
    hypothesis.event("read")
    assert json.dumps(record.unused, ensure_ascii=False).encode()
    parts = [record.value, record.group or "", record.slice or ""]
    assert found(kept(row, set(record.unused))) <= found(parts)
    for side in ("messages", "chosen", "rejected"):
        for message in record.value.get(side, []):
            assert message["role"] in ROLES
            assert isinstance(message["content"], str)
            assert 0 <= message.get("weight", 1) <= 1
            assert isinstance(message.get("reasoning_content", ""), str)
            for call in message.get("tool_calls", []):
                assert isinstance(call["function"]["arguments"], dict)
