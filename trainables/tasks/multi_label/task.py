"""Any number of classes for each row: of each class, whether it is one of them.

Letters of shapes: B rows, C classes, N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from trainables.tasks.causal_lm.task import upcast
from trainables.tasks.declared import ByClass, Counts, LabelSummary, Loss, Predicted, Prior
from trainables.tasks.head import OneTargetEach
from trainables.tasks.multi_label.format import Tagged
from trainables.tasks.names import names_of_train

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore


class MultiLabel(OneTargetEach):
    """`outcomes` [N, 2C]: 1 for each class that is answered, then for each that is true; else 0."""

    name = "multi_label"
    what = "several classes for each text, or none"
    format = Tagged()
    problem_type: str | None = "multi_label_classification"
    loss = Loss(words="means in nats per example, summed over its labels", is_likelihood=True)
    baselines = ("embeddings_logistic_each",)
    metric_names = ("micro_f1", "macro_f1", "subset_accuracy")

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        return names_of_train(store, splits, drawn, "labels")

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropies, summed over the classes; of smoothed labels with `smoothing` e:
        (1 - e) of the label and e / 2. logits, labels: [B, C].
        """
        import torch

        logits = upcast(logits)
        wanted = labels.to(logits.dtype)
        if smoothing is not None:
            share = smoothing.to(logits.dtype)[:, None]
            wanted = wanted * (1 - share) + share / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, wanted, reduction="none"
        )
        return losses.sum(dim=1), torch.ones(len(labels), dtype=torch.int64, device=labels.device)

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
        """A class is answered where its probability is above one half."""
        import torch

        return torch.cat([(logits > 0).to(labels.dtype), labels], dim=1)

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, object]],
    ) -> list[Predicted]:
        shares_BC = upcast(logits).sigmoid().tolist()
        return [
            Predicted(
                prediction=[
                    name for name, is_answered in zip(names, row, strict=True) if is_answered
                ],
                probabilities=dict(zip(names, shares, strict=True)),
            )
            for row, shares in zip((logits > 0).tolist(), shares_BC, strict=True)
        ]

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """F1 over all labels of all rows, its mean over the classes that occur among labels or
        answers, and the share of the rows of which every label is right. An F1 of nothing is 0.
        """
        predicted, true = _labels(outcomes)
        counts = _counts(predicted, true)
        total = int((counts.answered + counts.true).sum())
        return {
            "micro_f1": float(2 * counts.hits.sum() / total) if total else 0.0,
            "macro_f1": counts.macro_f1,
            "subset_accuracy": float((predicted == true).all(axis=1).mean()),
        }

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        counts = split.values("labels").reshape(-1, len(labels)).sum(axis=0, dtype=np.float64)
        return LabelSummary(counts=dict(zip(labels, map(int, counts), strict=True)))

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        """Always answering with the share of train's rows that have each class, as if two rows more
        had it once (Laplace's rule), so that what all or no rows have costs no infinite loss.
        """
        if train.label_counts is None or split.label_counts is None:
            return None
        loss = 0.0
        for label, known in train.label_counts.items():
            share = split.label_counts.get(label, 0) / split.rows
            loss += _cross_entropy((known + 1) / (train.rows + 2), share)
        return Prior(what="label frequencies", loss=loss)

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        if train.label_counts is None:
            return None
        common = [float(2 * train.label_counts[label] > train.rows) for label in labels]
        true = outcomes[:, len(labels) :]
        return np.concatenate([np.tile(common, (len(outcomes), 1)), true], axis=1)

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass:
        return ByClass(names=tuple(labels), counts=_counts(*_labels(outcomes)))

    def usage(self, cut: str, text: str) -> list[str]:
        return [
            *super().usage(cut, text),
            "    for row in model(**batch).logits.tolist():",
            "        print([model.config.id2label[i] for i, x in enumerate(row) if x > 0])",
        ]


def _labels(outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is answered and what is true, bool [N, C] each."""
    predicted, true = np.split(outcomes > 0.5, 2, axis=1)
    return predicted, true


def _counts(predicted: np.ndarray, true: np.ndarray) -> Counts:
    return Counts((predicted & true).sum(axis=0), predicted.sum(axis=0), true.sum(axis=0))


def _cross_entropy(answered: float, true: float) -> float:
    """Of answering with a probability where so large a share is true."""
    return -(true * math.log(answered) + (1 - true) * math.log(1 - answered))
