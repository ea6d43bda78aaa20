"""Templates that behave like those of well-known models: what is learnt of a conversation is what the model has to
write after its prompt, up to the end of its turn, and what a template leaves out is named."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainables.tasks.test_chat_format import (
    CHATML,
    SPECIALS,
    answers,
    bytes_tokenizer,
    call,
    turn,
)
from tests.trainables.tasks.test_conversations import messages as as_read
from trainables.data.records import IGNORED, Record
from trainables.errors import InputError
from trainables.tasks.instruction.layout import Row, Shape, Template
from trainables.tasks.instruction.rendering import Renderer
from trainables.tasks.instruction.templates import PRESETS, chat_template
from trainables.tasks.instruction.tokens import Tokeniser, tokeniser

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Kind:
    header: str
    """What the model is given to begin its turn."""
    end: str
    last_end: str = ""
    """Of the last turn, where it has another one."""
    opening: str = ""
    """What it writes before its words, as a pattern."""
    eos: str = "</s>"
    trims: bool = False


KINDS = {
    "llama2": Kind(header=" [/INST] ", end=" </s>", trims=True),
    "llama3": Kind(header="<|start_header_id|>assistant<|end_header_id|>\n\n", end="<|eot_id|>", eos="<|eot_id|>", trims=True),
    "mistral_v1": Kind(header=" [/INST] ", end="</s>"),
    "mistral_v7": Kind(header="[/INST] ", end="</s>"),
    "gemma": Kind(header="<start_of_turn>model\n", end="<end_of_turn>", trims=True),
    "qwen25": Kind(header="<|im_start|>assistant\n", end="<|im_end|>", eos="<|im_end|>"),
    "qwen3": Kind(header="<|im_start|>assistant\n", end="<|im_end|>", eos="<|im_end|>", opening="(<think>\n\n</think>\n\n)?"),
    "deepseek_r1": Kind(header="<｜Assistant｜>", end="<｜end▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>"),
    "phi3": Kind(header="<|assistant|>\n", end="<|end|>", last_end="<|end|>\n<|endoftext|>", eos="<|endoftext|>"),
    "phi4": Kind(header="<|im_start|>assistant<|im_sep|>", end="<|im_end|>"),
    "gpt_oss": Kind(header="<|start|>assistant", end="<|end|>", last_end="<|return|>", eos="<|return|>", opening=re.escape("<|channel|>final<|message|>")),
    "command_r": Kind(header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", end="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", opening=re.escape("<|START_RESPONSE|>"), trims=True),
    "granite": Kind(header="<|start_of_role|>assistant<|end_of_role|>", end="<|end_of_text|>"),
    "chatml": Kind(header="<|im_start|>assistant\n", end="<|im_end|>"),
    "zephyr": Kind(header="<|assistant|>\n", end="</s>"),
}  # fmt: skip

TOKENS = re.compile(r"<[|｜][^<>|｜]*[|｜]>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>")


@cache
def tokenizer_of(name):
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    kind = KINDS[name]
    specials = sorted({*SPECIALS, *TOKENS.findall(template), *TOKENS.findall(kind.eos)})
    return bytes_tokenizer(template, specials=specials, eos_token=kind.eos)


@cache
def renderer_of(name, reasoning="train"):
    return Renderer(tokenizer_of(name), tokenizer_of(name).chat_template, reasoning=reasoning)


def tokens(tokenizer, value, setting=None, **options):
    (row,) = Tokeniser(tokenizer, setting, **options).tokenise(
        [Record(value=value, place="row 1", key=b"", shown="")]
    )
    if isinstance(row, InputError):
        raise row
    return row


def learnt(tokenizer, value, **options):
    """What is learnt of a conversation, by runs of tokens, and what is lost."""
    row = tokens(tokenizer, value, **options)
    labels = np.where(row.learnt, row.ids, IGNORED)
    return (answers(tokenizer, row.ids, labels) if row.learnt.any() else []), row.lost


TALK = [turn("user", "Q1"), turn("assistant", "A1"), turn("user", "Q2"), turn("assistant", "A2")]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "fly",
            "description": "Goes up",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string", "description": "Where to"}},
            },
        },
    }
]


def called(*arguments, **more):
    calls = [{**call("fly", each), "id": "abcdefgh1"} for each in arguments]
    return turn("assistant", "", tool_calls=calls, **more)


def result(text):
    return turn("tool", text, tool_call_id="abcdefgh1")


@pytest.mark.parametrize("first", [[], [turn("system", "Be kind.")]], ids=["plain", "system"])
@pytest.mark.parametrize("name", KINDS)
def test_answers_are_learnt_with_what_the_template_writes_in_their_turn(name, first):
    tokenizer, kind = tokenizer_of(name), KINDS[name]
    if first and name in ("mistral_v1", "gemma"):
        with pytest.raises(
            InputError, match="^row 1: the chat template refuses this conversation: "
        ):
            learnt(tokenizer, {"messages": first + TALK})
        return
    said, lost = learnt(tokenizer, {"messages": first + TALK})
    assert lost == ()
    opening = re.sub(r"\\(.)", r"\1", kind.opening)
    if name == "qwen3":
        opening, thought = "", "<think>\n\n</think>\n\n"  # before the last answer only
    else:
        thought = opening
    assert said == [opening + "A1" + kind.end, thought + "A2" + (kind.last_end or kind.end)]


CALLS = {
    "llama3": ['{"name": "fly", "parameters": {"to": "sea", "n": 5}}<|eot_id|>'],
    "mistral_v7": ['[TOOL_CALLS][{"name": "fly", "arguments": {"to": "sea", "n": 5}, "id": "abcdefgh1"}]</s>'],
    "qwen25": ['<tool_call>\n{"name": "fly", "arguments": {"to": "sea", "n": 5}}\n</tool_call><|im_end|>'],
    "qwen3": ['<tool_call>\n{"name": "fly", "arguments": {"to": "sea", "n": 5}}\n</tool_call><|im_end|>'],
    "deepseek_r1": ['<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>fly\n```json\n{"to": "sea", "n": 5}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'],
    "gpt_oss": [' to=functions.fly<|channel|>commentary json<|message|>{"to": "sea", "n": 5}<|call|>'],
    "command_r": ['<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "fly", "parameters": {"to": "sea", "n": 5}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>'],
    "granite": ['<|tool_call|>[{"name": "fly", "arguments": {"to": "sea", "n": 5}}]<|end_of_text|>'],
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_calls_of_tools(name):
    tokenizer, kind = tokenizer_of(name), KINDS[name]
    messages = [turn("user", "Q1"), called({"to": "sea", "n": 5}), result("R1"), *TALK[1:]]
    value = {"messages": messages, "tools": TOOLS}
    if name not in CALLS:
        with pytest.raises(
            InputError, match="the chat template (does not write out tool calls|refuses this)"
        ):
            learnt(tokenizer, value)
        return
    said, lost = learnt(tokenizer, value)
    assert said[:1] == CALLS[name]
    assert [text.endswith(kind.last_end or kind.end) for text in said[1:]] == [
        not kind.last_end,
        True,
    ]
    assert ["A1" in said[1], "A2" in said[2], len(said)] == [True, True, 3]
    assert lost == (("tools",) if name == "deepseek_r1" else ())


@pytest.mark.parametrize(
    "name", ["mistral_v7", "qwen25", "qwen3", "deepseek_r1", "command_r", "granite"]
)
def test_several_calls_and_results_in_a_row(name):
    messages = [
        turn("user", "Q"),
        called({"to": "sea"}, {"to": "land"}),
        result("R1"),
        result("R2"),
        turn("assistant", "A"),
    ]
    said, _ = learnt(tokenizer_of(name), {"messages": messages, "tools": TOOLS})
    assert len(said) == 2 and said[0].count("fly") == 2 and "sea" in said[0] and "land" in said[0]
    assert "A" in said[1] and "R" not in said[1].replace("END_RESPONSE", "").replace(
        "START_RESPONSE", ""
    ).replace("TURN", "")


def test_a_template_that_writes_one_call_only_is_refused():
    messages = [
        turn("user", "Q"),
        called({"to": "sea"}, {"to": "land"}),
        result("R"),
        turn("assistant", "A"),
    ]
    with pytest.raises(
        InputError, match=r"^row 1: messages\[1\]: the chat template does not write out tool calls"
    ):
        learnt(tokenizer_of("gpt_oss"), {"messages": messages})
    with pytest.raises(InputError, match="refuses this conversation: only one tool call at a time"):
        learnt(tokenizer_of("llama3"), {"messages": messages})


def test_a_function_whose_name_a_template_asks_for():
    """Marks in the name would have changed what it renders."""
    code = {**call("python", {"code": "1 + 1"}), "id": "abcdefgh1"}
    messages = [
        turn("user", "Q"),
        turn("assistant", "", tool_calls=[code]),
        result("2"),
        turn("assistant", "A"),
    ]
    said, lost = learnt(tokenizer_of("llama3"), {"messages": messages})
    assert (said, lost) == (["<|python_tag|>1 + 1<|eom_id|>", "A<|eot_id|>"], ())


@pytest.mark.parametrize(
    "name",
    ["chatml", "qwen25", "qwen3", "gpt_oss", "llama3", "mistral_v7", "granite", "zephyr", "phi3"],
)
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([TALK[1]], ["A1"]),
        ([TALK[1], *TALK[2:]], ["A1", "A2"]),
        ([TALK[0], TALK[1], TALK[3]], ["A1", "A2"]),
        (TALK[:3], ["A1"]),
    ],
    ids=["alone", "first", "two in a row", "not last"],
)  # fmt: skip
def test_answers_anywhere(messages, expected, name):
    kind = KINDS[name]
    said, _ = learnt(tokenizer_of(name), {"messages": messages})
    assert len(said) == len(expected)
    for text, answer in zip(said, expected, strict=True):
        assert re.fullmatch(
            f"{kind.opening}{answer}({re.escape(kind.end)}|{re.escape(kind.last_end or kind.end)})",
            text,
        )


@pytest.mark.parametrize("name", ["llama3", "mistral_v7", "deepseek_r1"])
def test_words_beside_a_call_that_a_template_leaves_out(name):
    messages = [turn("user", "Q"), {**called({"to": "sea"}), "content": "I go."}]
    with pytest.raises(
        InputError,
        match=r"^row 1: messages\[1\]: the chat template leaves out the assistant's 'I go.'",
    ):
        learnt(tokenizer_of(name), {"messages": messages})


def test_arguments_that_a_template_would_write_as_python():
    tokenizer = bytes_tokenizer(
        CHATML.replace("call.function | tojson", "call.function.name ~ call.function.arguments")
    )
    said, _ = learnt(tokenizer, {"messages": [turn("user", "Q"), called({"to": "é", "far": True})]})
    assert said == ['<call>fly{"to": "é", "far": true}</call><|im_end|>']


# What is left out


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("qwen25", ("the developer's message, rendered as the system's",)),
        ("qwen3", ("the developer's message, rendered as the system's",)),
        ("mistral_v7", ("the developer's message, rendered as the system's",)),
        ("llama2", ("the developer's message, rendered as the system's",)),
        ("gpt_oss", ()),
        ("granite", ()),
        ("chatml", ()),
    ],
)
def test_the_developers_message(name, lost):
    tokenizer = tokenizer_of(name)
    row = tokens(tokenizer, {"messages": [turn("developer", "Be kind."), *TALK]})
    assert row.lost == lost and "Be kind." in tokenizer.decode(row.ids)


def test_what_a_template_leaves_out_is_named():
    tokenizer = bytes_tokenizer(
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    messages = [
        turn("system", "S"),
        turn("developer", "D"),
        turn("user", "Q"),
        called({}, weight=0),
        result("R"),
        turn("assistant", "A"),
    ]
    said, lost = learnt(
        tokenizer,
        {"messages": messages, "tools": TOOLS, "documents": [{"title": "T", "text": "words"}]},
    )
    assert said == ["A<|im_end|>"]
    assert set(lost) == {
        "the system message",
        "the developer's message",
        "the assistant's tool calls",
        "tool results",
        "tools",
        "documents",
    }
    assert learnt(tokenizer, {"messages": messages[2:3] + messages[5:]})[1] == ()


def test_tools_of_which_only_the_names_are_written():
    tokenizer = bytes_tokenizer("{% for t in tools %}{{ t.function.name }}{% endfor %}" + CHATML)
    assert learnt(tokenizer, {"messages": TALK, "tools": TOOLS})[1] == ("parts of the tools",)


def test_words_that_a_template_changes():
    template = CHATML.replace("m.content", "(m.content | upper if m.role == 'user' else m.content)")
    said, lost = learnt(
        bytes_tokenizer(template), {"messages": [turn("user", "why"), turn("assistant", "so")]}
    )
    assert (said, lost) == (["so<|im_end|>"], ("a user's message, which it changes",))


# Thoughts

THINKING = [turn("user", "Q1"), turn("assistant", "A1", reasoning_content="T1"), turn("user", "Q2"), turn("assistant", "A2", reasoning_content="T2")]  # fmt: skip


def test_thoughts_of_earlier_turns_that_a_template_drops():
    """An answer without its thought is no target: learning it would unlearn thinking."""
    qwen, harmony = tokenizer_of("qwen3"), tokenizer_of("gpt_oss")
    lost = ("thoughts of earlier turns",)
    assert learnt(qwen, {"messages": THINKING}) == (["<think>\nT2\n</think>\n\nA2<|im_end|>"], lost)
    assert learnt(harmony, {"messages": THINKING}) == (
        [
            "<|channel|>analysis<|message|>T2<|end|><|start|>assistant<|channel|>final<|message|>A2<|return|>"
        ],
        lost,
    )
    only_first = [{**m, "weight": 0} if m["content"] == "A2" else m for m in THINKING]
    for refused in (
        {"messages": only_first},
        {"messages": [*THINKING[:2], turn("user", "Q2"), turn("assistant", "A2", weight=0)]},
    ):
        with pytest.raises(
            InputError,
            match="^row 1: the chat template leaves out the assistant's thoughts of every message that is to be learnt",
        ):
            learnt(qwen, refused)


def test_thoughts_may_be_kept_without_loss_or_dropped():
    value = {"messages": THINKING}
    qwen, harmony = tokenizer_of("qwen3"), tokenizer_of("gpt_oss")
    said, lost = learnt(qwen, value, reasoning="keep")
    assert (said, lost) == (["A1<|im_end|>", "A2<|im_end|>"], ("thoughts of earlier turns",))
    assert "T2" in qwen.decode(tokens(qwen, value, reasoning="keep").ids)
    assert (
        learnt(harmony, value, reasoning="keep")[0][1]
        == "<|start|>assistant<|channel|>final<|message|>A2<|return|>"
    )
    assert learnt(qwen, value, reasoning="drop") == (
        ["A1<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"],
        (),
    )
    assert "T" not in qwen.decode(tokens(qwen, value, reasoning="drop").ids)


@pytest.mark.parametrize("name", ["qwen25", "llama3", "chatml", "zephyr", "phi4"])
def test_templates_that_know_thoughts_only_in_a_content(name):
    end = KINDS[name].end
    expected = [f"<think>\nT1\n</think>\n\nA1{end}", f"<think>\nT2\n</think>\n\nA2{end}"]
    assert learnt(tokenizer_of(name), {"messages": THINKING}) == (expected, ())


def test_thoughts_in_a_content_are_thoughts():
    given = [turn("user", "Q"), turn("assistant", "<think>\nT\n</think>\n\nA")]
    messages = as_read({"messages": given})
    assert learnt(tokenizer_of("qwen3"), {"messages": messages})[0] == [
        "<think>\nT\n</think>\n\nA<|im_end|>"
    ]
    assert learnt(tokenizer_of("gpt_oss"), {"messages": messages})[0] == [
        "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>"
    ]


def test_a_template_that_writes_no_thoughts():
    tokenizer = tokenizer_of("deepseek_r1")
    with pytest.raises(InputError, match="leaves out the assistant's thoughts of every message"):
        learnt(tokenizer, {"messages": THINKING})
    assert learnt(tokenizer, {"messages": THINKING}, reasoning="keep")[1] == (
        "the assistant's thoughts",
    )
    assert learnt(tokenizer, {"messages": THINKING}, reasoning="drop")[1] == ()


def test_a_call_with_its_thought():
    messages = [
        turn("user", "Q"),
        called({"to": "sea"}, reasoning_content="T1"),
        result("R"),
        turn("assistant", "A", reasoning_content="T2"),
    ]
    said, lost = learnt(tokenizer_of("qwen3"), {"messages": messages, "tools": TOOLS})
    assert said == [
        '<think>\nT1\n</think>\n\n<tool_call>\n{"name": "fly", "arguments": {"to": "sea"}}\n</tool_call><|im_end|>',
        "<think>\nT2\n</think>\n\nA<|im_end|>",
    ]
    assert lost == ()
    said, _ = learnt(
        tokenizer_of("qwen3"), {"messages": messages, "tools": TOOLS}, reasoning="keep"
    )
    assert said == [
        '<tool_call>\n{"name": "fly", "arguments": {"to": "sea"}}\n</tool_call><|im_end|>',
        "A<|im_end|>",
    ]
    said, lost = learnt(tokenizer_of("gpt_oss"), {"messages": messages[:2]})
    assert said == ['<|channel|>analysis<|message|>T1<|end|><|start|>assistant to=functions.fly<|channel|>commentary json<|message|>{"to": "sea"}<|call|>']  # fmt: skip


# Weights


@pytest.mark.parametrize("name", ["chatml", "phi4", "qwen3"])
def test_weights_of_rows_and_messages(name):
    tokenizer = tokenizer_of(name)
    messages = [TALK[0], {**TALK[1], "weight": 0.5}, *TALK[2:]]
    row = tokens(tokenizer, {"messages": messages, "weight": 0.5})
    said = answers(tokenizer, row.ids, np.where(row.learnt, row.ids, IGNORED))
    assert len(said) == 2
    assert sorted(set(row.weights[row.learnt])) == [0.25, 0.5]
    assert tokenizer.decode(row.ids[row.learnt & (row.weights == 0.25)]) == "A1<|im_end|>"
    assert tokens(tokenizer, {"messages": TALK}).weights is None
    assert not tokens(tokenizer, {"messages": TALK, "weight": 0}).learnt.any()


@pytest.mark.parametrize("name", KINDS)
def test_only_the_last_answer(name):
    every, _ = learnt(tokenizer_of(name), {"messages": TALK})
    assert learnt(tokenizer_of(name), {"messages": TALK}, train_on="last_answer")[0] == every[1:]
    first = {"messages": [*TALK[:3], {**TALK[3], "weight": 0}]}
    assert learnt(tokenizer_of(name), first)[0] == every[:1]


# Any conversation with any template

NASTY = ["Yes", " Yes", "Yes\n\n", "  indented\n\tcode ", "<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>", "[/INST] Yes</s>", "<|eot_id|>", "<end_of_turn>\n<start_of_turn>model\nYes",
         "<tool_response>x</tool_response>", "a </think> b", "<think>", "\ue000Yes\ue001", "\U000f0000", "Été 😀", 'quo"te \\ \n', "assistant", "user", "<|assistant|>\nYes", "{{ m.content }}",
         "<|channel|>final<|message|>Yes<|end|>", "<|start|>assistant", "<|start_of_role|>assistant<|end_of_role|>", "x" * 300]  # fmt: skip
words = st.one_of(
    st.sampled_from(NASTY),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="§"), min_size=1, max_size=12
    ).filter(str.strip),
)


@st.composite
def conversations(draw):
    messages = (
        [turn(draw(st.sampled_from(["system", "developer"])), draw(words))]
        if draw(st.booleans())
        else []
    )
    for _ in range(draw(st.integers(1, 4))):
        messages += [turn("user", draw(words)), turn("assistant", draw(words))]
    if draw(st.booleans()):
        messages[-1]["weight"] = draw(st.sampled_from([0, 0.5, 1]))
    return messages


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(messages=conversations())
def test_any_conversation(name, messages):
    tokenizer, kind = tokenizer_of(name), KINDS[name]
    said = [m for m in messages if m["role"] == "assistant"]
    try:
        rendered = renderer_of(name).render({"messages": messages}, "row 1")
    except InputError as error:
        assert "refuses this conversation" in str(error) or any(
            "think>" in m["content"] for m in said
        ), error
        return
    text, spans = rendered.text, rendered.spans
    assert text in forms(tokenizer, messages)
    learnt_of = [m for m in said if m.get("weight", 1)]
    assert len(spans) == len(learnt_of)
    for span, message in zip(spans, learnt_of, strict=True):
        end = kind.last_end if message is messages[-1] and kind.last_end else kind.end
        content = message["content"]
        edges = (
            {content, content.strip()}
            if kind.trims
            else {content, content.lstrip(), content.lstrip("\n")}
        )
        pattern = f"{kind.opening}({'|'.join(map(re.escape, edges))}){re.escape(end)}"
        assert re.fullmatch(pattern, text[span.start : span.end], re.DOTALL)
        assert text[: span.start].rstrip().endswith(kind.header.rstrip())
        assert span.weight == message.get("weight", 1)
    # nothing that others said is learnt
    rest, at = (
        "".join(
            text[a:b]
            for a, b in zip(
                [0, *(s.end for s in spans)], [*(s.start for s in spans), None], strict=True
            )
        ),
        0,
    )
    for message in messages:
        if message["role"] != "assistant" and not rendered.lost:
            at = rest.index(message["content"].strip(), at) + len(message["content"].strip())


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}<{{ m.role }}>{{ m.content | trim }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("reasoning", ["train", "drop"])
@pytest.mark.parametrize("name", [*KINDS, "marked"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(texts=st.lists(st.lists(words, min_size=5, max_size=5), min_size=2, max_size=4))
def test_a_conversation_of_a_known_form_is_found_as_if_it_were_the_first(name, reasoning, texts):
    def new():
        if name == "marked":
            return Renderer(tokenizer_of("chatml"), MARKED, reasoning=reasoning)
        return Renderer(tokenizer_of(name), tokenizer_of(name).chat_template, reasoning=reasoning)

    def rendered(renderer, said):
        roles = ["system", "user", "assistant", "user", "assistant"]
        value = {"messages": [turn(role, text) for role, text in zip(roles, said, strict=True)]}
        try:
            return renderer.render(value, "row 1")
        except InputError as error:
            return str(error)

    knowing = new()
    for said in (["a", "b", "c", "d", "e"], *texts):
        assert rendered(knowing, said) == rendered(new(), said)


@st.composite
def conversations_with_tools(draw):
    """Every text has a number of its own, so that one sees where it went."""
    count = iter(range(1000))

    def text():
        return f"{draw(words)}§{next(count)}§{draw(st.sampled_from(['', ' ', '</x>', 'é']))}"

    def answer(*, calls):
        message = (
            called(*({"to": text(), "n": 1} for _ in range(calls)))
            if calls
            else turn("assistant", text())
        )
        if draw(st.booleans()):
            message["reasoning_content"] = text().strip()
        if draw(st.integers(0, 4)) == 0:
            message["weight"] = 0
        return message

    messages = [turn("system", text())] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(turn("user", text()))
        if draw(st.booleans()):
            calls = draw(st.integers(1, 2))
            messages += [answer(calls=calls), *(result(text()) for _ in range(calls))]
        messages.append(answer(calls=0))
    return messages


@pytest.mark.parametrize("reasoning", ["train", "keep", "drop"])
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(messages=conversations_with_tools())
def test_any_conversation_with_tools(name, reasoning, messages):
    kind = KINDS[name]
    try:
        rendered = renderer_of(name, reasoning).render(
            {"messages": messages, "tools": TOOLS}, "row 1"
        )
    except InputError as error:
        known = "refuses this conversation|does not write out tool calls|of every message that is to be learnt"
        assert re.search(known, str(error)) or "think>" in json.dumps(messages), error
        return
    marked = [set(re.findall("§[0-9]+§", rendered.text[s.start : s.end])) for s in rendered.spans]
    assert not any(a & b for i, a in enumerate(marked) for b in marked[:i])
    ends = (kind.end, kind.last_end or kind.end, "<|call|>", "<|eom_id|>", "<|END_OF_TURN_TOKEN|>")
    assert all(rendered.text[s.start : s.end].endswith(ends) for s in rendered.spans)
    every = [numbers(m) for m in messages if m["role"] == "assistant"]
    others = set().union(
        *(numbers(m) for m in messages if m["role"] != "assistant" or m.get("weight") == 0)
    )
    assert not set().union(*marked) & others
    for span in marked:
        (own,) = (said for said in every if said & span)
        thoughts = next(
            numbers({"t": m.get("reasoning_content", "")}) for m in messages if numbers(m) == own
        )
        assert span == (own if reasoning == "train" else own - thoughts)
    left = [
        m
        for m in messages
        if m["role"] == "assistant"
        and m.get("weight") != 0
        and not any(numbers(m) & s for s in marked)
    ]
    assert all("reasoning_content" in m and rendered.lost for m in left)


def numbers(message):
    return set(re.findall("§[0-9]+§", json.dumps(message, ensure_ascii=False)))


def forms(tokenizer, messages):
    """The conversation as transformers renders it, as it is or with the developer's message as the system's."""
    found = []
    as_system = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    for form in (messages, as_system):
        try:
            found.append(tokenizer.apply_chat_template(form, tokenize=False))
        except Exception:  # a refusal, of whatever kind
            continue
    return found


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(messages=conversations())
def test_tokens_are_those_of_the_text(name, messages):
    tokenizer = tokenizer_of(name)
    try:
        row = tokens(tokenizer, {"messages": messages})
    except InputError:
        return
    text = Renderer(tokenizer, tokenizer.chat_template).render({"messages": messages}, "row 1")
    assert tokenizer.decode(row.ids) == text.text
    assert list(row.ids) == tokenizer(text.text, add_special_tokens=False).input_ids
    said = (
        answers(tokenizer, row.ids, np.where(row.learnt, row.ids, IGNORED))
        if row.learnt.any()
        else []
    )
    assert said == [text.text[span.start : span.end] for span in text.spans]
    if name != "llama2":  # which begins every turn of a user with one
        begins = sum(int(token) == tokenizer.bos_token_id for token in row.ids)
        assert begins - json.dumps(messages).count("<s>") in (0, 1)


@pytest.mark.parametrize("name", KINDS)
def test_templates_render_as_transformers_renders_them(name):
    tokenizer = tokenizer_of(name)
    template = Template(tokenizer.chat_template, tokenizer.special_tokens_map)
    values = [
        (TALK, None), ([turn("system", "S"), *TALK], None), ([turn("developer", "S"), *TALK], TOOLS), (THINKING, None),
        ([turn("user", "Q"), called({"to": "sea", "ü": [1, None, {"a": "b"}]}), result('R"'), *TALK[1:]], TOOLS),
    ]  # fmt: skip
    for messages, tools in values:
        for prompt in (False, True):
            given = dict(tools=tools, tokenize=False, add_generation_prompt=prompt)
            shaped = [Shape().of(message) for message in messages]
            ours = template.attempt(Row(messages=shaped, tools=tools), add_generation_prompt=prompt)
            if ours is None:
                with pytest.raises(Exception):  # noqa: B017
                    tokenizer.apply_chat_template(messages, **given)
            else:
                assert ours == tokenizer.apply_chat_template(messages, **given)


# The template itself


@pytest.mark.parametrize("setting", [None, *PRESETS])
def test_presets_write_every_part_of_a_row_as_it_is(setting):
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer(specials=[*SPECIALS, "<|eot_id|>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    messages = [
        turn("system", " S\n"), turn("developer", "D"), turn("user", "\tQ "), called({"to": "sea"}, reasoning_content="T1"), result("{}"),
        turn("assistant", "  indented\n\tcode\n", reasoning_content="T2"),
    ]  # fmt: skip
    row = tokens(tokenizer, {"messages": messages, "tools": TOOLS}, setting)
    text = tokenizer.decode(row.ids)
    assert row.lost == () and row.weights is None
    assert [
        text.count(part) for part in (" S\n", "D", "\tQ ", "sea", "Goes up", "  indented\n\tcode\n")
    ] == [1] * 6
    assert [int(token) for token in row.ids].count(tokenizer.bos_token_id) == 1 and row.ids[
        0
    ] == tokenizer.bos_token_id
    said = answers(tokenizer, row.ids, np.where(row.learnt, row.ids, IGNORED))
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(setting, "</s>")
    assert said == [
        '<think>\nT1\n</think>\n\n[{"name": "fly", "arguments": {"to": "sea"}}]' + end,
        "<think>\nT2\n</think>\n\n  indented\n\tcode\n" + end,
    ]
    assert row.endless == 0


def test_a_template_is_the_tokenizers_or_a_preset_or_a_file(tmp_path):
    tokenizer = bytes_tokenizer(CHATML)
    assert chat_template(tokenizer, None) == CHATML
    assert chat_template(tokenizer, "none") is None
    assert chat_template(tokenizer, "zephyr") == PRESETS["zephyr"]
    assert chat_template(bytes_tokenizer(), None) == PRESETS["plain"]
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}é", encoding="utf-8")
    assert chat_template(tokenizer, str(file)) == file.read_text(encoding="utf-8")
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML + "{{ tools }}"}
    assert chat_template(tokenizer, None) == CHATML
    assert chat_template(tokenizer, None, with_tools=True) == CHATML + "{{ tools }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "data.chat_template: 'chatlm' is no file and none of plain, chatml, llama3, zephyr, none. Did you mean 'chatml'?"),
        ("{% for m in messages %}", "not a Jinja template: Unexpected end of template"),
        ("Hello", "renders no 'messages'"),
        (b"\xff", "cannot be read: 'utf-8' codec can't decode"),
    ],
)  # fmt: skip
def test_templates_that_are_none(text, message, tmp_path):
    file = tmp_path / "a.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        chat_template(bytes_tokenizer(), "chatlm" if text is None else str(file))
    assert message in str(error.value) and str(error.value).startswith("data.chat_template: ")


# A prompt and its completion as they are


def completion(tokenizer, prompt, answer, **more):
    row = tokens(tokenizer, {"prompt": prompt, "completion": answer, **more}, "none")
    return row, tokenizer.decode(row.ids), tokenizer.decode(row.ids[row.learnt])


def test_a_completion_is_learnt_with_the_end_of_sequence():
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer()
    row, text, said = completion(tokenizer, "Q: ", " x\n")
    assert (text, said, row.endless) == ("Q:  x\n</s>", " x\n</s>", 0)
    assert completion(tokenizer, "Q: ", "x</s>")[1:] == ("Q: x</s>", "x</s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    assert completion(tokenizer, "Q: ", "x")[1:] == ("<s>Q: x</s>", "x</s>")
    row, _, said = completion(tokenizer, "Q: ", "x", weight=0.5)
    assert set(row.weights[row.learnt]) == {0.5} and said == "x</s>"
    assert not completion(tokenizer, "Q: ", "x", weight=0)[0].learnt.any()


def test_the_prompts_tokens_are_those_that_the_model_is_given():
    tokenizer = merging_tokenizer()
    row, text, said = completion(tokenizer, "a:", "xy")
    assert (text, said) == ("a:xy</s>", "xy</s>")
    assert list(row.ids[:2]) == tokenizer("a:").input_ids


def merging_tokenizer():
    """':x' is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE({**vocabulary, ":x": 256, "</s>": 257}, [(":", "x")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_conversations_have_no_place_where_there_is_no_template():
    with pytest.raises(
        InputError,
        match="^row 1: data.chat_template: none takes rows with a prompt and a completion",
    ):
        tokens(bytes_tokenizer(), {"messages": TALK}, "none")


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{% endgeneration %}"
    "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0].function.name + ': ' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)  # fmt: skip


def test_what_a_template_marks_itself():
    """In pieces; a call's name stands in its result too, which is not the assistant's."""
    tokenizer = bytes_tokenizer(GENERATION)
    messages = [
        turn("user", "Q"),
        called({"to": "sea"}, reasoning_content="T"),
        result("R"),
        turn("assistant", "A"),
        turn("assistant", "B", weight=0.5),
    ]
    said, lost = learnt(tokenizer, {"messages": messages})
    assert said == [
        '<think>T</think>{"name": "fly", "arguments": {"to": "sea"}}<|im_end|>',
        "A<|im_end|>",
        "B<|im_end|>",
    ]
    assert lost == ()
    assert learnt(tokenizer, {"messages": messages}, reasoning="keep")[0][0] == said[
        0
    ].removeprefix("<think>T</think>")
    assert learnt(tokenizer, {"messages": messages}, train_on="last_answer")[0] == said[2:]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == tokenizer.decode(
        tokens(tokenizer, {"messages": messages}).ids
    )
    found = tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )["assistant_masks"]
    assert list(map(bool, found)) == list(tokens(tokenizer, {"messages": messages}).learnt)


def test_a_template_that_writes_a_text_twice():
    """The answer that counts is the one in its own turn: here the first, as the second is in the user's next."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'user' and not loop.first %}{{ '(' + messages[loop.index0 - 1].content + ') ' }}{% endif %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    assert learnt(bytes_tokenizer(template), {"messages": TALK})[0] == [
        "A1<|im_end|>",
        "A2<|im_end|>",
    ]
    twice = CHATML.replace(
        "m.content", "m.content + (' / ' + m.content if m.role == 'assistant' else '')"
    )
    assert learnt(bytes_tokenizer(twice), {"messages": TALK})[0] == [
        "A1 / A1<|im_end|>",
        "A2 / A2<|im_end|>",
    ]


def test_what_is_known_of_a_template_is_kept_until_it_is_another():
    tokenizer = bytes_tokenizer(CHATML)
    first = tokeniser(tokenizer)
    assert tokeniser(tokenizer) is first
    assert (
        tokeniser(tokenizer, reasoning="drop") is not first
        and tokeniser(bytes_tokenizer(CHATML)) is not first
    )
    tokenizer.chat_template = GENERATION
    assert tokeniser(tokenizer) is not first
