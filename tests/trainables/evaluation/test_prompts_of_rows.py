"""Prompts out of prepared rows, and the tokens that end answers."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainables.data.arrow import Split, write_split
from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare
from trainables.data.records import IGNORED, Encoded
from trainables.errors import InputError
from trainables.evaluation.generation import (
    answers_of,
    draw_prompts,
    prompts_of,
    stop_tokens,
    text_of,
    writes_answers,
)
from trainables.tasks import TASKS

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# whose own marks hold the line break behind the end of a turn
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
# that ends a turn with text like any other
TEXTUAL = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# that writes the thought of the last answer alone
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content and loop.last %}"
    "{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "</s>", "<s>")
INSTRUCTION, SEQ2SEQ = TASKS["instruction"], TASKS["seq2seq"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and for each special token."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def talk(number: int) -> dict[str, Any]:
    said = [
        ("user", f"Question {number}?"),
        ("assistant", f"Answer {number}."),
        ("user", "And then?"),
        ("assistant", f"Then {number} more."),
    ]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def prepared(tokenizer: Any, template: str, folder: Any, **data: Any) -> Split:
    tokenizer.chat_template = template
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(talk(number)) + "\n" for number in range(20)))
    config = DataConfig(train=str(path), validation=0.5, **data)
    prepare(config, "instruction", tokenizer, 0, folder / "data")
    return open_split(folder / "data", "validation")


@pytest.mark.parametrize("reasoning", ["train", "keep", "drop"])
def test_a_prompt_holds_no_thought_of_the_answer_to_it(reasoning, tokenizer, tmp_path):
    """Kept without loss it is no target, and yet what the model writes, not what it is given."""
    tokenizer.chat_template = THINKING
    path = tmp_path / "rows.jsonl"
    talks = []
    for number in range(20):
        *before, last = talk(number)["messages"]
        last = {**last, "reasoning_content": f"Secret {number}"}
        talks.append({"messages": [*before, last] if number % 3 else talk(number)["messages"]})
    path.write_text("".join(json.dumps(each) + "\n" for each in talks))
    config = DataConfig(train=str(path), validation=0.5, reasoning=reasoning)
    prepare(config, "instruction", tokenizer, 0, tmp_path / "data")
    split = open_split(tmp_path / "data", "validation")
    prompts = prompts_of(INSTRUCTION, split, range(len(split)), tokenizer)
    thinking = 0
    for prompt, row in zip(prompts, split.rows(range(len(split))), strict=True):
        assert prompt.text.endswith("And then?<|im_end|>\n<|im_start|>assistant\n")
        *thought, answer = prompt.reference.split("\n</think>\n\n")
        number = int(answer.split()[1])
        thinks = number % 3 > 0 and reasoning != "drop"
        assert thought == ([f"<think>\nSecret {number}"] if thinks else [])
        learnt = tokenizer.decode(row["labels"][row["labels"] != IGNORED])
        assert ("Secret" in learnt) == (thinks and reasoning == "train")
        thinking += thinks
    assert len(prompts) == 10 and (thinking > 0) == (reasoning != "drop")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_prompt_is_what_was_rendered_before_the_last_answer(template, tokenizer, tmp_path):
    split = prepared(tokenizer, template, tmp_path)
    prompts = prompts_of(INSTRUCTION, split, range(len(split)), tokenizer)
    assert [prompt.row for prompt in prompts] == list(range(len(split)))
    for prompt, row in zip(prompts, split.rows(range(len(split))), strict=True):
        number = prompt.reference.split()[1]
        assert prompt.reference == f"Then {number} more."
        assert prompt.text == (
            f"<|im_start|>user\nQuestion {number}?<|im_end|>\n"
            f"<|im_start|>assistant\nAnswer {number}.<|im_end|>\n"
            "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
        )
        whole = np.concatenate([prompt.ids, prompt.target])
        assert np.array_equal(whole, row["input_ids"][: len(whole)])
        assert np.array_equal(prompt.target, row["labels"][len(prompt.ids) : len(whole)])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_answers_end_with_what_the_template_ends_turns_with(template, tokenizer, tmp_path):
    split = prepared(tokenizer, template, tmp_path)
    end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert stop_tokens(tokenizer) == (eos,)
    assert stop_tokens(tokenizer, task=INSTRUCTION, split=split) == tuple(sorted([end, eos]))


def test_the_models_own_ends_count(tokenizer):
    eos = tokenizer.eos_token_id
    for own, expected in ((None, {eos}), (3, {3, eos}), ([3, 4], {3, 4, eos})):
        config = cast("Any", SimpleNamespace(eos_token_id=own))
        assert stop_tokens(tokenizer, generation_config=config) == tuple(sorted(expected))


def test_a_template_that_ends_turns_with_text_leaves_all_rows(tokenizer, tmp_path):
    split = prepared(tokenizer, TEXTUAL, tmp_path)
    assert stop_tokens(tokenizer, task=INSTRUCTION, split=split) == (tokenizer.eos_token_id,)
    assert len(prompts_of(INSTRUCTION, split, range(len(split)), tokenizer)) == len(split)


def chat_split(folder: Any, rows: list[tuple[list[int], int]]) -> Split:
    """Rows whose tokens from a position on are targets."""
    ids = [np.array(row, dtype=np.int32) for row, _ in rows]
    labels = [
        np.where(np.arange(len(row)) < start, IGNORED, row).astype(np.int32)
        for row, (_, start) in zip(ids, rows, strict=True)
    ]
    write_split(folder / "rows.arrow", Encoded(input_ids=ids, labels=labels))
    return Split(folder / "rows.arrow")


def test_rows_that_cannot_be_asked_are_left_out(tokenizer, tmp_path):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole, begins, cut = ([5, 6, 7, end], 2), ([5, 6, end], 0), ([5, 6, 7, 8], 2)
    split = chat_split(tmp_path, [whole, begins, cut, whole])
    prompts = prompts_of(INSTRUCTION, split, [0, 1, 2, 3], tokenizer)
    assert [prompt.row for prompt in prompts] == [0, 3]
    assert [prompt.ids.tolist() for prompt in prompts] == [[5, 6], [5, 6]]
    with pytest.raises(InputError, match="none of 1 rows has an answer with something before it"):
        draw_prompts(INSTRUCTION, chat_split(tmp_path, [begins]), 5, tokenizer, seed=0)


def test_the_rows_are_a_function_of_the_seed(tokenizer, tmp_path):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [([5, 6, number % 200, end], 2 if number % 4 else 0) for number in range(600)]
    split = chat_split(tmp_path, rows)

    def drawn(count: int, seed: int) -> list[int]:
        prompts = draw_prompts(INSTRUCTION, split, count, tokenizer, seed)
        return [prompt.row for prompt in prompts]

    ten = drawn(10, 0)
    assert ten == sorted(drawn(10, 0)) and len(set(ten)) == 10 and ten != drawn(10, 1)
    assert all(row % 4 for row in ten)
    assert set(ten) < set(drawn(300, 0))
    assert drawn(10_000, 0) == [row for row in range(600) if row % 4]


def test_a_source_and_its_target(tokenizer, tmp_path):
    eos = tokenizer.eos_token_id
    source = tokenizer("to translate").input_ids
    target = [*tokenizer("translated").input_ids, eos]
    write_split(
        tmp_path / "rows.arrow",
        Encoded(
            input_ids=[np.array(source, dtype=np.int32)] * 3,
            target_ids=[np.array(each, dtype=np.int32) for each in (target, target[:4], target)],
        ),
    )
    split = Split(tmp_path / "rows.arrow")
    prompts = prompts_of(SEQ2SEQ, split, [0, 1, 2], tokenizer)
    assert [prompt.row for prompt in prompts] == [0, 2]  # the other one was cut
    assert {(prompt.text, prompt.reference) for prompt in prompts} == {
        ("to translate", "translated")
    }
    assert stop_tokens(tokenizer, task=SEQ2SEQ, split=split) == (eos,)


def test_of_a_pair_the_preferred_answer_is_the_reference(tokenizer, tmp_path):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    good, bad = tokenizer("good").input_ids, tokenizer("bad").input_ids
    ids = [5, 6, *good, end, 5, 6, *bad, end]
    labels = [IGNORED, IGNORED, *good, end, IGNORED, IGNORED, *bad, end]
    row = {"input_ids": [np.array(ids, np.int32)], "labels": [np.array(labels, np.int32)]}
    second = np.array([3 + len(good)], dtype=np.int32)
    write_split(tmp_path / "rows.arrow", Encoded(**cast("Any", row), second=second))
    split = Split(tmp_path / "rows.arrow")
    (prompt,) = prompts_of(TASKS["preference"], split, [0], tokenizer)
    assert (prompt.ids.tolist(), prompt.reference) == ([5, 6], "good")


def test_which_tasks_write_answers():
    assert {name for name, task in TASKS.items() if writes_answers(task)} == {
        "instruction",
        "preference",
        "seq2seq",
    }


def test_answers_are_text_without_their_ends(tokenizer, tmp_path):
    split = prepared(tokenizer, CHATML, tmp_path)
    prompts = prompts_of(INSTRUCTION, split, [0], tokenizer)
    stop = stop_tokens(tokenizer, task=INSTRUCTION, split=split)
    written = [*tokenizer(" Yes \n").input_ids, *tokenizer("<|im_end|>").input_ids]
    (answer,) = answers_of(prompts, [written], tokenizer, stop)
    assert answer == (prompts[0].text, " Yes \n", prompts[0].reference)
    # an end that is no special token is no part of the text either
    plain = tokenizer("!").input_ids
    assert text_of([*written[:-1], *plain], tokenizer, plain) == " Yes \n"


transformers.logging.set_verbosity_error()
