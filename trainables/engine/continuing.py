"""Whether trials can go on with an adapter as it is: its own method, rank and targets. No Ray."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from trainables.engine.dropout import RowKeys
from trainables.engine.shared import SharedBaseEngine
from trainables.errors import InputError
from trainables.hyperparameters import AdaLoraOptions, Hyperparameters
from trainables.methods import ADDITIVE
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.loading import shapes_of, start_of
from trainables.models.origin import ADAPTER, Adapter, adapter_of

# of what describes an adapter: what says nothing of what it computes, or is seen by its tensors
LEFT_OUT = (
    "auto_mapping",
    "base_model_name_or_path",
    "encoder_hidden_size",
    "inference_mode",
    "init_lora_weights",
    "modules_to_save",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
)


def check_continues(spec: BaseSpec, trials: Iterable[Hyperparameters]) -> None:
    """Raise InputError for the first of `trials` that would not train the adapter of `spec` as it
    is.
    """
    adapter = adapter_of(spec.model)
    assert adapter is not None, "what is continued is an adapter"
    base = shapes_of(spec)
    start = start_of(spec, base.head)
    for hp in {(each.method, each.options): each for each in trials}.values():
        if hp.method not in ADDITIVE:
            raise InputError(
                f"search.space: model.adapter: continue trains the adapter itself, got method"
                f" {hp.method}; merge trains the base with the adapter in it"
            )
        if isinstance(hp.options, AdaLoraOptions):
            raise InputError(
                "search.space: model.adapter: continue cannot train with method adalora, whose"
                " adapters leave as those of lora; continue with lora, or merge"
            )
        _check_described(base, hp, adapter)
        with torch.device("meta"):
            engine = SharedBaseEngine(base, RowKeys(), compute=None, device=torch.device("meta"))
            engine.join("", ADDITIVE[hp.method].plan(base, hp.options))
            engine.begin("", start)
            engine.leave("")


def _check_described(base: BaseModel, hp: Hyperparameters, adapter: Adapter) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        ADDITIVE[hp.method].describe(base, hp.options, Path(scratch))
        own: Mapping[str, object] = json.loads((Path(scratch) / ADAPTER).read_text())
    its = adapter.described()
    for name in ("peft_type", "adapter_type", *sorted(own)):
        if name in LEFT_OUT or name.endswith("dropout"):
            continue
        if own.get(name) != its.get(name, own.get(name)):
            raise InputError(
                f"search.space: model.adapter: continue trains the adapter as it is, with"
                f" {name} {its.get(name)} in {adapter.folder / ADAPTER}; got method {hp.method}"
                f" with {own.get(name)}"
            )
