"""Low-rank factors of a base's own weights, from which LoRA may start.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948) takes the principal singular vectors,
OLoRA (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775) the first columns of a QR decomposition;
both as PEFT computes them, in float32.

Letters of shapes: I and O channels in and out, R rank.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trainables.engine.seeding import seeded
from trainables.errors import InputError
from trainables.models.structure import features, weight_of


class Factors(NamedTuple):
    """left diag(sizes) right."""

    left_OR: Tensor
    sizes_R: Tensor
    right_RI: Tensor


# of the layers of bases that are in memory: one decomposition for all trials of a start and rank
_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[str, int], Factors]] = WeakKeyDictionary()


def initial_factors(
    module: nn.Module, start: str, rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R] with which scale * B A is the part of the layer's weight that `start`
    (olora, pissa, or pissa_niter_N) takes. On the meta device it has shapes alone. Raises
    InputError for a rank above that of the weight.
    """
    if rank > min(features(module)):
        raise InputError(
            f"rank: must be at most {min(features(module))}, the smaller side of the smallest layer"
            f" adapted, with init_lora_weights: {start}, got {rank}"
        )
    found = _FOUND.setdefault(module, {})
    if (start, rank) not in found:
        found[start, rank] = _decomposed(weight_of(module).float(), start, rank)
    left_OR, sizes_R, right_RI = found[start, rank]
    if start == "olora":
        return right_RI, left_OR
    roots_R = (sizes_R / scale).sqrt()
    return roots_R[:, None] * right_RI, left_OR * roots_R


def _decomposed(weight_OI: Tensor, start: str, rank: int) -> Factors:
    if weight_OI.is_meta:
        rows, columns = weight_OI.shape
        return Factors(*(weight_OI.new_empty(s) for s in ((rows, rank), (rank,), (rank, columns))))
    if start == "olora":
        q, r = torch.linalg.qr(weight_OI)
        return Factors(q[:, :rank].clone(), weight_OI.new_ones(rank), r[:rank].clone())
    if start == "pissa":
        u, s, vh = torch.linalg.svd(weight_OI, full_matrices=False)
        return Factors(u[:, :rank].clone(), s[:rank].clone(), vh[:rank].clone())
    with seeded(0, weight_OI.device):  # the same for all trials, whatever their seeds
        u, s, v = torch.svd_lowrank(weight_OI, rank, niter=int(start.rpartition("_")[2]))
    return Factors(u, s, v.T)
