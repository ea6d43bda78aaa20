"""What is put upon training: smoothed labels, balanced classes, noisy inputs, averaged weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.dropout import RowKeys
from trainables.engine.group import NonFinite
from trainables.engine.regularisation import InputNoise, balanced
from trainables.engine.shared import ema_decay
from trainables.errors import InputError
from trainables.tasks import TASKS

ALL = {"label_smoothing": 0.1, "neftune_alpha": 5.0, "ema_decay": 0.9}
WAYS = {
    "smooth": {"label_smoothing": 0.2},
    "noisy": {"neftune_alpha": 10.0},
    "averaged": {"ema_decay": 0.8},
    "averaged at its end": {"average_last": 3},
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


SOUP = {**ALL, "ema_decay": 0.0, "average_last": 2}


@pytest.mark.parametrize("way", [ALL, SOUP], ids=["all", "soup"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_goes_on_after_a_stop_as_if_there_had_been_none(lab, tmp_path, method, way):
    """Also before its last step, which may be that of an average."""
    hp = lab.params(method, epochs=3, **way)
    settings = {"save_dtype": torch.bfloat16} if method == "full" else {}
    whole = lab.run(lab.group("bert", **settings), tmp_path / "whole", hp)
    for done in range(1, len(whole)):
        rest = lab.run(
            lab.group("bert", **settings), tmp_path / f"rest{done}", hp, whole[done - 1][1]
        )
        lab.assert_same(rest, whole[done:])


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


def mean_of_checkpoints(history):
    """Of the weights in the checkpoints of a history, in float64."""
    saved = [load_file(next((f / "checkpoint").glob("*.safetensors"))) for _, f in history]
    return {n: sum(each[n].double() for each in saved) / len(saved) for n in saved[0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {"freeze_a": True}),
        ("full", {}),
        ("full", {"optimizer": "muon"}),
        ("lora", {"init_lora_weights": "pissa"}),
        ("prefix", {"virtual_tokens": 3}),
        ("ia3", {"optimizer": "lion"}),
    ],
)
def test_one_more_evaluation_is_of_the_mean_of_the_last_weights(lab, tmp_path, method, more, dtype):
    """And all before it are those of the trial without it."""
    hp = lab.params(method, epochs=4, average_last=3, **more)
    history = lab.run(lab.group(BERT, dtype=dtype, save_dtype=dtype), tmp_path / "a", hp)
    *trained, (average, folder) = history
    (file,) = (folder / "checkpoint").glob("*.safetensors")
    expected = {n: x.to(dtype) for n, x in mean_of_checkpoints(trained[-3:]).items()}
    saved = load_file(file)
    assert saved.keys() == expected.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, expected[name]), name
    last = trained[-1][0]
    assert [e.averaged for e, _ in history] == [0, 0, 0, 0, 3]
    assert [e.finished for e, _ in history] == [False, False, False, False, True]
    assert (average.step, average.samples_seen) == (last.step + 1, last.samples_seen)
    assert average.train_loss is None and average.learning_rate is None
    assert average.val_loss != last.val_loss
    plain = lab.run(
        lab.group(BERT, dtype=dtype, save_dtype=dtype), tmp_path / "b", replace(hp, average_last=0)
    )
    assert [replace(e, finished=False, losses=None, outcomes=None) for e, _ in plain] == [
        replace(e, finished=False, losses=None, outcomes=None) for e, _ in trained
    ]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_of_the_average_is_that_of_what_a_user_loads(lab, tmp_path, method):
    hp = lab.params(method, average_last=2)
    (*_, (average, folder)) = lab.run(lab.group("llama", dtype=torch.float64), tmp_path, hp)
    path = folder / "checkpoint"
    if method == "full":
        loaded = lab.plain("llama", path, dtype=torch.float64)
    else:
        loaded = PeftModel.from_pretrained(lab.plain("llama", dtype=torch.float64), path)
    with torch.no_grad():
        rows = range(len(lab.split("llama", "validation")))
        loss = lab.loss("llama", loaded.eval(), rows, "validation")
    assert average.averaged == 2
    assert average.val_loss == pytest.approx(float(loss), rel=1e-6 if method == "full" else 1e-9)


def test_the_average_of_all_evaluations_where_there_are_fewer(lab, tmp_path):
    hp = lab.params("lora", average_last=50)
    (*trained, (average, folder)) = lab.run(lab.group("bert", evaluate_every=7), tmp_path, hp)
    assert average.averaged == len(trained) > 3
    saved = load_file(folder / "checkpoint" / "adapter_model.safetensors")
    for name, expected in mean_of_checkpoints(trained).items():
        assert torch.equal(saved[name], expected.float())


def test_a_trial_that_averages_leaves_the_step_of_another_as_it_is(lab, tmp_path):
    """Its own step takes no rows, and what breaks another's does not touch it."""
    short, long = lab.params("lora", epochs=1, average_last=2), lab.params("lora", epochs=3)
    trials = {"short": short, "long": long}
    together = lab.together(lab.group("bert", dtype=torch.float64), tmp_path / "both", trials)
    for name, hp in trials.items():
        alone = lab.run(lab.group("bert", dtype=torch.float64), tmp_path / name, hp)
        lab.assert_alike(together[name], alone, 1e-8)
    group = lab.group("bert")
    for name, hp in trials.items():
        group.join(name, hp)
    while "short" not in group.step(["short", "long"]):
        pass
    group._engine.weights("long")["base_model.model.classifier.bias"].fill_(float("nan"))
    with pytest.raises(NonFinite):
        group.step(["short", "long"])
    assert group.due(["short"]) == ["short"]
    assert group.evaluate(["short"])["short"].finished


def test_an_average_is_computed_with_in_the_arithmetic_s_type(lab):
    hp = lab.params("lora", average_last=2)
    group = lab.group("bert", autocast=torch.bfloat16)
    group.join("t", hp)
    for _ in range(group.total_steps(hp) + 1):
        group.step(["t"])
    engine = group._engine
    assert engine._low is not engine._weights
    assert torch.equal(engine._low, engine._weights.bfloat16())
