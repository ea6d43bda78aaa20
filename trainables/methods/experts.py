"""LoRA of fused experts: of parameters [E, ., .] that hold a matrix of each of the E experts of a
layer. As PEFT's `target_parameters`, by which what leaves is loaded.

A trial's weights W + scale * B A are as large as the experts: such a trial has its base alone.

Letters of shapes: E experts, I and O channels in and out, R rank.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import AdapterSite, Addition, Stacked, leaves
from trainables.errors import InputError
from trainables.hyperparameters import LoraOptions
from trainables.models.base import BaseModel
from trainables.models.structure import ends_with

A, B = "lora_A", "lora_B"
# PEFT wraps a module once for each of its parameters: around the first, the others' wrappers
WRAPPED = "base_layer."
DEEPEST = 8  # parameters of one module


class FusedExperts(AdapterSite):
    """A parameter of experts that, while they compute, has the one trial's A and B in it. The
    site's name is the parameter's.
    """

    fast = tuple(f"{WRAPPED * depth}{B}" for depth in range(DEEPEST))

    def __init__(self, engine: SharedBaseEngine, name: str) -> None:
        module, _, self._parameter = name.rpartition(".")
        super().__init__(engine, module)
        self._weight = self.module.get_parameter(self._parameter)

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site.rpartition('.')[0]}.{tensor}.weight"

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[LoraOptions | None]) -> None:
        (only,) = options
        assert only is not None, "see `sharing_key`"
        self._scale = only.scale
        # without what PEFT's wrappers put before the names
        self._own = {name.removeprefix(WRAPPED): x for name, x in leaves(tensors, 0).items()}

    def install(self) -> Callable[[], None]:
        undo = [
            self.module.register_forward_pre_hook(self._put),
            # also after an error, such as one of memory
            self.module.register_forward_hook(self._put_back, always_call=True),
        ]

        def remove() -> None:
            for each in undo:
                each.remove()

        return remove

    def _put(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.autocast(self._weight.device.type, enabled=False):
            a, b = (self._own[name].to(self._weight.dtype) for name in (A, B))
            changed = _changed(self._weight, a, b, self._scale, _is_transposed(module))
        module._parameters[self._parameter] = changed  # pyright: ignore[reportArgumentType]

    def _put_back(self, module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        module._parameters[self._parameter] = self._weight


def _changed(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    """Of `weight` [E, O, I], or [E, I, O] where it is `transposed`: that with scale * B A added.
    Shapes of A and B are PEFT's: [E * R, I] and [O, R * E].
    """
    experts = len(weight)
    a_ERI = a.unflatten(0, (experts, -1))
    b_EOR = b.unflatten(1, (-1, experts)).permute(2, 0, 1)
    left, right = (a_ERI.mT, b_EOR.mT) if transposed else (b_EOR, a_ERI)
    return torch.baddbmm(weight, left, right, alpha=scale)


def _is_transposed(module: nn.Module) -> bool:
    """Whether the experts' matrices are [I, O], by the name that transformers and PEFT have."""
    return bool(getattr(module, "is_transposed", False))


def of_experts(base: BaseModel, options: LoraOptions) -> list[Addition]:
    """A as PEFT draws it (Kaiming uniform), B zero."""
    additions, fused = [], _fused(base, options.target_parameters)
    for number, name in enumerate(fused):
        site = name.rpartition(".")[0]
        wrapped = WRAPPED * sum(x.rpartition(".")[0] == site for x in fused[number + 1 :])
        experts, outputs, inputs = base.model.get_parameter(name).shape
        if _is_transposed(base.model.get_submodule(site)):
            outputs, inputs = inputs, outputs
        a = torch.empty(options.rank * experts, inputs)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        b = torch.zeros(outputs, options.rank * experts)
        frozen = {f"{wrapped}{A}": torch.ones(1, 1, dtype=torch.bool)} if options.freeze_a else {}
        additions.append(
            Addition(
                kind=FusedExperts,
                site=name,
                values={f"{wrapped}{A}": a, f"{wrapped}{B}": b},
                frozen=frozen,
                options=options,
            )
        )
    return additions


def _fused(base: BaseModel, targets: Sequence[str]) -> list[str]:
    """Names of the parameters that are meant, as PEFT reads its `target_parameters`, in the model's
    order. Raises InputError for a target that is no experts' weights.
    """
    every = {
        f"{site}.{name}": parameter
        for site, module in base.model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    fused = [name for name, p in every.items() if p.ndim == 3 and not _convolves(base, name)]
    for target in targets:
        _check_target(target, every, fused)
    return [name for name in fused if ends_with(name, targets)]


def _check_target(target: str, every: Iterable[str], fused: Sequence[str]) -> None:
    found = {name for name in every if ends_with(name, [target])}
    if found and found <= set(fused):
        return
    some = sorted({".".join(name.split(".")[-2:]) for name in fused})
    raise InputError(
        f"target_parameters: no experts' weights are called {target!r}; this model has"
        f" {', '.join(some) or 'none that are fused'}"
    )


def _convolves(base: BaseModel, parameter: str) -> bool:
    return isinstance(base.model.get_submodule(parameter.rpartition(".")[0]), nn.Conv1d)
