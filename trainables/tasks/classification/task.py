"""One class for each row.

Letters of shapes: B rows, C classes, N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.splits import check_labels, label_counts
from trainables.evaluation.class_metrics import (
    MOST_CLASSES,
    class_metrics,
    class_outcomes,
    confusion_matrix,
    count_classes,
    probability_metrics,
)
from trainables.tasks.causal_lm.task import smoothed, upcast
from trainables.tasks.classification.format import Labelled, sorted_labels
from trainables.tasks.declared import ByClass, LabelSummary, Loss, Predicted, Prior
from trainables.tasks.head import OneTargetEach

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore


class Classification(OneTargetEach):
    """`outcomes` [N, 2 + C] are the predicted and the true class of each row, and the
    log-probabilities of all; [N, 2] with more than 100 classes, or as earlier versions kept them:
    without the metrics of probabilities.
    """

    name = "classification"
    what = "one class for each text"
    format = Labelled()
    loss = Loss(words="means in nats per example", is_likelihood=True)
    has_classes = True
    baselines = (
        "embeddings_logistic",
        "embeddings_neighbours",
        "zero_shot",
        "few_shot",
        "retrieved",
    )
    metric_names = ("accuracy", "macro_f1", "weighted_f1", "auroc", "calibration_error")
    lower_is_better = frozenset({"calibration_error"})

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        """The classes of train, which must be all that there are."""
        check_labels(store, splits)
        return sorted_labels(set(label_counts(store, splits["train"])))

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

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
        import torch

        logits = upcast(logits)
        found = torch.stack([logits.argmax(dim=-1), labels], dim=1).to(logits.dtype)
        if logits.shape[1] > MOST_CLASSES:
            return found
        return torch.cat([found, logits.log_softmax(dim=-1)], dim=1).float()

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, object]],
    ) -> list[Predicted]:
        shares_BC = upcast(logits).softmax(dim=-1).tolist()
        return [
            Predicted(prediction=names[answer], probabilities=dict(zip(names, shares, strict=True)))
            for answer, shares in zip(logits.argmax(dim=-1).tolist(), shares_BC, strict=True)
        ]

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """Those of `trainables.evaluation.class_metrics`."""
        predicted, true = _classes(outcomes)
        found = class_metrics(
            count_classes(predicted, true, 1 + int(max(predicted.max(), true.max())))
        )
        if outcomes.shape[1] > 2:
            found |= probability_metrics(predicted, true, outcomes[:, 2:])
        return found

    def majority_share(self, outcomes: np.ndarray) -> float:
        predicted, _ = _classes(outcomes)
        return float(np.bincount(predicted).max() / len(predicted))

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        counts = np.bincount(split.values("labels"), minlength=len(labels)).tolist()
        return LabelSummary(counts=dict(zip(labels, counts, strict=True)))

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        """Always answering with train's label shares; its metrics are of train's commonest
        class.
        """
        return prior_of_shares("label shares", train, split)

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        if train.label_counts is None:
            return None
        rows = len(outcomes)
        common = np.full(rows, labels.index(_commonest(train.label_counts)))
        if outcomes.shape[1] == 2:
            return np.stack([common, outcomes[:, 1]], axis=1)
        shares = _shares(train.label_counts)
        logs = np.log([shares[label] for label in labels])
        return class_outcomes(common, outcomes[:, 1], np.tile(logs, (rows, 1)))

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass:
        predicted, true = _classes(outcomes)
        return ByClass(
            names=tuple(labels),
            counts=count_classes(predicted, true, len(labels)),
            confusion=confusion_matrix(predicted, true, len(labels)),
        )

    def usage(self, cut: str, text: str) -> list[str]:
        return [
            *super().usage(cut, text),
            (
                "    print([model.config.id2label[i] for i in"
                " model(**batch).logits.argmax(-1).tolist()])"
            ),
        ]


def _classes(outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = outcomes[:, :2].astype(np.int64).T
    return predicted, true


def prior_of_shares(what: str, train: SplitSummary, split: SplitSummary) -> Prior | None:
    """Always answering each target with the shares that the classes have among train's."""
    if train.label_counts is None:
        return None
    shares, found = _shares(train.label_counts), split.label_counts or {}
    total = sum(found.values())
    loss = -sum(count * math.log(shares[label]) for label, count in found.items() if count)
    commonest = _commonest(train.label_counts)
    return Prior(
        what=what,
        loss=loss / total,
        metrics={"accuracy": found.get(commonest, 0) / total},
        answer=commonest,
    )


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    """As if each class stood there once more where one does not at all (Laplace's rule)."""
    more = 0 if all(counts.values()) else 1
    rows = sum(counts.values()) + more * len(counts)
    return {label: (count + more) / rows for label, count in counts.items()}


def _commonest(counts: Mapping[str, int]) -> str:
    return max(counts, key=lambda label: counts[label])
