"""The workers of a slot, as the engine sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of a slot: rows of a step are split over them, gradients and losses summed."""

    rank: int = 0
    size: int = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add `tensors` over all workers, in place, in one message."""
        if self.size == 1 or not tensors:
            return
        if len(tensors) == 1:
            torch.distributed.all_reduce(tensors[0])
            return
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(joined)
        for tensor, part in zip(
            tensors, joined.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first worker's values, on every worker."""
        kept = tensor if self.rank == 0 else torch.zeros_like(tensor)
        self.sum([kept])
        return kept
