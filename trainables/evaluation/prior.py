"""What always giving one answer, the best that train's labels tell, costs row by row. No torch."""

from collections.abc import Sequence

import numpy as np

from trainables.data.arrow import Split
from trainables.data.manifest import SplitSummary
from trainables.tasks import Task


class _OneRow(Split):
    """A row of a split, as far as its labels are asked for."""

    def __init__(self, split: Split, row: int) -> None:
        self._labels = split.values_of("labels", row)

    def values(self, column: str) -> np.ndarray:
        return self._labels


def prior_losses(
    task: Task, train: SplitSummary, split: Split, targets: np.ndarray, labels: Sequence[str]
) -> np.ndarray | None:
    """Summed loss and targets [N, 2] of each row of `split` at that answer; None where the task has
    no such answer. targets: of the rows [N]; labels: the classes.
    """
    if not split.has_labels or task.prior(train, train) is None:
        return None
    losses = np.zeros(len(split))
    for row in np.flatnonzero(targets).tolist():
        found = task.summarise(_OneRow(split, row), labels)
        alone = SplitSummary(
            rows=1,
            label_counts=found.counts,
            label_mean=found.mean,
            label_variance=found.variance,
        )
        prior = task.prior(train, alone)
        assert prior is not None, "train has one"
        losses[row] = prior.loss
    return np.stack([losses * targets, targets], axis=1)
