"""The assistant's tokens of a conversation; which they are is in the rows' labels (see
trainables.tasks.instruction.format).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.tasks.causal_lm.task import (
    collate_tokens,
    count_target_tokens,
    token_losses,
    token_metrics,
)

if TYPE_CHECKING:
    from torch import Tensor


class Instruction:
    name = "instruction"
    auto_class = "AutoModelForCausalLM"

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        return collate_tokens(rows, pad_token_id)

    def row_losses(
        self, logits: Tensor, labels: Tensor, output: Any = None
    ) -> tuple[Tensor, Tensor]:
        return token_losses(logits, labels, output)

    def predictions(self, logits: Tensor, labels: Tensor) -> None:
        return None

    def target_count(self, rows: list[dict[str, Any]]) -> int:
        return count_target_tokens(rows)

    def metrics(
        self,
        nll: np.ndarray,
        targets: np.ndarray,
        predictions: np.ndarray | None,
        labels: np.ndarray | None,
    ) -> dict[str, float]:
        return token_metrics(nll, targets)
