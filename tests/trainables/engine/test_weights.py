"""Tokens that count by a weight: every loss is the weighted mean over tokens, of the whole and of its parts."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from trainables.data.arrow import Split, write_split
from trainables.data.batches import batch_indices
from trainables.data.records import Encoded
from trainables.engine import varlen
from trainables.engine.scoring import evaluate_model, row_means
from trainables.tasks import TASKS, take_targets
from trainables.tasks.causal_lm import task as causal_lm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
TASK, PAD, CPU = TASKS["instruction"], 0, torch.device("cpu")
TRIALS = {
    "a": {"method": "lora", "rank": 2, "dropout": 0.2, "batch_size": 5, "seed": 1},
    "b": {"method": "lora", "rank": 5, "targets": "attention", "batch_size": 1, "epochs": 1},
    "c": {"method": "ia3", "batch_size": 7, "epochs": 3, "seed": 2},
}


@pytest.fixture(scope="module")
def data(lab):
    return lab.weighted("llama")


def weighted_mean(module, split, rows):
    """By plain torch, token by token."""
    total = count = torch.zeros((), dtype=torch.float64)
    for row in split.rows(rows):
        ids = torch.from_numpy(row["input_ids"].astype(np.int64))
        log_p = module(input_ids=ids[None]).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if row["labels"][t] != -100:
                weight = float(row["weights"][t])
                total, count = total - weight * log_p[t - 1, ids[t]], count + weight
    return total / count


def small_seed(split, batch_size):
    """Of a trial whose first step has targets of less than 1 in all."""
    for seed in range(99):
        rows = batch_indices(len(split), batch_size, seed, 0)
        if TASK.target_count(split.rows(rows)) < 1:
            return seed
    raise AssertionError


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_equal_those_of_a_plain_loop(lab, data, method, batch_size, tmp_path):
    seed = small_seed(data["train"], 1) if batch_size == 1 else 0
    hp = lab.params(method, batch_size=batch_size, seed=seed, max_grad_norm=0.0)
    group = lab.group("llama", dtype=torch.float64, **data)
    group.join("t", hp)
    group.save("t", tmp_path / "start")
    module = lab.plain(
        "llama", tmp_path / "start" / "checkpoint" if method == "full" else None, torch.float64
    )
    if method == "lora":
        from peft import PeftModel

        module = PeftModel.from_pretrained(
            module, tmp_path / "start" / "checkpoint", is_trainable=True
        )
    split = data["train"]
    weighted_mean(module, split, batch_indices(len(split), batch_size, seed, 0)).backward()
    expected = {
        name.replace(".default", ""): p.grad
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    for budget in (1, 10**6):
        settings = {"dtype": torch.float64, "evaluate_every": 1, "max_tokens": budget}
        found = lab.first_gradients(
            lab.group("llama", **settings, **data), tmp_path / str(budget), hp
        )
        lab.assert_close(found, expected, 1e-10)


def test_losses_are_weighted_means_of_the_saved_checkpoint(lab, data, tmp_path):
    hp = lab.params("lora", batch_size=4, epochs=1)
    group = lab.group("llama", dtype=torch.float64, max_tokens=40, **data)
    ((evaluation, folder),) = lab.run(group, tmp_path, hp)
    from peft import PeftModel

    module = PeftModel.from_pretrained(
        lab.plain("llama", dtype=torch.float64), folder / "checkpoint"
    ).eval()
    validation, train = data["validation"], data["train"]
    everything = range(len(validation))
    with torch.no_grad():
        val_loss = float(weighted_mean(module, validation, everything))
        assert evaluation.probe_loss == pytest.approx(
            float(weighted_mean(module, train, range(len(train)))), rel=1e-10
        )
        by_row = [float(weighted_mean(module, validation, [i])) for i in everything]
    assert evaluation.val_loss == pytest.approx(val_loss, rel=1e-10)
    assert evaluation.metrics == pytest.approx({"perplexity": math.exp(val_loss)}, rel=1e-9)
    targets = [TASK.target_count(validation.rows([i])) for i in everything]
    np.testing.assert_allclose(evaluation.losses[:, 1], targets, rtol=1e-6)
    np.testing.assert_allclose(evaluation.losses[:, 0], np.multiply(by_row, targets), rtol=1e-6)
    again = evaluate_model(module, TASK, validation, np.arange(len(validation)), PAD, 64, CPU)
    assert again.loss == pytest.approx(val_loss, rel=1e-10)


def test_a_training_loss_is_the_weighted_mean_over_the_tokens_of_its_steps(lab, data):
    """The rate is so small that nothing is learnt: all steps together see every row once."""
    hp = lab.params("lora", batch_size=4, epochs=1, learning_rate=1e-12)
    group = lab.group("llama", dtype=torch.float64, **data)
    group.join("t", hp)
    while not group.step(["t"]):
        pass
    with torch.no_grad():
        split, module = data["train"], lab.plain("llama", dtype=torch.float64)
        seen = np.concatenate([batch_indices(len(split), 4, hp.seed, step) for step in range(5)])
        expected = float(weighted_mean(module, split, seen))
    assert group.evaluate(["t"])["t"].train_loss == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("settings", [{}, {"max_tokens": 24}, {"gradient_checkpointing": True}])
def test_a_group_gives_each_trial_what_it_has_alone(lab, data, settings, tmp_path):
    trials = {name: lab.params(**more) for name, more in TRIALS.items()}

    def group(**more):
        return lab.group("llama", dtype=torch.float64, **data, **more)

    together = lab.together(group(**settings), tmp_path / "together", trials)
    for name, hp in trials.items():
        lab.assert_alike(together[name], lab.run(group(), tmp_path / name, hp), 1e-9)


def test_neither_chunks_nor_rows_without_padding_change_a_result(lab, data, tmp_path, monkeypatch):
    trials = {name: lab.params(**more) for name, more in TRIALS.items()}
    settings = {"dtype": torch.float64, "max_tokens": 60, **data}
    expected = lab.together(lab.group("llama", **settings), tmp_path / "whole", trials)
    calls, within = [], varlen._within_rows

    def count(*args, **how):
        calls.append(args)
        return within(*args, **how)

    monkeypatch.setattr(varlen, "_within_rows", count)
    flat = lab.together(lab.group("llama", varlen=True, **settings), tmp_path / "flat", trials)
    varlen.passing(None)
    assert calls
    monkeypatch.setattr(causal_lm, "CHUNK_LOGITS", 700)
    chunks = lab.together(lab.group("llama", **settings), tmp_path / "chunks", trials)
    for trial in trials:
        lab.assert_alike(flat[trial], expected[trial], 1e-9)
        lab.assert_alike(chunks[trial], expected[trial], 1e-9)


def with_weights(split, path, weight):
    rows = split.rows(range(len(split)))
    write_split(
        path,
        Encoded(
            input_ids=[row["input_ids"] for row in rows],
            labels=[row["labels"] for row in rows],
            weights=[np.full(len(row["labels"]), weight, dtype=np.float32) for row in rows],
        ),
    )
    return Split(path)


@pytest.mark.parametrize("which", [["train", "validation"], ["train"], ["validation"]])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_of_1_are_none_bit_for_bit(lab, method, which, tmp_path):
    """Of one split only too: the other's tokens have weight 1."""
    ones = {
        name: with_weights(lab.split("llama", name), tmp_path / f"{name}.arrow", 1.0)
        for name in which
    }
    hp = lab.params(method)
    expected = lab.run(lab.group("llama"), tmp_path / "without", hp)
    lab.assert_same(lab.run(lab.group("llama", **ones), tmp_path / "ones", hp), expected)


def test_equal_weights_however_small_change_no_loss_and_no_gradient(lab, tmp_path):
    small = {
        name: with_weights(lab.split("llama", name), tmp_path / f"{name}.arrow", 2.0**-10)
        for name in ("train", "validation")
    }
    hp, folder = lab.params("lora", batch_size=1, epochs=0.5), tmp_path / "without"
    expected = lab.run(lab.group("llama", dtype=torch.float64), folder, hp)
    found = lab.run(lab.group("llama", dtype=torch.float64, **small), tmp_path / "small", hp)
    scaled = [(dataclasses.replace(each, losses=each.losses * 2**10), at) for each, at in found]
    lab.assert_alike(scaled, expected, 1e-9)


def test_what_is_forgotten_does_not_depend_on_weights(lab, data):
    """Of the same weights of the model: general text and what the base drew have none."""
    found = []
    for more in (data, {}):
        group = lab.group("llama", general=lab.general(), dtype=torch.float64, **more)
        group.join("t", lab.params("full", learning_rate=3e-2))
        with torch.no_grad():
            lab.bases[-1].model.get_output_embeddings().weight.mul_(1.1)
        evaluation = group.evaluate(["t"])["t"]
        found.append((evaluation.forgetting, evaluation.kl))
    assert found[0] == pytest.approx(found[1], rel=1e-10) and abs(found[0][0]) > 1e-4


def test_a_model_is_never_given_weights(lab, data, monkeypatch):
    """Nor where the base draws, functions are watched, or rows without padding are timed."""
    base, given = lab.base, set()

    def watched(*args, **how):
        found = base(*args, **how)
        found.model.register_forward_pre_hook(
            lambda module, args, inputs: given.update(inputs), with_kwargs=True
        )
        return found

    monkeypatch.setattr(lab, "base", watched)
    group = lab.group("llama", general=lab.general(), varlen=True, **data)
    group.join("t", lab.params("lora"))
    group.step(["t"])
    group.evaluate(["t"])
    varlen.passing(None)
    assert {"input_ids", "attention_mask", "position_ids"} <= given
    assert not given & {"labels", "weights"}


def test_a_row_s_mean_is_over_its_weights_however_small():
    nll, targets = torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.25, 2.0, 0.0])
    assert row_means(nll, targets).tolist() == [2.0, 0.125, 0.0]
    assert row_means(nll, torch.tensor([1, 2, 0])).tolist() == [0.5, 0.125, 0.0]


def test_a_batch_is_inputs_once_its_targets_are_taken(data):
    batch = TASK.collate(data["train"].rows([0, 1]), PAD)
    labels, weights, reference = take_targets(batch, TASK, torch.nn.Identity())
    assert labels.shape == weights.shape == batch["input_ids"].shape and reference is None
    assert batch.keys() == {"input_ids", "attention_mask"}
