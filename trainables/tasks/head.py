"""What tasks have in common whose model has a head of its own above a backbone.

Letters of shapes: B rows, C outputs of the head, N rows of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.tasks.causal_lm.task import pad
from trainables.tasks.declared import ByClass, LabelSummary, Words

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.data.arrow import Split


class OneTargetEach:
    """A row is a text, and one target of its loss."""

    auto_class = "AutoModelForSequenceClassification"
    problem_type: str | None = None
    is_language_model = False
    continues_text = False
    has_classes = False
    is_conversation = False
    targets_are_answers = True
    has_pairs = False
    baselines: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = frozenset()
    metric_names: tuple[str, ...] = ()

    def notices(self) -> Mapping[str, Words]:
        return {}

    def outputs(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        import torch

        labels = torch.from_numpy(np.array([row["labels"] for row in rows]))
        return pad(rows, pad_token_id) | {"labels": labels}

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        return len(labels)

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        return len(rows)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {}

    def majority_share(self, outcomes: np.ndarray) -> float | None:
        return None

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        return LabelSummary()

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass | None:
        return None

    def usage(self, cut: str, text: str) -> list[str]:
        return [f"batch = tokenizer([{text!r}], {cut})", "with torch.no_grad():"]
