"""Losses of preference pairs.

Letters of shapes: B pairs, whose 2B sequences lie side by side, each chosen one before its rejected
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from torch import Tensor

BETA = 0.1
"""Of the loss that is told of all trials, whatever they train with."""


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """What each of B pairs is trained with: `loss_type`, `beta` and `label_smoothing` of its trial.

    sigmoid: DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); sigmoid_norm: the same of
    mean log-probabilities per token; ipo: Azar et al. 2023, https://arxiv.org/abs/2310.12036, of
    mean ones as TRL has it.
    """

    beta: Tensor
    smoothing: Tensor
    """Probability that the two answers are the wrong way round (conservative DPO, Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf).
    """
    is_mean: Tensor
    is_ipo: Tensor

    @classmethod
    def of(cls, hps: Sequence[Hyperparameters], like: Tensor) -> PairLoss:
        """hps: of each pair [B]; `like` has the type and the device of the arithmetic."""
        import torch

        own = [
            (hp.beta, hp.label_smoothing, hp.loss_type != "sigmoid", hp.loss_type == "ipo")
            for hp in hps
        ]
        columns = torch.tensor(own, dtype=like.dtype).to(like.device, non_blocking=True)
        beta, smoothing, is_mean, is_ipo = columns.unbind(1)
        return cls(beta=beta, smoothing=smoothing, is_mean=is_mean.bool(), is_ipo=is_ipo.bool())

    def losses(self, changes_B2: Tensor, tokens_B2: Tensor) -> Tensor:
        """[B]; arguments as `pair_losses` has them."""
        import torch

        scores_B2 = torch.where(self.is_mean[:, None], changes_B2 / tokens_B2, changes_B2)
        margin_B = scores_B2[:, 0] - scores_B2[:, 1]
        right_B, wrong_B = _surprise(self.beta * margin_B), _surprise(-self.beta * margin_B)
        squared_B = (margin_B - 1 / (2 * self.beta)) ** 2
        smoothed_B = (1 - self.smoothing) * right_B + self.smoothing * wrong_B
        return torch.where(self.is_ipo, squared_B, smoothed_B)


def pair_losses(
    nll_2B: Tensor,
    tokens_2B: Tensor,
    reference_B2: Tensor,
    hps: Sequence[Hyperparameters] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each pair, float64 [B], its targets (one each) int64 [B], and how much more likely
    its two answers have become, log pi - log pi_reference in nats [B, 2].

    nll_2B: -log pi of each answer, summed over its tokens, of which there are so many; reference:
    log pi_reference. hps: of each pair's trial, in training; None: -log sigmoid(BETA * margin), the
    negative log-likelihood of the preference under a Bradley-Terry model with these rewards.
    """
    import torch

    changes_B2 = -nll_2B.double().view(-1, 2) - reference_B2
    if hps is None:
        losses_B = _surprise(BETA * (changes_B2[:, 0] - changes_B2[:, 1]))
    else:
        losses_B = PairLoss.of(hps, changes_B2).losses(changes_B2, tokens_2B.view(-1, 2))
    return losses_B, torch.ones_like(losses_B, dtype=torch.int64), changes_B2.detach()


def _surprise(x: Tensor) -> Tensor:
    """-log sigmoid(x)."""
    import torch

    return -torch.nn.functional.logsigmoid(x)
