"""The forms of bottleneck adapters against modules written out by hand, in float64."""

import re
from collections import OrderedDict
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainables.data.batches import batch_indices
from trainables.errors import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

DOUBLE = torch.float64
FUNCTIONS = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Plain(nn.Module):
    """scale * up(activation(down(x)))"""

    def __init__(self, width, options):
        super().__init__()
        self.down = nn.Linear(width, options.bottleneck)
        self.up = nn.Linear(options.bottleneck, width)
        self.activation, self.scale = FUNCTIONS[options.activation], options.scale

    def forward(self, x):
        return self.scale * self.up(self.activation(self.down(x)))


class After(nn.Module):
    """h + f(h) of what a linear layer gives."""

    def __init__(self, inner, adapter):
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x):
        h = self.inner(x)
        return h + self.adapter(h)


class Beside(After):
    """h + f(x) of what a whole feed-forward is given."""

    def forward(self, x):
        return self.inner(x) + self.adapter(x)


def bert_feed_forward(layer, adapter, x):
    """That of a layer of BERT with an adapter beside it, up to where it is added and normed."""
    h = layer.output.dense(layer.intermediate(x)) + adapter(x)
    return layer.output.LayerNorm(h + x)


def put_by_hand(name, model, options):
    """`model` with adapters in it; each by the name that it has in a checkpoint."""
    width, found = 32, OrderedDict()

    def put(parent, child, kind, saved):
        adapter = Plain(width, options).double()
        setattr(parent, child, kind(getattr(parent, child), adapter))
        found[saved] = adapter

    if name == "llama":
        for i, layer in enumerate(model.model.layers):
            prefix = f"model.layers.{i}"
            if options.placement == "parallel":
                put(layer, "mlp", Beside, f"{prefix}.mlp.down_proj")
            else:
                put(layer.self_attn, "o_proj", After, f"{prefix}.self_attn.o_proj")
                put(layer.mlp, "down_proj", After, f"{prefix}.mlp.down_proj")
        return found
    for i, layer in enumerate(model.bert.encoder.layer):
        prefix = f"bert.encoder.layer.{i}"
        if options.placement == "parallel":
            adapter = found[f"{prefix}.output.dense"] = Plain(width, options).double()
            layer.feed_forward_chunk = partial(bert_feed_forward, layer, adapter)
        else:
            put(layer.attention.output, "dense", After, f"{prefix}.attention.output.dense")
            put(layer.output, "dense", After, f"{prefix}.output.dense")
    return found


FORMS = {
    "houlsby": {"placement": "houlsby", "activation": "gelu"},
    "houlsby scaled": {"placement": "houlsby", "activation": "silu", "scale": 0.5},
    "parallel": {"placement": "parallel", "scale": 4.0},
    "parallel tanh": {"placement": "parallel", "activation": "tanh"},
}
# beside those that are compared: other forms, and other methods, at the same layers
COMPANY = {
    "pfeiffer": {"method": "adapter", "bottleneck": 5, "activation": "tanh", "scale": 2.0},
    "houlsby": {"method": "adapter", "bottleneck": 3, "placement": "houlsby"},
    "parallel": {"method": "adapter", "bottleneck": 9, "placement": "parallel", "scale": 0.1},
    "lora": {"method": "lora", "rank": 3, "use_dora": True},
    "ia3": {"method": "ia3"},
}


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
@pytest.mark.parametrize("name", FORMS)
def test_steps_equal_those_of_modules_written_by_hand(lab, name, model, tmp_path):
    """Four steps of plain AdamW, beside trials of other forms and methods."""
    hp = lab.params(
        "adapter",
        bottleneck=6,
        **FORMS[name],
        schedule="constant",
        warmup_ratio=0,
        epsilon=1e-4,
        weight_decay=0.1,
        max_grad_norm=0.5,
        learning_rate=1e-2,
    )
    group = lab.group(model, dtype=DOUBLE, max_tokens=100)
    company = {each: lab.params(**more) for each, more in COMPANY.items()}
    for trial in list(company)[:3]:
        group.join(trial, company[trial])
    group.join("t", hp)
    for trial in list(company)[3:]:
        group.join(trial, company[trial])
    group.save("t", tmp_path / "start")
    begun = load_file(tmp_path / "start" / "checkpoint" / "adapter_model.safetensors")
    plain = lab.plain(model, dtype=DOUBLE)
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    adapters = put_by_hand(model.partition("-")[0], plain, hp.options)
    trained = {
        f"base_model.model.{site}.adapter.{key}": p
        for site, adapter in adapters.items()
        for key, p in adapter.named_parameters()
    }
    if model != "llama":
        trained |= {
            f"base_model.model.classifier.{key}": p.requires_grad_()
            for key, p in plain.classifier.named_parameters()
        }
    assert trained.keys() == begun.keys()
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(begun[key])
    matrices, vectors = ([p for p in trained.values() if p.ndim == n] for n in (2, 1))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
        lr=hp.learning_rate,
        eps=1e-4,
    )
    for step in range(4):
        rows = batch_indices(len(lab.split(model)), hp.batch_size, hp.seed, step)
        batch, labels = lab.batch(model, rows)
        nll_B, targets_B = lab.task(model).row_losses(plain(**batch).logits, labels)
        optimizer.zero_grad()
        (nll_B.sum() / targets_B.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), hp.max_grad_norm)
        optimizer.step()
        group.step([*company, "t"])
    group.save("t", tmp_path / "end")
    ended = load_file(tmp_path / "end" / "checkpoint" / "adapter_model.safetensors")
    lab.assert_close(ended, {key: p.detach() for key, p in trained.items()}, 1e-9)
    with torch.no_grad():
        logits = lab.logits(model, plain)
    lab.assert_close({"": lab.logits_aboard(model, group, "t")}, {"": logits}, 1e-9)


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_recomputed_it_is_the_same(lab, placement, tmp_path):
    hp = lab.params("adapter", placement=placement, max_grad_norm=0.0)
    found = [
        lab.first_gradients(
            lab.group("llama", dtype=DOUBLE, evaluate_every=1, gradient_checkpointing=recomputed),
            tmp_path / str(recomputed),
            hp,
        )
        for recomputed in (False, True)
    ]
    lab.assert_close(found[1], found[0], 1e-12)


def test_a_placement_that_a_model_has_no_place_for_is_refused(lab, monkeypatch):
    monkeypatch.setattr("trainables.models.structure.ATTENDS", re.compile("nothing"))
    group = lab.group("llama")
    with pytest.raises(InputError) as caught:
        group.join("t", lab.params("adapter", placement="houlsby"))
    assert str(caught.value) == (
        "placement: LlamaForCausalLM has layers without an attention, or without one feed-forward "
        "beside it; choose pfeiffer"
    )
