"""Which of two answers is preferred, told by how much more likely than to the untuned model each
has become (direct preference optimisation, Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.arrow import sequences_of
from trainables.tasks.causal_lm.task import collate_tokens, token_losses
from trainables.tasks.declared import Loss, Words
from trainables.tasks.instruction.notices import WEIGHTLESS
from trainables.tasks.instruction.task import Instruction
from trainables.tasks.preference.format import SAME, Pairs
from trainables.tasks.preference.losses import BETA

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

SAME_ANSWERS = Words(
    "warning",
    "{rows} pair(s) have two answers that are the same tokens within data.max_length: nothing can"
    " be learnt of them",
    "raise data.max_length",
)
TIED = 1e-3  # nats; rounding of log-probabilities in float32


class Preference(Instruction):
    """Outcomes of a pair are how much more likely its two answers have become: log pi - log
    pi_reference of the chosen and of the rejected one, in nats [2].
    """

    name = "preference"
    what = "which of two answers is better"
    format = Pairs()
    loss = Loss(
        words=f"means in nats per pair, of the preference (DPO at beta {BETA})", is_likelihood=True
    )
    has_pairs = True
    baselines = ()  # examples in a prompt say nothing of two answers
    metric_names = ("reward_accuracy", "reward_margin", "chosen_change")
    lower_is_better = frozenset()

    def notices(self) -> Mapping[str, Words]:
        # earlier answers of the prompt have weight 0 by our own doing
        own = {kind: words for kind, words in super().notices().items() if kind != WEIGHTLESS}
        return {**own, SAME: SAME_ANSWERS}

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        """Of B pairs 2B sequences; of other rows, as general text, one each."""
        import torch

        batch = collate_tokens([each for row in rows for each in sequences_of(row)], pad_token_id)
        if "second" in rows[0]:
            reference = np.array([row["reference"] for row in rows])
            batch |= {"reference": torch.from_numpy(reference)}
        return batch

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of each sequence, in float64: what counts is the small difference of two large sums."""
        import torch

        return token_losses(logits, labels, output, weights, smoothing, torch.float64)

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        return len(labels)

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        return len(rows)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {}

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """reward_accuracy: share of pairs whose margin is above 0, and half of those where it is 0
        but for rounding; reward_margin: 0.1 times the mean margin; chosen_change: how much more
        likely the chosen answers have become, on average. In nats.
        """
        margins = outcomes[:, 0] - outcomes[:, 1]
        right = np.where(np.abs(margins) < TIED, 0.5, margins > 0)
        return {
            "reward_accuracy": float(right.mean()),
            "reward_margin": BETA * float(margins.mean()),
            "chosen_change": float(outcomes[:, 0].mean()),
        }
