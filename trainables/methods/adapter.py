import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainables.engine.kernels import Gathered, GroupedLinear
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.errors import InputError
from trainables.hyperparameters import AdapterOptions
from trainables.models.base import BaseModel
from trainables.models.structure import layer_lists

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Bottleneck(AdapterSite):
    """The adapters of all trials after one layer: h + up(relu(down(h)))."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site}.adapter.{tensor}"

    def bind(
        self, tensors: Mapping[str, Stacked], options: Sequence[AdapterOptions | None]
    ) -> None:
        self._tensors = tensors
        self._here = [each is not None for each in options]

    def install(self) -> Callable[[], None]:
        return self.module.register_forward_hook(_on_hidden_states(self._after)).remove

    def _after(self, hidden: Tensor) -> Tensor:
        x_ND = hidden.reshape(-1, hidden.shape[-1]).to(self._tensors["down.weight"].compute.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            y_ND = self._linear("up", torch.relu(self._linear("down", x_ND)))
        return (hidden + y_ND.view(hidden.shape)).to(hidden.dtype)

    def _linear(self, name: str, x_NI: Tensor) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        whole, anchor = self.engine.micro_batch, self.engine.anchor
        y_NO = GroupedLinear.apply(
            x_NI, anchor, weight.compute, weight.grad, whole.scaled(len(x_NI))
        )
        bias_BO = Gathered.apply(anchor, bias.compute, bias.grad, whole, self._here)
        return (y_NO.view(len(bias_BO), -1, y_NO.shape[-1]) + bias_BO[:, None]).view(y_NO.shape)


def _on_hidden_states(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor | tuple]:
    """A forward hook that changes the hidden states that a layer gives, alone or first in a
    tuple.
    """

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


class Adapter:
    """Bottleneck adapters over a frozen base, the identity at the start. `load_adapter` loads what
    leaves.
    """

    stays_beside = True

    def plan(self, base: BaseModel, options: AdapterOptions) -> list[Addition]:
        """`down` as torch draws linear layers (Kaiming uniform), the rest zero."""
        width, additions = base.model.config.get_text_config().hidden_size, []
        for site in _layers(base):
            down = torch.empty(options.bottleneck, width)
            nn.init.kaiming_uniform_(down, a=5**0.5)
            values = {
                "down.weight": down,
                "down.bias": torch.zeros(options.bottleneck),
                "up.weight": torch.zeros(width, options.bottleneck),
                "up.bias": torch.zeros(width),
            }
            additions.append(Addition(kind=Bottleneck, site=site, values=values, options=options))
        return additions

    def describe(self, base: BaseModel, options: AdapterOptions, folder: Path) -> None:
        described = {
            "adapter_type": "bottleneck",
            "base_model_name_or_path": base.model.name_or_path,
            "revision": base.spec.model.revision if base.spec else None,
            "bottleneck": options.bottleneck,
            "activation": "relu",
            # h + up(relu(down(h))) of the hidden states h that each of them gives
            "layers": _layers(base),
            "modules_to_save": list(base.head),
        }
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _layers(base: BaseModel) -> list[str]:
    (name, layers), *others = layer_lists(base.model)
    if others:
        raise InputError(
            f"method: adapter finds no layers in {type(base.model).__name__}, whose parts lie in"
            " lists of their own; choose another"
        )
    return [f"{name}.{number}" for number in range(len(layers))]


def load_adapter(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """Put the adapters in `folder` after the layers of `model`, as `from_pretrained` of
    transformers gives it, and the head that was trained with them instead of its own. Returns
    `model`.
    """
    from safetensors.torch import load_file

    described = json.loads((Path(folder) / "adapter_config.json").read_text())
    assert described["adapter_type"] == "bottleneck", f"{folder} holds no bottleneck adapter"
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    for name in described["layers"]:
        up = weights[f"{name}.adapter.up.weight"]  # [D, bottleneck]
        width, bottleneck = up.shape
        last = nn.Linear(bottleneck, width)
        parts = {"down": nn.Linear(width, bottleneck), "relu": nn.ReLU(), "up": last}
        adapter = nn.Sequential(OrderedDict(parts)).to(model.device, up.dtype)
        layer = model.get_submodule(name)
        layer.add_module("adapter", adapter)
        layer.register_forward_hook(_on_hidden_states(_adding(adapter, last)))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [name for name in missing if ".adapter." in name]
    assert not unexpected and not lost, (
        f"{folder} does not fit the model: missing {lost}, unexpected {unexpected}"
    )
    return model


def _adding(adapter: nn.Sequential, last: nn.Linear) -> Callable[[Tensor], Tensor]:
    """`last`: of the adapter's layers; it tells their type, which may change later."""
    return lambda hidden: hidden + adapter(hidden.to(last.weight.dtype)).to(hidden.dtype)
