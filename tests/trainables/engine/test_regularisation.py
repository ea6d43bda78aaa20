"""What is put upon training: smoothed labels, balanced classes, noisy inputs, averaged weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.dropout import RowKeys
from trainables.engine.regularisation import InputNoise, balanced
from trainables.engine.shared import ema_decay
from trainables.errors import InputError
from trainables.tasks import TASKS

ALL = {"label_smoothing": 0.1, "neftune_alpha": 5.0, "ema_decay": 0.9}
WAYS = {
    "smooth": {"label_smoothing": 0.2},
    "noisy": {"neftune_alpha": 10.0},
    "averaged": {"ema_decay": 0.8},
    "plain": {},
    "all": ALL,
}

BERT = "bert-no-dropout"


# --- losses ---


@pytest.mark.parametrize("output", [True, False])
def test_smoothed_losses_of_tokens_are_torch_s(output, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 11).double()
    hidden, labels = torch.randn(3, 7, 5).double(), torch.randint(0, 11, (3, 7))
    labels[1, 4:] = -100
    monkeypatch.setattr("trainables.tasks.causal_lm.task.CHUNK_LOGITS", 40)
    smoothing = torch.tensor([0.0, 0.1, 0.5]).double()
    given = (hidden, labels, layer) if output else (layer(hidden), labels)
    nll, _ = TASKS["causal_lm"].row_losses(*given, smoothing=smoothing)
    for b in range(3):
        expected = torch.nn.functional.cross_entropy(
            layer(hidden)[b, :-1],
            labels[b, 1:],
            reduction="sum",
            ignore_index=-100,
            label_smoothing=float(smoothing[b]),
        )
        torch.testing.assert_close(nll[b], expected)


def test_smoothed_losses_of_classes_are_torch_s():
    logits, labels = torch.randn(4, 3).double(), torch.tensor([0, 2, 1, 1])
    nll, _ = TASKS["classification"].row_losses(
        logits, labels, smoothing=torch.full((4,), 0.3).double()
    )
    expected = torch.nn.functional.cross_entropy(
        logits, labels, reduction="none", label_smoothing=0.3
    )
    torch.testing.assert_close(nll, expected)


def test_balanced_classes_count_alike():
    labels = np.array([0, 0, 0, 2])
    weights = balanced(labels)
    np.testing.assert_allclose(weights, [4 / (2 * 3), 0, 4 / (2 * 1)])
    assert weights[labels].mean() == pytest.approx(1)


def test_a_language_model_has_no_classes_to_balance(lab):
    with pytest.raises(InputError, match="class_weights: balanced is for tasks with classes"):
        lab.group("llama").join("t", lab.params("lora", class_weights="balanced"))


def test_gradients_of_balanced_classes_are_torch_s(lab, tmp_path):
    hp = lab.params(
        "full", class_weights="balanced", max_grad_norm=0, batch_size=6, label_smoothing=0.1
    )
    group = lab.group(BERT, dtype=torch.float64)
    mine = lab.first_gradients(group, tmp_path, hp)
    split = lab.split(BERT)
    group.join("again", hp)  # the same new head
    module = group._engine.base.model
    rows = batch_indices(len(split), 6, hp.seed, 0)
    batch, labels = lab.batch(BERT, rows)
    weights = torch.from_numpy(balanced(split.labels))
    # torch's own smoothing weighs the other classes, too
    logp = module(**batch).logits.log_softmax(-1)
    per_row = -0.9 * logp[torch.arange(6), labels] - 0.1 * logp.mean(-1)
    of_rows = weights[labels]
    ((per_row * of_rows).sum() / of_rows.sum()).backward()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, module.get_parameter(name).grad, rtol=1e-6, atol=1e-9)


# --- in company, in pieces, after a stop ---


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_in_company_each_gets_what_it_gets_alone(lab, tmp_path, model):
    more = {"class_weights": "balanced"} if model == "bert" else {}
    trials = {name: lab.params("lora", **way) for name, way in WAYS.items()}
    trials["balanced"] = lab.params("lora", **more)
    together = lab.together(
        lab.group(model, dtype=torch.float64, max_tokens=40), tmp_path / "together", trials
    )
    for name, hp in trials.items():
        alone = lab.run(lab.group(model, dtype=torch.float64), tmp_path / name, hp)
        lab.assert_alike(together[name], alone, 1e-8)
    finals = {name: found[-1][0].val_loss for name, found in together.items()}
    different = set(finals.values())
    assert len(different) == len(finals) - (not more)  # each of them does something


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_goes_on_after_a_stop_as_if_there_had_been_none(lab, tmp_path, method):
    hp = lab.params(method, **ALL)
    whole = lab.run(lab.group("bert"), tmp_path / "whole", hp)
    rest = lab.run(lab.group("bert"), tmp_path / "rest", hp, whole[0][1])
    lab.assert_same(rest, whole[1:])


def test_no_noise_in_an_evaluation(lab, tmp_path):
    """Nor in the steps of another trial."""
    group = lab.group("bert", dtype=torch.float64)
    noisy = lab.params("lora", neftune_alpha=50.0, learning_rate=1e-12)
    (evaluation, _), *_ = lab.run(group, tmp_path / "a", noisy)
    (plain, _), *_ = lab.run(group, tmp_path / "b", lab.params("lora", learning_rate=1e-12))
    assert evaluation.val_loss == pytest.approx(plain.val_loss, rel=1e-9)
    assert evaluation.train_loss != pytest.approx(plain.train_loss, rel=1e-4)


def test_noise_is_uniform_and_of_the_paper_s_size(lab):
    keys, embedding = RowKeys(), torch.nn.Embedding(9, 64)
    noise, hp = InputNoise(embedding, keys), lab.params("lora", neftune_alpha=5.0)
    lengths = np.array([50, 20])
    keys.set(0, 0, torch.tensor([3, 8]))
    ids = torch.zeros(2, 50, dtype=torch.long)
    position = np.array([0, 0])
    with noise.on([hp], position, lengths, torch.as_tensor):
        added = (embedding(ids) - embedding.weight[0]).detach()
    for row, length in enumerate(lengths):
        size = 5.0 / (length * 64) ** 0.5
        assert 0.95 * size < added[row].abs().max() <= size * (1 + 1e-5)
        assert added[row].var() == pytest.approx(size**2 / 3, rel=0.1)
    assert torch.equal(embedding(ids)[0, 0], embedding.weight[0])


# --- averages ---


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_holds_the_average_and_that_is_what_is_evaluated(lab, tmp_path, method):
    hp = lab.params(method, ema_decay=0.7)
    group = lab.group("bert")
    group.join("t", hp)
    average = {n: x.detach().clone() for n, x in group._engine.weights("t").items()}
    for step in range(5):
        due = group.step(["t"])
        for name, weight in group._engine.weights("t").items():
            average[name].lerp_(weight.detach(), 1 - ema_decay(hp, step))
    assert due == ["t"] and [ema_decay(hp, step) for step in (0, 1, 99)] == [2 / 11, 3 / 12, 0.7]
    evaluation, folder = lab.publish(group, tmp_path)
    (file,) = (folder / "checkpoint").glob("*.safetensors")
    saved = load_file(file)
    for name, expected in average.items():
        torch.testing.assert_close(saved[name].float(), expected.float(), rtol=1e-6, atol=1e-7)
    with torch.no_grad():  # the weights themselves become the average, and nothing changes
        for name, weight in group._engine.weights("t").items():
            weight.copy_(average[name])
    if method == "lora":
        group._engine._moments["average"].copy_(group._engine._weights)
    else:
        group._engine._averages = average
    again = group.evaluate(["t"])["t"]
    assert again.val_loss == pytest.approx(evaluation.val_loss, rel=1e-6)


def test_memory_of_an_average_is_counted(lab):
    from trainables.engine import memory

    def per_trial(**more):
        return memory.estimate(
            lab.base("bert").config,
            "AutoModelForSequenceClassification",
            lab.params("lora", **more),
            dtype_bytes=4,
            compute_bytes=4,
            quantisation="none",
            max_tokens=512,
            gradient_checkpointing=False,
        ).per_trial

    assert per_trial(ema_decay=0.9) * 4 == per_trial() * 5
