"""A number for each row, in the unit in which it is given.

Letters of shapes: B rows, N rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from trainables.errors import InputError
from trainables.tasks.causal_lm.task import upcast
from trainables.tasks.declared import LabelSummary, Loss, Predicted, Prior
from trainables.tasks.head import OneTargetEach
from trainables.tasks.regression.format import Measured

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore


class Regression(OneTargetEach):
    """`outcomes` [N, 2] are the predicted and the true number of each row."""

    name = "regression"
    what = "a number for each text"
    format = Measured()
    problem_type: str | None = "regression"
    loss = Loss(words="mean squared errors, in squares of the labels' unit", is_likelihood=False)
    baselines = ("embeddings_ridge",)
    metric_names = ("rmse", "mae", "pearson", "spearman")
    lower_is_better = frozenset({"rmse", "mae"})

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        """None. Raises InputError where train has one number only."""
        train = np.unique(splits["train"])
        numbers = (record.value["label"] for record in store.records(train))
        first = next(numbers)
        if all(number == first for number in numbers):
            raise InputError(
                f"data.label: all {len(train)} rows of train have the same label, {first:g}: there"
                " is nothing to learn"
            )
        return ()

    def outputs(self, labels: Sequence[str]) -> tuple[str, ...]:
        return ("label",)

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Squared error. logits: [B, 1]; labels: [B]."""
        import torch

        errors = upcast(logits)[:, 0] - labels.to(upcast(logits).dtype)
        return errors.square(), torch.ones_like(labels, dtype=torch.int64)

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
        import torch

        return torch.stack([logits[:, 0].to(labels.dtype), labels], dim=1)

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, object]],
    ) -> list[Predicted]:
        return [Predicted(prediction=number) for number in upcast(logits)[:, 0].tolist()]

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """Root of the mean squared error and mean absolute error; Pearson's correlation, and
        Spearman's, which is that of the ranks. A correlation of what is constant is no number.
        """
        from scipy.stats import rankdata

        predicted, true = outcomes.astype(np.float64).T
        errors = predicted - true
        return {
            "rmse": math.sqrt(float(np.square(errors).mean())),
            "mae": float(np.abs(errors).mean()),
            "pearson": _correlation(predicted, true),
            "spearman": _correlation(rankdata(predicted), rankdata(true)),
        }

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        values = split.values("labels")
        return LabelSummary(mean=float(values.mean()), variance=float(values.var()))

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        """Always answering with train's mean."""
        if train.label_mean is None or split.label_mean is None or split.label_variance is None:
            return None
        loss = split.label_variance + (split.label_mean - train.label_mean) ** 2
        return Prior(what="mean label", loss=loss, metrics={"rmse": math.sqrt(loss)})

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        if train.label_mean is None:
            return None
        return np.stack([np.full(len(outcomes), train.label_mean), outcomes[:, 1]], axis=1)

    def usage(self, cut: str, text: str) -> list[str]:
        return [*super().usage(cut, text), "    print(model(**batch).logits[:, 0].tolist())"]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where either is constant."""
    if not np.ptp(x) or not np.ptp(y):
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
