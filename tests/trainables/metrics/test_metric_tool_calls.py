"""Calls of tools, however they are written."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.metrics import Answer
from trainables.metrics.tool_calls import ToolCalls, read_calls

PARIS = {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
CLOCK = {"name": "time.now", "arguments": {}}
BOTH = [PARIS, CLOCK]
ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


def openai(call, **arguments):
    written = json.dumps(call["arguments"], **arguments)
    return {"id": "1", "type": "function", "function": {"name": call["name"], "arguments": written}}


def hermes(call):
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def llama3(call):
    return json.dumps({"name": call["name"], "parameters": call["arguments"]})


RENDERINGS = {
    "openai": lambda calls: json.dumps([openai(call) for call in calls]),
    "openai message": lambda calls: json.dumps(
        {"role": "assistant", "content": None, "tool_calls": [openai(c) for c in calls]}
    ),
    "hermes": lambda calls: "\n".join(map(hermes, calls)),
    "hermes after thought": lambda calls: (
        f"<think>{hermes(PARIS)} or not</think>I ask:\n" + "".join(map(hermes, calls))
    ),
    "llama 3": lambda calls: "; ".join(map(llama3, calls)),
    "llama 3 tag": lambda calls: "<|python_tag|>" + "\n".join(map(llama3, calls)),
    "mistral": lambda calls: f"[TOOL_CALLS]{json.dumps(calls)}",
    "mistral later": lambda calls: "".join(
        f"[TOOL_CALLS]{c['name']}[ARGS]{json.dumps(c['arguments'])}" for c in calls
    ),
    "granite": lambda calls: f"<|tool_call|>{json.dumps(calls)}",
    "command r": lambda calls: (
        "Action: ```json\n"
        + json.dumps(
            [{"tool_name": c["name"], "parameters": c["arguments"]} for c in calls], indent=4
        )
        + "\n```"
    ),
    "gpt-oss": lambda calls: "".join(
        f"<|start|>assistant<|channel|>commentary to=functions.{c['name']} <|constrain|>json<|message|>{json.dumps(c['arguments'])}<|call|>"
        for c in calls
    ),
    "function tag": lambda calls: "".join(
        f"<function={c['name']}>{json.dumps(c['arguments'])}</function>" for c in calls
    ),
}


def score(text, reference, **options):
    return ToolCalls(**options).score([Answer("", text, reference)])[0]


@pytest.mark.parametrize("rendering", RENDERINGS.values(), ids=RENDERINGS)
@pytest.mark.parametrize("other", [RENDERINGS["openai"], RENDERINGS["hermes"]])
def test_calls_are_the_same_however_they_are_written(rendering, other):
    assert score(rendering(BOTH), other(BOTH)) == 1
    assert score(rendering(BOTH[::-1]), other(BOTH)) == 1
    assert score(rendering([PARIS]), other(BOTH)) == 0
    assert score(rendering([PARIS, PARIS]), other(BOTH)) == 0
    assert score(rendering([{**PARIS, "name": "wether"}, CLOCK]), other(BOTH)) == 0
    assert (
        score(
            rendering([{**PARIS, "arguments": {"city": "Paris", "days": "2"}}, CLOCK]), other(BOTH)
        )
        == 0
    )


@given(st.lists(ARGUMENTS, min_size=1, max_size=3), st.sampled_from(list(RENDERINGS)), st.randoms())
def test_the_order_of_keys_and_the_writing_of_numbers_do_not_count(arguments, name, random):
    calls = [{"name": "f", "arguments": each} for each in arguments]
    shuffled = [
        {"name": "f", "arguments": dict(random.sample(list(each.items()), len(each)))}
        for each in arguments
    ]
    assert score(RENDERINGS[name](shuffled), RENDERINGS["openai"](calls)) == 1
    assert (
        score('{"name": "f", "arguments": {"a": 1.0}}', '{"name": "f", "arguments": {"a": 1}}') == 1
    )
    assert (
        score('{"name": "f", "arguments": {"a": true}}', '{"name": "f", "arguments": {"a": 1}}')
        == 0
    )


@pytest.mark.parametrize(
    "template", ["qwen25", "qwen3", "mistral_v7", "granite", "command_r", "gpt_oss"]
)
def test_calls_are_read_from_what_chat_templates_write(template):
    """As trained: the templates that the conversations are tested with."""
    source = (
        Path(__file__).parent.parent / "tasks" / "templates" / f"{template}.jinja"
    ).read_text()
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {
        "raise_exception": lambda said: pytest.fail(said),
        "strftime_now": lambda _: "today",
    }
    call = {"type": "function", "function": PARIS, "id": "123456789"}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    written = environment.from_string(source).render(
        messages=messages, bos_token="", eos_token="", tools=None, add_generation_prompt=False
    )
    assert read_calls(written[written.index("Weather?") :]) == read_calls(json.dumps(PARIS))


def test_rows_without_calls():
    assert np.isnan(score(hermes(PARIS), "It rains."))
    assert score(hermes(PARIS), "It rains.", refrain=True) == 0
    assert score("It rains.", "It is dry.", refrain=True) == 1
    assert score("It rains.", hermes(PARIS)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"name": "f"',
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": 3, "arguments": {}}',
        '{"name": "f", "arguments": "not JSON"}',
        '{"name": "f", "arguments": [1]}',
        '{"function": {"arguments": {}}}',
        '{"tool_calls": "none"}',
        '{"name": "f", "arguments": ' + '{"a":' * 100_000,
        '[{"a":' * 50_000,
        '{"' * 5_000,
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
    ],
)
def test_what_is_no_call(text):
    assert read_calls(text) == []
    assert score(text, hermes(PARIS)) == 0
