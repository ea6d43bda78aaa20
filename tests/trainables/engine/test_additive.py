"""IA3, prompt and prefix tuning, bottleneck adapters, VeRA: alone, beside one another and beside LoRA, against PEFT, and loaded again."""

import contextlib
import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from trainables.data.batches import batch_indices
from trainables.engine.kernels import MicroBatch
from trainables.engine.schedule import learning_rate
from trainables.errors import InputError
from trainables.hyperparameters import (
    OPTIONS,
    AdapterOptions,
    Ia3Options,
    PromptOptions,
    cost_class,
    parse,
    sharing_key,
)
from trainables.methods import ADDITIVE
from trainables.methods.adapter import load_adapter
from trainables.methods.ia3 import scaled_layers
from trainables.models.base import BaseModel
from trainables.models.checkpoint import complete, load_checkpoint, loading_code

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

DOUBLE = torch.float64
CLASSES = {"labels": ["a", "b", "c"]}
OPTION = {
    "ia3": {},
    "prompt": {"virtual_tokens": 5},
    "prefix": {"virtual_tokens": 5},
    "adapter": {"bottleneck": 8},
    "vera": {"rank": 16, "d_initial": 1.0},
    "adalora": {"init_r": 5, "target_r": 2, "tinit_ratio": 0.0},
}
# unlike in all that may differ in one group
MIXED = {
    "ia3": {"method": "ia3", "learning_rate": 3e-2, "batch_size": 4, "seed": 0},
    "ia3-other": {
        "method": "ia3",
        "learning_rate": 1e-2,
        "batch_size": 3,
        "seed": 5,
        "weight_decay": 0.3,
    },
    "adapter": {
        "method": "adapter",
        "bottleneck": 8,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "seed": 1,
    },
    "adapter-other": {"method": "adapter", "bottleneck": 3, "learning_rate": 3e-3, "batch_size": 7},
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1, "batch_size": 5, "seed": 2},
    "dora": {
        "method": "lora",
        "use_dora": True,
        "init_lora_weights": "olora",
        "rank": 2,
        "alpha": 2,
        "targets": "attention",
    },
    "vera": {"method": "vera", "rank": 6, "dropout": 0.2, "batch_size": 3, "learning_rate": 3e-2},
    "adalora": {
        "method": "adalora",
        "init_r": 4,
        "target_r": 2,
        "tinit_ratio": 0.2,
        "tfinal_ratio": 0.2,
        "dropout": 0.1,
        "batch_size": 3,
        "learning_rate": 1e-1,
    },
    "adalora-other": {
        "method": "adalora",
        "init_r": 6,
        "target_r": 1,
        "targets": "attention",
        "optimizer": "lion",
        "learning_rate": 1e-2,
        "seed": 3,
    },
    "vera-other": {"method": "vera", "rank": 9, "targets": "attention", "learning_rate": 1e-1},
}
PROMPTS = {
    "prompt": {"learning_rate": 3e-2, "batch_size": 4, "seed": 0},
    "prompt-other": {"learning_rate": 1e-2, "batch_size": 3, "seed": 5, "weight_decay": 0.3},
    "prompt-third": {"learning_rate": 1e-1, "batch_size": 7, "schedule": "cosine"},
}
# trained themselves, and through MLPs of unlike widths
PREFIXES = {
    "prefix": {"learning_rate": 3e-2, "batch_size": 4, "seed": 0},
    "prefix-zero": {"init_weights": "zero", "learning_rate": 1e-1, "batch_size": 3, "seed": 5},
    "projected": {"prefix_projection": True, "batch_size": 3, "seed": 1},
    "projected-narrow": {
        "prefix_projection": True,
        "encoder_hidden_size": 6,
        "learning_rate": 1e-2,
        "batch_size": 7,
        "weight_decay": 0.3,
        "ema_decay": 0.9,
    },
}
GROUPS = {
    "mixed": MIXED,
    "prefixes": {
        name: {"method": "prefix", "virtual_tokens": 5, **more} for name, more in PREFIXES.items()
    },
    "prompts": {
        name: {"method": "prompt", "virtual_tokens": 5, **more} for name, more in PROMPTS.items()
    },
}


@contextlib.contextmanager
def default_dtype(dtype):
    """PEFT makes its prompts in torch's default type, whatever the base has."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def as_a_user(lab, model, folder, dtype):
    """The base with what `folder` adds to it."""
    base = lab.plain(model, dtype=dtype)
    if "adapter_type" in json.loads((folder / "adapter_config.json").read_text()):
        return load_adapter(base, folder).eval()
    with default_dtype(dtype):
        return PeftModel.from_pretrained(base, folder).eval()


# --- a trial's result does not depend on the other trials ---


@pytest.mark.parametrize(
    ("model", "gradient_checkpointing"), [("bert", False), ("llama", False), ("llama", True)]
)
@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_unlike_trials_equals_them_alone(
    lab, name, model, gradient_checkpointing, tmp_path
):
    trials = {trial: lab.params(**more, epochs=1) for trial, more in GROUPS[name].items()}
    settings = {"dtype": DOUBLE, "gradient_checkpointing": gradient_checkpointing, "max_tokens": 60}
    found = lab.together(lab.group(model, **settings), tmp_path, trials, joins={list(trials)[1]: 2})
    for trial, hp in trials.items():
        alone = lab.run(lab.group(model, dtype=DOUBLE), tmp_path / trial, hp)
        lab.assert_alike(found[trial], alone, 1e-10)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((method, {}) for method in OPTION),
        ("prefix", {"prefix_projection": True}),
        ("prefix", {"prefix_projection": True, "ema_decay": 0.9}),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(lab, method, more, tmp_path):
    hp = lab.params(method, **OPTION[method], **more, learning_rate=1e-2)
    whole = lab.run(lab.group("bert"), tmp_path / "whole", hp)
    lab.assert_same(
        lab.run(lab.group("bert"), tmp_path / "resumed", hp, checkpoint=whole[0][1]), whole[1:]
    )


def test_a_trial_that_explodes_harms_no_other(lab, tmp_path):
    """NaN of one trial, at sites that all rows go through."""
    trials = {trial: lab.params(**more) for trial, more in MIXED.items()}
    group = lab.group("bert", dtype=DOUBLE)
    group.join("broken", lab.params("adapter", bottleneck=16))
    group.join("broken-too", lab.params("ia3"))
    for trial in ("broken", "broken-too"):
        group._engine.weights(trial)[next(iter(group._engine.weights(trial)))].fill_(torch.nan)
    for trial, hp in trials.items():
        group.join(trial, hp)
    losses = group.evaluate(list(trials))
    for trial, hp in trials.items():
        alone = lab.group("bert", dtype=DOUBLE)
        alone.join(trial, hp)
        assert losses[trial].val_loss == pytest.approx(
            alone.evaluate([trial])[trial].val_loss, rel=1e-12
        )
    assert np.isnan(group.evaluate(["broken"])["broken"].val_loss)


# --- against PEFT ---


def in_peft(lab, model, hp, start):
    """PEFT's own module from the start of a trial in `start`."""
    base = lab.plain(model, dtype=DOUBLE)
    with default_dtype(DOUBLE):
        if not getattr(hp.options, "prefix_projection", False):
            return PeftModel.from_pretrained(base, start / "checkpoint").train()
        described = PeftConfig.from_pretrained(start / "checkpoint")
        described.inference_mode, described.prefix_projection = False, True
        module = get_peft_model(base, described)
    state = load_file(start / "training_state.safetensors")
    own = {n.removeprefix("weights/"): x for n, x in state.items() if n.startswith("weights/")}
    encoder = module.prompt_encoder["default"]
    encoder.load_state_dict({name: own.pop(name) for name in encoder.state_dict()})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "modules_to_save" in name:
                parameter.copy_(own[name.replace("modules_to_save.default.", "")])
    return module.train()


def peft_loop(lab, model, hp, start):
    """Plain AdamW over PEFT's own module, from the weights in `start`; the mean training loss of each epoch."""
    module = in_peft(lab, model, hp, start)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(
            any(part in name for part in ("ia3_l", "prompt_encoder", "modules_to_save"))
        )
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {DOUBLE}
    vectors = [p for name, p in trained.items() if "ia3_l" in name or p.ndim < 2]
    matrices = [p for name, p in trained.items() if "ia3_l" not in name and p.ndim >= 2]
    groups = [
        {"params": matrices, "weight_decay": hp.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=hp.learning_rate, betas=(hp.beta1, hp.beta2), eps=hp.epsilon
    )
    means = []
    for epoch in range(2):
        nll, targets = 0.0, 0
        for step in range(5 * epoch, 5 * epoch + 5):
            batch, labels = lab.batch(
                model, batch_indices(len(lab.split(model)), hp.batch_size, hp.seed, step)
            )
            nll_B, targets_B = lab.task(model).row_losses(module(**batch).logits, labels)
            optimizer.zero_grad()
            (nll_B.sum() / targets_B.sum()).backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), hp.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(hp, step, 10)
            optimizer.step()
            nll, targets = nll + float(nll_B.detach().sum()), targets + int(targets_B.sum())
        means.append(nll / targets)
    return means, module.eval()


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ia3", {}),
        ("prompt", {}),
        ("prefix", {}),
        ("prefix", {"prefix_projection": True, "encoder_hidden_size": 6}),
    ],
)
def test_ten_steps_equal_those_of_peft_and_adamw(lab, method, more, model, tmp_path):
    hp = lab.params(
        method,
        **OPTION[method],
        **more,
        learning_rate=1e-2,
        epsilon=1e-4,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    group = lab.group(model, dtype=DOUBLE)
    group.join("t", hp)
    group.save("t", tmp_path / "start")
    means, module = peft_loop(lab, model, hp, tmp_path / "start")
    history = lab.run(lab.group(model, dtype=DOUBLE), tmp_path / "group", hp)
    assert [evaluation.train_loss for evaluation, _ in history] == pytest.approx(means, rel=1e-8)
    module.save_pretrained(tmp_path / "peft")
    found, expected = lab.tensors(history[-1][1] / "checkpoint"), lab.tensors(tmp_path / "peft")
    assert {name: x.shape for name, x in found.items()} == {
        name: x.shape for name, x in expected.items()
    }
    lab.assert_close(found, expected, 1e-8)
    with pytest.raises(AssertionError, match="differs by"):
        lab.assert_close(lab.tensors(tmp_path / "start" / "checkpoint"), expected, 1e-3)


# --- what leaves can be loaded ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(
    "model", ["bert", "bert-classifier", "roberta", "distilbert", "llama", "opt", "gpt2"]
)
@pytest.mark.parametrize("method", OPTION)
def test_what_leaves_gives_the_same_logits_when_it_is_loaded(lab, method, model, dtype, tmp_path):
    if (method, model) == ("prefix", "distilbert"):
        pytest.skip("takes no keys and values before its own")
    group = lab.group(model, dtype=dtype)
    group.join("other", lab.params(method, **OPTION[method], seed=4))
    group.join("t", lab.params(method, **OPTION[method], learning_rate=3e-2))
    untrained = lab.logits_aboard(model, group, "t")
    for _ in range(3):
        group.step(["other", "t"])
    trained = lab.logits_aboard(model, group, "t")
    group.save("t", tmp_path)
    found = lab.logits(model, as_a_user(lab, model, tmp_path / "checkpoint", dtype))
    tolerance = 1e-12 if dtype == DOUBLE else 1e-5
    assert float((found - trained).abs().max()) <= tolerance
    assert float((found - untrained).abs().max()) > 1e-2


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("method", OPTION)
def test_the_card_and_verify_load_it(lab, method, model, tmp_path, monkeypatch):
    group = lab.group(model)
    group.join("t", lab.params(method, **OPTION[method], learning_rate=3e-2))
    group.step(["t"])
    expected = lab.logits_aboard(model, group, "t")
    group.save("t", tmp_path)
    winner = (tmp_path / "checkpoint").rename(tmp_path / "winner")
    loaded = load_checkpoint(winner, lab.spec(model), torch.device("cpu"))
    torch.testing.assert_close(lab.logits(model, loaded), expected, rtol=1e-5, atol=1e-5)
    complete(winner, lab.spec(model), "winner")
    said = {}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(loading_code(winner, lab.spec(model), "winner")), said)
    torch.testing.assert_close(lab.logits(model, said["model"]), expected, rtol=1e-5, atol=1e-5)


def test_load_adapter_leaves_a_plain_model_that_can_be_moved_and_saved(lab, tmp_path):
    group = lab.group("llama")
    group.join("t", lab.params("adapter", bottleneck=4, learning_rate=3e-2))
    group.step(["t"])
    group.save("t", tmp_path)
    model = load_adapter(lab.plain("llama"), tmp_path / "checkpoint")
    expected = lab.logits("llama", model)
    again = lab.logits("llama", model.to(DOUBLE))
    assert again.dtype == DOUBLE
    torch.testing.assert_close(again, expected.double(), rtol=1e-4, atol=1e-4)
    names = [name for name in model.state_dict() if "adapter" in name]
    assert len(names) == 2 * 4


def test_load_adapter_refuses_a_model_that_it_does_not_fit(lab, tmp_path):
    group = lab.group("bert")
    group.join("t", lab.params("adapter", bottleneck=4))
    group.save("t", tmp_path)
    with pytest.raises(AttributeError, match="bert"):
        load_adapter(lab.plain("distilbert"), tmp_path / "checkpoint")


# --- at the start ---


@pytest.mark.parametrize("model", ["bert-classifier", "llama"])
@pytest.mark.parametrize("method", OPTION)
def test_all_but_virtual_tokens_start_as_the_base(lab, method, model):
    group = lab.group(model)
    group.join("t", lab.params(method, **OPTION[method]))
    same = torch.equal(lab.logits_aboard(model, group, "t"), lab.logits(model, lab.plain(model)))
    assert same == (method not in ("prompt", "prefix"))


def test_prompts_start_as_tokens_of_the_vocabulary_drawn_from_the_seed(lab):
    group = lab.group("llama")
    for trial, seed in (("a", 0), ("b", 0), ("c", 1)):
        group.join(trial, lab.params("prompt", virtual_tokens=7, seed=seed))
    a, b, c = (group._engine.weights(trial)["prompt_embeddings"] for trial in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    table = lab.bases[-1].model.get_input_embeddings().weight
    assert all((table == vector).all(dim=1).any() for vector in torch.cat([a, c]))


def test_virtual_tokens_are_attended_to_and_are_of_the_first_text(lab):
    group = lab.group("bert")
    group.join("t", lab.params("prompt", virtual_tokens=3))
    seen = {}
    model = lab.bases[-1].model
    handle = model.register_forward_pre_hook(
        lambda module, args, given: seen.update(given), with_kwargs=True
    )
    mask, types = torch.tensor([[1, 1], [1, 0]]), torch.tensor([[0, 1], [0, 0]])
    batch = {
        "input_ids": torch.tensor([[5, 6], [7, 0]]),
        "attention_mask": mask,
        "token_type_ids": types,
    }
    group._engine.forward(batch, MicroBatch.of([0, 0], torch.device("cpu")))
    handle.remove()
    assert set(seen) == {"inputs_embeds", "attention_mask", "token_type_ids"}
    assert seen["inputs_embeds"].shape == (2, 5, 32)
    assert seen["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert seen["token_type_ids"].tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


# --- counts ---


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("ia3", 2 * (32 + 32 + 64)),
        ("prompt", 5 * 32),
        ("prefix", 5 * 2 * 2 * 32),
        ("adapter", 2 * (8 * 32 + 8 + 32 * 8 + 32)),
    ],
)
def test_trainable_parameters_are_the_trials_own(lab, method, count):
    group = lab.group("llama")
    if method == "adapter":
        group.join("larger", lab.params(method, bottleneck=20))
    group.join("t", lab.params(method, **OPTION[method]))
    assert group.evaluate(["t"])["t"].trainable_parameters == count


def test_ia3_scales_what_peft_scales(lab):
    """PEFT's own choice where it has one; where it has none, the like."""
    from peft import IA3Config, get_peft_model

    for model in ("bert", "roberta", "llama", "opt", "gpt2"):
        task_type = "SEQ_CLS" if "bert" in model else "CAUSAL_LM"
        config = IA3Config(task_type=task_type, fan_in_fan_out=model == "gpt2")
        module = get_peft_model(lab.plain(model), config)
        expected = {}
        for name, layer in module.base_model.model.named_modules():
            if hasattr(layer, "is_feedforward") and "modules_to_save" not in name:
                expected[name] = "input" if layer.is_feedforward else "output"
        assert scaled_layers(lab.base(model)) == expected
    sides = {"attention.k_lin": "output", "attention.v_lin": "output", "ffn.lin2": "input"}
    layers = [f"distilbert.transformer.layer.{number}" for number in range(2)]
    expected = {f"{layer}.{name}": side for layer in layers for name, side in sides.items()}
    assert scaled_layers(lab.base("distilbert")) == expected


# --- who shares a base ---


def hyperparameters(method, **more):
    return parse({"method": method, "learning_rate": 1e-3, "batch_size": 4, "epochs": 1, **more})


def test_who_can_share_a_base():
    assert (
        sharing_key(hyperparameters("ia3"))
        == sharing_key(hyperparameters("adapter"))
        == sharing_key(hyperparameters("lora"))
    )
    assert sharing_key(hyperparameters("prompt")) == "plain, 20 virtual tokens"
    assert sharing_key(hyperparameters("prompt", virtual_tokens=5)) == "plain, 5 virtual tokens"
    before = "plain, keys and values of 5 virtual tokens"
    for more in ({}, {"prefix_projection": True}):
        assert sharing_key(hyperparameters("prefix", virtual_tokens=5, **more)) == before
    assert cost_class(hyperparameters("adapter", bottleneck=60)) == cost_class(
        hyperparameters("adapter", bottleneck=64)
    )
    assert cost_class(hyperparameters("adapter", bottleneck=16)) != cost_class(
        hyperparameters("adapter", bottleneck=64)
    )


# --- what users get wrong ---


def test_defaults():
    assert [OPTIONS[method]() for method in ("ia3", "prompt", "adapter")] == [
        Ia3Options(),
        PromptOptions(virtual_tokens=20),
        AdapterOptions(bottleneck=64),
    ]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prompt", {"virtual_tokens": 0}, "virtual_tokens: must be at least 1, got 0"),
        ("prompt", {"virtual_tokens": 2.5}, "virtual_tokens: must be a whole number, got 2.5"),
        ("prompt", {"rank": 8}, "rank: not a hyperparameter of method prompt."),
        ("prefix", {"virtual_tokens": 0}, "virtual_tokens: must be at least 1, got 0"),
        (
            "prefix",
            {"init_weights": "one"},
            "init_weights: must be one of zero or null, got 'one'",
        ),
        (
            "prefix",
            {"encoder_hidden_size": 0, "prefix_projection": True},
            "encoder_hidden_size: must be at least 1, got 0",
        ),
        (
            "prefix",
            {"encoder_hidden_size": 8},
            "encoder_hidden_size: is of prefix_projection: true, which is false, got 8",
        ),
        ("adapter", {"bottleneck": 0}, "bottleneck: must be at least 1, got 0"),
        (
            "adapter",
            {"bottlneck": 8},
            "bottlneck: not a hyperparameter of method adapter. Did you mean 'bottleneck'?",
        ),
        ("ia3", {"targets": "attention"}, "targets: not a hyperparameter of method ia3."),
    ],
)
def test_wrong_options_are_one_line(method, options, message):
    with pytest.raises(InputError) as caught:
        hyperparameters(method, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def plan(lab, model, method, **options):
    return ADDITIVE[method].plan(lab.base(model), OPTIONS[method](**options))


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_must_leave_room_for_the_input(lab, method):
    plan(lab, "llama", method, virtual_tokens=39)
    message = "^virtual_tokens: must be below the model's context of 40 tokens, got 40$"
    with pytest.raises(InputError, match=message):
        plan(lab, "llama", method, virtual_tokens=40)


@pytest.mark.parametrize("model", ["distilbert", "t5"])
def test_prefixes_of_models_that_take_none_are_refused(lab, model):
    message = "^method: prefix cannot train .*, which takes no keys and values before those of its input in each layer; choose another method$"
    with pytest.raises(InputError, match=message):
        plan(lab, model, "prefix")


def test_keys_of_another_shape_than_pefts_are_refused(lab):
    """As those of a model whose queries share one head of them, which PEFT does not see."""
    group = lab.group("llama")
    group.join("t", lab.params("prefix"))
    for site, _ in group._engine._sites.values():
        if hasattr(site, "_shape"):
            site._shape = site._shape._replace(heads=1)
    message = "^method: prefix puts keys and values of 1 heads with 32 channels before those of each layer, as PEFT does; the model has some of 2 with 16; choose"
    with pytest.raises(InputError, match=message):
        group.step(["t"])


def test_prompts_before_a_decoder_that_classifies_are_refused(lab):
    config = transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = transformers.LlamaForSequenceClassification(config)
    base = BaseModel(model=model, quantisation="none", dtype=torch.float32, head=("score",))
    message = "^method: prompt cannot train LlamaForSequenceClassification, which finds the end of a row by its token "
    with pytest.raises(InputError, match=message) as caught:
        ADDITIVE["prompt"].plan(base, PromptOptions())
    assert "\n" not in str(caught.value)


def test_ia3_of_a_model_whose_layers_nobody_knows_is_refused(lab):
    base = lab.base("distilbert")
    base.model.config.model_type = "unacknowledged-of"
    for layer in base.model.distilbert.transformer.layer:
        layer.ffn.second = layer.ffn.lin2
        del layer.ffn.lin2
    message = "^method: ia3 scales keys, values and feed-forward layers, and knows none of DistilBertForSequence.*another"
    with pytest.raises(InputError, match=message):
        scaled_layers(base)


# --- arithmetic in half precision ---


@pytest.mark.parametrize(
    "settings", [{"autocast": torch.bfloat16}, {"dtype": torch.bfloat16}], ids=["autocast", "base"]
)
@pytest.mark.parametrize("name", GROUPS)
def test_in_bfloat16_losses_fall_and_stay_near_those_of_float32(lab, name, settings, tmp_path):
    trials = {trial: lab.params(**more) for trial, more in GROUPS[name].items()}
    exact = lab.together(lab.group("llama"), tmp_path / "exact", trials)
    found = lab.together(lab.group("llama", **settings), tmp_path / "half", trials)
    for trial in trials:
        (first, _), (last, folder) = found[trial]
        assert last.train_loss < first.train_loss
        assert last.val_loss == pytest.approx(exact[trial][-1][0].val_loss, rel=0.03)
        assert {tensor.dtype for tensor in lab.tensors(folder).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["ia3", "prompt"])
def test_under_autocast_weights_are_as_exact_as_in_peft(lab, method, tmp_path):
    """A scale of 1.003 is 1 in bfloat16."""
    group = lab.group("llama", autocast=torch.bfloat16)
    group.join("t", lab.params(method, **OPTION[method], warmup_ratio=0.0))
    group.step(["t"])
    group.save("t", tmp_path)
    module = as_a_user(lab, "llama", tmp_path / "checkpoint", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lab.logits_aboard("llama", group, "t"), lab.logits("llama", module))
