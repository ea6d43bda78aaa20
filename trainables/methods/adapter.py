import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainables.engine.kernels import Gathered, GroupedLinear
from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.errors import InputError
from trainables.hyperparameters import AdapterOptions
from trainables.models.base import BaseModel
from trainables.models.structure import Sublayers, stacks, sublayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Bottleneck(AdapterSite):
    """The adapters of all trials after one module: h + scale * up(activation(down(h)))."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site}.adapter.{tensor}"

    def bind(
        self, tensors: Mapping[str, Stacked], options: Sequence[AdapterOptions | None]
    ) -> None:
        self._tensors = tensors
        self._here = [each is not None for each in options]
        # of trials that have nothing here, those of the others, so that all may have the same
        known = [each for each in options if each is not None]
        own = [each or known[0] for each in options]
        self._activations = [ACTIVATIONS[each.activation]() for each in own]
        self._alike = len({each.activation for each in known}) == 1
        self._scales_K = torch.tensor(
            [each.scale for each in own], dtype=self.engine.dtype, device=self.engine.anchor.device
        )

    def install(self) -> Callable[[], None]:
        return self.module.register_forward_hook(_on_hidden_states(self._after)).remove

    def _after(self, hidden: Tensor) -> Tensor:
        return self._added(hidden, hidden)

    def _added(self, hidden: Tensor, x: Tensor) -> Tensor:
        """`hidden`, and what the adapters make of `x`."""
        x_ND = x.reshape(-1, x.shape[-1]).to(self._tensors["down.weight"].compute.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y_ND = self._linear("up", self._activated(self._linear("down", x_ND)))
            whole = self.engine.micro_batch
            lanes_B = whole.lanes_B if len(whole.segments) > 1 else whole.lanes_B[:1]
            scales_B = self._scales_K[lanes_B].to(y_ND.dtype)
            y_BTD = y_ND.view(len(lanes_B), -1, y_ND.shape[-1]) * scales_B[:, None, None]
        return (hidden + y_BTD.view(hidden.shape)).to(hidden.dtype)

    def _activated(self, h_NR: Tensor) -> Tensor:
        if self._alike:
            return self._activations[0](h_NR)
        segments = self.engine.micro_batch.scaled(len(h_NR))
        return torch.cat([self._activations[k](h_NR[start:stop]) for k, start, stop in segments])

    def _linear(self, name: str, x_NI: Tensor) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        whole, anchor = self.engine.micro_batch, self.engine.anchor
        y_NO = GroupedLinear.apply(
            x_NI, anchor, weight.compute, weight.grad, whole.scaled(len(x_NI))
        )
        bias_BO = Gathered.apply(anchor, bias.compute, bias.grad, whole, self._here)
        return (y_NO.view(len(bias_BO), -1, y_NO.shape[-1]) + bias_BO[:, None]).view(y_NO.shape)


class ParallelBottleneck(Bottleneck):
    """The adapters of all trials beside one feed-forward: its last projection gives h +
    scale * up(activation(down(x))), x being what its first is given.
    """

    def __init__(self, engine: SharedBaseEngine, name: str) -> None:
        super().__init__(engine, name)
        self._given = _Given(engine.base.model.get_submodule(_inputs(engine.base)[name]))

    def install(self) -> Callable[[], None]:
        undo = [self._given.install(), super().install()]

        def remove() -> None:
            for each in undo:
                each()

        return remove

    def _after(self, hidden: Tensor) -> Tensor:
        return self._added(hidden, self._given.take())


class _Given:
    """What a module is given, until it is taken."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._x: Tensor | None = None

    def install(self) -> Callable[[], None]:
        return self._module.register_forward_pre_hook(self._remember).remove

    def _remember(self, module: nn.Module, inputs: tuple) -> None:
        self._x = inputs[0]

    def take(self) -> Tensor:
        x, self._x = self._x, None
        assert x is not None, "the first projection of a feed-forward must run before its last"
        return x


def _on_hidden_states(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor | tuple]:
    """A forward hook that changes the hidden states that a module gives, alone or first in a
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
        kind = ParallelBottleneck if options.placement == "parallel" else Bottleneck
        for site in _sites(base, options):
            down = torch.empty(options.bottleneck, width)
            nn.init.kaiming_uniform_(down, a=5**0.5)
            values = {
                "down.weight": down,
                "down.bias": torch.zeros(options.bottleneck),
                "up.weight": torch.zeros(width, options.bottleneck),
                "up.bias": torch.zeros(width),
            }
            additions.append(Addition(kind=kind, site=site, values=values, options=options))
        return additions

    def describe(self, base: BaseModel, options: AdapterOptions, folder: Path) -> None:
        described = {
            "adapter_type": "bottleneck",
            "base_model_name_or_path": base.model.name_or_path,
            "revision": base.revision,
            "bottleneck": options.bottleneck,
            "placement": options.placement,
            "activation": options.activation,
            "scale": options.scale,
            # h + scale * up(activation(down(h))) of the hidden states h that each of them gives
            "layers": _sites(base, options),
            # or of what another module was given
            "inputs": _inputs(base) if options.placement == "parallel" else {},
            "modules_to_save": list(base.head),
        }
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _sites(base: BaseModel, options: AdapterOptions) -> list[str]:
    """Names of the modules whose output adapters change."""
    if options.placement == "parallel":
        return list(_inputs(base))
    if options.placement == "houlsby":
        layers = _sublayers(base)
        return [name for each in layers for name in (*each.attention, each.feed_forward)]
    found = stacks(base.model)
    if any(len(lists) > 1 for lists in found):
        raise InputError(
            f"method: adapter finds no layers in {type(base.model).__name__}, whose parts lie in"
            " lists of their own; choose another"
        )
    return [f"{name}.{number}" for ((name, layers),) in found for number in range(len(layers))]


def _inputs(base: BaseModel) -> dict[str, str]:
    """The last projection of each feed-forward, with the first."""
    return {each.feed_forward: each.feed_forward_input for each in _sublayers(base)}


def _sublayers(base: BaseModel) -> list[Sublayers]:
    try:
        return sublayers(base.model)
    except InputError as error:
        raise InputError(f"placement: {error}; choose pfeiffer") from None


def load_adapter(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """Put the adapters in `folder` into `model`, as `from_pretrained` of transformers gives it, and
    the head that was trained with them instead of its own. Returns `model`.
    """
    from safetensors.torch import load_file

    described = json.loads((Path(folder) / "adapter_config.json").read_text())
    assert described["adapter_type"] == "bottleneck", f"{folder} holds no bottleneck adapter"
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    for name in described["layers"]:
        up = weights[f"{name}.adapter.up.weight"]  # [D, bottleneck]
        given = described.get("inputs", {}).get(name)
        activation, scale = ACTIVATIONS[described["activation"]](), described.get("scale", 1.0)
        _put(model, name, given, up, activation, scale)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [name for name in missing if ".adapter." in name]
    assert not unexpected and not lost, (
        f"{folder} does not fit the model: missing {lost}, unexpected {unexpected}"
    )
    return model


def _put(
    model: "PreTrainedModel",
    name: str,
    given: str | None,
    up: Tensor,
    activation: nn.Module,
    scale: float,
) -> None:
    """Put an adapter of the shape and type of `up` after the module `name`, of what the module
    `given` is given (None: of what `name` gives).
    """
    width, bottleneck = up.shape
    last = nn.Linear(bottleneck, width)  # tells the adapter's type, which may change later
    parts = {"down": nn.Linear(width, bottleneck), "activation": activation, "up": last}
    adapter = nn.Sequential(OrderedDict(parts)).to(model.device, up.dtype)
    module = model.get_submodule(name)
    module.add_module("adapter", adapter)
    source = None if given is None else _Given(model.get_submodule(given))
    if source is not None:
        source.install()

    def change(hidden: Tensor) -> Tensor:
        x = hidden if source is None else source.take()
        return hidden + (scale * adapter(x.to(last.weight.dtype))).to(hidden.dtype)

    module.register_forward_hook(_on_hidden_states(change))
