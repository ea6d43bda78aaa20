"""Modules of the base at which trials add something of their own."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.hyperparameters import MethodOptions

if TYPE_CHECKING:
    from trainables.engine.shared import SharedBaseEngine


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What one trial has at one site: initial values, by name, in the trial's own shapes."""

    kind: "type[AdapterSite]"
    site: str  # name of the module, or of the parameter, in the base
    values: dict[str, Tensor]
    # of some of the values: what of them is not trained; booleans that broadcast to their shapes
    frozen: dict[str, Tensor] = field(default_factory=dict)
    options: MethodOptions | None = None  # the method's; None: of a head
    # what leaves in the place of the values, made of them; None: they leave themselves. They then
    # are in the optimiser's state, and none may be frozen
    made: "Made | None" = None


Made = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """One of a site's tensors for all trials: views of the matrix."""

    weight: Tensor  # [K, ...], as it is trained
    compute: Tensor  # the same in the type that the arithmetic has
    grad: Tensor  # [K, ...]
    # numbers [K, ...] that a kind of addition keeps of each of its own, see `AdapterSite.state`
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """A trial that has just made a step: views of its row of the matrix [P], and its twins."""

    lane: int
    step: int  # how many it has made now
    total: int  # how many it will make
    weights: Tensor
    grads: Tensor  # of that step, unclipped
    clip: Tensor  # what they were multiplied by
    state: dict[str, Tensor]


class AdapterSite:
    """A module of the base at which trials add something of their own. One subclass for each kind
    of addition.
    """

    fast: ClassVar[tuple[str, ...]] = ()  # names of tensors whose learning rate LoRA+ multiplies
    # names of further numbers that are kept of each that is trained, and saved beside its moments
    state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, engine: "SharedBaseEngine", name: str) -> None:
        self.engine = engine
        self.name = name
        self.module = engine.base.model.get_submodule(name)

    @staticmethod
    def key(site: str, tensor: str) -> str:
        """Name of a tensor in the checkpoint."""
        raise NotImplementedError

    @staticmethod
    def exported(tensor: str, value: Tensor) -> Tensor:
        """A view of a trial's tensor in the shape that it has in the checkpoint."""
        return value

    @staticmethod
    def renamed(key: str) -> str:
        """Name in the checkpoint of what the same trial has at other sites, where PEFT's depends on
        this kind.
        """
        return key

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Any]) -> None:
        """Take the views after the matrix was laid out anew. `options` of each trial here, None for
        one that has nothing at this site: its zeros must then change nothing.
        """
        raise NotImplementedError

    def install(self) -> Callable[[], None]:
        """Act on the base's forward pass from now on; returns what undoes it."""
        raise NotImplementedError

    @classmethod
    def penalties(cls, sites: "Sequence[AdapterSite]", lanes: Sequence[int]) -> Tensor | None:
        """What trials minimise beside their mean loss [len(lanes)], once for each step; its
        gradients are added to theirs. None: nothing. sites: all of this kind.
        """
        return None

    @classmethod
    def after_step(cls, sites: "Sequence[AdapterSite]", stepped: Stepped) -> None:
        """What is done to a trial's weights after the optimizer's step."""

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs, where this kind of addition changes those."""
        return batch

    def starting(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """The same of rows that the model goes on with token by token, over a cache: those of a
        decoder end together.
        """
        return self.inputs(batch)


class TrainedModule(AdapterSite):
    """A module that every trial trains whole: the head of a classifier."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site}.{tensor}"  # where PEFT keeps its modules_to_save

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Any]) -> None:
        self._inner = copy_of(self.module)
        self._parameters = []
        for lane in range(len(options)):
            self._parameters.append(leaves(tensors, lane))

    def install(self) -> Callable[[], None]:
        self.module.forward = self._forward

        def undo() -> None:
            del self.module.forward

        return undo

    def _forward(self, x: Tensor) -> Tensor:
        self._inner.train(self.module.training)
        whole, outputs = self.engine.micro_batch, []
        # in the type of a half-precision base, weights would lose small updates
        x = x.to(self.engine.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for (lane, first, last), (_, start, stop) in zip(
                whole.segments, whole.scaled(len(x)), strict=True
            ):
                with self.engine.keys.only(first, last):
                    outputs.append(
                        torch.func.functional_call(
                            self._inner, self._parameters[lane], (x[start:stop],)
                        )
                    )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def leaves(tensors: Mapping[str, Stacked], lane: int) -> dict[str, Tensor]:
    """One trial's tensors, of which autograd adds the gradients to the matrix in place."""
    found = {}
    for name, stacked in tensors.items():
        found[name] = leaf = stacked.weight[lane].detach().requires_grad_()
        leaf.grad = stacked.grad[lane]
    return found


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of a module of the base, without what a site has put into it (that would copy the
    engine, and all).
    """
    replaced = vars(module).pop("forward", None)
    try:
        return copy.deepcopy(module)
    finally:
        if replaced is not None:
            module.forward = replaced
