"""8-bit layers whose rows are computed each by itself."""

from typing import Protocol

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor


class _Context(Protocol):
    """What autograd hands from the forward to the backward."""

    codes: Tensor
    scales: Tensor


class _Product(torch.autograd.Function):
    """x W^T + b. The weights are dequantised again for the gradient: kept, they would be the whole
    base.
    """

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.codes, ctx.scales = codes, scales
        return torch.nn.functional.linear(x, _weights(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        return dy @ _weights(ctx.codes, ctx.scales, dy.dtype), None, None, None


def _weights(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes * (scales / 127)[:, None]).to(dtype)


class Linear8bitWeights(Linear8bitLt):
    """Weights are dequantised and activations left as they are. LLM.int8 looks for outliers over
    all rows of a micro-batch and rounds activations: a row's result would depend on the others.
    """

    def dequantised(self) -> Tensor:
        """The weight [O, I], in float32."""
        self._take_state()
        assert self.state.CB is not None and self.state.SCB is not None
        return _weights(self.state.CB, self.state.SCB, torch.float32)

    def _take_state(self) -> None:
        if getattr(self.weight, "CB", None) is not None:
            self.init_8bit_state()

    def forward(self, x: Tensor) -> Tensor:
        self._take_state()
        device = x.device.type
        under_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if under_autocast else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(x.to(dtype), self.state.CB, self.state.SCB, bias)
