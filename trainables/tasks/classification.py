"""One class for each row."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.tasks.causal_lm import pad, widen


class Classification:
    name = "classification"
    auto_class = "AutoModelForSequenceClassification"

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        batch = pad(rows, pad_token_id)
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def row_losses(self, logits: Tensor, labels: Tensor, output: Any = None) -> tuple[Tensor, Tensor]:
        """logits: [B, C]; labels: [B]."""
        nll = torch.nn.functional.cross_entropy(widen(logits), labels, reduction="none")
        return nll, torch.ones_like(labels)

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def target_count(self, rows: list[dict[str, Any]]) -> int:
        return len(rows)

    def metrics(
        self, nll: np.ndarray, targets: np.ndarray, predictions: np.ndarray | None, labels: np.ndarray | None
    ) -> dict[str, float]:
        """Accuracy, and F1 averaged over the classes that occur among labels or predictions."""
        assert predictions is not None and labels is not None
        f1 = []
        for c in np.union1d(labels, predictions):
            hits = np.count_nonzero((labels == c) & (predictions == c))
            f1.append(2 * hits / (np.count_nonzero(labels == c) + np.count_nonzero(predictions == c)))
        return {"accuracy": float(np.mean(predictions == labels)), "macro_f1": float(np.mean(f1))}
