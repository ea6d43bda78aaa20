"""Dropout whose mask is a pure function of (seed, step, row, layer, position).

A mask from a global generator depends on how a step is cut into micro-batches, on padding and on
the other rows. Here the mask of an element is a hash of where it stands: how a step is cut, the
other trials, resuming and recomputation leave it unchanged.

Shapes: B rows, T tokens, D channels; `keys_B` is int64, one key for each row of the batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FUNCTIONS = 1 << 20  # layers from here on are calls of functions, not modules
WIDEST = 1 << 20  # of a dimension of attention weights
GOLDEN = -0x61C8864680B583EB  # of 64 bits: 2^64 over the golden ratio
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
        # counters of the tokens of this micro-batch, by tokens and channels of a row
        self._tokens: dict[tuple[int, int], Tensor] = {}

    def __deepcopy__(self, memo: dict) -> "RowKeys":
        return self  # a copy of a trained head sees the rows of the micro-batch too

    def set(
        self,
        seed: int | Tensor,
        step: int | Tensor,
        rows_B: Tensor,
        positions_B: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Name the rows of the next micro-batch: dataset indices `rows_B` at optimiser step `step`
        under `seed` (each one number, or one for each row). `positions_B`: the micro-batch lays
        tokens one after another, and these are their positions in their rows; every token is then
        named. device: where the micro-batch is; None: where `rows_B` are.
        """
        # of no row [1], and of the rows: by the host, where so few numbers take no kernels
        numbers = torch.cat([rows_B.new_zeros(1), rows_B + 1]).long()
        seeds, steps = (
            torch.cat([each[:1], each]) if isinstance(each, Tensor) else each
            for each in (seed, step)
        )
        keys = _mix(_mix(_mix(numbers) + seeds) + steps)
        if device is not None:
            keys = keys.to(device, non_blocking=True)
        self.of_the_step, self.keys_B = keys[:1], keys[1:]
        self.positions_B, self._calls, self._tokens = positions_B, {}, {}

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
        whole, tokens = self.keys_B, self._tokens
        self.keys_B, self._tokens = None if whole is None else whole[start:stop], {}
        try:
            yield
        finally:
            self.keys_B, self._tokens = whole, tokens

    def counters(self, tokens: int, channels: int) -> Tensor:
        """Of the first channel of each of so many tokens of each row [B, tokens]: the same for all
        layers of such a shape.
        """
        assert self.keys_B is not None
        if (tokens, channels) not in self._tokens:
            at = self.positions_B
            at_BT = torch.arange(tokens, device=self.keys_B.device) if at is None else at[:, None]
            first_BT = at_BT * channels * GOLDEN
            self._tokens[tokens, channels] = self.keys_B[:, None] + first_BT
        return self._tokens[tokens, channels]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of dropout, for each row [B, 1]."""

    thresholds: Tensor  # int64: what is drawn below it is dropped out
    scales: Tensor  # of what is kept: 1 / (1 - p)

    @classmethod
    def of(cls, p_B: Tensor, dtype: torch.dtype) -> "Rates":
        """`p_B`: probabilities; dtype: of what is dropped out."""
        p_B1 = p_B.double()[:, None]
        thresholds = ((p_B1 - 0.5) * 2.0**64).long()
        return cls(thresholds=thresholds, scales=(1.0 / (1.0 - p_B1)).to(dtype))

    def to(self, device: torch.device) -> "Rates":
        thresholds, scales = (
            each.to(device, non_blocking=True) for each in (self.thresholds, self.scales)
        )
        return Rates(thresholds=thresholds, scales=scales)


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


def row_dropout(x: Tensor, keys: RowKeys, layer: int, p: float | Tensor | Rates) -> Tensor:
    """Dropout of `x` at `layer` for the rows that `keys` names; `p` is one probability, or those of
    each row [B].
    """
    # some models flatten rows, [B, T, D] to [B * T, D]: in memory, and so in the mask, it is the
    # same
    if not isinstance(p, Tensor | Rates):
        threshold = min(int((p - 0.5) * 2.0**64), (1 << 63) - 1)
        keep = _joined([bits >= threshold for bits in _drawn(x, keys, layer)])
        return x * keep.view(x.shape) / (1.0 - p)
    rates = p if isinstance(p, Rates) else Rates.of(p, x.dtype)
    rows = keys.of(layer, x)
    size = _at_once(x, rows[0])
    drawn = _drawn(x, keys, layer, rows)
    below = rates.thresholds[: len(rows[0])].split(size)
    keep = _joined([bits >= each for bits, each in zip(drawn, below, strict=True)])
    kept = x.reshape(keep.shape) * keep
    return (kept * rates.scales[: len(keep)].to(x.dtype)).view(x.shape)


def row_noise(x: Tensor, keys: RowKeys, layer: int) -> Tensor:
    """Uniform in [-1, 1), shaped as `x`, drawn for the rows that `keys` names."""
    parts = [(bits >> 40).to(torch.float32) * 2.0**-23 for bits in _drawn(x, keys, layer)]
    return _joined(parts).view(x.shape)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _drawn(
    x: Tensor, keys: RowKeys, layer: int, rows: tuple[Tensor, Tensor | None] | None = None
) -> Iterator[Tensor]:
    """64 bits for each element of `x`, of which the highest are the best: rows of it at a time
    [n, elements], since the hash needs some 64-bit numbers for each. rows: as `keys.of` gave them,
    which counts its calls.

    The bits are a hash of a counter, as in SplitMix64 (Steele et al. 2014): the row's key, and so
    many times `GOLDEN` as the element's number in its row, from another start at each layer.
    """
    keys_B, positions_B = rows or keys.of(layer, x)
    inner, inside = x.numel() // len(keys_B), _inside(x, keys_B)
    if keys_B is keys.of_the_step:
        # most often a table of relative positions, of which long rows use more to either side:
        # counted from its middle
        numbers = torch.arange(inner, device=x.device) - inner // x.shape[-1] // 2 * x.shape[-1]
        first_BT, columns = keys_B[:, None], numbers * GOLDEN + _start(layer)
    elif positions_B is None and len(inside) > 2:
        first_BT, columns = keys_B[:, None], _digits(inside, x.device) * GOLDEN + _start(layer)
    else:
        channels = x.shape[-1] if positions_B is None else inner
        first_BT = keys.counters(inner // channels, channels)
        columns = _columns(layer, channels, x.device)
    for each in first_BT.split(_at_once(x, keys_B)):
        z = each[:, :, None] + columns
        # shifts keep the sign, and are one to one all the same
        z.bitwise_xor_(z >> 32).mul_(-0x2917014799A6026D)
        z.bitwise_xor_(z >> 29).mul_(-0x4B47D1C9F0F7B1E3)
        yield z.flatten(1)


def _at_once(x: Tensor, keys_B: Tensor) -> int:
    """Rows of `x` that are drawn together."""
    return max(1, DRAWN_TOGETHER * len(keys_B) // x.numel())


def _inside(x: Tensor, keys_B: Tensor) -> tuple[int, ...]:
    """Shape of a row of `x`, which may be flattened into tokens."""
    shape = (x.shape[0] // len(keys_B), *x.shape[1:])
    return shape[1:] if shape[0] == 1 else shape


def _digits(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A number for each element of a row of `shape`, such as attention weights [H, T, T]: they are
    padded within, so each dimension has digits of its own.
    """
    numbers = torch.zeros(1, dtype=torch.int64, device=device)
    for size in shape:
        numbers = (numbers[:, None] * WIDEST + torch.arange(size, device=device)).flatten()
    return numbers


@cache
def _start(layer: int) -> int:
    """Where the counters of `layer` begin."""
    return int(_mix(torch.tensor([layer + 1])))


@lru_cache(maxsize=4096)
def _columns(layer: int, channels: int, device: torch.device) -> Tensor:
    """What is added to a token's counter for each of its channels at `layer` [channels]."""
    return (torch.arange(channels) * GOLDEN + _start(layer)).to(device, non_blocking=True)


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
