"""What was measured, as it is written into the sweep's folder, and read back from it. Neither torch
nor Ray here.

Losses are means in nats per example (classification) or per target token (language models). None
stands for a number that was not measured, or was not finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Metrics = Mapping[str, float | None]
Slices = Mapping[str, Mapping[str, float | None]]
"""By a slice's value: `rows`, `loss` and the task's metrics."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A point of a trial at which it was evaluated, and its checkpoint saved."""

    step: int
    samples_seen: int
    epoch: float
    val_loss: float | None
    probe_loss: float | None
    train_loss: float | None = None
    """Mean over the steps since the evaluation before, in training mode."""
    learning_rate: float | None = None
    metrics: Metrics = field(default_factory=dict)
    finished: bool = False
    """Whether the trial has no more to train."""
    majority_share: float | None = None
    """Share of the validation rows that got the commonest answer; None for language models."""
    slices: Slices = field(default_factory=dict)
    forgetting: float | None = None
    """Rise of the loss on general text over the base's."""
    kl: float | None = None
    """Divergence of the predictions on the task's prompts from the base's (an estimate), in nats.
    """
    trainable_parameters: int = 0
    inference_cost: float = 1.0
    """Arithmetic of a request over that of the untuned base."""
    attempt: int = 0
    """Number of the trial's stay on a slot in which it was evaluated."""
    folder: str = ""
    """Where the sweep's folder holds its rows' losses and its checkpoint."""
    checkpoint_bytes: int = 0
    """What the checkpoint takes on disk: an adapter, or a whole model."""
    checkpoint: str | None = None
    """Path or URL of the checkpoint; None: it has been deleted, or nobody has looked."""


@dataclass(frozen=True, kw_only=True)
class MeasuredEvaluation(Evaluation):
    """An evaluation with what it was of every validation row [N], before it is written."""

    losses: np.ndarray
    """Summed loss and number of targets, float32 [N, 2]."""
    predictions: np.ndarray | None = None
    """Predicted and true class, int32 [N, 2]; None for language models."""
