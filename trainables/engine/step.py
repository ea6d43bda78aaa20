"""The rows of one optimiser step of several trials, and what each row is worth to its trial."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainables.data.prepare import Split
from trainables.hyperparameters import Hyperparameters
from trainables.tasks import Task


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """R rows of K trials, one trial's after another's."""

    hps: Sequence[Hyperparameters]
    totals: list[float]
    """Targets of each trial's step, or the sum of their weights [K]."""
    row: np.ndarray
    """Of the split [R]."""
    position: np.ndarray
    """Of its trial among the K [R]."""
    seed: np.ndarray
    """Of its trial [R]."""
    step: np.ndarray
    """Of its trial, how many were made before [R]."""
    counts: np.ndarray
    """How much its loss counts, where classes are balanced; else 1 [R]."""

    @classmethod
    def of(
        cls,
        hps: Sequence[Hyperparameters],
        steps: Sequence[int],
        rows: Sequence[np.ndarray],
        split: Split,
        task: Task,
        class_weights: np.ndarray | None,
    ) -> "StepRows":
        position = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        counts = [_counts(*each, split, class_weights) for each in zip(hps, rows, strict=True)]
        return cls(
            hps=hps,
            totals=[
                float(own.sum())
                if hp.class_weights == "balanced"
                # as a whole: weights of tokens are no class weights
                else task.target_count(split.rows(each))
                for hp, each, own in zip(hps, rows, counts, strict=True)
            ],
            row=np.concatenate(rows),
            position=position,
            seed=np.array([hp.seed for hp in hps])[position],
            step=np.array(steps)[position],
            counts=np.concatenate(counts),
        )

    def hps_of(self, at: np.ndarray) -> list[Hyperparameters]:
        """Of the trials of the rows `at` these of the R."""
        return [self.hps[position] for position in self.position[at]]

    @property
    def weight(self) -> np.ndarray:
        """Of each row's loss in its trial's [R]: by the targets of the trial's step, not of the
        micro-batch. Neither how rows are cut nor the other trials may weigh them differently. A
        step without targets has no loss that a weight could change.
        """
        return np.array([1.0 / (total or 1) for total in self.totals])[self.position] * self.counts


def _counts(
    hp: Hyperparameters, rows: np.ndarray, split: Split, class_weights: np.ndarray | None
) -> np.ndarray:
    if hp.class_weights == "none":
        return np.ones(len(rows))
    assert class_weights is not None and split.labels is not None, "joined without them"
    return class_weights[split.labels[rows]]
