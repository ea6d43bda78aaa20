"""Layers of LoRA adapters are called as vLLM calls them, family by family."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.trainables.architectures import FAMILIES, LANGUAGE, SEQ2SEQ
from trainables.methods.lora import target_modules
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.structure import on_meta
from trainables.models.vllm import LAYERS, A, vllm_words
from trainables.rehearsal import miniature
from trainables.tasks import TASKS

# what has a mark under "LoRA" in vLLM's list of supported models
ADAPTED = (
    "deepseek_v3",
    "gemma2",
    "llama",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)
NOT_ADAPTED = ("bloom", "falcon", "gpt2", "gpt_neox", "mamba", "mpt")


def exported(name: str, task: str, folder: Path) -> BaseSpec:
    """What an adapter of all linear layers has in `folder`; the spec of its base."""
    _, config = next(miniature.candidates(FAMILIES[name].config()))
    config.save_pretrained(folder / "model")
    auto_class = TASKS[task].auto_class

    shapes = on_meta(getattr(transformers, auto_class), config, False)
    base = BaseModel(model=shapes, quantisation="none", dtype=torch.float32)
    names = target_modules(base, "all-linear")
    tensors = {f"base_model.model.{layer}{A}": torch.zeros(4, 2) for layer in names}
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    model = ModelConfig(name=str(folder / "model"))
    return BaseSpec(model=model, auto_class=auto_class, pad_token_id=0)


def of(task: str) -> list[str]:
    return [name for name, family in FAMILIES.items() if task in family.tasks]


def test_every_language_model_of_the_matrix_is_looked_up():
    assert {*ADAPTED, *NOT_ADAPTED} == {*of(LANGUAGE)} <= LAYERS.keys()
    assert all(LAYERS[name] for name in ADAPTED) and not any(LAYERS[name] for name in NOT_ADAPTED)


@pytest.mark.parametrize("name", ADAPTED)
def test_all_linear_layers_are_called_as_vllm_calls_them(tmp_path, name):
    words = vllm_words(tmp_path, exported(name, LANGUAGE, tmp_path))
    assert words == "vLLM loads it with --enable-lora"


@pytest.mark.parametrize("name", NOT_ADAPTED)
def test_what_vllm_adapts_nothing_of_is_told(tmp_path, name):
    words = vllm_words(tmp_path, exported(name, LANGUAGE, tmp_path))
    assert words.startswith(f"vLLM does not load it (it adapts no layers of {name} that are called")
    assert words.endswith(": export with --merge")


@pytest.mark.parametrize("name", of(SEQ2SEQ))
def test_vllm_has_no_encoder_decoders(tmp_path, name):
    words = vllm_words(tmp_path, exported(name, SEQ2SEQ, tmp_path))
    assert words == f"vLLM has no encoder-decoders such as {name}"


def test_a_family_that_was_not_looked_up_is_told(tmp_path, monkeypatch):
    spec = exported("llama", LANGUAGE, tmp_path)
    monkeypatch.setattr("trainables.models.vllm.LAYERS", {})
    assert vllm_words(tmp_path, spec).endswith(", where it adapts llama (not looked up)")
