"""What makes the steps of a trial that trains weights of the base itself."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from trainables.hyperparameters import Hyperparameters

STEP = "step"


class Optimisers:
    """Over named parameters. `optimizer: muon` trains the matrices `hidden` by Muon and the rest by
    AdamW, with one learning rate: Muon's updates are scaled to the size of AdamW's (Liu et al.
    2025, https://arxiv.org/abs/2502.16982).
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], hidden: Iterable[str], hp: Hyperparameters
    ) -> None:
        self._parameters = parameters
        matrices = {name: parameters[name] for name in hidden} if hp.optimizer == "muon" else {}
        rest = {name: each for name, each in parameters.items() if name not in matrices}
        self._of: dict[str, torch.optim.Optimizer] = {}
        for group, make in ((matrices, _muon), (rest, _elementwise)):
            if group:
                self._of |= dict.fromkeys(group, make(list(group.values()), hp))
        self._all = list(dict.fromkeys(self._of.values()))

    def zero_grad(self) -> None:
        for each in self._all:
            each.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        for each in self._all:
            for group in each.param_groups:
                group["lr"] = rate
            each.step()

    def state(self) -> dict[str, Tensor]:
        """All but the number of steps, as `STATE/NAME` of the parameter that it belongs to."""
        return {
            f"{key}/{name}": value
            for name, parameter in self._parameters.items()
            for key, value in self._of[name].state.get(parameter, {}).items()
            if key != STEP and isinstance(value, Tensor)
        }

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `state` gave after so many steps."""
        of: dict[str, dict[str, Tensor]] = {}
        for written, value in state.items():
            key, _, name = written.partition("/")
            of.setdefault(name, {})[key] = value
        for name, parameter in self._parameters.items():
            optimizer = self._of[name]
            optimizer.state[parameter] = _placed(optimizer, parameter, of[name], steps)


def _muon(parameters: list[Parameter], hp: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        parameters,
        lr=hp.learning_rate,
        weight_decay=hp.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def _elementwise(parameters: list[Parameter], hp: Hyperparameters) -> torch.optim.Optimizer:
    """Each number by itself, whatever the matrix."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": hp.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # biases and norms
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = hp.learning_rate, (hp.beta1, hp.beta2)
    if hp.optimizer in ("adamw", "muon"):
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=hp.epsilon, fused=True)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    from bitsandbytes.optim.lion import Lion32bit

    if hp.optimizer == "lion":
        return Lion32bit(groups, lr=rate, betas=betas)
    kind = AdamW8bit if hp.optimizer == "adamw_8bit" else PagedAdamW8bit
    return kind(groups, lr=rate, betas=betas, eps=hp.epsilon)


def _placed(
    optimizer: torch.optim.Optimizer, parameter: Parameter, state: Mapping[str, Tensor], steps: int
) -> dict[str, object]:
    """The state of one parameter where the optimizer would have it."""
    placed: dict[str, object] = {}
    for key, value in state.items():
        # of bitsandbytes, which may have memory of its own for it that moves to the host
        buffer = getattr(optimizer, "get_state_buffer", None)
        if buffer is not None and value.shape == parameter.shape:
            placed[key] = cast("Tensor", buffer(parameter, dtype=value.dtype)).copy_(value)
        else:
            placed[key] = value.to(parameter.device)
    if isinstance(optimizer, torch.optim.AdamW):
        return {STEP: torch.tensor(float(steps), device=parameter.device), **placed}
    return {STEP: steps, **placed}
