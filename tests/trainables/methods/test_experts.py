"""LoRA of fused experts against PEFT's own `target_parameters`; what becomes of the base."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.group import WEIGHTS_FILE
from trainables.engine.schedule import learning_rate
from trainables.errors import InputError
from trainables.hyperparameters import parse, sharing_key

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

DOUBLE = torch.float64
BOTH = ("experts.down_proj", "experts.gate_up_proj")
STEPS = 6
HAS = "experts.down_proj, experts.gate_up_proj"
EAGER = ["mixtral-eager", "gpt-oss-eager"]


def hyperparameters(**more):
    given = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 4, "epsilon": 1e-4, "rank": 3}
    return parse({"method": "lora", **given, "target_parameters": BOTH, **more})


def in_peft(lab, model, saved, **config):
    """PEFT's own module with the weights `saved`."""
    module = peft.get_peft_model(
        lab.plain(model, dtype=DOUBLE),
        peft.LoraConfig(r=3, lora_alpha=16, task_type="CAUSAL_LM", **config),
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.shape == saved[saved_as(name)].shape
                parameter.copy_(saved[saved_as(name)])
    return module.train()


def saved_as(name):
    return name.replace(".default", "")


@pytest.mark.parametrize("model", EAGER)
@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"targets": (), "max_grad_norm": 0.1}, {"target_modules": []}),
        (
            {"targets": ("q_proj", "v_proj"), "rslora": True, "loraplus_ratio": 4.0},
            {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        ),
    ],
    ids=["experts", "experts-and-attention"],
)
def test_every_step_equals_that_of_peft(lab, model, options, config, tmp_path):
    """In micro-batches, of which PEFT's module is given all rows at once."""
    hp = hyperparameters(weight_decay=0.1, **options)
    group = lab.group(model, dtype=DOUBLE, max_tokens=24)
    group.join("t", hp)
    module = in_peft(lab, model, saved(group, tmp_path), target_parameters=list(BOTH), **config)
    trained = {saved_as(n): p for n, p in module.named_parameters() if p.requires_grad}
    rates = {".lora_A.": 1.0, ".lora_B.": hp.options.loraplus_ratio}
    parts = [
        {"params": [p for n, p in trained.items() if side in n], "ratio": ratio}
        for side, ratio in rates.items()
    ]
    optimizer = torch.optim.AdamW(
        parts,
        eps=hp.epsilon,
        weight_decay=0.1,
    )
    for step in range(STEPS):
        loss = lab.loss(model, module, batch_indices(18, 4, hp.seed, step))
        optimizer.zero_grad()
        loss.backward()
        if hp.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), hp.max_grad_norm)
        for part in optimizer.param_groups:
            part["lr"] = part["ratio"] * learning_rate(hp, step, group.total_steps(hp))
        optimizer.step()
        group.step(["t"])
        found = saved(group, tmp_path)
        lab.assert_close(found, {n: p.detach() for n, p in trained.items()}, 1e-9)
    found, expected = lab.logits_aboard(model, group, "t"), lab.logits(model, module.eval())
    assert float((found - expected).abs().max()) < 1e-9
    assert float((found - lab.logits(model, lab.base(model, dtype=DOUBLE).model)).abs().max()) > 0.1


def saved(group, folder):
    group.save("t", folder)
    return load_file(folder / "checkpoint" / WEIGHTS_FILE)


@pytest.mark.parametrize("model", ["mixtral", "gpt-oss"])
def test_what_leaves_says_what_was_given_and_can_be_merged(lab, model, tmp_path):
    group = lab.group(model)
    group.join("t", hyperparameters(targets=()))
    for _ in range(STEPS):
        group.step(["t"])
    group.save("t", tmp_path)
    described = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert described["target_parameters"] == list(BOTH) and described["peft_type"] == "LORA"
    expected = lab.logits_aboard(model, group, "t")
    module = peft.PeftModel.from_pretrained(lab.plain(model), tmp_path / "checkpoint").eval()
    assert torch.equal(lab.logits(model, module), expected)
    merged = lab.logits(model, module.merge_and_unload())
    lab.assert_close({"logits": merged}, {"logits": expected}, 1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_resumed_equals_uninterrupted_bit_for_bit(lab, gradient_checkpointing, tmp_path):
    settings = {"gradient_checkpointing": gradient_checkpointing, "evaluate_every": 3}
    hp = hyperparameters(targets="attention")
    group = lab.group("mixtral", **settings)
    group.join("t", hp)
    for _ in range(3):
        group.step(["t"])
    _, half = lab.publish(group, tmp_path / "half")
    again = lab.group("mixtral", **settings)
    again.join("t", hp, half)
    for each in (group, again):
        for _ in range(3):
            each.step(["t"])
    (_, whole), (_, resumed) = (
        lab.publish(each, tmp_path / name) for each, name in ((group, "a"), (again, "b"))
    )
    expected, found = lab.tensors(whole), lab.tensors(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_checkpointing_and_averages_change_what_they_should(lab, tmp_path):
    """Gradients are the same where layers are computed again; an average is what is saved."""
    weights = {}
    for name, checkpointing, decay in (("a", False, 0.0), ("b", True, 0.0), ("c", False, 0.9)):
        group = lab.group("mixtral-eager", dtype=DOUBLE, gradient_checkpointing=checkpointing)
        group.join("t", hyperparameters(ema_decay=decay))
        for _ in range(3):
            group.step(["t"])
        weights[name] = saved(group, tmp_path / name)
    lab.assert_close(weights["b"], weights["a"], 1e-12)
    assert not all(torch.equal(x, weights["c"][name]) for name, x in weights["a"].items())


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_after_an_error_amid_a_layer_the_base_has_its_own_weights(lab, at, monkeypatch):
    group = lab.group("mixtral", gradient_checkpointing=at == "backward")
    group.join("t", hyperparameters())
    group.step(["t"])
    model = lab.bases[-1].model
    before = dict(model.named_parameters())
    experts, calls = model.model.layers[1].mlp.experts, []
    compute = experts.forward

    def forward(*inputs):
        calls.append(len(calls))
        if len(calls) > (at == "backward"):  # where layers are computed again
            raise ArithmeticError("no such number")
        return compute(*inputs)

    experts.forward = forward
    with pytest.raises(ArithmeticError, match="no such number"):
        group.step(["t"])
    del experts.forward
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(type(p) is torch.nn.Parameter for p in after.values())


def test_others_share_the_base_before_and_after(lab):
    """Such a trial has it alone, and does not say of it that it cannot be shared."""
    hp = hyperparameters()
    assert sharing_key(hp) is None
    group = lab.group("mixtral")
    group.join("t", hp)
    with pytest.raises(AssertionError, match="other cannot share this base"):
        group.join("other", hyperparameters(target_parameters=()))
    group.step(["t"])
    group.leave("t")
    for trial in ("a", "b"):
        group.join(trial, hyperparameters(target_parameters=()))
    group.step(["a", "b"])
    with pytest.raises(AssertionError, match="t cannot share this base"):
        group.join("t", hp)
    assert group.trials == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "dropout: must be 0 with target_parameters, got 0.1"),
        ({"use_dora": True}, "use_dora: must be false with target_parameters, got true"),
        (
            {"init_lora_weights": "olora"},
            "init_lora_weights: must be true with target_parameters, got olora",
        ),
        (
            {"rank_pattern": ["q_proj=2"]},
            "rank_pattern: must be [] with target_parameters, got ['q_proj=2']",
        ),
        (
            {"method": "qlora"},
            "target_parameters: needs a base that is not quantised; take method lora",
        ),
        (
            {"targets": [], "target_parameters": []},
            "targets: must be all-linear, attention or a list of module names, got an empty list",
        ),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(InputError) as caught:
        hyperparameters(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("mixtral", "experts.w1"),
        ("mixtral", "gate.weight"),
        ("mixtral", "proj"),
        ("gpt-oss", "gate_up_proj_bias"),
    ],
)
def test_a_name_that_is_no_experts_weights_is_one_line(lab, model, target):
    group = lab.group(model)
    with pytest.raises(InputError) as caught:
        group.join("t", hyperparameters(target_parameters=["experts.gate_up_proj", target]))
    assert group.trials == []
    assert str(caught.value) == (
        f"target_parameters: no experts' weights are called {target!r}; this model has {HAS}"
    )


def test_a_model_without_fused_experts_is_one_line(lab):
    with pytest.raises(InputError, match=r"'down_proj'; this model has none that are fused$"):
        lab.group("llama").join("t", hyperparameters(target_parameters=["down_proj"]))
