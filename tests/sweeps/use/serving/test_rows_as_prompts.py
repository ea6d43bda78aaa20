"""What a language model is given is what it was given in training, and where it ends is learnt."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sweeps.use.generation import Reply, Sampling, Token, generate
from sweeps.use.prompts import Prompts
from sweeps.use.trained import open_trained
from trainables.data.asking import GivenSource
from trainables.data.config import DataConfig
from trainables.data.records import IGNORED, Encoding
from trainables.data.rows import BadRow, Row
from trainables.evaluation.generation import Prompt
from trainables.models.config import ModelConfig
from trainables.models.files import load_tokenizer
from trainables.tasks import TASKS


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_tokenizer(ModelConfig(name=str(shared_data / "models" / "stories260K")))


def prompts_of(tokenizer, task="instruction", data=None, **encoding):
    data = data or DataConfig(train="x")
    return Prompts(
        TASKS[task],
        tokenizer,
        Encoding(max_length=256, source_prefix=data.source_prefix, **encoding),
        data,
        256,
        frozenset({tokenizer.eos_token_id}),
    )


def test_the_prompt_of_each_validation_row_is_what_stands_before_its_targets(chats):
    with open_trained(str(chats["alpha"])) as trained:
        prompts, split = Prompts.of(trained, trained.load()), trained.split()
        raw = [json.loads(x) for x in (trained.data / "validation.jsonl").read_text().splitlines()]
        assert prompts.takes_messages and prompts.stop == {2} and prompts.stop_texts == ()
        for row, known in zip(raw, split.rows(np.arange(len(split))), strict=True):
            given = int(np.flatnonzero(known["labels"] != IGNORED)[0])
            found = prompts.of_messages(row["messages"][:-1])
            assert np.array_equal(found.ids, known["input_ids"][:given])


FORMS = {
    "messages": ({"messages": [{"role": "user", "content": "Hi you"}]}, {}),
    "with an answer": (
        {
            "messages": [
                {"role": "user", "content": "Hi you"},
                {"role": "assistant", "content": "Hello"},
            ]
        },
        {},
    ),
    "in JSON": ({"messages": '[{"role": "user", "content": "Hi you"}]'}, {}),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Hi you"}]}, {}),
    "prompt": ({"prompt": "Hi you"}, {}),
    "prompt and completion": ({"prompt": "Hi you", "completion": ""}, {}),
    "alpaca": ({"instruction": "Hi you", "input": ""}, {}),
    "renamed": ({"q": "Hi you"}, {"columns": {"prompt": "q", "completion": "a"}}),
    "weight 0": ({"prompt": "Hi you", "weight": 0}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form_without_an_answer_give_one_prompt(tokenizer, form):
    columns, settings = FORMS[form]
    data = DataConfig(train="x", **settings)
    prompts = prompts_of(tokenizer, data=data)
    source = GivenSource(key="FILE", name="rows", filled=tuple(columns))
    record = (
        TASKS["instruction"]
        .format.asking(source, data)
        .read(Row(key="FILE", place="rows row 1", columns=columns))
    )
    wanted = prompts.of_messages([{"role": "user", "content": "Hi you"}])
    assert np.array_equal(prompts.of_record(record).ids, wanted.ids)
    assert tokenizer.decode(wanted.ids).endswith("<|user|>\nHi you\n<|assistant|>\n")


def test_a_preference_model_answers_prompts_and_pairs(tokenizer):
    data = DataConfig(train="x")
    prompts, read = prompts_of(tokenizer, "preference", data), TASKS["preference"].format.asking
    pair = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": x}] for x in "ab"]
    given = {"prompt": "Hi"}, {"chosen": pair[0], "rejected": pair[1]}
    found = []
    for columns in given:
        source = GivenSource(key="FILE", name="rows", filled=tuple(columns))
        row = Row(key="FILE", place="row 1", columns=columns)
        found.append(prompts.of_record(read(source, data).read(row)).ids.tolist())
    wanted = prompts.of_messages([{"role": "user", "content": "Hi"}])
    assert found[0] == found[1] == wanted.ids.tolist()


def test_other_language_models(tokenizer):
    text = prompts_of(tokenizer, "causal_lm").of_text("Once upon")
    assert text.ids.tolist() == tokenizer("Once upon").input_ids
    plain = prompts_of(
        tokenizer, data=DataConfig(train="x", chat_template="none"), chat_template="none"
    )
    assert not plain.takes_messages
    assert np.array_equal(plain.of_text("Once upon").ids, text.ids)
    prefixed = prompts_of(tokenizer, "seq2seq", DataConfig(train="x", source_prefix="to German: "))
    assert tokenizer.decode(prefixed.of_text("a dog").ids, skip_special_tokens=True).strip() == (
        "to German: a dog"
    )


def test_the_stop_is_what_the_template_ends_an_answer_with(tokenizer):
    import copy

    own = copy.copy(tokenizer)
    own.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert prompts_of(own).stop_texts == ("<|im_end|>",)  # which is no token of this tokenizer


def test_what_cannot_be_answered_is_told(tokenizer):
    prompts = prompts_of(tokenizer)
    for messages, words in (
        ([], "at least one"),
        ([{"role": "assistant", "content": "a"}], "no message that could be answered"),
        ([{"role": "nobody", "content": "a"}], "role must be one of"),
        ([{"role": "user", "content": "a b c " * 300}], "the model takes 256"),
    ):
        with pytest.raises(BadRow, match=words):
            prompts.of_messages(messages)
    source = replace(prompts_of(tokenizer, "seq2seq"), context=4)
    with pytest.raises(BadRow, match="the model takes 4"):
        source.of_text("a b c d e")


def reply(tokenizer, **settings):
    return Reply(
        prompt=Prompt(ids=np.array([1])),
        sampling=Sampling(**settings),
        stop=frozenset({2}),
        tokenizer=tokenizer,
    )


def test_a_stop_is_no_part_of_the_text_and_what_may_become_one_waits(tokenizer):
    ids = tokenizer("a dog and END more", add_special_tokens=False).input_ids
    found, seen = reply(tokenizer, stop=("END",)), []
    for id in ids:
        if found.is_done:
            break
        found.take(Token(id=id))
        seen.append(found.text)
    assert (found.text.strip(), found.finish) == ("a dog and", "stop")
    assert all(found.text.startswith(text.rstrip()) for text in seen)
    short = reply(tokenizer, max_new_tokens=2)
    for id in ids[:2]:
        short.take(Token(id=id))
    assert short.finish == "length" and len(short.tokens) == 2


def test_side_by_side_each_reply_is_as_alone_and_seeds_repeat(chats):
    with open_trained(str(chats["alpha"])) as trained:
        model = trained.load()
        prompts = Prompts.of(trained, model)

        def written(*asked):
            replies = [
                prompts.reply(
                    prompts.of_messages([{"role": "user", "content": text}]),
                    Sampling(max_new_tokens=12, **settings),
                )
                for text, settings in asked
            ]
            generate(model, replies, trained.spec.pad_token_id)
            return [(each.ids, each.finish) for each in replies]

        asked = [
            ("Name a color", {}),
            ("Tell me a long story about a dog", {"temperature": 1.0, "seed": 1}),
            ("Name", {"temperature": 1.0, "top_p": 1e-6, "seed": 2}),
        ]
        together = written(*asked)
        assert together == [written(each)[0] for each in asked]
        assert together[2] == written(("Name", {}))[0], "the likeliest alone is left of top_p"
        assert written(("Name", {"temperature": 3.0, "seed": 5})) != written(
            ("Name", {"temperature": 3.0, "seed": 6})
        )
        first, second = written(("Name", {"temperature": 3.0}), ("Name", {"temperature": 3.0}))
        assert first != second, "without a seed each is drawn by another"
        # what transformers itself writes
        import torch

        asked = prompts.of_messages([{"role": "user", "content": "Name a color"}])
        ids = torch.from_numpy(asked.ids).long()[None]
        theirs = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
        own = together[0][0]
        assert theirs[0, ids.shape[1] :].tolist()[: len(own)] == own
