import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.errors import InputError
from trainables.hyperparameters import Ia3Options
from trainables.methods.lora import features, linear_layers
from trainables.model import BaseModel, Variant
from trainables.stack import Addition, Gathered, Place, Stacked

# keys and values (or what holds them, fused), and the last layer of the feed-forward, as the architectures that PEFT
# does not know name them
KEYS_VALUES = re.compile(
    r"(^|\.)((k|v|key|value)(_proj|_lin)?|qkv(_proj)?|Wqkv|c_attn|query_key_value)$|(^|\.)attention\.(in|qkv)_proj$"
)
FEED_FORWARD = re.compile(
    r"(^|\.)(down_proj|fc2|lin2|ff2|w2|wo|fc_out|dense_4h_to_h)$|(^|\.)(mlp|ffn|feed_forward)\.(c_proj|Wo|dense_2)$"
    r"|(^|\.)(?<!attention\.)output\.dense$"
)


def scaled_layers(base: BaseModel) -> dict[str, str]:
    """Full names of the linear layers that IA3 scales, each with what is scaled: its "input" or its "output"."""
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    linear, architecture = linear_layers(base), base.model.config.model_type
    targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(architecture)
    feed_forward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(architecture)
    if targets and feed_forward:
        chosen = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets)]
        found = {name: "input" if name.endswith(tuple(feed_forward)) else "output" for name in chosen}
    else:
        found = {name: "output" for name in linear if KEYS_VALUES.search(name)}
        found |= {name: "input" for name in linear if FEED_FORWARD.search(name)}
    if set(found.values()) != {"input", "output"}:
        raise InputError(
            f"method: ia3 scales keys, values and feed-forward layers, and knows none of {type(base.model).__name__}; "
            "choose another method"
        )
    return {name: found[name] for name in linear if name in found}


class Scale(Place):
    """The scales of all trials at one linear layer: of what goes into it, or of what comes out."""

    @staticmethod
    def key(place: str, tensor: str) -> str:
        return f"base_model.model.{place}.ia3_l"

    @staticmethod
    def exported(tensor: str, value: Tensor) -> Tensor:
        return value[None] if tensor == "input" else value[:, None]  # as PEFT broadcasts them over weights

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Ia3Options | None]) -> None:
        ((self._side, self._scale),) = tensors.items()
        self._here = [each is not None for each in options]
        others = self._scale.weight.new_tensor([float(not here) for here in self._here])
        self._others_K1 = None if all(self._here) else others[:, None]  # who has nothing here is scaled by 1

    def install(self) -> Callable[[], None]:
        if self._side == "input":
            return self.module.register_forward_pre_hook(
                lambda _, inputs: (self._scaled(inputs[0]), *inputs[1:])
            ).remove
        return self.module.register_forward_hook(lambda _, inputs, output: self._scaled(output)).remove

    def _scaled(self, x: Tensor) -> Tensor:
        whole = self.stack.passing
        scale_BC = Gathered.apply(self.stack.anchor, self._scale.weight, self._scale.grad, whole, self._here)
        if self._others_K1 is not None:
            scale_BC = scale_BC + self._others_K1[whole.lanes_B]
        scaled = x.reshape(len(scale_BC), -1, x.shape[-1]) * scale_BC[:, None]  # some models flatten rows into tokens
        return scaled.reshape(x.shape).to(x.dtype)


class Ia3:
    """IA3 over a frozen base: learned scales, all 1 at the start. What leaves is PEFT's format."""

    stays_beside = False

    def variant(self, options: Ia3Options) -> Variant:
        return "plain"

    def plan(self, base: BaseModel, options: Ia3Options) -> list[Addition]:
        additions = []
        for name, side in scaled_layers(base).items():
            inputs, outputs = features(base.model.get_submodule(name))
            values = {side: torch.ones(inputs if side == "input" else outputs)}
            additions.append(Addition(kind=Scale, place=name, values=values, options=options))
        return additions

    def describe(self, base: BaseModel, options: Ia3Options, folder: Path) -> None:
        from peft import IA3Config, TaskType
        from transformers.pytorch_utils import Conv1D

        scaled = scaled_layers(base)
        modules: dict[str, Any] = {name: base.model.get_submodule(name) for name in scaled}
        IA3Config(
            base_model_name_or_path=base.model.name_or_path,
            target_modules=list(scaled),
            feedforward_modules=[name for name, side in scaled.items() if side == "input"],
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),  # GPT-2's layers
            modules_to_save=list(base.head) or None,
            task_type=TaskType.SEQ_CLS if base.head else TaskType.CAUSAL_LM,
            inference_mode=True,
        ).save_pretrained(folder)
