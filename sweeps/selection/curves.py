"""Trials and their evaluations, as selection sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a trial, as selection sees it. None stands for a number that was not finite."""

    step: int
    samples_seen: int
    epoch: float
    val_loss: float | None
    probe_loss: float | None
    train_loss: float | None = None  # mean in training mode since the evaluation before
    majority_share: float | None = (
        None  # of the validation rows that got the commonest answer (classification)
    )
    metrics: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # rows, loss and metrics, by value
    forgetting: float | None = (
        None  # rise of the loss on general text over the base's; None: not measured
    )
    kl: float | None = None  # divergence of its predictions on the task's prompts from the base's
    trainable_parameters: int = 0
    inference_cost: float = 1.0  # arithmetic of a request over that of the untuned base
    checkpoint_bytes: int = 0  # what the checkpoint takes on disk: an adapter, or a whole model
    checkpoint: str | None = None
    folder: str = ""  # names its per-example losses


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial: its parameters, how it ended, and its evaluations in the order of their steps."""

    id: str
    status: str  # running | complete | pruned | failed
    params: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Point] = ()
    reason: str | None = None  # why it was stopped or failed
    finalist_of: str | None = (
        None  # the trial whose configuration this one repeats with another seed
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Losses of not fine-tuning: the untuned model's and, for classification, the label prior's (validation).

    achieved: the lowest validation loss of any trial; it tells what could be learnt where nothing else does.
    """

    val_loss: float | None = None
    probe_loss: float | None = None
    prior_loss: float | None = None
    achieved: float | None = None

    def best(self) -> float | None:
        return min(
            (loss for loss in (self.val_loss, self.prior_loss) if loss is not None), default=None
        )
