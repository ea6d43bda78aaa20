"""One class for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.evaluation.class_metrics import class_metrics, count_classes
from trainables.tasks.causal_lm.task import pad, smoothed
from trainables.tasks.classification.format import Labelled

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear


class Classification:
    name = "classification"
    format = Labelled()
    auto_class = "AutoModelForSequenceClassification"
    has_classes = True
    is_conversation = False
    targets_are_answers = True
    baselines = (
        "embeddings_logistic",
        "embeddings_neighbours",
        "zero_shot",
        "few_shot",
        "retrieved",
    )

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        import torch

        labels = torch.tensor([row["labels"] for row in rows])
        return pad(rows, pad_token_id) | {"labels": labels}

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """logits: [B, C]; labels: [B]."""
        import torch

        return smoothed(logits, labels, smoothing), torch.ones_like(labels)

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def target_count(self, rows: list[dict[str, Any]]) -> int:
        return len(rows)

    def metrics(
        self,
        nll: np.ndarray,
        targets: np.ndarray,
        predictions: np.ndarray | None,
        labels: np.ndarray | None,
    ) -> dict[str, float]:
        """Those of `trainables.evaluation.class_metrics`."""
        assert predictions is not None and labels is not None
        return class_metrics(
            count_classes(predictions, labels, 1 + int(max(predictions.max(), labels.max())))
        )
