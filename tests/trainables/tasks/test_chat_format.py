"""Which tokens the assistant wrote, held against the rendered text."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare
from trainables.data.records import IGNORED, Encoding
from trainables.data.sources import open_sources
from trainables.errors import InputError
from trainables.tasks import TASKS
from trainables.tasks.instruction.format import default_chat_template

CHAT = TASKS["instruction"].format

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|end|>", "[INST]", "[/INST]", "</s>", "<s>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Marks what the assistant wrote, and the end of its turn with the line break after it.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
# Like Llama 2: no header of the assistant's, contents trimmed, the system's message inside the first user's.
INST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Like Qwen 3: an empty thought before the last answer only, and thoughts in a content are parted from it.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% set content = m.content.split('</think>')[-1].lstrip() %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() + '\\n</think>\\n\\n' if '</think>' in m.content"
    " else '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)  # fmt: skip


def bytes_tokenizer(template=None, specials=SPECIALS, **kwargs):
    """One token for each byte, and for each special token."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", **kwargs}
    )
    tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer, rows, tmp_path, max_length=100_000):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded = CHAT.encode(read(path), tokenizer, Encoding(max_length=max_length))
    if encoded.bad:
        raise InputError(encoded.bad[0])
    return encoded


def read(path):
    """The records of a file."""
    (source,) = open_sources(DataConfig(train=str(path)), "train")
    reader = CHAT.reader(source, DataConfig())
    return [reader.read(row) for row in source.rows()]


def answers(tokenizer, ids, labels):
    """The runs of supervised tokens, decoded."""
    assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))
    where = np.flatnonzero(labels != IGNORED)
    runs = np.split(where, np.flatnonzero(np.diff(where) > 1) + 1)
    return [tokenizer.decode(ids[run]) for run in runs]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TALK = {
    "messages": [
        turn("system", "Be kind."),
        turn("user", "Be kind."),  # the same words as another's
        turn("assistant", "Yes"),
        turn("user", "Yes"),
        turn("assistant", "Été 😀 at last\nand more"),
    ]
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ["Yes</s>", "Été 😀 at last\nand more</s>"]),
        (CHATML, ["Yes<|im_end|>", "Été 😀 at last\nand more<|im_end|>"]),
        (MARKED, ["Yes<|im_end|>\n", "Été 😀 at last\nand more<|im_end|>\n"]),
        (INST, ["Yes </s>", "Été 😀 at last\nand more </s>"]),
        (THINKING, ["Yes<|im_end|>", "<think>\n\n</think>\n\nÉté 😀 at last\nand more<|im_end|>"]),
    ],
    ids=["default", "chatml", "marked", "inst", "thinking"],
)
def test_what_is_learnt_is_what_the_assistant_said_and_the_end_of_its_turn(
    template, expected, tmp_path
):
    tokenizer = bytes_tokenizer(template)
    encoded = encode(tokenizer, [TALK], tmp_path)
    assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == expected
    rendered = tokenizer.apply_chat_template(
        TALK["messages"], tokenize=False, chat_template=template or default_chat_template(tokenizer)
    )
    assert tokenizer.decode(encoded.input_ids[0]) == rendered
    assert encoded.endless_answers == 0


def test_default_template_reads_like_this():
    tokenizer = bytes_tokenizer()
    rows = [
        *TALK["messages"][:4],
        turn("assistant", "", tool_calls=[call("fly", {"to": "sea"})]),
        turn("tool", "done"),
    ]
    text = tokenizer.apply_chat_template(
        rows, tools=[{"name": "fly"}], tokenize=False, chat_template=default_chat_template(tokenizer), add_generation_prompt=True
    )  # fmt: skip
    assert text == (
        '<|tools|>\n[{"name": "fly"}]\n<|system|>\nBe kind.\n<|user|>\nBe kind.\n<|assistant|>\nYes</s>\n<|user|>\nYes\n'
        '<|assistant|>\n[{"name": "fly", "arguments": {"to": "sea"}}]</s>\n<|tool|>\ndone\n<|assistant|>\n'
    )


def test_default_template_begins_with_what_the_tokenizer_begins_with():
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer()
    assert not default_chat_template(tokenizer).startswith("{{ bos_token }}")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert default_chat_template(tokenizer).startswith("{{ bos_token }}")


@pytest.mark.parametrize("template", [None, CHATML], ids=["default", "chatml"])
def test_tool_calls_are_learnt_as_the_template_writes_them(template, tmp_path):
    tokenizer = bytes_tokenizer(template)
    messages = [
        turn("user", "Up!"),
        turn("assistant", None, tool_calls=[call("fly", '{"height": 5}'), call("look", "")]),
        turn("tool", "", tool_call_id="1"),
        turn("assistant", "I fly", tool_calls=[call("land", "{}")]),
        turn("assistant", "Done"),
    ]
    encoded = encode(tokenizer, [{"messages": messages}], tmp_path)
    if template is None:
        assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == [
            '[{"name": "fly", "arguments": {"height": 5}}, {"name": "look", "arguments": {}}]</s>',
            'I fly\n[{"name": "land", "arguments": {}}]</s>',
            "Done</s>",
        ]
    else:
        assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == [
            '<call>{"name": "fly", "arguments": {"height": 5}}</call><call>{"name": "look", "arguments": {}}</call><|im_end|>',
            'I fly<call>{"name": "land", "arguments": {}}</call><|im_end|>',
            "Done<|im_end|>",
        ]  # fmt: skip


def test_arguments_are_text_for_a_template_that_joins_them_to_text(tmp_path):
    tokenizer = bytes_tokenizer(CHATML.replace("call.function | tojson", "call.function.arguments"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<call>' +", "'<call>' + call.function.name +"
    )
    row = {
        "messages": [
            turn("user", "Up!"),
            turn("assistant", None, tool_calls=[call("fly", '{"height": 5}')]),
        ]
    }
    encoded = encode(tokenizer, [row], tmp_path)
    assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == [
        '<call>fly{"height": 5}</call><|im_end|>'
    ]


def test_thoughts_that_a_template_takes_apart_are_learnt_with_the_answer(tmp_path):
    tokenizer = bytes_tokenizer(THINKING)
    row = {
        "messages": [turn("user", "Why?"), turn("assistant", "<think>\nhm\n</think>\n\nBecause")]
    }
    encoded = encode(tokenizer, [row], tmp_path)
    assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == [
        "<think>\nhm\n</think>\n\nBecause<|im_end|>"
    ]


@pytest.mark.parametrize("template", [None, MARKED], ids=["default", "marked"])
def test_messages_of_weight_0_are_not_learnt(template, tmp_path):
    tokenizer = bytes_tokenizer(template)
    row = {
        "messages": [{**m, "weight": 0} if m["content"] == "Yes" else m for m in TALK["messages"]]
    }
    encoded = encode(tokenizer, [row], tmp_path)
    said = answers(tokenizer, encoded.input_ids[0], encoded.labels[0])
    ends = ("</s>", "<|im_end|>\n" if template else "<|im_end|>")  # MARKED marks the line break
    assert [text.removesuffix(ends[0]).removesuffix(ends[1]) for text in said] == [
        "Été 😀 at last\nand more"
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "Why?", "completion": "So"}, "<|user|>\nWhy?\n<|assistant|>\nSo</s>\n"),
        ({"prompt": [turn("user", "Why?")], "completion": [turn("assistant", "So")]}, "<|user|>\nWhy?\n<|assistant|>\nSo</s>\n"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "<|user|>\nAdd\n\n1 2\n<|assistant|>\n3</s>\n"),
        ({"instruction": "Add", "input": "", "output": "3"}, "<|user|>\nAdd\n<|assistant|>\n3</s>\n"),
        ({"instruction": "Add", "output": "3"}, "<|user|>\nAdd\n<|assistant|>\n3</s>\n"),
        ({"messages": [turn("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), turn("assistant", "c")]}, "<|user|>\nab\n<|assistant|>\nc</s>\n"),
    ],
)  # fmt: skip
def test_formats(row, text, tmp_path):
    tokenizer = bytes_tokenizer()
    encoded = encode(tokenizer, [row], tmp_path)
    assert tokenizer.decode(encoded.input_ids[0]) == text


def test_tools_kept_as_json_text_and_rows_padded_with_nulls_by_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    tools = [{"type": "function", "function": {"name": "fly", "parameters": {}}}]
    rows = [
        {
            "messages": [turn("user", "a", name="Ann"), turn("assistant", "b")],
            "tools": json.dumps(tools),
        },
        {
            "messages": [
                turn("user", "c"),
                turn("assistant", None, tool_calls=[call("fly", "{}")]),
            ],
            "tools": None,
        },
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (table,) = pa.parquet.read_table(tmp_path / "a.parquet").column("messages").chunks
    assert "tool_calls" in table.to_pylist()[0][0]  # as nulls
    records = read(tmp_path / "a.parquet")
    assert records[0].value == {"messages": rows[0]["messages"], "tools": tools}
    assert records[1].value["messages"] == [
        turn("user", "c"),
        turn("assistant", "", tool_calls=[call("fly", {})]),
    ]


def test_rows_cut_before_their_answer_are_dropped_and_counted(tmp_path):
    tokenizer = bytes_tokenizer()
    unreached = {"prompt": "x" * 100, "completion": "never reached"}
    cut = {"prompt": "x", "completion": "y" * 100}
    whole = {"prompt": "x", "completion": "y"}
    encoded = encode(tokenizer, [unreached, cut, whole], tmp_path, max_length=100)
    assert (len(encoded.input_ids), encoded.truncated, encoded.dropped) == (2, 2, 1)
    assert len(encoded.input_ids[0]) == 100
    assert answers(tokenizer, encoded.input_ids[0], encoded.labels[0]) == [
        "y" * (100 - len("<|user|>\nx\n<|assistant|>\n"))
    ]


def test_what_is_cut_lost_and_weighted_is_told(tmp_path):
    template = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    rows = [
        {"messages": [turn("system", "Be kind."), turn("user", "x"), turn("assistant", "y")]},
        {"messages": [turn("user", "x"), turn("assistant", "y" * 100)]},
        {"messages": [turn("user", "x"), turn("assistant", "y", weight=0.5)]},
    ]
    encoded = encode(bytes_tokenizer(template), rows, tmp_path, max_length=60)
    assert (encoded.endings_cut, dict(encoded.lost)) == (1, {"the system message": 1})
    assert [sorted(set(weights)) for weights in encoded.weights] == [[1], [1], [0.5, 1]]
    assert [len(weights) for weights in encoded.weights] == [len(ids) for ids in encoded.input_ids]
    assert encode(bytes_tokenizer(template), rows[:2], tmp_path).weights is None


def test_answers_without_an_end_are_counted(tmp_path):
    tokenizer = bytes_tokenizer(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    )
    assert encode(tokenizer, [TALK], tmp_path).endless_answers == 2
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}", "completion": "x"}) + "\n" for i in range(9))
    )
    manifest = prepare(
        DataConfig(train=str(tmp_path / "a.jsonl"), validation=0.4),
        "instruction",
        tokenizer,
        0,
        tmp_path,
    )
    assert (
        "train: 5 answer(s) end in no special token of this tokenizer, so the model will not learn to stop"
        in manifest.notes
    )


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (INST, {"messages": [turn("system", "Hi"), turn("assistant", "x")]}, "the chat template refuses this conversation: roles must alternate"),
        (INST, {"messages": [turn("user", "Hi"), turn("assistant", None, tool_calls=[call("fly", "{}")])]}, "messages[1]: the chat template does not write out tool calls; this data needs a model whose template does"),
        (MARKED, {"messages": [turn("user", "Hi"), turn("assistant", None, tool_calls=[call("fly", "{}")])]}, "messages[1]: the chat template does not write out tool calls; this data needs a model whose template does"),
        (MARKED.replace("m.content + '<|im_end|>\\n' }}{% endgen", "'<|im_end|>\\n' }}{% endgen"), TALK, "the chat template's {% generation %} marks leave out messages[2], the assistant's 'Yes'"),
        (MARKED.replace("m.content + '<|im_end|>\\n' }}{% endgen", "'<|im_end|>\\n' }}{% endgen"), {"messages": [turn("user", "Hi"), turn("assistant", "x")]}, "the chat template's {% generation %} marks leave out messages[1], the assistant's 'x'"),
        (MARKED.replace("== 'assistant'", "!= 'system'"), TALK, "the chat template's {% generation %} marks take in messages[1], the user's 'Be kind.'"),
        (CHATML.replace("m.content", "m.content | upper"), TALK, "messages[2]: cannot tell which part of the text that the chat template renders is the assistant's; a template with {% generation %} marks says so"),
    ],
)  # fmt: skip
def test_templates_that_do_not_suit_the_row(template, row, message, tmp_path):
    with pytest.raises(InputError) as error:
        encode(bytes_tokenizer(template), [TALK, row] if template is CHATML else [row], tmp_path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl line 1: ")


def test_tokens_that_reach_over_the_edge_of_an_answer_are_refused(tmp_path):
    """A tokenizer that merges the prompt's last character with the answer's first."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary[":x"] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [(":", "x")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}"
    )
    with pytest.raises(
        InputError,
        match=r"line 1: the tokens of the assistant's answer do not add up to it: ':x' instead of 'x'$",
    ):
        encode(tokenizer, [{"prompt": "a", "completion": "x"}], tmp_path)


@pytest.mark.parametrize("name", ["toy_chat", "drone_tool_calls", "alpaca_demo"])
@pytest.mark.parametrize("template", [None, CHATML], ids=["default", "chatml"])
def test_real_conversations(name, template, shared_data, tmp_path):
    tokenizer = bytes_tokenizer(template)
    end = "<|im_end|>" if template else "</s>"
    records = read(shared_data / f"chat/{name}.jsonl")[:150]
    encoded = CHAT.encode(records, tokenizer, Encoding(max_length=10**6))
    assert (encoded.dropped, encoded.truncated, encoded.endless_answers) == (0, 0, 0)
    for record, ids, labels in zip(records, encoded.input_ids, encoded.labels, strict=True):
        said = [m for m in record.value["messages"] if m["role"] == "assistant"]
        for message, text in zip(said, answers(tokenizer, ids, labels), strict=True):
            if message.get("tool_calls"):
                assert all(
                    json.dumps(c["function"]["arguments"]) in text for c in message["tool_calls"]
                )
                assert text.endswith(end)
            else:
                assert text in (message["content"] + end, message["content"].strip() + end)


@pytest.mark.parametrize("name", ["toy_chat", "alpaca_demo"])
def test_real_tokenizer_that_loses_characters(name, shared_data, tmp_path):
    """512 tokens, a space before every text: what decodes is not what was written, and the offsets have to do."""
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260K")
    data = DataConfig(train=str(shared_data / f"chat/{name}.jsonl"), validation=0.3)
    manifest = prepare(data, "instruction", tokenizer, 0, tmp_path)
    assert manifest.chat_template == "default"
    assert manifest.splits["train"].endless_answers == 0
    split = open_split(tmp_path, "train")
    first = split.rows([0])[0]
    said = set()
    for row in map(json.loads, (shared_data / f"chat/{name}.jsonl").read_text().splitlines()):
        said |= {m["content"][:40] for m in row.get("messages", []) if m["role"] == "assistant"} | {
            row.get("output", "")[:40]
        }
    assert answers(tokenizer, first["input_ids"], first["labels"])[0].startswith(tuple(said - {""}))
