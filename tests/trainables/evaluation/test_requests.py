"""Latency of single requests, and how sure a model is of its answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from trainables.evaluation.confidence import read_answers
from trainables.evaluation.latency import measure_latencies, prompt_ids
from trainables.tasks import TASKS

CPU = torch.device("cpu")
IDS = [np.array(each, np.int32) for each in ([1, 5, 9, 7], [1, 6], [1, 8, 30, 12, 44, 17])]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def language_model(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def classifier(folder: Path, **settings: object):
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder, num_labels=3, pad_token_id=0, **settings).eval()


def texts(labels: list) -> list[dict]:
    return [{"input_ids": ids, "labels": label} for ids, label in zip(IDS, labels, strict=True)]


def test_each_model_answers_each_row_in_turn(folder):
    model, asked = classifier(folder), []
    first, second = (lambda self, args, name=name: asked.append(name) for name in "ab")
    other = classifier(folder)
    model.register_forward_pre_hook(first)
    other.register_forward_pre_hook(second)
    found = measure_latencies(
        [model, other],
        TASKS["classification"],
        texts([0, 1, 2]),
        pad_token_id=0,
        new_tokens=1,
        device=CPU,
    )
    assert asked == ["a", "b"] * 6, "three requests to warm up and three that count, in turn"
    assert all(each.requests == 3 and 0 < each.p50_ms <= each.p95_ms for each in found)


def test_a_language_model_writes_always_as_many_tokens(language_model):
    written = []
    language_model.register_forward_hook(lambda *given: written.append(1), always_call=True)
    rows = texts([np.array([-100, -100, 9, 7]), np.array([-100, 6]), np.array([-100] * 5 + [17])])
    (found,) = measure_latencies(
        [language_model], TASKS["instruction"], rows[:1], pad_token_id=0, new_tokens=7, device=CPU
    )
    assert len(written) == 4 * 7 and found.requests == 1


def test_what_a_language_model_is_asked():
    ids = IDS[2]
    answered = {"input_ids": ids, "labels": np.array([-100, -100, -100, 12, 44, 17])}
    assert prompt_ids(answered, TASKS["instruction"]).tolist() == [1, 8, 30]
    pair = {**answered, "second": 4, "labels": np.array([-100, -100, 30, 12, -100, 17])}
    assert prompt_ids(pair, TASKS["preference"]).tolist() == [1, 8]
    assert prompt_ids({"input_ids": ids, "labels": ids}, TASKS["causal_lm"]).tolist() == [1, 8, 30]
    other = {"input_ids": ids, "labels": np.array([3, 4])}
    assert prompt_ids(other, TASKS["seq2seq"]).tolist() == ids.tolist()


def answers(model, task: str, rows: list[dict]):
    return read_answers(model, TASKS[task], rows, pad_token_id=0, max_tokens=8, device=CPU)


def test_a_classifier_s_are_its_probabilities(folder):
    model = classifier(folder)
    found = answers(model, "classification", texts([0, 1, 2]))
    for number, ids in enumerate(IDS):
        with torch.no_grad():
            alone = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].softmax(-1)
        assert found.confidence[number] == pytest.approx(float(alone.max()), rel=1e-4)
        assert found.classes is not None
        assert found.classes[number].tolist() == np.eye(3)[int(alone.argmax())].tolist()


def test_labels_by_themselves_and_numbers(folder):
    kind = {"problem_type": "multi_label_classification"}
    rows = texts([np.array([0, 1, 1], np.float32)] * 3)
    found = answers(classifier(folder, **kind), "multi_label", rows)
    assert found.classes is not None and found.classes.shape == (3, 3)
    assert ((found.confidence >= 0.5) & (found.confidence <= 1)).all()
    found = answers(classifier(folder, problem_type="regression"), "regression", texts([0.5] * 3))
    assert found.classes is None and len(set(found.confidence)) == 3


def test_of_words_only_those_that_have_a_tag(folder):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=2
    )
    model = transformers.BertForTokenClassification(config).eval()
    tags = [np.array([-100, 1, -100, 0]), np.array([-100, 1]), np.array([-100, 0, 1, 0, 1, -100])]
    found = answers(model, "token_classification", texts(tags))
    for number, (ids, own) in enumerate(zip(IDS, tags, strict=True)):
        with torch.no_grad():
            alone = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].softmax(-1)
        most = alone.amax(-1)[torch.from_numpy(own != -100)].mean()
        assert found.confidence[number] == pytest.approx(float(most), rel=1e-4)


def test_a_language_model_s_is_of_its_first_token(language_model):
    rows = texts([np.array([-100, -100, 9, 7]), np.array([-100, 6]), np.array([-100] * 5 + [17])])
    found = answers(language_model, "instruction", rows)
    for number, prompt in enumerate(([1, 5], [1], [1, 8, 30, 12, 44])):
        with torch.no_grad():
            alone = language_model(torch.tensor([prompt])).logits[0, -1].softmax(-1).max()
        assert found.confidence[number] == pytest.approx(float(alone), rel=1e-4)
    assert found.classes is None
