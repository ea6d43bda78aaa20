"""Dropout whose mask is a pure function of (seed, step, row, layer, position).

A mask from a global generator depends on how a step is cut into passes, on padding and on the other rows. Here the
mask of an element is a hash of where it stands, so cutting, company, resuming and recomputation leave it unchanged.

Shapes: B rows, T tokens, D channels; `keys_B` is int64, one key for each row of the batch.
"""

import torch
from torch import Tensor, nn


class RowKeys:
    """The keys of the rows now passing; shared by all `RowDropout` modules of a model."""

    def __init__(self) -> None:
        self.keys_B: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> "RowKeys":
        return self  # PEFT copies a trained head; its copy sees the rows of the pass too

    def set(self, seed: int, step: int, rows_B: Tensor) -> None:
        """Name the rows of the next pass: dataset indices `rows_B` at optimiser step `step` under `seed`."""
        self.keys_B = _mix(_mix(_mix(rows_B.long() + 1) + seed) + step)


class RowDropout(nn.Module):
    """Drop-in for `nn.Dropout` (Srivastava et al. 2014): zero with probability p, scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float, layer: int, keys: RowKeys) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keys_B = self.keys.keys_B
        # some models flatten rows, [B, T, D] to [B * T, D]: in memory, and so in the mask, it is the same
        assert keys_B is not None and x.shape[0] % len(keys_B) == 0, "RowKeys.set must name the rows of this pass"
        inner = x.numel() // len(keys_B)
        # the offset of an element inside its row does not depend on padding: later positions come after earlier ones
        offsets = torch.arange(inner, device=x.device, dtype=torch.int64)
        row = _mix(keys_B + self.layer * 0x9E3779B9)
        uniform = ((_mix(row[:, None] + offsets[None, :]) >> 8) & 0xFFFFFF).view(x.shape)
        keep = uniform >= int(self.p * (1 << 24))
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def replace_dropout(model: nn.Module, keys: RowKeys) -> None:
    """Put a `RowDropout` in the place of every `nn.Dropout` below `model`; layers are numbered in the order of their names."""
    layer = sum(isinstance(module, RowDropout) for module in model.modules())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, RowDropout(child.p, layer, keys).train(child.training))
                layer += 1


def _mix(x: Tensor) -> Tensor:
    """A 64-bit integer finaliser with the wrap-around arithmetic of int64 (shifts made logical by a mask)."""
    x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * -0x2917014799A6026D
    x = (x ^ ((x >> 29) & 0x7FFFFFFFF)) * -0x4B47D1C9F0F7B1E3
    return x ^ ((x >> 32) & 0xFFFFFFFF)
