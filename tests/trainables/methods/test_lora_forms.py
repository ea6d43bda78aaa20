"""The forms of LoRA against PEFT's own and against their formulas."""

from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from trainables.data.batches import batch_indices
from trainables.engine.dropout import RowDropout, RowKeys
from trainables.engine.shared import SharedBaseEngine
from trainables.errors import InputError
from trainables.methods import initial
from trainables.methods.dora import weight_norms
from trainables.methods.initial import initial_factors
from trainables.methods.lora import LowRank
from trainables.models.structure import weight_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

DOUBLE = torch.float64


# --- DoRA ---


def test_the_norms_of_rows_are_those_of_the_matrix():
    module = torch.nn.Linear(7, 5).double()
    a_KRI, b_KOR = torch.randn(3, 2, 7, dtype=DOUBLE), torch.randn(3, 5, 2, dtype=DOUBLE)
    scales = [0.5, 2.0, 8.0]
    whole_KOI = module.weight + torch.tensor(scales)[:, None, None] * (b_KOR @ a_KRI)
    found_KO = weight_norms(module, a_KRI, b_KOR, scales)
    torch.testing.assert_close(found_KO, whole_KOI.norm(dim=2), rtol=1e-12, atol=0)
    b_KOR[0, 3] = -module.weight[3, :2] @ torch.linalg.pinv(a_KRI[0])[:2] / scales[0]
    a_KRI[0, 0], b_KOR[0, 1] = module.weight[1] / scales[0], torch.tensor([-1.0, 0.0])
    assert weight_norms(module, a_KRI, b_KOR, scales)[0, 1] < 1e-6  # and no root of what is below 0


@pytest.mark.parametrize(
    ("model", "quantisation"),
    [("bert", "none"), ("gpt2", "none"), ("llama", "nf4"), ("llama", "int8")],
)
def test_the_weight_is_what_the_layer_multiplies_by(lab, model, quantisation):
    base = lab.base(model, quantisation=quantisation)
    name = {"bert": "encoder.layer.0.output.dense", "gpt2": "h.0.attn.c_attn"}
    prefix = {"bert": "bert", "gpt2": "transformer", "llama": "model"}[model]
    module = base.model.get_submodule(f"{prefix}.{name.get(model, 'layers.0.mlp.down_proj')}")
    for _ in range(2):  # to look changes nothing
        weight_OI = weight_of(module)
        bias = 0 if module.bias is None else module.bias
        x_NI = torch.eye(weight_OI.shape[1])
        torch.testing.assert_close(module(x_NI) - bias, weight_OI.T.float(), rtol=1e-5, atol=1e-5)


def with_masks_of(module: torch.nn.Module, engine: SharedBaseEngine, keys: RowKeys) -> None:
    """Let PEFT's dropout of adapters draw the masks of the trial's."""
    layers = {site.name: site._layer for site, _ in engine._sites.values() if type(site) is LowRank}
    for name, found in module.named_modules():
        if isinstance(found, peft.tuners.lora.LoraLayer):
            site = name.removeprefix("base_model.model.")
            p = found.lora_dropout["default"].p
            found.lora_dropout["default"] = RowDropout(p, layers[site], keys)


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
def test_dropout_acts_in_dora_as_it_does_in_peft(lab, model, tmp_path):
    """What is scaled is then the product with the input as it is dropped out."""
    hp = lab.params("lora", use_dora=True, dropout=0.25, rank=4, max_grad_norm=0.0)
    group = lab.group(model, dtype=DOUBLE)
    group.join("t", hp)
    group.step(["t"])
    group.save("t", tmp_path)
    module = peft.PeftModel.from_pretrained(
        lab.plain(model, dtype=DOUBLE), tmp_path / "checkpoint", is_trainable=True
    ).train()
    rows, keys = batch_indices(len(lab.split(model)), hp.batch_size, hp.seed, 1), RowKeys()
    keys.set(hp.seed, 1, torch.tensor(rows))
    with_masks_of(module, group._engine, keys)
    batch, labels = lab.batch(model, rows)
    nll_B, targets_B = lab.task(model).row_losses(module(**batch).logits, labels)
    (nll_B.sum() / targets_B.sum()).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    expected = peft.get_peft_model_state_dict(
        module, state_dict=gradients, save_embedding_layers=False
    )
    before = load_file(tmp_path / "training_state.safetensors")
    group.step(["t"])
    group.save("t", tmp_path / "after")
    after = load_file(tmp_path / "after" / "training_state.safetensors")
    found = {
        name: (after[f"exp_avg/{name}"] - hp.beta1 * before[f"exp_avg/{name}"]) / (1 - hp.beta1)
        for name in expected
    }
    lab.assert_close(found, expected, 1e-10)


# --- PiSSA and OLoRA ---


def peft_with(model, dtype, **config):
    """The adapter that PEFT puts on every linear layer that `all-linear` means here."""
    targets = peft.utils.constants.INCLUDE_LINEAR_LAYERS_SHORTHAND
    return peft.get_peft_model(
        model.to(dtype), peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **config)
    )


def layers_of(module):
    return {
        name.removeprefix("base_model.model."): found
        for name, found in module.named_modules()
        if isinstance(found, peft.tuners.lora.LoraLayer)
    }


STARTS = {
    "pissa": {"rank": 4, "alpha": 8},
    "olora": {"rank": 3, "alpha": 6},
    "pissa with rslora": {"rank": 4, "alpha": 2, "rslora": True},
    "pissa with DoRA": {"rank": 4, "alpha": 8, "use_dora": True},
}


@pytest.mark.parametrize("name", STARTS)
def test_steps_from_the_weights_of_the_base_equal_those_of_peft(lab, name, tmp_path):
    """Where PEFT starts, in float32; and from there, in float64, as PEFT and AdamW go, over a base
    from which the start is taken off."""
    options, start = STARTS[name], name.split()[0]
    r, alpha = options["rank"], options["alpha"]
    use_dora, use_rslora = options.get("use_dora", False), options.get("rslora", False)
    hp = lab.params(
        "lora",
        init_lora_weights=start,
        **options,
        schedule="constant",
        warmup_ratio=0,
        epsilon=1e-4,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    group = lab.group("llama", dtype=DOUBLE)
    group.join("t", hp)
    group.save("t", tmp_path / "start")
    begun = load_file(tmp_path / "start" / "checkpoint" / "adapter_model.safetensors")
    common = {"r": r, "lora_alpha": alpha, "use_rslora": use_rslora}
    theirs = layers_of(
        peft_with(lab.plain("llama"), torch.float32, init_lora_weights=start, **common)
    )
    module = peft_with(lab.plain("llama"), DOUBLE, use_dora=use_dora, **common).train()
    with torch.no_grad():
        for site, layer in layers_of(module).items():
            a, b = (begun[f"base_model.model.{site}.{t}.weight"] for t in ("lora_A", "lora_B"))
            assert torch.equal(a[:r], a[r:]) and torch.equal(b[:, :r], -b[:, r:])
            assert torch.equal(a[:r].float(), theirs[site].lora_A["default"].weight)
            assert torch.equal(b[:, :r].float(), theirs[site].lora_B["default"].weight)
            layer.lora_A["default"].weight.copy_(a[:r])
            layer.lora_B["default"].weight.copy_(b[:, :r])
            layer.base_layer.weight -= layer.scaling["default"] * b[:, :r] @ a[:r]
            if use_dora:
                magnitudes = begun[f"base_model.model.{site}.lora_magnitude_vector"]
                layer.lora_magnitude_vector["default"].weight.copy_(magnitudes)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    matrices, vectors = ([p for p in trained.values() if p.ndim == n] for n in (2, 1))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
        lr=hp.learning_rate,
        eps=1e-4,
    )
    for step in range(4):
        rows = batch_indices(len(lab.split("llama")), hp.batch_size, hp.seed, step)
        batch, labels = lab.batch("llama", rows)
        nll_B, targets_B = lab.task("llama").row_losses(module(**batch).logits, labels)
        optimizer.zero_grad()
        (nll_B.sum() / targets_B.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), hp.max_grad_norm)
        optimizer.step()
        group.step(["t"])
    group.save("t", tmp_path / "end")
    ended = load_file(tmp_path / "end" / "checkpoint" / "adapter_model.safetensors")
    found = {
        n: x[:r] if "lora_A" in n else x[:, :r] if "lora_B" in n else x for n, x in ended.items()
    }
    expected = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
    lab.assert_close(found, expected, 1e-9)
    loaded = peft.PeftModel.from_pretrained(
        lab.plain("llama", dtype=DOUBLE), tmp_path / "end" / "checkpoint"
    )
    logits = lab.logits("llama", module.eval())
    lab.assert_close({"": lab.logits("llama", loaded.eval())}, {"": logits}, 1e-10)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_8", "olora"])
@pytest.mark.parametrize("conv1d", [False, True])
def test_what_is_taken_of_a_weight_of_that_rank_is_all_of_it(start, conv1d):
    weight_OI = torch.randn(9, 3) @ torch.randn(3, 7)
    module = Conv1D(9, 7) if conv1d else torch.nn.Linear(7, 9)
    module.weight.data = weight_OI.T.contiguous() if conv1d else weight_OI
    scale = 1.0 if start == "olora" else 0.5  # by which PEFT divides what PiSSA takes alone
    a_RI, b_OR = initial_factors(module, start, 3, scale)
    torch.testing.assert_close(scale * b_OR @ a_RI, weight_OI, rtol=1e-4, atol=1e-4)


def test_a_base_is_decomposed_once_and_not_when_a_trial_goes_on(lab, tmp_path, monkeypatch):
    """What the start was is in the checkpoint; another machine's decomposition may have other signs."""
    hp = lab.params("lora", init_lora_weights="pissa_niter_4", rank=4)
    group = lab.group("llama")
    group.join("t", hp)
    monkeypatch.setattr(initial, "_decomposed", None)
    group.join("other", replace(hp, seed=1, options=replace(hp.options, alpha=3.0)))
    one, other = (group._engine.weights(trial) for trial in ("t", "other"))
    ratio = (16 / 3) ** 0.5  # of the roots of what scales divide
    for name, x in one.items():
        torch.testing.assert_close(other[name], x * ratio, rtol=1e-5, atol=1e-6)
    group.leave("other")
    group.step(["t"])
    _, saved = lab.publish(group, tmp_path)
    group.step(["t"])
    expected = {name: x.clone() for name, x in group._engine.weights("t").items()}
    monkeypatch.undo()

    def turned(weight_OI, start, rank):
        left, sizes, right = decomposed(weight_OI, start, rank)
        return initial.Factors(-left, sizes, -right)

    decomposed = initial._decomposed
    monkeypatch.setattr(initial, "_decomposed", turned)
    again = lab.group("llama")
    again.join("t", hp, saved)
    again.step(["t"])
    found = again._engine.weights("t")
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_a_rank_above_that_of_a_weight_is_refused(lab):
    group = lab.group("llama")
    with pytest.raises(InputError) as caught:
        group.join("t", lab.params("lora", init_lora_weights="olora", rank=33))
    assert str(caught.value) == (
        "rank: must be at most 32, the smaller side of the smallest layer adapted, with "
        "init_lora_weights: olora, got 33"
    )


# --- LoRA-FA ---


def test_what_is_frozen_does_not_decay_nor_count_in_the_norm_of_the_gradient(lab, tmp_path):
    """Beside a trial that trains the same columns, and with an average of the weights."""
    hp = lab.params("lora", freeze_a=True, weight_decay=0.5, max_grad_norm=0.01, ema_decay=0.9)
    group = lab.group("llama", dtype=DOUBLE)
    group.join("t", hp)
    group.join("trains", lab.params("lora", weight_decay=0.5))
    before = {name: x.clone() for name, x in group._engine.weights("t").items()}
    group.step(["t", "trains"])  # B has moved, and A would have a gradient
    group.step(["t", "trains"])
    (norm,) = group._engine.norms(["t"])
    moved = {name for name, x in group._engine.weights("t").items() if (x != before[name]).any()}
    assert moved == {name for name in before if ".lora_B." in name}
    b_alone = [x for name, x in group._engine.weights("t").items() if ".lora_B." in name]
    assert group._engine.trained("t") == sum(x.numel() for x in b_alone)
    matrix = group._engine.gradients()[0][group._engine.lane("t")]
    assert float(norm) == pytest.approx(float(matrix.norm()))
    assert int(matrix.count_nonzero()) <= group._engine.trained("t")
    averages = group._engine._moments["average"][group._engine.lane("t")]
    frozen = group._engine._frozen[group._engine.lane("t")]
    start = group._engine._weights[group._engine.lane("t")]
    assert frozen.any() and torch.equal(averages[frozen], start[frozen])


def test_where_nobody_trains_a_no_input_is_kept(lab):
    took = {}
    for freeze_a in (False, True):
        group = lab.group("bert-no-dropout", max_tokens=200)
        group.join("t", lab.params("lora", freeze_a=freeze_a, batch_size=18))
        took[freeze_a], _ = group.memory_of_a_micro_batch("t")
    assert took[True] < 0.9 * took[False]
