"""Rows of conversations in every form that people have them in, and the one form that they are read into."""

import copy
import json

import pytest

from trainables.data.config import DataConfig
from trainables.data.rows import BadRow, Row
from trainables.errors import InputError
from trainables.tasks.instruction.reading import conversation_reader, preference_reader


def read(row, reader=conversation_reader, **settings):
    data = DataConfig(**settings)
    given = copy.deepcopy(row)
    opened = reader(list(row), "data.train", "a.jsonl", data)
    record = opened.read(Row(key="data.train", place="a.jsonl line 1", columns=row))
    assert row == given  # a row stays as it was read
    assert json.loads(json.dumps(record.value)) == record.value
    return opened.name, record


def value(row, reader=conversation_reader, **settings):
    return read(row, reader, **settings)[1].value


def messages(row, **settings):
    return value(row, **settings)["messages"]


def refusal(row, reader=conversation_reader, **settings):
    with pytest.raises(InputError) as error:
        read(row, reader, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def said(who, text, **more):
    return {"from": who, "value": text, **more}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


USER, ANSWER = turn("user", "Hi"), turn("assistant", "Ho")
TALK = [USER, ANSWER]
TOOL = {"type": "function", "function": {"name": "fly", "parameters": {"x": {"default": None}}}}
OLD_TOOL = {"name": "fly", "parameters": {"x": {"default": None}}}
FLY = {"role": "assistant", "content": "", "tool_calls": [call("fly", {"a": None})]}

SHAPES = [
    # (row, settings, name of the format, value, unused)
    ({"messages": TALK}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": json.dumps(TALK)}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "tools": [TOOL]}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ()),
    ({"messages": TALK, "tools": json.dumps([TOOL])}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ()),
    ({"messages": TALK, "tools": [json.dumps(TOOL)]}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ()),
    ({"messages": TALK, "tools": None, "functions": None}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "tools": ""}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "tools": "null"}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "functions": [OLD_TOOL]}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ()),
    ({"messages": TALK, "functions": json.dumps([OLD_TOOL])}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ()),
    ({"messages": TALK, "tools": [TOOL], "functions": [OLD_TOOL]}, {}, "messages", {"messages": TALK, "tools": [TOOL]}, ("functions",)),
    ({"messages": TALK, "system": "Be kind"}, {}, "messages", {"messages": [turn("system", "Be kind"), *TALK]}, ()),
    ({"messages": [turn("system", "Be kind"), *TALK], "system": "Be kind"}, {}, "messages", {"messages": [turn("system", "Be kind"), *TALK]}, ()),
    ({"messages": TALK, "system": [{"type": "text", "text": "Be "}, {"text": "kind", "cache": "x"}]}, {}, "messages", {"messages": [turn("system", "Be kind"), *TALK]}, ("system[].cache",)),
    ({"messages": TALK, "system": []}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "weight": 0.5}, {}, "messages", {"messages": TALK, "weight": 0.5}, ()),
    ({"messages": TALK, "weight": "0.25"}, {}, "messages", {"messages": TALK, "weight": 0.25}, ()),
    ({"messages": TALK, "weight": None}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "weight": float("nan")}, {}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "score": 0.5}, {"columns": {"weight": "score"}}, "messages", {"messages": TALK, "weight": 0.5}, ()),
    ({"messages": TALK, "documents": [{"title": "a", "text": "b"}]}, {}, "messages", {"messages": TALK, "documents": [{"title": "a", "text": "b"}]}, ()),
    ({"messages": TALK, "documents": "a"}, {}, "messages", {"messages": TALK}, ("documents",)),
    ({"messages": TALK, "id": "7", "note": "", "source": None}, {}, "messages", {"messages": TALK}, ("id",)),
    ({"messages": TALK, "id": 7, "lang": "de"}, {"group": "id", "slice": "lang"}, "messages", {"messages": TALK}, ()),
    ({"dialog": TALK}, {"columns": {"messages": "dialog"}}, "messages", {"messages": TALK}, ()),
    ({"messages": TALK, "cot": "hm"}, {"columns": {"reasoning_content": "cot"}}, "messages", {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]}, ()),

    ({"conversations": [said("human", "Hi"), said("gpt", "Ho")]}, {}, "conversations", {"messages": TALK}, ()),
    ({"conversations": json.dumps([said("user", "Hi"), said("chatgpt", "Ho")])}, {}, "conversations", {"messages": TALK}, ()),
    ({"conversations": TALK}, {}, "conversations", {"messages": TALK}, ()),
    ({"conversations": [turn("human", "Hi"), turn("bing", "Ho")]}, {}, "conversations", {"messages": TALK}, ()),
    ({"conversations": [said("human", "Hi"), said("gpt", "Ho", weight=0), said("gpt", "He", weight="1")]}, {}, "conversations", {"messages": [USER, {**ANSWER, "weight": 0.0}, turn("assistant", "He", weight=1.0)]}, ()),
    ({"conversations": [said("human", "Hi"), said("gpt", "Ho")], "system": "Be kind", "tools": json.dumps([TOOL])}, {}, "conversations", {"messages": [turn("system", "Be kind"), *TALK], "tools": [TOOL]}, ()),
    ({"conversations": [said("human", "Hi"), said("gpt", "Ho")], "system": "", "tools": ""}, {}, "conversations", {"messages": TALK}, ()),
    ({"conversations": [said("system", "S"), said("human", "Hi"), said("function_call", '{"name": "fly", "arguments": {"a": null}}'), said("observation", "up"), said("gpt", "Ho")]}, {}, "conversations", {"messages": [turn("system", "S"), USER, FLY, turn("tool", "up"), ANSWER]}, ()),
    ({"conversations": [said("human", "Hi"), said("function_call", '[{"name": "fly", "arguments": "{\\"a\\": null}"}, {"name": "land"}]')]}, {}, "conversations", {"messages": [USER, {**FLY, "tool_calls": [call("fly", {"a": None}), call("land", {})]}]}, ()),
    ({"conversations": [said("human", "Hi", mood="glad"), said("gpt", "Ho", mood=None)], "id": "x"}, {}, "conversations", {"messages": [turn("user", "Hi", mood="glad"), ANSWER]}, ("id", "conversations[].mood")),

    ({"prompt": "Hi", "completion": "Ho"}, {}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": " Hi\n", "completion": " Ho "}, {}, "prompt+completion", {"messages": [turn("user", " Hi\n"), turn("assistant", " Ho ")]}, ()),
    ({"prompt": [USER], "completion": [ANSWER]}, {}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": [USER], "completion": "Ho"}, {}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": "Hi", "completion": ANSWER}, {}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": "Hi", "completion": TALK}, {}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": "Hi", "completion": "Ho", "system": "S", "tools": [TOOL]}, {}, "prompt+completion", {"messages": [turn("system", "S"), *TALK], "tools": [TOOL]}, ()),
    ({"question": "Hi", "answer": "Ho"}, {"columns": {"prompt": "question", "completion": "answer"}}, "prompt+completion", {"messages": TALK}, ()),
    ({"messages": "about", "question": "Hi", "answer": "Ho"}, {"columns": {"prompt": "question", "completion": "answer"}}, "prompt+completion", {"messages": TALK}, ("messages",)),
    ({"prompt": "Hi", "completion": "Ho", "reasoning_content": "hm"}, {}, "prompt+completion", {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]}, ()),
    ({"prompt": "Ho", "completion": "Hi"}, {"columns": {"prompt": "completion", "completion": "prompt"}}, "prompt+completion", {"messages": TALK}, ()),
    ({"prompt": "Hi", "completion": "Ho"}, {"columns": {"prompt": "question"}}, "prompt+completion", {"messages": TALK}, ()),

    ({"instruction": "Hi", "output": "Ho"}, {}, "instruction+input+output", {"messages": TALK}, ()),
    ({"instruction": "Hi", "input": "", "output": "Ho"}, {}, "instruction+input+output", {"messages": TALK}, ()),
    ({"instruction": "Hi", "input": "you", "output": "Ho", "system": "S", "history": [["a", "b"], ["c", "d"]]}, {}, "instruction+input+output", {"messages": [turn("system", "S"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d"), turn("user", "Hi\n\nyou"), ANSWER]}, ()),
    ({"instruction": "Hi", "output": "Ho", "history": '[["a", "b"]]'}, {}, "instruction+input+output", {"messages": [turn("user", "a"), turn("assistant", "b"), *TALK]}, ()),
    ({"instruction": "Hi", "output": "Ho", "history": []}, {}, "instruction+input+output", {"messages": TALK}, ()),
    ({"instruction": "Hi", "response": "Ho"}, {"columns": {"completion": "response"}}, "instruction+input+completion", {"messages": TALK}, ()),

    ({"prompt": "Hi", "chosen": "Ho", "rejected": "He"}, {"columns": {"completion": "chosen"}}, "prompt+completion", {"messages": TALK}, ("rejected",)),
    ({"prompt": "Hi", "chosen": TALK, "rejected": TALK}, {"columns": {"completion": "chosen"}}, "prompt+completion", {"messages": TALK}, ("rejected",)),
    ({"prompt": "Hi", "chosen": [turn("system", "S"), *TALK], "rejected": TALK}, {"columns": {"completion": "chosen"}}, "prompt+completion", {"messages": [turn("system", "S"), *TALK]}, ("rejected",)),
    ({"chosen": TALK, "rejected": TALK}, {"columns": {"completion": "chosen"}}, "completion", {"messages": TALK}, ("rejected",)),
    ({"chosen": json.dumps(TALK), "rejected": "x"}, {"columns": {"completion": "chosen"}}, "completion", {"messages": TALK}, ("rejected",)),
    ({"chosen": TALK, "rejected": TALK}, {"columns": {"messages": "chosen"}}, "messages", {"messages": TALK}, ("rejected",)),
    ({"messages": [USER], "chosen": "Ho", "rejected": "He"}, {"columns": {"completion": "chosen"}}, "messages+completion", {"messages": TALK}, ("rejected",)),
    ({"conversations": [said("human", "Hi")], "chosen": said("gpt", "Ho"), "rejected": said("gpt", "He")}, {"columns": {"completion": "chosen"}}, "conversations+completion", {"messages": TALK}, ("rejected",)),

    ({"prompt": "Hi", "completion": "<think>x</think>Ho"}, {"chat_template": "none"}, "prompt+completion", {"prompt": "Hi", "completion": "<think>x</think>Ho"}, ()),
    ({"messages": TALK, "prompt": "Hi", "completion": "Ho", "system": "S"}, {"chat_template": "none"}, "prompt+completion", {"prompt": "Hi", "completion": "Ho"}, ("messages", "system")),
    ({"instruction": "Hi", "input": "you", "output": "Ho", "weight": 0.5}, {"chat_template": "none"}, "instruction+input+output", {"prompt": "Hi\n\nyou", "completion": "Ho", "weight": 0.5}, ()),
    ({"question": "Hi", "answer": "Ho"}, {"chat_template": "none", "columns": {"prompt": "question", "completion": "answer"}}, "prompt+completion", {"prompt": "Hi", "completion": "Ho"}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("row", "settings", "name", "expected", "unused"), SHAPES)
def test_every_shape_is_read_into_one(row, settings, name, expected, unused):
    found, record = read(row, **settings)
    assert (found, record.value, record.unused) == (name, expected, unused)
    assert record.place == "a.jsonl line 1"
    assert [m.get("content") for m in expected.get("messages", []) if m["role"] == "user"][:1] in (
        [record.shown],
        [],
    )


MESSAGES = [
    # (message as it is given, as it is kept)
    (turn("assistant", [{"type": "text", "text": "H"}, {"type": "text", "text": "o", "image_url": None}]), ANSWER),
    (turn("assistant", [{"type": "output_text", "text": "H"}, {"text": "o"}]), ANSWER),
    (turn("assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Ho"}]), {**ANSWER, "reasoning_content": "hm"}),
    (turn("assistant", [{"type": "refusal", "refusal": "Ho"}]), {**ANSWER, "refusal": "Ho"}),
    (turn("assistant", None, refusal="Ho"), {**ANSWER, "refusal": "Ho"}),
    (turn("Assistant", "Ho"), ANSWER),
    (turn("AI", "Ho"), ANSWER),
    (turn("ipython", "up"), turn("tool", "up")),
    (turn("assistant", "Ho", weight=1), {**ANSWER, "weight": 1.0}),
    (turn("assistant", "Ho", weight="0.25"), {**ANSWER, "weight": 0.25}),
    (turn("assistant", "Ho", weight=None, loss=None), ANSWER),
    (turn("assistant", "Ho", loss=True), {**ANSWER, "weight": 1.0}),
    (turn("assistant", "Ho", train=False), {**ANSWER, "weight": 0.0}),
    (turn("assistant", "Ho", training=False, weight=0), {**ANSWER, "weight": 0.0}),
    (turn("assistant", "", weight=0), turn("assistant", "", weight=0.0)),
    (turn("assistant", None, train=False), turn("assistant", "", weight=0.0)),
    (turn("assistant", "Ho", reasoning_content="hm "), {**ANSWER, "reasoning_content": "hm "}),
    (turn("assistant", "Ho", reasoning="hm"), {**ANSWER, "reasoning_content": "hm"}),
    (turn("assistant", "Ho", thinking="hm", reasoning="hm"), {**ANSWER, "reasoning_content": "hm"}),
    (turn("assistant", "Ho", reasoning_content=None), ANSWER),
    (turn("assistant", "<think>\n hm\n\nso \n</think>\n\nHo"), {**ANSWER, "reasoning_content": " hm\n\nso "}),
    (turn("assistant", "\n<think>hm</think> Ho"), turn("assistant", " Ho", reasoning_content="hm")),
    (turn("assistant", "<think>\n\n</think>\n\nHo"), {**ANSWER, "reasoning_content": ""}),
    (turn("assistant", "<think>hm</think>Ho", reasoning_content="hm"), {**ANSWER, "reasoning_content": "hm"}),
    (turn("assistant", "<think>hm</think>Ho", reasoning_content="other"), turn("assistant", "<think>hm</think>Ho", reasoning_content="other")),
    (turn("assistant", "<think>hm</think>Ho<think>a</think>"), turn("assistant", "Ho<think>a</think>", reasoning_content="hm")),
    (turn("assistant", "<think>hm</think>Ho</think>"), turn("assistant", "Ho</think>", reasoning_content="hm")),
    (turn("assistant", "<think>a<think>b</think>Ho"), turn("assistant", "<think>a<think>b</think>Ho")),
    (turn("assistant", "<think>hm"), turn("assistant", "<think>hm")),
    (turn("assistant", "hm</think>Ho"), turn("assistant", "hm</think>Ho")),
    (turn("assistant", "Ho <think>hm</think>"), turn("assistant", "Ho <think>hm</think>")),
    (turn("user", "<think>hm</think>Ho"), turn("user", "<think>hm</think>Ho")),
    (turn("function", "up", name="fly"), turn("tool", "up", name="fly")),
    (turn("tool", "", tool_call_id="1"), turn("tool", "", tool_call_id="1")),
    (turn("tool", None), turn("tool", "")),
    (turn("developer", "D"), turn("developer", "D")),
    (turn("assistant", None, tool_calls=[call("fly", '{"b": null, "a": [1, null]}')]), turn("assistant", "", tool_calls=[call("fly", {"b": None, "a": [1, None]})])),
    (turn("assistant", None, tool_calls=json.dumps([call("fly", {"a": 1})])), turn("assistant", "", tool_calls=[call("fly", {"a": 1})])),
    (turn("assistant", None, tool_calls=[{**call("fly", ""), "id": "1"}]), turn("assistant", "", tool_calls=[{**call("fly", {}), "id": "1"}])),
    (turn("assistant", None, tool_calls=[call("fly", None), {"function": {"name": "x"}}]), turn("assistant", "", tool_calls=[call("fly", {}), {"function": {"name": "x", "arguments": {}}}])),
    (turn("assistant", "Ho", tool_calls=None, function_call=None, name=None), ANSWER),
    (turn("assistant", "Ho", tool_calls=[]), ANSWER),
    (turn("assistant", None, function_call={"name": "fly", "arguments": '{"a": null}'}), FLY),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kept"), MESSAGES)
def test_a_message(given, kept):
    _, record = read({"messages": [USER, given, turn("assistant", "End")]})
    assert record.value["messages"][1] == kept
    assert record.unused == ()
    assert list(record.value["messages"][1])[:2] == ["role", "content"]


def test_arguments_and_schemas_keep_the_order_of_their_keys():
    given = '{"z": 1, "a": null, "m": {"y": 1, "b": 2}}'
    fly = turn("assistant", None, tool_calls=[call("fly", given)])
    (kept,) = messages({"messages": [USER, fly]})[1]["tool_calls"]
    assert json.dumps(kept["function"]["arguments"]) == given
    tools = [{"type": "function", "function": json.loads(given)}]
    assert json.dumps(value({"messages": TALK, "tools": tools})["tools"]) == json.dumps(tools)


def test_keys_that_no_format_has_are_kept_for_templates_and_named():
    first = turn("user", [{"type": "text", "text": "Hi", "cache": {"x": "y"}}], mood="glad")
    _, record = read({"messages": [first, {**ANSWER, "mood": "sad", "at": {1, 2}}, ANSWER]})
    assert record.value["messages"][:2] == [
        {**USER, "mood": "glad"},
        {**ANSWER, "mood": "sad"},  # a set is nothing that JSON can hold
    ]
    assert record.unused == ("messages[].content[].cache", "messages[].mood", "messages[].at")


def test_a_refusal_beside_a_content_is_not_used():
    _, record = read({"messages": [USER, {**ANSWER, "refusal": "No"}]})
    assert record.value["messages"][1] == {**ANSWER, "refusal": "No"}
    assert record.unused == ("messages[].refusal",)


def test_unused_keys_of_a_part_are_named_by_the_rows_own_keys():
    parts = [{"type": "text", "text": "Hi", "cache": "x"}]
    _, record = read({"conversations": [said("human", parts), said("gpt", "Ho")]})
    assert record.value == {"messages": TALK}
    assert record.unused == ("conversations[].value[].cache",)


def test_thoughts_are_the_assistants():
    _, record = read({"messages": [{**USER, "reasoning_content": ["hm"], "thinking": "a"}, ANSWER]})
    assert record.value == {"messages": TALK}
    assert record.unused == ("messages[].reasoning_content", "messages[].thinking")


def test_a_key_that_cannot_be_shown_is_quoted():
    _, record = read({"messages": [{**USER, "a\nb": 1, "\ud83d": "x"}, ANSWER], "\n": 1})
    assert record.unused == ("'\\n'", "messages[].'a\\nb'", "messages[].'\\ud83d'")


def test_a_group_and_a_slice_are_text():
    row = {"messages": TALK, "author": 7, "lang": None}
    _, record = read(row, group="author", slice="lang")
    assert (record.group, record.slice) == ("7", "")
    _, record = read(row)
    assert (record.group, record.slice) == (None, None)


def test_equal_rows_are_equal_in_every_shape():
    rows = [
        {"messages": TALK},
        {"conversations": [said("human", "hi "), said("gpt", "HO")]},
        {"prompt": "Hi", "completion": "Ho", "id": 1},
        {"instruction": "Hi", "output": "Ho"},
    ]
    assert len({read(row)[1].key for row in rows}) == 1
    assert read({"messages": [USER, FLY]})[1].key != read({"messages": TALK})[1].key
    assert (
        read(rows[2])[1].key == read({**rows[2], "completion": " ho"}, chat_template="none")[1].key
    )


MISTAKES = [
    # (row, settings, what follows "data.train: a.jsonl line 1: ")
    ({"messages": []}, {}, "'messages' must be a list of messages like {\"role\": \"user\", \"content\": ...}, got []"),
    ({"messages": None}, {}, "'messages' must be a list of messages like {\"role\": \"user\", \"content\": ...}, got null"),
    ({"messages": [USER, "x"]}, {}, "'messages' must be a list of messages like {\"role\": \"user\", \"content\": ...}, got [{\"role\": \"user\", \"content\": \"Hi\"}, \"x\"]"),
    ({"messages": "[{'role'"}, {}, "messages: not JSON: Expecting property name enclosed in double quotes in column 3, between '[{' and \"'role'\"; texts stand in double quotes, as json.dumps writes them"),
    ({"messages": "[" + "1" * 5000 + "]"}, {}, "messages: not JSON: an integer too long to read: '[111111111111111111111111111111111111111111111111111111111…"),
    ({"messages": [USER, {"role": "asistant", "content": "x"}]}, {}, "messages[1]: role must be one of system, developer, user, assistant, tool, got 'asistant'. Did you mean 'assistant'?"),
    ({"messages": [{"content": "x"}]}, {}, "messages[0]: role must be one of system, developer, user, assistant, tool, got null."),
    ({"messages": [USER, {"role": "assistant"}]}, {}, "messages[1]: the assistant's message has no 'content', only role"),
    ({"messages": [{"role": "user", "text": "Hi"}, ANSWER]}, {}, "messages[0]: the user's message has no 'content', only role, text"),
    ({"conversations": [{"from": "human", "text": "Hi"}]}, {}, "conversations[0]: the user's message has no 'value', only from, text"),
    ({"messages": [USER, turn("assistant", None)]}, {}, "messages[1]: the content of the assistant's message is empty"),
    ({"messages": [USER, turn("assistant", None, refusal="")]}, {}, "messages[1]: the content of the assistant's message is empty"),
    ({"messages": [USER, turn("assistant", "", reasoning_content="hm")]}, {}, "messages[1]: the assistant's message is a thought without an answer"),
    ({"messages": [USER, turn("assistant", "", tool_calls=[])]}, {}, "messages[1]: the content of the assistant's message is empty"),
    ({"messages": [USER, turn("assistant", "<think>hm</think>")]}, {}, "messages[1]: the assistant's message is a thought without an answer"),
    ({"messages": [turn("user", " ", weight=0), ANSWER]}, {}, "messages[0]: the content of the user's message is empty"),
    ({"messages": [USER, turn("assistant", {"a": 1})]}, {}, "messages[1]: content must be text, got dict {\"a\": 1}"),
    ({"messages": [turn("user", [{"type": "image_url"}]), USER]}, {}, "messages[0]: content may hold text parts only, like {\"type\": \"text\", \"text\": ...}, got {\"type\": \"image_url\"}"),
    ({"messages": [turn("user", ["Hi"]), ANSWER]}, {}, "messages[0]: content may hold text parts only, like {\"type\": \"text\", \"text\": ...}, got 'Hi'"),
    ({"messages": [turn("user", [{"type": ["text"], "text": "Hi"}]), ANSWER]}, {}, "messages[0]: content may hold text parts only, like {\"type\": \"text\", \"text\": ...}, got {\"type\": [\"text\"], \"text\": \"Hi\"}"),
    ({"messages": [USER, turn("assistant", [{"type": "tool_use", "name": "fly"}])]}, {}, "messages[1]: content may hold text parts only, like {\"type\": \"text\", \"text\": ...}, got {\"type\": \"tool_use\", \"name\": \"fly\"}; OpenAI's format has calls in tool_calls"),
    ({"messages": [turn("user", [{"type": "thinking", "thinking": "hm"}]), ANSWER]}, {}, "messages[0]: has a part of type 'thinking' where none can be"),
    ({"messages": [USER, turn("assistant", [{"text": "Ho"}, {"type": "thinking", "thinking": "hm"}])]}, {}, "messages[1]: has a part of type 'thinking' where none can be"),
    ({"messages": [USER, turn("assistant", [{"type": "thinking", "thinking": "hm"}, {"text": "Ho"}], thinking="ha")]}, {}, "messages[1]: thinking and the parts of its type differ"),
    ({"messages": [USER, turn("assistant", None, tool_calls=[call("f", {})]), turn("tool", {"a": None})]}, {}, "messages[2]: content must be text, got dict {\"a\": null}; an object is written as JSON text"),
    ({"messages": [USER, turn("assistant", "a\ud83d")]}, {}, "messages[1].content is not Unicode text: it has a lone surrogate '\\ud83d'"),
    ({"messages": [USER]}, {}, "no assistant message to learn from"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, {}, "nothing to learn from: its assistant message has weight 0"),
    ({"messages": [USER, {**ANSWER, "weight": "0"}]}, {}, "nothing to learn from: its assistant message has weight 0"),
    ({"messages": [USER, {**ANSWER, "train": False}]}, {}, "nothing to learn from: its assistant message has weight 0"),
    ({"messages": TALK, "weight": 0}, {}, "nothing to learn from: the row's 'weight' is 0"),
    ({"messages": [USER, {**ANSWER, "loss": False}, {**ANSWER, "weight": 0}]}, {}, "nothing to learn from: all its 2 assistant messages have weight 0"),
    ({"messages": TALK, "weight": 2}, {}, "'weight' must be a number from 0 to 1, got 2"),
    ({"messages": TALK, "weight": True}, {}, "'weight' must be a number from 0 to 1, got true"),
    ({"messages": [USER, {**ANSWER, "weight": "much"}]}, {}, "messages[1].weight must be a number from 0 to 1, got 'much'"),
    ({"messages": [USER, {**ANSWER, "weight": False}]}, {}, "messages[1].weight must be a number from 0 to 1, got false"),
    ({"messages": [USER, {**ANSWER, "weight": float("nan")}]}, {}, "messages[1].weight must be a number from 0 to 1, got nan"),
    ({"messages": [USER, {**ANSWER, "weight": -0.1}]}, {}, "messages[1].weight must be a number from 0 to 1, got -0.1"),
    ({"messages": [USER, {**ANSWER, "loss": 1}]}, {}, "messages[1].loss must be true or false, got 1"),
    ({"messages": [USER, {**ANSWER, "weight": 1, "train": False}]}, {}, "messages[1]: weight and train contradict each other"),
    ({"messages": [USER, {**ANSWER, "reasoning": 1}]}, {}, "messages[1].reasoning must be text, got int 1"),
    ({"messages": [USER, {**ANSWER, "reasoning": "a", "thinking": "b"}]}, {}, "messages[1]: reasoning and thinking differ"),
    ({"messages": [USER, turn("assistant", None, tool_calls=[{"name": "f"}])]}, {}, "messages[1].tool_calls[0]: must be like {\"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": ...}}, got {\"name\": \"f\"}"),
    ({"messages": [USER, turn("assistant", None, tool_calls={"name": "f"})]}, {}, "messages[1].tool_calls: must be a list of calls, got {\"name\": \"f\"}"),
    ({"messages": [USER, turn("assistant", None, tool_calls=[call("f", "{a")])]}, {}, "messages[1].tool_calls[0].function.arguments: not JSON: Expecting property name enclosed in double quotes in column 2, between '{' and 'a'"),
    ({"messages": [USER, turn("assistant", None, tool_calls=[call("f", "[1]")])]}, {}, "messages[1].tool_calls[0].function.arguments: must be a JSON object, got [1]"),
    ({"messages": [USER, turn("assistant", None, tool_calls=[call("f", '{"a": NaN}')])]}, {}, "messages[1].tool_calls[0].function.arguments.a must be text, a number, a list or an object, got float nan"),
    ({"messages": [USER, turn("assistant", None, function_call="auto")]}, {}, "messages[1].function_call: not JSON: Expecting value in column 1, before 'auto'"),
    ({"messages": [USER, {**FLY, "function_call": {"name": "fly"}}]}, {}, "messages[1]: has both tool_calls and function_call"),
    ({"messages": TALK, "tools": {"a": 1}}, {}, "'tools' must be a list of tools like {\"type\": \"function\", \"function\": {\"name\": ...}}, got {\"a\": 1}"),
    ({"messages": TALK, "tools": "fly"}, {}, "tools: not JSON: Expecting value in column 1, before 'fly'"),
    ({"messages": [turn("system", "S"), *TALK], "system": "T"}, {}, "'system' and the conversation's own system message differ"),
    ({"messages": TALK, "system": 3}, {}, "'system' must be text, got int 3"),
    ({"messages": [USER, {**ANSWER, "reasoning": "a"}], "reasoning_content": "b"}, {}, "'reasoning_content' and the last answer's own thoughts differ"),
    ({"messages": [USER, FLY | {"tool_calls": [call("f", json.loads("[" * 400 + "]" * 400))]}]}, {}, "messages[1].tool_calls[0].function.arguments: must be a JSON object, got [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…"),
    ({"messages": "[" * 100_000}, {}, "nested too deeply to be read"),
    ({"messages": [{**USER, "name": 10**5000}, ANSWER]}, {}, "messages[0].name is an integer of more than 4300 digits"),
    ({"messages": TALK, "author": 10**5000}, {"group": "author"}, "'author' is an integer too long to read"),
    ({"messages": TALK, "author": None}, {"group": "author"}, "'author' is missing"),
    ({"messages": TALK, "author": "\ud83d"}, {"slice": "author"}, "'author' is not Unicode text: it has a lone surrogate '\\ud83d'"),
    ({"conversations": [said("humn", "Hi")]}, {}, "conversations[0]: from must be one of system, developer, user, assistant, tool, human, prompter, gpt, ai, chatbot, chatgpt, bing, bard, model, bot, function, observation, ipython, function_response, tool_response, function_call, tool_call, got 'humn'. Did you mean 'human'?"),
    ({"conversations": [said("human", "Hi"), said("function_call", "fly()")]}, {}, "conversations[1]: not JSON: Expecting value in column 1, before 'fly()'"),
    ({"conversations": [said("human", "Hi"), said("function_call", "[]")]}, {}, "conversations[1]: must be a call of a function, got '[]'"),
    ({"conversations": [said("human", "Hi"), said("function_call", '{"nam": "f"}')]}, {}, "conversations[1]: must be like {\"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": ...}}, got {\"nam\": \"f\"}"),
    ({"conversations": [said("human", "Hi"), said("gpt", None)]}, {}, "conversations[1]: the content of the assistant's message is empty"),
    ({"prompt": "a", "completion": ""}, {}, "'completion' is empty"),
    ({"prompt": "a", "completion": 5}, {}, "'completion' must be text, got int 5"),
    ({"prompt": None, "completion": "b"}, {}, "'prompt' is missing"),
    ({"question": "a", "answer": " "}, {"columns": {"prompt": "question", "completion": "answer"}}, "'answer' is empty"),
    ({"prompt": "a", "completion": [turn("robot", "b")]}, {}, "completion[0]: role must be one of system, developer, user, assistant, tool, got 'robot'."),
    ({"instruction": "a", "input": 3, "output": "b"}, {}, "'input' must be text, got int 3"),
    ({"instruction": "a", "output": None}, {}, "'output' is missing"),
    ({"instruction": "a", "output": "b", "history": "x"}, {}, "history: not JSON: Expecting value in column 1, before 'x'"),
    ({"instruction": "a", "output": "b", "history": {"a": 1}}, {}, "'history' must be a list of [question, answer] pairs, got {\"a\": 1}"),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, {}, "history[0] must be [question, answer], got [\"q\"]"),
    ({"instruction": "a", "output": "b", "history": [["q", ""]]}, {}, "history[0][1]: the content of the assistant's message is empty"),
    ({"chosen": "\n\nHuman: a", "rejected": "b"}, {"columns": {"completion": "chosen"}}, "'chosen' is text without a prompt beside it; it must be a list of messages, or data.columns must name the prompt's column; got '\\n\\nHuman: a'"),
    ({"prompt": [USER], "completion": "Ho"}, {"chat_template": "none"}, "'prompt' must be text, got list [{\"role\": \"user\", \"content\": \"Hi\"}]"),
    ({"prompt": "Hi", "completion": "Ho", "weight": 0}, {"chat_template": "none"}, "nothing to learn from: the row's 'weight' is 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    MISTAKES,
    ids=[f"{i}-{m[2][:50]}" for i, m in enumerate(MISTAKES)],
)
def test_a_row_that_cannot_be_used(row, settings, message):
    assert refusal(row, **settings) == f"data.train: a.jsonl line 1: {message}"
    with pytest.raises(BadRow):
        read(row, **settings)


ALLOWED = (
    "data.train: a.jsonl: not a format of instruction data; allowed are columns 'messages' (OpenAI chat),"
    " 'conversations' (ShareGPT), 'prompt' and 'completion', or 'instruction', 'output' and perhaps 'input'; got "
)
PAIRS = (
    "data.train: a.jsonl: preference pairs (%s), which task: preference trains on;"
    " data.columns: {completion: chosen} trains on the chosen answers alone"
)
TALK_HINT = " If '%s' holds conversations (lists of messages, or JSON text of them), set data.columns: {messages: %s}"

NAMES_HINT = " Columns of other names are told by data.columns: {prompt: ..., completion: ...}"

UNKNOWN = [
    # (columns, settings, message)
    ("text label", {}, ALLOWED + "text, label." + NAMES_HINT),
    ("text", {}, ALLOWED + "text. Text without turns is trained on by task: causal_lm"),
    ("promt completion", {}, ALLOWED + "promt, completion. Did you mean 'prompt'?"),
    ("completion promt", {}, ALLOWED + "completion, promt. Did you mean 'prompt'?"),
    ("mesages", {}, ALLOWED + "mesages. Did you mean 'messages'?"),
    ("conversation id", {}, ALLOWED + "conversation, id." + TALK_HINT % ("conversation", "conversation")),
    ("id Messages_JSON", {}, ALLOWED + "id, Messages_JSON." + TALK_HINT % ("Messages_JSON", "Messages_JSON")),
    ("data", {}, ALLOWED + "data." + TALK_HINT % ("data", "data")),
    ("question answer", {}, ALLOWED + "question, answer. Set data.columns: {prompt: question, completion: answer}"),
    ("Query Response", {}, ALLOWED + "Query, Response. Set data.columns: {prompt: Query, completion: Response}"),
    ("input output", {}, ALLOWED + "input, output. Set data.columns: {prompt: input, completion: output}"),
    ("instruction response", {}, ALLOWED + "instruction, response. Set data.columns: {completion: response}"),
    ("prompt output", {}, ALLOWED + "prompt, output. Set data.columns: {completion: output}"),
    ("a b", {}, ALLOWED + "a, b." + NAMES_HINT),
    ("prompt chosen rejected", {}, PAIRS % "prompt, chosen, rejected"),
    ("chosen rejected", {}, PAIRS % "chosen, rejected"),
    ("messages chosen rejected", {}, PAIRS % "messages, chosen, rejected"),
    ("conversations chosen rejected", {}, PAIRS % "conversations, chosen, rejected"),
    ("messages", {"chat_template": "none"}, "data.train: a.jsonl: data.chat_template: none takes texts in columns 'prompt' and 'completion', or 'instruction', 'output' and perhaps 'input'; got messages."),
    ("question answer", {"columns": {"prompt": "qestion"}}, "data.columns: a.jsonl has no column 'qestion', only question, answer. Did you mean 'question'?"),
    ("messages", {"group": "author"}, "data.group: a.jsonl has no column 'author', only messages."),
    ("messages lng", {"slice": "lang"}, "data.slice: a.jsonl has no column 'lang', only messages, lng. Did you mean 'lng'?"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "settings", "message"), UNKNOWN)
def test_columns_that_are_no_format(columns, settings, message):
    with pytest.raises(InputError) as error:
        conversation_reader(columns.split(), "data.train", "a.jsonl", DataConfig(**settings))
    assert str(error.value) == message


PAIR = {"messages": [USER], "chosen": [ANSWER], "rejected": [turn("assistant", "He")]}
REJECTED = turn("assistant", "He")

PREFERENCES = [
    ({"prompt": "Hi", "chosen": "Ho", "rejected": "He"}, "prompt+chosen+rejected", PAIR),
    ({"prompt": "Hi", "chosen": TALK, "rejected": [USER, REJECTED]}, "prompt+chosen+rejected", PAIR),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [REJECTED]}, "prompt+chosen+rejected", PAIR),
    ({"chosen": TALK, "rejected": [USER, REJECTED]}, "chosen+rejected", PAIR),
    ({"chosen": json.dumps(TALK), "rejected": [USER, REJECTED]}, "chosen+rejected", PAIR),
    ({"messages": [USER], "chosen": ANSWER, "rejected": REJECTED}, "messages+chosen+rejected", PAIR),
    ({"conversations": [said("human", "Hi")], "chosen": said("gpt", "Ho"), "rejected": said("gpt", "He")}, "conversations+chosen+rejected", PAIR),
    ({"instruction": "Hi", "input": "", "chosen": "Ho", "rejected": "He"}, "instruction+chosen+rejected", PAIR),
    ({"prompt": "Hi", "chosen": "Ho", "rejected": "He", "system": "S", "tools": [TOOL]}, "prompt+chosen+rejected", {**PAIR, "messages": [turn("system", "S"), USER], "tools": [TOOL]}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "name", "expected"), PREFERENCES)
def test_preference_pairs(row, name, expected):
    found, record = read({**row, "id": "7"}, preference_reader)
    assert (found, record.value, record.unused) == (name, expected, ("id",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "data.train: a.jsonl: not a format of preference pairs; needed are columns 'chosen' and 'rejected', and 'prompt' unless they hold it; got prompt, completion."),
        ({"chosen": TALK, "rejected": [turn("user", "other"), ANSWER]}, "data.train: a.jsonl line 1: 'chosen' and 'rejected' have no prompt in common"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "data.train: a.jsonl line 1: 'rejected' is missing"),
        ({"prompt": "a", "chosen": [USER], "rejected": "x"}, "data.train: a.jsonl line 1: 'chosen' has no assistant message"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "Ho"}, "data.train: a.jsonl line 1: 'chosen' and 'rejected' are the same"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "He", "weight": 0.5}, "data.train: a.jsonl line 1: a pair and its messages have no weights but 1, got 0.5"),
        ({"prompt": "Hi", "chosen": {**ANSWER, "weight": 0}, "rejected": "He"}, "data.train: a.jsonl line 1: a pair and its messages have no weights but 1, got 0.0"),
    ],
)  # fmt: skip
def test_no_preference_pairs(row, message):
    assert refusal(row, preference_reader) == message


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("name", "expected", "count", "unused"),
    [
        ("alpaca_demo", "instruction+input+output", 999, ()),
        ("drone_tool_calls", "messages", 103, ("parallel_tool_calls",)),
        ("toy_chat", "messages", 5, ()),
    ],
)
def test_real_conversations(name, expected, count, unused, shared_data):
    rows = rows_of(shared_data / f"chat/{name}.jsonl")
    found = [read(row) for row in rows]
    assert len(found) == count
    assert {name for name, _ in found} == {expected}
    assert {record.unused for _, record in found} == {unused}
    for row, (_, record) in zip(rows, found, strict=True):
        assert all(missing in SAID for missing in lost(row, record))


def test_real_preferences(shared_data):
    rows = rows_of(shared_data / "preference/dpo_demo.jsonl")
    for row in rows:
        pair = value(row, preference_reader)
        whole = messages(row, columns={"completion": "chosen"})
        assert whole == pair["messages"] + pair["chosen"]
        assert whole[-1]["content"] == row["chosen"]["value"]
        assert pair["rejected"] == [turn("assistant", row["rejected"]["value"])]
    assert len(rows) == 300


# Whatever stands in a row.

SAID = {"user", "assistant", "human", "gpt", "function", "function_call", "observation", "chatgpt"}
"""Roles, which are kept under the name of another."""


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def lost(row, record):
    """Texts of a row that are neither in its record nor under what is told to be unused."""
    kept = json.dumps(record.value, ensure_ascii=False, sort_keys=True)
    for column, value in row.items():
        if column in record.unused:
            continue
        unused = {path.rpartition(".")[2] for path in record.unused if path.startswith(column)}
        for text in strings(without(parsed(value), unused)):
            if json.dumps(text, ensure_ascii=False)[1:-1].strip() not in kept:
                yield text


def parsed(value):
    """With JSON text for what it says."""
    if isinstance(value, dict):
        return {key: parsed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [parsed(item) for item in value]
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return parsed(json.loads(value))
        except ValueError:
            return value
    return value


def without(value, keys):
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value
