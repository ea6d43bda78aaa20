import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainables.engine.kernels import GroupedScale
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.errors import InputError
from trainables.hyperparameters import Ia3Options
from trainables.methods.lora import over_layers
from trainables.models.base import BaseModel
from trainables.models.structure import (
    attends,
    ends_with,
    features,
    in_layers,
    linear_layers,
    served_by_peft,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# parts of the names of projections that give keys or values
KEYS_VALUES = {"k", "v", "kv", "qkv", "key", "value"}


def scaled_layers(base: BaseModel) -> dict[str, str]:
    """Full names of the linear layers that IA3 scales, each with what is scaled: its "input" or its
    "output".

    PEFT knows them of some architectures. Of the others: projections that give keys or values,
    alone or fused, and the layers of the feed-forward that lead back to the model's width.
    """
    model = base.model
    linear = linear_layers(model, base.head)
    found = _as_peft_does(model.config.model_type, linear)
    if found is None:
        found = _keys_and_values(model, attends(model, linear)) | _back_to_width(model, linear)
    served = served_by_peft(model, [name for name in linear if name in found])
    found = {name: found[name] for name in served}
    if set(found.values()) != {"input", "output"}:
        raise InputError(
            "method: ia3 scales keys, values and feed-forward layers, and knows none of"
            f" {type(model).__name__}; choose another method"
        )
    return found


def _as_peft_does(architecture: str, linear: Iterable[str]) -> dict[str, str] | None:
    """What PEFT scales of an architecture; None where it does not know it."""
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(architecture)
    feed_forward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(architecture)
    if not targets or not feed_forward:
        return None
    chosen = [name for name in linear if ends_with(name, targets)]
    return {n: "input" if n.endswith(tuple(feed_forward)) else "output" for n in chosen}


def _keys_and_values(model: "PreTrainedModel", attention: Sequence[str]) -> dict[str, str]:
    named = [
        name
        for name in attention
        if KEYS_VALUES & set(re.findall(r"[A-Z]?[a-z]+", name.rsplit(".", 1)[-1]))
    ]
    if not named:  # queries, keys and values in one, whatever it is called
        named = [name for name in attention if _ratio(model, name) >= 2]
    return dict.fromkeys(named, "output")


def _back_to_width(model: "PreTrainedModel", linear: Sequence[str]) -> dict[str, str]:
    inside = set(in_layers(model)) - set(attends(model, linear))
    width = model.config.get_text_config().hidden_size
    back = [
        name
        for name in linear
        if name in inside and features(model.get_submodule(name))[1] == width
    ]
    return dict.fromkeys([name for name in back if _ratio(model, name) != 1], "input")


def _ratio(model: "PreTrainedModel", name: str) -> float:
    inputs, outputs = features(model.get_submodule(name))
    return outputs / inputs


class Scale(AdapterSite):
    """The scales of all trials at one linear layer: of what goes into it, or of what comes out."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site}.ia3_l"

    @staticmethod
    def exported(tensor: str, value: Tensor) -> Tensor:
        # as PEFT broadcasts them over weights
        return value[None] if tensor == "input" else value[:, None]

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Ia3Options | None]) -> None:
        ((self._side, self._scale),) = tensors.items()
        self._here = [each is not None for each in options]

    def install(self) -> Callable[[], None]:
        if self._side == "input":
            return self.module.register_forward_pre_hook(self._scale_inputs).remove
        return self.module.register_forward_hook(self._scale_output).remove

    def _scale_inputs(self, module: nn.Module, inputs: tuple) -> tuple:
        return self._scaled(inputs[0]), *inputs[1:]

    def _scale_output(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return self._scaled(output)

    def _scaled(self, x: Tensor) -> Tensor:
        x_NC, here, engine = x.reshape(-1, x.shape[-1]), self._here, self.engine
        segments = engine.micro_batch.scaled(len(x_NC))
        return GroupedScale.apply(
            x_NC, engine.anchor, self._scale.weight, self._scale.grad, segments, here
        ).view(x.shape)


class Ia3:
    """IA3 over a frozen base: learned scales, all 1 at the start. What leaves is PEFT's format."""

    stays_beside = False

    def plan(self, base: BaseModel, options: Ia3Options) -> list[Addition]:
        additions = []
        for name, side in scaled_layers(base).items():
            inputs, outputs = features(base.model.get_submodule(name))
            values = {side: torch.ones(inputs if side == "input" else outputs)}
            additions.append(Addition(kind=Scale, site=name, values=values, options=options))
        return additions

    def describe(self, base: BaseModel, options: Ia3Options, folder: Path) -> None:
        from peft import IA3Config

        scaled = scaled_layers(base)
        IA3Config(
            **over_layers(base, list(scaled)),
            feedforward_modules=[name for name, side in scaled.items() if side == "input"],
        ).save_pretrained(str(folder))
