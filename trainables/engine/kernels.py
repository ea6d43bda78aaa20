"""Products and sums over a micro-batch in which each trial's rows meet that trial's own weights.

Letters of shapes: K trials, B rows of a micro-batch, N = B * T tokens, I and O channels in and out.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

Segments = tuple[tuple[int, int, int], ...]


class Context(Protocol):
    """What autograd hands from a function's forward to its backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    rest: tuple

    def save_for_backward(self, *tensors: Tensor) -> None: ...


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Whose the rows of a forward pass are. Rows of one trial lie side by side, in the order of the
    matrix; a trial's row in the matrix is its lane.
    """

    segments: Segments  # (lane, first row of the micro-batch, row after the last)
    lanes_B: Tensor  # of each row of the micro-batch

    @classmethod
    def of(cls, lanes_B: Sequence[int] | np.ndarray, device: torch.device) -> "MicroBatch":
        """`lanes_B`: whose each row is, ascending."""
        segments, start = [], 0
        for lane, group in itertools.groupby(lanes_B):
            stop = start + len(list(group))
            segments.append((int(lane), start, stop))
            start = stop
        lanes = torch.as_tensor(lanes_B).to(device, non_blocking=True)
        return cls(segments=tuple(segments), lanes_B=lanes)

    def scaled(self, length: int) -> Segments:
        """The segments of a tensor of `length` vectors: rows flattened into tokens. Where all
        rows are one trial's, every vector is too, also of a tensor that has no rows.
        """
        if len(self.segments) == 1:
            return ((self.segments[0][0], 0, length),)
        factor, rest = divmod(length, len(self.lanes_B))
        assert rest == 0, "a tensor's first dimension must be rows, or rows times tokens"
        return tuple((lane, start * factor, stop * factor) for lane, start, stop in self.segments)


def _even(segments: Segments) -> int | None:
    """Rows of each trial, if all have as many."""
    counts = {stop - start for _, start, stop in segments}
    return counts.pop() if len(counts) == 1 else None


def grouped_matmul(x_NI: Tensor, weight_KIO: Tensor, segments: Segments) -> Tensor:
    """[N, O]: the rows of every trial times that trial's matrix."""
    even = _even(segments)
    if even is not None and len(segments) > 1:
        chosen = _chosen(weight_KIO, segments)
        return torch.bmm(x_NI.view(-1, even, x_NI.shape[1]), chosen).view(len(x_NI), -1)
    if len(segments) > 1 and _groups(x_NI, weight_KIO.shape[2]):
        stops = _on_device(_stops(segments), x_NI.device)
        return nn.functional.grouped_mm(x_NI, _chosen(weight_KIO, segments), offs=stops)
    out = x_NI.new_empty(len(x_NI), weight_KIO.shape[2])
    for lane, start, stop in segments:
        torch.mm(x_NI[start:stop], weight_KIO[lane], out=out[start:stop])
    return out


def accumulate(grad_KOI: Tensor, dy_NO: Tensor, x_NI: Tensor, segments: Segments) -> None:
    """Add to every trial's gradient what its rows give: dy^T x."""
    even = _even(segments)
    if even is not None and len(segments) > 1:
        dy_KON = dy_NO.view(-1, even, dy_NO.shape[1]).transpose(1, 2)
        product = torch.bmm(dy_KON, x_NI.view(-1, even, x_NI.shape[1]))
    elif len(segments) > 1 and _groups(x_NI, dy_NO.shape[1]):
        stops = _on_device(_stops(segments), x_NI.device)
        product = nn.functional.grouped_mm(dy_NO.t(), x_NI, offs=stops)
    else:
        for lane, start, stop in segments:
            if dy_NO.dtype == grad_KOI.dtype:
                grad_KOI[lane].addmm_(dy_NO[start:stop].t(), x_NI[start:stop])
            else:
                grad_KOI[lane].add_(dy_NO[start:stop].t() @ x_NI[start:stop])
        return
    if len(segments) == len(grad_KOI):
        grad_KOI.add_(product)
    else:
        lanes = _on_device(tuple(lane for lane, _, _ in segments), grad_KOI.device)
        grad_KOI.index_add_(0, lanes, product.to(grad_KOI.dtype))


def _chosen(stacked: Tensor, segments: Segments) -> Tensor:
    if len(segments) == len(stacked):
        return stacked
    return torch.stack([stacked[lane] for lane, _, _ in segments])


def _groups(x_NI: Tensor, outputs: int) -> bool:
    """Whether torch's grouped matrix product takes these: its kernel reads 16 bytes at a time."""
    return (
        x_NI.device.type != "cpu"  # where products one after another are as fast
        and x_NI.shape[1] % 8 == 0
        and outputs % 8 == 0
        and _grouped_works(x_NI.device, x_NI.dtype)
    )


def _stops(segments: Segments) -> tuple[int, ...]:
    """Where each trial's rows end."""
    return tuple(stop for _, _, stop in segments)


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """int32: copied to the device once, not for every layer."""
    return torch.tensor(numbers, dtype=torch.int32).to(device, non_blocking=True)


@cache
def _grouped_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's grouped matrix product runs on `device` as one kernel, and gives what single
    products give: of the layouts that it gets here, and of trials with any number of rows.
    """
    if device.type == "cuda" and (
        # elsewhere torch makes single products, for which the host waits
        dtype is not torch.bfloat16 or torch.cuda.get_device_capability(device) < (9, 0)
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    x_NI, dy_NO = (torch.randn(96, n, generator=generator).to(device, dtype) for n in (64, 16))
    # views of a matrix whose rows have more than them, as those of trials are
    weight_KOI = torch.randn(3, 2048, generator=generator).to(device, dtype)[:, 512:1536]
    weight_KOI = weight_KOI.view(3, 16, 64)
    stops = torch.tensor([13, 40, 96], dtype=torch.int32).to(device)
    parts = [slice(0, 13), slice(13, 40), slice(40, 96)]
    expected = [
        torch.cat([x_NI[rows] @ weight_KOI[k].t() for k, rows in enumerate(parts)]),
        torch.cat([dy_NO[rows] @ weight_KOI[k] for k, rows in enumerate(parts)]),
        torch.stack([dy_NO[rows].t() @ x_NI[rows] for rows in parts]),
    ]
    grouped_mm = nn.functional.grouped_mm
    try:
        found = [
            grouped_mm(x_NI, weight_KOI.transpose(1, 2), offs=stops),
            grouped_mm(dy_NO, weight_KOI, offs=stops),
            grouped_mm(dy_NO.t(), x_NI, offs=stops),
        ]
    except RuntimeError:  # not built for this device
        return False
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=3e-1) for a, b in pairs)


class GroupedLinear(torch.autograd.Function):
    """y = x W_k^T for the rows of trial k. The gradient of W is added to `grad` in place,
    where there is one; autograd sees only x.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x_NI: Tensor,
        anchor: Tensor,
        weight_KOI: Tensor,
        grad_KOI: Tensor | None,
        segments: Segments,
    ) -> Tensor:
        if grad_KOI is not None:
            ctx.save_for_backward(x_NI)
        ctx.rest = (weight_KOI, grad_KOI, segments)
        return grouped_matmul(x_NI, weight_KOI.transpose(1, 2), segments)

    @staticmethod
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weight_KOI, grad_KOI, segments = ctx.rest
        dy_NO = grad_outputs[0].contiguous()
        if grad_KOI is not None:
            accumulate(grad_KOI, dy_NO, ctx.saved_tensors[0], segments)
        dx_NI = grouped_matmul(dy_NO, weight_KOI, segments) if ctx.needs_input_grad[0] else None
        return dx_NI, None, None, None, None


class GroupedScale(torch.autograd.Function):
    """x * s_k for the vectors of trial k, and x where a trial has nothing at this site. The
    gradient of s is added to `grad` in place. Scales are not kept for each vector: in a
    micro-batch without padding each token is one.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x_NC: Tensor,
        anchor: Tensor,
        scale_KC: Tensor,
        grad_KC: Tensor,
        segments: Segments,
        here: Sequence[bool],
    ) -> Tensor:
        ctx.save_for_backward(x_NC)
        ctx.rest = (scale_KC, grad_KC, [segment for segment in segments if here[segment[0]]])
        return _scale(x_NC, scale_KC, ctx.rest[2])

    @staticmethod
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NC,) = grad_outputs
        (x_NC,), (scale_KC, grad_KC, segments) = ctx.saved_tensors, ctx.rest
        for lane, start, stop in segments:
            grad_KC[lane].add_((dy_NC[start:stop].to(grad_KC.dtype) * x_NC[start:stop]).sum(0))
        dx_NC = _scale(dy_NC, scale_KC, segments) if ctx.needs_input_grad[0] else None
        return dx_NC, None, None, None, None, None


def _scale(x_NC: Tensor, scale_KC: Tensor, segments: Sequence[tuple[int, int, int]]) -> Tensor:
    out_NC = x_NC.clone()
    for lane, start, stop in segments:
        out_NC[start:stop] = x_NC[start:stop] * scale_KC[lane]
    return out_NC


class Gathered(torch.autograd.Function):
    """[B, ...]: of each row of a micro-batch, its trial's vector or matrix; [1, ...] where all rows
    are one trial's. Its gradient is added to `grad` in place, but not for trials that have nothing
    at this site.
    """

    @staticmethod
    def forward(
        ctx: Context,
        anchor: Tensor,
        weight_K: Tensor,
        grad_K: Tensor,
        micro_batch: MicroBatch,
        here: Sequence[bool],
    ) -> Tensor:
        if len(micro_batch.segments) == 1:
            lane = micro_batch.segments[0][0]
            ctx.rest = (grad_K, [(lane, 0, 1)] if here[lane] else [])
            return weight_K[lane : lane + 1].clone()
        ctx.rest = (grad_K, [segment for segment in micro_batch.segments if here[segment[0]]])
        return weight_K[micro_batch.lanes_B]

    @staticmethod
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (d_B,) = grad_outputs
        grad_K, segments = ctx.rest
        for lane, start, stop in segments:
            grad_K[lane].add_(d_B[start:stop].sum(0))
        return None, None, None, None, None
