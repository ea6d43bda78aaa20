"""The forms of LoRA against PEFT's own and against their formulas."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.dropout import RowDropout, RowKeys
from trainables.engine.shared import SharedBaseEngine
from trainables.methods.dora import weight_norms
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
