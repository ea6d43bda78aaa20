"""One class for each row.

Letters of shapes: B rows, C classes, N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.splits import check_labels, label_counts
from trainables.evaluation.class_metrics import class_metrics, confusion_matrix, count_classes
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
    """`outcomes` [N, 2] are the predicted and the true class of each row."""

    name = "classification"
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
    metric_names = ("accuracy", "macro_f1")

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

        return torch.stack([logits.argmax(dim=-1), labels], dim=1)

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
        return class_metrics(
            count_classes(predicted, true, 1 + int(max(predicted.max(), true.max())))
        )

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
        common = labels.index(_commonest(train.label_counts))
        return np.stack([np.full(len(outcomes), common), outcomes[:, 1]], axis=1)

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
    predicted, true = outcomes.astype(np.int64).T
    return predicted, true


def prior_of_shares(what: str, train: SplitSummary, split: SplitSummary) -> Prior | None:
    """Always answering each target with the shares that the classes have among train's; as if each
    stood there once more where one does not at all (Laplace's rule).
    """
    if (known := train.label_counts) is None:
        return None
    if not all(known.values()):
        known = {label: count + 1 for label, count in known.items()}
    found = split.label_counts or {}
    rows, total = sum(known.values()), sum(found.values())
    loss = -sum(count * math.log(known[label] / rows) for label, count in found.items() if count)
    commonest = _commonest(known)
    return Prior(
        what=what,
        loss=loss / total,
        metrics={"accuracy": found.get(commonest, 0) / total},
        answer=commonest,
    )


def _commonest(counts: Mapping[str, int]) -> str:
    return max(counts, key=lambda label: counts[label])
