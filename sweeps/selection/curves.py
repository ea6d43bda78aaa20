"""Trials and their evaluations, as selection sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainables.evaluation.record import Evaluation
from trainables.hyperparameters import base_of


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial: its parameters, how it ended, and its evaluations in the order of their steps."""

    id: str
    status: str  # running | complete | pruned | failed
    params: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Evaluation] = ()
    reason: str | None = None  # why it was stopped or failed
    # the trial whose configuration this one repeats with another seed
    finalist_of: str | None = None

    @property
    def trained(self) -> list[Evaluation]:
        """Evaluations of the weights of training, without that of their average."""
        return [point for point in self.points if not point.averaged]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """An evaluation of which both losses are known."""

    val: float
    probe: float
    point: Evaluation


def losses_of(point: Evaluation) -> Losses | None:
    """None where one of the two was not finite."""
    if point.val_loss is None or point.probe_loss is None:
        return None
    return Losses(val=point.val_loss, probe=point.probe_loss, point=point)


def lowest_of(points: Sequence[Evaluation]) -> Losses | None:
    """The first of the lowest validation loss among those of which both losses are known."""
    known = [found for point in points if (found := losses_of(point)) is not None]
    return min(known, key=lambda losses: losses.val, default=None)


PRIOR = "train's label shares"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Losses of not fine-tuning: the untuned model's and, where there is one, that of always giving
    the best single answer that train's labels tell (validation).

    achieved: the lowest validation loss of any trial; it tells what could be learnt where nothing
    else does.
    """

    val_loss: float | None = None
    probe_loss: float | None = None
    prior_loss: float | None = None
    prior: str = PRIOR
    achieved: float | None = None
    others: Mapping[str, "Reference"] = field(default_factory=dict)
    """Of the other base models of a sweep that has several, by the words for them."""

    def of(self, params: Mapping[str, Any]) -> "Reference":
        """Of the base model of a trial with these parameters."""
        return self.others.get(base_of(params), self)

    def best(self) -> float | None:
        return min(
            (loss for loss in (self.val_loss, self.prior_loss) if loss is not None), default=None
        )

    def start(self) -> float | None:
        """Where training begins: a new head may be far from the best single answer."""
        return self.prior_loss if self.val_loss is None else self.val_loss
