"""DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353) of trials that share a base: W + s B A
with its rows scaled to learned magnitudes m.

The norm by which a row is divided counts as a constant in the gradient (section 4.3), as in PEFT.

Letters of shapes: K trials, N vectors, I and O channels in and out, R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.engine.kernels import Context, Segments
from trainables.engine.sites import Stacked
from trainables.models.structure import weight_of


def weight_norms(
    module: nn.Module, a_KRI: Tensor, b_KOR: Tensor, scales: Sequence[float]
) -> Tensor:
    """||W + s B A|| of each row of the weight of `module` for each trial [K, O], with no matrix
    of a trial's as large as W: ||W||^2 + 2 s B . (W A^T) + s^2 B . (B A A^T), summed over ranks.
    """
    weight_OI, ranks = weight_of(module), a_KRI.shape[1]
    scale_K1 = torch.tensor(scales, dtype=a_KRI.dtype)[:, None]
    scale_K1 = scale_K1.to(a_KRI.device, non_blocking=True)
    square_O = torch.linalg.vector_norm(weight_OI, dim=1, dtype=a_KRI.dtype).square()
    seen_OKR = (weight_OI.to(a_KRI.dtype) @ a_KRI.flatten(0, 1).T).unflatten(1, (-1, ranks))
    mixed_KO = (b_KOR * seen_OKR.transpose(0, 1)).sum(-1)
    added_KO = (b_KOR * (b_KOR @ (a_KRI @ a_KRI.mT))).sum(-1)
    square_KO = square_O + 2 * scale_K1 * mixed_KO + scale_K1.square() * added_KO
    return square_KO.clamp(min=0).sqrt()


class Magnitudes:
    """Those of the trials at one linear layer that have any."""

    def __init__(
        self,
        module: nn.Module,
        vector: Stacked,
        a: Stacked,
        b: Stacked,
        scales: dict[int, float],
    ) -> None:
        """`vector`: m [K, O]; `scales`: s by the trial's row of the matrix."""
        self.lanes = list(scales)
        self.grad_KO = vector.grad
        self._module, self._vector, self._a, self._b = module, vector, a, b
        self._index = torch.tensor(self.lanes).to(vector.weight.device, non_blocking=True)
        self._scales = list(scales.values())
        self._norms, self._of_version = vector.weight, -1

    @torch.no_grad()
    def norms(self) -> Tensor:
        """[K, O], of the weights as they are now; 1 for trials that have no magnitudes."""
        if self._of_version != (version := self._a.weight._version):  # that of the whole matrix
            a, b = self._a.weight[self._index], self._b.weight[self._index]
            found = weight_norms(self._module, a, b, self._scales)
            self._norms = torch.ones_like(self._vector.weight)
            # a row of zeros has no direction, and adds nothing whatever its magnitude
            self._norms[self._index] = torch.where(found > 0, found, 1)
            self._of_version = version
        return self._norms

    def gains(self) -> Tensor:
        """m / ||W + s B A|| [K, O]."""
        return self._vector.weight / self.norms()


class Decomposed(torch.autograd.Function):
    """(g - 1) y + g d with g = m / ||W + s B A||, for the trials that have magnitudes m; d for the
    others. y = W x, d = s B A x. The gradient of m is added to the matrix in place.
    """

    @staticmethod
    def forward(
        ctx: Context, y_NO: Tensor, d_NO: Tensor, anchor: Tensor, of: Magnitudes, segments: Segments
    ) -> Tensor:
        here = [segment for segment in segments if segment[0] in of.lanes]
        norms_KO, gains_KO = of.norms(), of.gains()
        ctx.save_for_backward(y_NO, d_NO)
        ctx.rest = (of.grad_KO, norms_KO, gains_KO, here)
        out_NO = d_NO.to(torch.promote_types(y_NO.dtype, d_NO.dtype), copy=True)
        for lane, start, stop in here:
            gain_O, rows = gains_KO[lane], slice(start, stop)
            out_NO[rows] = (gain_O - 1) * y_NO[rows] + gain_O * d_NO[rows]
        return out_NO

    @staticmethod
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dout_NO,) = grad_outputs
        (y_NO, d_NO), (grad_KO, norms_KO, gains_KO, here) = ctx.saved_tensors, ctx.rest
        dy_NO, dd_NO = torch.zeros_like(y_NO), dout_NO.to(d_NO.dtype, copy=True)
        for lane, start, stop in here:
            gain_O, rows = gains_KO[lane], slice(start, stop)
            scaled_NO = dout_NO[rows].to(grad_KO.dtype)
            grad_KO[lane].add_((scaled_NO * (y_NO[rows] + d_NO[rows])).sum(0) / norms_KO[lane])
            dy_NO[rows] = (gain_O - 1) * scaled_NO
            dd_NO[rows] = gain_O * scaled_NO
        return dy_NO, dd_NO, None, None, None
