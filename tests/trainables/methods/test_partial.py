"""What partial fine-tuning trains, over the zoo: shapes alone, nothing is trained."""

import re

import pytest
import torch
import transformers

from tests.trainables import zoo
from trainables.errors import InputError
from trainables.hyperparameters import PartialOptions
from trainables.methods import REPLACING
from trainables.models.base import BaseModel
from trainables.models.structure import above_backbone, on_meta

CLASSIFIERS = (
    "bert distilbert albert deberta deberta-v3 xlnet funnel mobilebert squeezebert fnet modernbert t5 bart gpt2 "
    "gpt_neox bloom falcon mpt llama qwen2 gemma2 phi olmo gpt_oss mixtral"
).split()
LANGUAGE_MODELS = "gptj mamba mamba2 rwkv cohere dbrx llama-tied".split()
MODELS = [(name, "classification") for name in CLASSIFIERS] + [
    (name, "causal") for name in LANGUAGE_MODELS
]
WITHOUT_BIASES = {"modernbert", "t5", "mpt", "llama", "gemma2", "olmo", "mixtral"}
WITHOUT_BIASES |= {"cohere", "dbrx", "llama-tied"}


def shapes(name, task, fixed=frozenset()):
    model = on_meta(getattr(transformers, zoo.AUTO_CLASSES[task]), zoo.config(name, task))
    head = tuple(above_backbone(model)) if task == "classification" else ()
    return BaseModel(model=model, quantisation="none", dtype=torch.float32, head=head, fixed=fixed)


def trained(base, **options):
    """Names of what is trained, without the head of a classifier."""
    REPLACING["partial"].attach(base, PartialOptions(**options))
    parameters = dict(base.model.named_parameters())
    for name, parameter in parameters.items():
        assert parameter.requires_grad or not base.in_head(name)
    return {name for name, p in parameters.items() if p.requires_grad and not base.in_head(name)}


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_bitfit_trains_every_bias_and_nothing_else(name, task):
    base = shapes(name, task)
    if name in WITHOUT_BIASES:
        kind = type(base.model).__name__
        with pytest.raises(
            InputError, match=f"^train: {kind} has no bias to train beside its head"
        ):
            trained(base, train="bias")
        return
    found = trained(base, train="bias")
    every = {name for name, _ in base.model.named_parameters() if re.search("bias$", name)}
    assert found == {name for name in every if not base.in_head(name)}
    # those of linear layers, convolutions and norms are called so because torch does
    for name, module in base.model.named_modules():
        if getattr(module, "bias", None) is not None and not base.in_head(name):
            assert f"{name}.bias" in found


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_norms_are_found_whatever_they_are_called(name, task):
    base = shapes(name, task)
    if name == "olmo":  # whose norms have no weights
        with pytest.raises(
            InputError, match="has no norms to train beside its head; choose head or"
        ):
            trained(base, train="norms")
        return
    parameters = dict(base.model.named_parameters())
    found = trained(base, train="norms")
    assert found and {parameters[name].ndim for name in found} == {1}
    called = {
        name
        for name, p in parameters.items()
        if re.search(r"norm|\.ln", name, re.IGNORECASE) and p.ndim == 1 and not base.in_head(name)
    }
    # mobilebert has matrices in modules that are called so, falcon and others norms of other names
    assert {name for name in called if not re.search("bottleneck|ffn", name)} <= found
    assert not {name for name in found if re.search(r"(dense|proj|query|key|value)\.", name)}


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("bert", "classification", set()),
        ("llama", "classification", set()),
        ("llama", "causal", {"lm_head.weight"}),
        ("gptj", "causal", {"lm_head.weight", "lm_head.bias"}),
    ],
)
def test_a_linear_probe_trains_the_head_alone(name, task, expected):
    assert trained(shapes(name, task), train="head") == expected


def test_a_language_models_output_layer_stays_frozen_beside_its_biases():
    assert "lm_head.weight" in trained(shapes("gptj", "causal"), layers=1)
    for kind in ("bias", "norms"):
        found = trained(shapes("gptj", "causal"), train=kind)
        assert found and "lm_head.weight" not in found


@pytest.mark.parametrize(
    ("name", "last"), [("t5", "transformer.decoder.block.1."), ("bart", "model.decoder.layers.1.")]
)
def test_the_last_layers_of_two_stacks_are_the_decoders(name, last):
    base = shapes(name, "classification")
    found = trained(base, layers=1)
    assert found == {name for name, _ in base.model.named_parameters() if name.startswith(last)}


def test_what_the_model_keeps_fixed_is_not_trained():
    fixed = frozenset({"distilbert.embeddings.position_embeddings.weight"})
    base = shapes("distilbert", "classification", fixed)
    found = trained(base, patterns=("*embeddings.weight",))
    assert found == {"distilbert.embeddings.word_embeddings.weight"}
