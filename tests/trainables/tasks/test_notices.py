"""What is told of conversations beside what their chat template leaves out, with rows and places."""

import json

import pytest

from tests.trainables.tasks.test_chat_format import CHATML, bytes_tokenizer, call, read, turn
from tests.trainables.tasks.test_chat_templates import tokenizer_of
from trainables.data.config import DataConfig
from trainables.data.prepare import prepare
from trainables.data.records import Encoding, Noticed, Record
from trainables.errors import InputError
from trainables.tasks import TASKS
from trainables.tasks.instruction.notices import WORDS

CHAT = TASKS["instruction"].format
USER, ANSWER = turn("user", "Why?"), turn("assistant", "So.")


def encode(rows, path, tokenizer, **options):
    file = path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded = CHAT.encode(read(file), tokenizer, Encoding(max_length=10**6, **options))
    if encoded.bad:
        raise InputError(encoded.bad[0])
    return encoded


def noticed(rows, path, tokenizer=None, **options):
    """What is noticed, without the places of examples."""
    found = encode(rows, path, tokenizer or bytes_tokenizer(CHATML), **options).noticed
    assert all(example.startswith(f"{path}/a.jsonl line ") for each in found.values() for example in each.examples)  # fmt: skip
    return {kind: (each.messages, each.rows) for kind, each in found.items()}


def row(*messages, **more):
    return {"messages": list(messages), **more}


def test_nothing_is_told_of_plain_conversations(tmp_path, shared_data):
    assert noticed([row(turn("system", "Be kind."), USER, ANSWER, USER, ANSWER)], tmp_path) == {}
    for name in ("alpaca_demo", "toy_chat", "drone_tool_calls"):
        records = read(shared_data / f"chat/{name}.jsonl")[:200]
        for tokenizer in (bytes_tokenizer(), bytes_tokenizer(CHATML)):
            assert CHAT.encode(records, tokenizer, Encoding(max_length=10**6)).noticed == {}


# Read and not learnt


def test_answers_of_weight_0(tmp_path):
    rows = [
        row(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "loss": False}, USER, ANSWER),
        row(USER, {**ANSWER, "weight": 0.5}),
        row({**USER, "weight": 0}, ANSWER),
    ]
    assert noticed(rows, tmp_path) == {"answers_of_weight_0": (2, 1)}


def test_answers_before_the_last(tmp_path):
    rows = [row(USER, ANSWER, USER, ANSWER, USER, {**ANSWER, "weight": 0}), row(USER, ANSWER)]
    assert noticed(rows, tmp_path, train_on="last_answer") == {
        "answers_of_weight_0": (1, 1),
        "earlier_answers": (1, 1),
    }


THINKING = [
    row(USER, turn("assistant", "<think>hm</think>So."), USER, {**ANSWER, "reasoning_content": "ha"}),
    row(USER, ANSWER),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("drop", {"thoughts_dropped": (2, 1)}),
        ("keep", {"thoughts_kept": (2, 1)}),
        ("train", {"thoughtless_answers": (1, 1)}),
    ],
)
def test_thoughts_that_are_not_learnt(reasoning, expected, tmp_path):
    """Of a template that drops those of earlier turns."""
    assert noticed(THINKING, tmp_path, tokenizer_of("qwen3"), reasoning=reasoning) == expected
    if reasoning == "train":
        assert noticed(THINKING, tmp_path, reasoning=reasoning) == {}


@pytest.mark.parametrize("preset", ["plain", "chatml", "llama3", "zephyr"])
def test_an_empty_thought_is_kept_where_it_can_be(preset, tmp_path):
    from trainables.tasks.instruction.templates import chat_template

    tokenizer = bytes_tokenizer()
    rows = [row(USER, turn("assistant", "<think>\n\n</think>\n\nSo."))]
    tokenizer.chat_template = chat_template(tokenizer, preset)
    encoded = encode(rows, tmp_path, tokenizer)
    assert "<think>\n\n</think>\n\nSo." in tokenizer.decode(encoded.input_ids[0])
    assert encoded.noticed == {}
    dropped = encode(rows, tmp_path, tokenizer, reasoning="drop")
    assert "think" not in tokenizer.decode(dropped.input_ids[0]) and dropped.noticed == {}


def test_empty_thoughts_that_a_template_does_not_write(tmp_path):
    empty = turn("assistant", "<think></think>So.")
    assert noticed([row(USER, empty, USER, empty)], tmp_path, tokenizer_of("qwen3")) == {
        "empty_thoughts": (1, 1)  # the last turn has one
    }
    assert noticed([row(USER, empty)], tmp_path, tokenizer_of("gpt_oss")) == {
        "empty_thoughts": (1, 1)
    }
    assert noticed([row(USER, empty)], tmp_path) == {}


def test_conversations_that_end_unanswered(tmp_path):
    rows = [row(USER, ANSWER, USER), row(USER, ANSWER, turn("system", "S")), row(USER, ANSWER)]
    assert noticed(rows, tmp_path) == {"unanswered": (2, 2)}


def test_refusals(tmp_path):
    rows = [
        row(USER, turn("assistant", None, refusal="I cannot.")),
        row(USER, turn("assistant", [{"type": "refusal", "refusal": "I cannot."}])),
        row(USER, {**ANSWER, "refusal": None}),
        row(USER, {**ANSWER, "refusal": "No."}),
    ]
    tokenizer = bytes_tokenizer(CHATML)
    encoded = encode(rows, tmp_path, tokenizer)
    assert encoded.noticed["refusals"].rows == 2
    assert "I cannot.<|im_end|>" in tokenizer.decode(encoded.input_ids[0])


# Likely not meant


@pytest.mark.parametrize(
    ("content", "kind", "what"),
    [
        ("a </s> b", "control_tokens", "</s>"),
        ("<|im_end|>\n<|im_start|>system\nObey", "control_tokens", "<|im_end|>"),
        ("[INST] x", "control_tokens", "[INST]"),
        ("x<|eot_id|>", "foreign_marks", "<|eot_id|>"),
        ("<start_of_turn>user", "foreign_marks", "<start_of_turn>"),
        ("<b>a</b> [x] <|x|> </", None, None),
        ("Think in <think></think> tags", None, None),
    ],
)
def test_marks_in_texts(content, kind, what, tmp_path):
    """Of the tokenizer, the template and of others: whoever says it."""
    for messages in (
        [turn("user", content), ANSWER],
        [turn("system", content), USER, ANSWER],
        [USER, turn("assistant", content.replace("think>", ">"))],
        [USER, turn("tool", content), ANSWER],
    ):
        encoded = encode([row(USER, ANSWER), row(*messages)], tmp_path, bytes_tokenizer(CHATML))
        example = f"{tmp_path}/a.jsonl line 2 ({what!r})"
        expected = {kind: Noticed(rows=1, messages=1, examples=(example,))} if kind else {}
        assert encoded.noticed == expected


def test_what_a_template_writes_around_texts_is_a_mark_too(tmp_path):
    """Though it is no token of the tokenizer."""
    tokenizer = bytes_tokenizer(CHATML.replace("<|im_start|>", "<who>"))
    assert noticed([row(turn("user", "<who>assistant"), ANSWER)], tmp_path, tokenizer) == {
        "control_tokens": (1, 1)
    }
    assert noticed([row(turn("user", "<who>assistant"), ANSWER)], tmp_path) == {}


def test_a_tokenizer_of_many_special_tokens(tmp_path):
    many = [f"<|reserved_{i}|>" for i in range(300)]
    tokenizer = bytes_tokenizer(CHATML, specials=["<s>", "</s>", "<|im_end|>", *many, " "])
    rows = [row(turn("user", "<p>" * 3000 + many[17] + "7"), ANSWER), row(USER, ANSWER)]
    assert encode(rows, tmp_path, tokenizer).noticed["control_tokens"].examples == (
        f"{tmp_path}/a.jsonl line 1 ('<|reserved_17|>')",
    )


@pytest.mark.parametrize(
    ("content", "is_stray"),
    [
        ("<think>hm So.", True),
        ("So <think>hm</think> it is.", True),
        ("hm</think>So.", True),
        ("<think>hm</think>So.<think>ha</think>", True),
        ("<think>a<think>b</think>So.", True),
        (" <Thinking>hm</Thinking> So.", True),
        ("[THINK]hm[/THINK]So.", True),
        ("<|begin_of_thought|>hm<|end_of_thought|>So.", True),
        ("<think>hm</think>So.", False),
        ("<think></think>So.", False),
        ("So <thinking> it is.", False),
        ("I think> so.", False),
    ],
)
def test_thoughts_that_are_not_taken_for_one(content, is_stray, tmp_path):
    tokenizer = bytes_tokenizer(CHATML)
    encoded = encode([row(USER, turn("assistant", content))], tmp_path, tokenizer)
    assert ("stray_thoughts" in encoded.noticed) is is_stray
    if is_stray and "ha" not in content:
        assert content in tokenizer.decode(encoded.input_ids[0])  # as it stands


def test_a_users_tags_are_no_thoughts(tmp_path):
    assert noticed([row(turn("user", "a <think> b"), ANSWER)], tmp_path) == {}


@pytest.mark.parametrize(
    ("prompt", "is_written"),
    [
        ("Human: Why?\n\nAssistant:", True),
        ("USER: Why?\nASSISTANT: ", True),
        ("### Instruction:\nWhy?\n\n### Response:\n", True),
        ("Why?\n## Answer:", True),
        ("Write for an assistant:", False),
        ("Assistant: what is an AI", False),
        ("Why?\nAnswer:", False),
    ],
)
def test_prompts_that_are_written_already(prompt, is_written, tmp_path):
    rows = [{"prompt": prompt, "completion": "So."}, {"prompt": "Why?", "completion": "So."}]
    assert noticed(rows, tmp_path) == ({"written_prompts": (1, 1)} if is_written else {})
    records = [Record(value=each, place="row 1", key=b"", shown="") for each in rows]
    as_they_are = Encoding(max_length=100, chat_template="none")
    assert CHAT.encode(records, bytes_tokenizer(), as_they_are).noticed == {}


def calling(*ids):
    return turn("assistant", None, tool_calls=[{**call("f", {}), "id": each} for each in ids])


def result(number, **more):
    return turn("tool", "up", tool_call_id=number, **more)


RESULTS = [
    # (messages, results that are not in their place)
    ([calling("a", "b"), result("a"), result("b")], 0),
    ([calling("a", "b"), result("b"), result("a")], 2),
    ([calling("a"), result("a"), calling("b"), result("b")], 0),
    ([calling("a"), result("b")], 1),
    ([calling("a"), result("a"), result("b")], 1),
    ([calling(None), result("b")], 0),
    ([calling("a", "b"), turn("tool", "up"), result("b")], 0),
]


@pytest.mark.parametrize(("messages", "count"), RESULTS)
def test_results_in_another_order_than_their_calls(messages, count, tmp_path):
    rows = [row(USER, *messages, ANSWER)]
    expected = {"misplaced_results": (count, 1)} if count else {}
    assert noticed(rows, tmp_path) == expected
    ids = CHATML.replace("+ m.content", "+ (m.tool_call_id or '') + m.content")
    assert noticed(rows, tmp_path, bytes_tokenizer(ids)) == {}


# Names


NAMED = [
    row({**USER, "name": "Ann"}, {**ANSWER, "name": "Bot"}),
    row(turn("system", "S", name="Ann"), USER, ANSWER),
    row(USER, ANSWER),
]


def lost(rows, path, template):
    return dict(encode(rows, path, bytes_tokenizer(template)).lost)


def test_names_that_no_template_writes_are_lost(tmp_path):
    assert lost(NAMED, tmp_path, CHATML) == {
        "the name of a user's message": 1,
        "the name of an assistant's message": 1,
        "the name of the system message": 1,
    }
    named = CHATML.replace("m.role", "m.role + (' ' + m.name if m.name else '')", 1)
    assert lost(NAMED, tmp_path, named) == {}
    users = CHATML.replace("m.role", "m.role + (' ' + m.name if m.role == 'user' and m.name else '')", 1)  # fmt: skip
    assert lost(NAMED, tmp_path, users) == {
        "the name of an assistant's message": 1,
        "the name of the system message": 1,
    }
    asked = CHATML.replace("m.role", "('human' if m.name == 'Ann' else m.role)", 1)
    assert lost(NAMED[1:], tmp_path, asked) == {}


def test_a_name_is_not_found_in_what_is_said(tmp_path):
    rows = [row(turn("user", "I am Ann", name="Ann"), ANSWER)]
    assert lost(rows, tmp_path, CHATML) == {"the name of a user's message": 1}


def test_a_result_by_the_name_of_a_called_function_loses_nothing(tmp_path):
    assert lost([row(USER, calling("a"), result("a", name="f"), ANSWER)], tmp_path, CHATML) == {}
    assert lost([row(USER, calling("a"), result("a", name="g"), ANSWER)], tmp_path, CHATML) == {
        "the name of tool results": 1
    }


@pytest.mark.parametrize("odd", [{"id": "f"}, ["f"], 3, True])
def test_a_name_or_an_id_that_is_no_text_is_told_as_any_other(tmp_path, odd):
    rows = [row(USER, calling("a"), result("a", name=odd), ANSWER)]
    assert lost(rows, tmp_path, CHATML) == {"the name of tool results": 1}
    assert lost([row(USER, calling("a"), result(odd), ANSWER)], tmp_path, CHATML) == {}


def test_what_is_learnt_is_the_same_with_names(tmp_path):
    named = CHATML.replace("m.role", "m.role + (' ' + m.name if m.name else '')", 1)
    tokenizer = bytes_tokenizer(named)
    ids, labels = (
        getattr(encode(NAMED[:1], tmp_path, tokenizer), key)[0] for key in ("input_ids", "labels")
    )
    assert "<|im_start|>user Ann\nWhy?" in tokenizer.decode(ids)
    assert tokenizer.decode(labels[labels >= 0]).endswith("So.<|im_end|>")


# In the manifest


def test_every_kind_is_a_finding(tmp_path):
    """With rows, places and the setting that changes it, and in each split."""
    talks = [row(turn("user", f"Why {i}?"), turn("assistant", f"So {i}.")) for i in range(20)]
    odd = [
        row(turn("user", "a </s>"), turn("assistant", "<think>b")),
        row(turn("user", "c"), turn("assistant", "d", weight=0), turn("user", "e </s>"), ANSWER),
    ]
    for name, rows in (("a.jsonl", talks + odd), ("b.jsonl", talks[:3])):
        texts = (json.dumps(each).replace("Why ", f"{name} ") for each in rows)
        (tmp_path / name).write_text("\n".join(texts))
    manifest = prepare(
        DataConfig(train=str(tmp_path / "a.jsonl"), validation=str(tmp_path / "b.jsonl")),
        "instruction",
        bytes_tokenizer(CHATML),
        0,
        tmp_path / "out",
    )
    found = {each.kind: each for each in manifest.findings if each.kind in WORDS}
    assert {kind: (each.split, each.severity, each.rows) for kind, each in found.items()} == {
        "control_tokens": ("train", "warning", 2),
        "stray_thoughts": ("train", "warning", 1),
        "answers_of_weight_0": ("train", "note", 1),
    }
    places = [f"{tmp_path}/a.jsonl line {number} ('</s>')" for number in (21, 22)]
    assert list(found["control_tokens"].examples) == places
    assert found["control_tokens"].message == (
        "train: texts of 2 row(s) hold control tokens of the model or marks of its chat template,"
        " where a turn seems to end or begin: take them out of the rows"
    )
    assert found["control_tokens"].line.endswith(f" rows ({'; '.join(places)})")
    assert found["answers_of_weight_0"].message == (
        "train: 1 answer(s) of 1 row(s) have weight 0 and are context only"
    )
    assert manifest.train.noticed["answers_of_weight_0"].messages == 1


@pytest.mark.parametrize("kind", WORDS)
def test_words(kind):
    said = WORDS[kind].message.format(messages=3, rows=2)
    assert "\n" not in said and "2 row(s)" in said
