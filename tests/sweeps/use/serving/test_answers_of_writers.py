"""What language models answer, to rows and to requests: what the sweep has them write."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from sweeps.use.answers import FINISH, PREDICTION, answerer
from sweeps.use.generation import Sampling
from sweeps.use.prompts import Prompts
from sweeps.use.rows import open_file, read_rows
from sweeps.use.serving.models import Base, Served, load
from sweeps.use.trained import open_trained
from trainables.data.records import Record
from trainables.engine.decoding import generate
from trainables.evaluation.answering import Answering
from trainables.metrics.config import GenerationConfig

# PEFT asks for it when it loads
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
SEED = 3
HOW = {"greedy": {}, "drawn": {"temperature": 0.8, "top_p": 0.9}}


@pytest.fixture(scope="module")
def fluent(make_chats):
    """Has learnt where answers end."""
    return make_chats("fluent", method="full", learning_rate=3e-3, epochs=3)


@pytest.mark.parametrize("how", HOW)
def test_validation_rows_are_answered_as_the_sweep_has_them_answered(fluent, tmp_path, how):
    with open_trained(str(fluent)) as trained:
        split, model = trained.split(), trained.load()
        answering = Answering(
            task=trained.task,
            split=split,
            tokenizer=trained.tokenizer,
            metrics=(),
            settings=GenerationConfig(rows=len(split), max_new_tokens=16, **HOW[how]),
            pad_token_id=trained.spec.pad_token_id,
            max_tokens=4096,
            seed=SEED,
            digest="",
        )
        wanted = answering.write(model)
        assert wanted.rows == tuple(range(len(split)))
        assert Prompts.of(trained, model).stop == {*answering.stop(model)}

        rows = [json.loads(x) for x in (trained.data / "validation.jsonl").read_text().splitlines()]
        file = tmp_path / "asked.jsonl"
        file.write_text("\n".join(json.dumps({"messages": x["messages"][:-1]}) for x in rows))
        (source,) = open_file(str(file))
        read = [each.record for each in read_rows(source, trained.task, trained.config.data)]
        asked = [each for each in read if isinstance(each, Record)]
        assert len(asked) == len(rows)
        sampling = Sampling(max_new_tokens=16, seed=SEED, **HOW[how])
        found = list(answerer(trained, sampling)(list(enumerate(asked))))
        assert [each[PREDICTION] for each in found] == [*wanted.texts]
        assert len(set(wanted.texts)) > 1 and "stop" in {each[FINISH] for each in found}


@pytest.fixture(scope="module")
def served(chats):
    """Two adapters over one base."""
    with ExitStack() as files:
        yield load(
            [Served(name=name, folder=str(chats[name]), trial=None) for name in chats], files
        )


ASKED = [
    ("alpha", "Name a color 7", {}),
    ("beta", "Tell me a long story about a dog 7", {"temperature": 1.0, "seed": 1}),
    ("beta", "Name a color 7", {"max_new_tokens": 3}),
    ("alpha", "Who are you? 1", {"temperature": 0.7, "top_p": 0.9, "seed": -2}),
    ("beta", "Name an animal", {}),
]


def replies_of(served):
    found = [
        served[name].reply(
            served[name].prompts.of_messages([{"role": "user", "content": text}]),
            Sampling(**{"max_new_tokens": 16, **settings}),
        )
        for name, text, settings in ASKED
    ]
    for reply in found:  # these have not learnt where answers end
        reply.stop |= {*reply.tokenizer(". dog", add_special_tokens=False).input_ids}
    return found


@pytest.fixture(scope="module")
def alone(served, chats):
    """Tokens of each by its own checkpoint, as the sweep has it write."""
    found = []
    for (name, _, settings), reply in zip(ASKED, replies_of(served), strict=True):
        how = {"max_new_tokens": 16, **settings}
        seed = how.pop("seed", 0)
        with open_trained(str(chats[name])) as trained:
            (ids,) = generate(
                trained.load(),
                [reply.prompt],
                GenerationConfig(**how),
                stop=[*reply.stop],
                pad_token_id=trained.spec.pad_token_id,
                seed=seed,
            )
        found.append([token for token in ids if token not in reply.stop])
    assert len({*map(len, found)}) > 2, "some leave the batch before others"
    return found


def test_requests_of_several_adapters_are_answered_as_each_checkpoint_would(served, alone):
    base, replies, rows = served["alpha"].base, replies_of(served), []
    assert base is served["beta"].base and base.mixes
    hook = base.model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    base.write(replies)
    hook.remove()
    assert [reply.ids for reply in replies] == alone
    assert max(rows) == len(replies) and rows[-1] < len(replies), "all at once, until they end"
    assert base.padding.is_harmless, "and that is tried once"
    one_by_one = Base(
        model=base.model, pad_token_id=base.pad_token_id, adapters=base.adapters, mixes=False
    )
    one_by_one.write(again := replies_of(served))
    assert [reply.ids for reply in again] == alone


def test_requests_are_answered_where_memory_does_not_suffice_for_all(served, alone):
    base, replies, heard = served["alpha"].base, replies_of(served), []
    for number, reply in enumerate(replies):
        reply.heard = lambda number=number: heard.append(number)

    def full(module, args, kwargs):
        rows, width = kwargs["input_ids"].shape
        if rows > 2 and width == 1:
            raise torch.OutOfMemoryError("no room")

    hook = base.model.get_base_model().register_forward_pre_hook(full, with_kwargs=True)
    base.write(replies)
    hook.remove()
    assert [reply.ids for reply in replies] == alone
    ended = [len(reply.ids) + (len(reply.ids) < reply.sampling.max_new_tokens) for reply in replies]
    assert np.bincount(heard).tolist() == ended, "each token is told once"


def test_a_cancelled_reply_leaves_the_others_alone(served, alone):
    base, replies = served["alpha"].base, replies_of(served)

    def gone():
        replies[0].cancelled = len(replies[0].tokens) == 2

    replies[0].heard = gone
    base.write(replies)
    assert [reply.ids for reply in replies] == [alone[0][:2], *alone[1:]]
    assert replies[0].finish is None
