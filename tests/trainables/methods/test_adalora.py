"""AdaLoRA against PEFT's own: weights, importance and ranks after every step; what leaves."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.schedule import learning_rate
from trainables.errors import InputError
from trainables.hyperparameters import AdaLoraOptions, parse
from trainables.methods.adalora import Triplets
from trainables.methods.lora import target_modules

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

DOUBLE = torch.float64
# 20 steps: ranks go after the 4th, and for the last time with the 15th
OPTIONS = {
    "init_r": 5,
    "target_r": 2,
    "alpha": 7,
    "tinit_ratio": 0.2,
    "tfinal_ratio": 0.25,
    "delta_t": 3,
    "importance_beta1": 0.7,
    "importance_beta2": 0.6,
    "orth_reg_weight": 0.3,
}
TOTAL = 20


def hyperparameters(**more):
    common = {"learning_rate": 3e-2, "batch_size": 4, "epochs": 4, "epsilon": 1e-4}
    return parse({"method": "adalora", **common, **OPTIONS, **more})


def in_peft(lab, model, raw):
    """PEFT's own module with the weights `raw`."""
    module = get_peft_model(
        lab.plain(model, dtype=DOUBLE),
        peft.AdaLoraConfig(
            init_r=5,
            target_r=2,
            lora_alpha=7,
            tinit=4,
            tfinal=5,
            deltaT=3,
            beta1=0.7,
            beta2=0.6,
            orth_reg_weight=0.3,
            total_step=TOTAL,
            target_modules=target_modules(lab.base(model), "all-linear"),
            modules_to_save=["classifier"] if model.startswith("bert") else None,
            task_type="SEQ_CLS" if model.startswith("bert") else "CAUSAL_LM",
        ),
    ).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".ranknum." in name:  # part of the scale, which PEFT 0.21 lets be trained
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                parameter.copy_(raw[saved_as(name)])
    return module.train()


def saved_as(name):
    name = name.replace(".modules_to_save", "").replace(".default", "")
    return f"{name}.weight" if ".lora_" in name else name


def penalty(module):
    """As `AdaLoraModel.forward` adds it to the loss of transformers, which computes it in float32."""
    norms = []
    for name, p in module.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            norms.append(torch.linalg.norm(gram - torch.eye(len(gram), dtype=p.dtype)))
    return 0.3 * sum(norms) / len(norms)


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_every_step_equals_that_of_peft(lab, model, max_grad_norm):
    hp = hyperparameters(max_grad_norm=max_grad_norm, weight_decay=0.1)
    group = lab.group(model, dtype=DOUBLE)
    group.join("other", hyperparameters(init_r=8, seed=3, targets="attention"))
    group.join("t", hp)
    raw = state(group, "weights")
    module = in_peft(lab, model, raw)
    trained = {saved_as(n): p for n, p in module.named_parameters() if p.requires_grad}
    assert trained.keys() == raw.keys()
    parts = {
        decay: [p for p in trained.values() if (p.ndim > 1) == (decay > 0)] for decay in (0.1, 0)
    }
    optimizer = torch.optim.AdamW(
        [{"params": part, "weight_decay": decay} for decay, part in parts.items()],
        lr=hp.learning_rate,
        eps=hp.epsilon,
    )
    ranks = []
    for step in range(TOTAL):
        before = group._members["t"].train_nll
        batch, labels = lab.batch(model, batch_indices(18, 4, hp.seed, step))
        nll_B, targets_B = lab.task(model).row_losses(module(**batch).logits, labels)
        loss = nll_B.sum() / targets_B.sum() + penalty(module)
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), max_grad_norm)
        for part in optimizer.param_groups:
            part["lr"] = learning_rate(hp, step, TOTAL)
        optimizer.step()
        module.base_model.update_and_allocate(step + 1)
        group.step(["other", "t"])
        minimised = (group._members["t"].train_nll - before) / float(targets_B.sum())
        assert minimised == pytest.approx(float(loss.detach()), rel=1e-8)
        lab.assert_close(state(group, "weights"), {n: p.detach() for n, p in trained.items()}, 1e-8)
        if step < 14:  # after that PEFT forgets them
            for name in Triplets.state:
                expected = getattr(module.base_model.rankallocator, name)
                expected = {f"base_model.model.{saved_as(n)}": x for n, x in expected.items()}
                lab.assert_close(state(group, name), expected, 1e-8)
        values = [x for name, x in state(group, "weights").items() if ".lora_E." in name]
        ranks.append(sum(int(x.count_nonzero()) for x in values))
    layers = len(values)
    assert ranks[3] == 5 * layers and ranks[14] == ranks[-1] == 2 * layers
    assert 2 * layers < ranks[8] < 5 * layers
    found = lab.logits_aboard(model, group, "t")
    expected = lab.logits(model, module.eval())
    assert float((found - expected).abs().max()) < 1e-8


def state(group, name):
    moments = group._engine.moments("t")
    return {n.split("/", 1)[1]: x.clone() for n, x in moments.items() if n.startswith(f"{name}/")}


def test_evaluations_have_no_penalty(lab):
    group = lab.group("llama", dtype=DOUBLE)
    for trial, weight in {"plain": 0.0, "pulled": 100.0}.items():
        group.join(trial, hyperparameters(orth_reg_weight=weight))
    plain, pulled = group.evaluate(["plain", "pulled"]).values()
    assert plain.val_loss == pulled.val_loss and plain.probe_loss == pulled.probe_loss
    group.step(["plain", "pulled"])
    plain, pulled = group.evaluate(["plain", "pulled"]).values()
    assert pulled.train_loss > plain.train_loss + 1


@pytest.mark.parametrize("model", ["bert-classifier", "llama", "gpt2"])
def test_what_leaves_is_a_lora_of_the_ranks_that_are_left(lab, model, tmp_path):
    group = lab.group(model, dtype=DOUBLE)
    group.join("t", hyperparameters())
    for step in range(TOTAL - 1):
        group.step(["t"])
        group.save("t", tmp_path / str(step))
    expected = lab.logits_aboard(model, group, "t")
    folder = tmp_path / str(step) / "checkpoint"
    described = json.loads((folder / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA"
    assert described["rank_pattern"] == described["alpha_pattern"]
    saved = load_file(folder / "adapter_model.safetensors")
    for name, rank in described["rank_pattern"].items():
        assert saved[f"base_model.model.{name}.lora_A.weight"].shape[0] == rank
        assert saved[f"base_model.model.{name}.lora_B.weight"].shape[1] == rank
    assert len(set(described["rank_pattern"].values())) > 1
    module = PeftModel.from_pretrained(lab.plain(model, dtype=DOUBLE), folder).eval()
    assert float((lab.logits(model, module) - expected).abs().max()) < 1e-10
    merged = module.merge_and_unload()
    assert float((lab.logits(model, merged) - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("after", [2, 9, 17])
def test_resumed_equals_uninterrupted_bit_for_bit(lab, after, tmp_path):
    """Before ranks go, while they do, and when they have gone."""
    hp = hyperparameters()
    group = lab.group("bert")
    group.join("t", hp)
    for _ in range(after):
        group.step(["t"])
    _, saved = lab.publish(group, tmp_path / "half")
    again = lab.group("bert")
    again.join("t", hp, saved)
    for each in (group, again):
        for _ in range(TOTAL - 1 - after):
            each.step(["t"])
    _, whole = lab.publish(group, tmp_path / "whole")
    _, resumed = lab.publish(again, tmp_path / "resumed")
    expected, found = lab.tensors(whole), lab.tensors(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 0}, "target_r: must be at least 1, got 0"),
        (
            {"init_r": 2},
            "init_r: must be above target_r (2), got 2; with ranks that stay take method lora",
        ),
        ({"delta_t": 0}, "delta_t: must be at least 1, got 0"),
        ({"importance_beta1": 1}, "importance_beta1: must be below 1, got 1.0"),
        ({"importance_beta2": 0}, "importance_beta2: must be above 0 and at most 1, got 0.0"),
        ({"orth_reg_weight": -1}, "orth_reg_weight: must be at least 0, got -1.0"),
        (
            {"tinit_ratio": 0.5, "tfinal_ratio": 0.5},
            "tfinal_ratio: with tinit_ratio it must be below 1, so that ranks can go between, got 0.5 and 0.5",
        ),
        (
            {"ema_decay": 0.9},
            "ema_decay: must be 0 with method adalora, whose ranks go at once and not in an average, got 0.9",
        ),
        (
            {"average_last": 3},
            "average_last: must be 0 with method adalora, whose ranks go at once and not in an average, got 3",
        ),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(InputError) as caught:
        hyperparameters(**options)
    assert str(caught.value) == message


def test_a_trial_too_short_to_rank_its_ranks_is_refused(lab):
    group = lab.group("llama")
    with pytest.raises(InputError, match=r"^epochs: method adalora needs 2 steps or more before"):
        group.join("t", hyperparameters(epochs=0.4, tfinal_ratio=0.7, batch_size=4))
    assert group.trials == []


@pytest.mark.parametrize("total", [2, 3, 10, 97])
def test_ranks_go_between_the_first_and_the_last_steps(total):
    begin, end = AdaLoraOptions(tinit_ratio=0.3, tfinal_ratio=0.4).budgeting(total)
    assert 0 <= begin < end <= total
