"""Dropout whose mask is a pure function of (seed, step, row, layer, position).

A mask from a global generator depends on how a step is cut into micro-batches, on padding and on
the other rows. Here the mask of an element is a hash of where it stands: how a step is cut, the
other trials, resuming and recomputation leave it unchanged.

Shapes: B rows, T tokens, D channels; `keys_B` is int64, one key for each row of the batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FUNCTIONS = 1 << 20  # layers from here on are calls of functions, not modules
WIDEST = 1 << 20  # of a dimension of attention weights
DRAWN = 1 << 24  # numbers that a hash gives
DRAWN_TOGETHER = 1 << 24  # elements of a mask that are drawn at once


class RowKeys:
    """The keys of the rows of the micro-batch that now runs; shared by all dropout of a model."""

    def __init__(self) -> None:
        self.keys_B: Tensor | None = None
        self.positions_B: Tensor | None = None
        # layers that see no rows, or not one after another: of each of their calls in a forward,
        # whether they do
        self.mixing_rows: Mapping[int, tuple[bool, ...]] = {}
        self._calls: dict[int, int] = {}
        self.of_the_step: Tensor | None = None  # [1], where all rows are one trial's

    def __deepcopy__(self, memo: dict) -> "RowKeys":
        return self  # a copy of a trained head sees the rows of the micro-batch too

    def set(
        self,
        seed: int | Tensor,
        step: int | Tensor,
        rows_B: Tensor,
        positions_B: Tensor | None = None,
    ) -> None:
        """Name the rows of the next micro-batch: dataset indices `rows_B` at optimiser step `step`
        under `seed` (each one number, or one for each row). `positions_B`: the micro-batch lays
        tokens one after another, and these are their positions in their rows; every token is then
        named.
        """
        self.keys_B = _mix(_mix(_mix(rows_B.long() + 1) + seed) + step)
        self.positions_B, self._calls = positions_B, {}
        self.of_the_step = _mix(_mix(_mix(torch.zeros_like(rows_B.long())) + seed) + step)[
            :1
        ]  # no row is named so

    def of(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys and positions of `x` at `layer`: of its rows; where it has none, one for the trial's
        step, so that its mask does not depend on how the step is cut into micro-batches.
        """
        assert self.keys_B is not None, "RowKeys.set must name the rows of this micro-batch"
        if told := self.mixing_rows.get(layer):
            call = self._calls[layer] = (
                self._calls.get(layer, -1) + 1
            )  # recomputation calls again, in the same order
            if not told[call % len(told)]:
                assert self.of_the_step is not None
                return self.of_the_step, None
        rows = x.shape[0] if self.positions_B is None else x.shape[:-1].numel()
        assert rows % len(self.keys_B) == 0, "RowKeys.set must name the rows of this micro-batch"
        return self.keys_B, self.positions_B

    @contextmanager
    def only(self, start: int, stop: int) -> Iterator[None]:
        """Inside, only the rows from `start` to `stop` of the micro-batch are computed."""
        assert self.positions_B is None, "what trains modules whole sees rows, not tokens"
        whole = self.keys_B
        self.keys_B = None if whole is None else whole[start:stop]
        try:
            yield
        finally:
            self.keys_B = whole


class RowDropout(nn.Module):
    """Drop-in for `nn.Dropout` (Srivastava et al. 2014): zero with probability p, scale the rest by
    1 / (1 - p).
    """

    def __init__(self, p: float, layer: int, keys: RowKeys) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return row_dropout(x, self.keys, self.layer, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def row_dropout(x: Tensor, keys: RowKeys, layer: int, p: float | Tensor) -> Tensor:
    """Dropout of `x` at `layer` for the rows that `keys` names; `p` is one probability, or one for
    each row [B].
    """
    # some models flatten rows, [B, T, D] to [B * T, D]: in memory, and so in the mask, it is the
    # same
    keys_B, positions_B = keys.of(layer, x)
    if isinstance(p, Tensor):
        p = p[: len(keys_B)]
    inner = x.numel() // len(keys_B)
    threshold_B = (
        (torch.as_tensor(p, dtype=torch.float64, device=x.device) * DRAWN)
        .long()
        .expand(len(keys_B))
    )
    drawn = _drawn(x, keys, layer, keys_B, positions_B)
    size = max(1, DRAWN_TOGETHER // inner)
    keep = torch.cat(
        [bits >= each[:, None] for bits, each in zip(drawn, threshold_B.split(size), strict=True)]
    )
    if isinstance(p, Tensor):
        scale_B = (1.0 / (1.0 - p.double())).to(x.dtype)
        return ((x.reshape(len(keys_B), inner) * keep) * scale_B[:, None]).view(x.shape)
    return x * keep.view(x.shape) / (1.0 - p)


def row_noise(x: Tensor, keys: RowKeys, layer: int) -> Tensor:
    """Uniform in [-1, 1), shaped as `x`, drawn for the rows that `keys` names."""
    drawn = _drawn(x, keys, layer, *keys.of(layer, x))
    parts = [bits.to(torch.float32) * (2 / DRAWN) - 1 for bits in drawn]
    return torch.cat(parts).view(x.shape)


def _drawn(
    x: Tensor, keys: RowKeys, layer: int, keys_B: Tensor, positions_B: Tensor | None
) -> Iterator[Tensor]:
    """A number from 0 to DRAWN - 1 for each element of `x`: rows of it at a time [n, elements],
    since the hash needs some 64-bit numbers for each.
    """
    inner = x.numel() // len(keys_B)
    size = max(1, DRAWN_TOGETHER // inner)
    if keys_B is keys.of_the_step:
        # most often a table of relative positions, of which long rows use more to either side:
        # counted from its middle
        offsets = torch.arange(inner, device=x.device) - inner // x.shape[-1] // 2 * x.shape[-1]
    else:
        offsets = _offsets(
            (x.shape[0] // len(keys_B), *x.shape[1:]) if positions_B is None else (inner,), x.device
        )
    first_B = torch.zeros_like(keys_B) if positions_B is None else positions_B * inner
    row = _mix(keys_B + layer * 0x9E3779B9) + first_B  # hashed again below, with the offset
    for rows in row.split(size):
        yield (_mix(rows[:, None] + offsets[None, :]) >> 8) & (DRAWN - 1)


def _offsets(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A number for each element of a row of `shape`, which padding does not change.

    Of [T, D] later positions come after earlier ones, so that numbers may be without gaps, as in a
    micro-batch without padding. Attention weights [H, T, T] are padded within: there each dimension
    has digits of its own.
    """
    shape = shape[1:] if shape[0] == 1 else shape
    if len(shape) <= 2:
        return torch.arange(math.prod(shape), device=device)
    offsets = torch.zeros(1, dtype=torch.int64, device=device)
    for size in shape:
        offsets = (offsets[:, None] * WIDEST + torch.arange(size, device=device)).flatten()
    return offsets


def replace_dropout(model: nn.Module, keys: RowKeys) -> None:
    """Replace every `nn.Dropout` by a `RowDropout` below `model`; layers are numbered in
    the order of their names.
    """
    layer = sum(isinstance(module, RowDropout) for module in model.modules())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, RowDropout(child.p, layer, keys).train(child.training))
                layer += 1


class FunctionDropout(TorchFunctionMode):
    """Inside, `torch.nn.functional.dropout` is `row_dropout` too, for models that drop out in
    functions, not modules; and fused attention, whose masks nobody could draw by row, drops nothing
    out.

    A call's layer is its number among the calls of a forward.
    """

    def __init__(self, keys: RowKeys) -> None:
        super().__init__()
        self._keys = keys
        self._calls = 0
        self.used = False  # whether a model has called it at all

    def follow(self, model: nn.Module) -> None:
        """Count the calls of `model` anew in each of its forwards."""
        model.register_forward_pre_hook(lambda *_: self._count_from(0))

    def _count_from(self, calls: int) -> None:
        self._calls = calls

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """What gradient checkpointing runs a block under, and what it runs it under again: the
        backward pass takes this mode off, and the block must count from where it did.
        """
        return nullcontext(), self._again(self._calls)

    @contextmanager
    def _again(self, calls: int) -> Iterator[None]:
        self._calls = calls
        with self:
            yield

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        named = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and named.get("dropout_p"):
            self.used = True
            return func(*args, **{**named, "dropout_p": 0.0})
        if func is not nn.functional.dropout:
            return func(*args, **named)
        x, p, training = _dropout_arguments(*args, **named)
        if not training or p == 0.0:
            return x
        self.used = True
        self._calls += 1
        return row_dropout(x, self._keys, FUNCTIONS + self._calls, p)


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple:
    return input, p, training


def _mix(x: Tensor) -> Tensor:
    """A 64-bit integer finaliser with the wrap-around arithmetic of int64 (shifts made logical by a
    mask).
    """
    x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * -0x2917014799A6026D
    x = (x ^ ((x >> 29) & 0x7FFFFFFFF)) * -0x4B47D1C9F0F7B1E3
    return x ^ ((x >> 32) & 0xFFFFFFFF)
