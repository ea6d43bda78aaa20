"""What a trial gets from Tune, and gives to it. Tune carries dictionaries; their keys are the names
of the fields here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from trainables.evaluation.record import Evaluation
from trainables.runtime.protocol import Diverged, Evaluated, Failed, Outcome, Parameters


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """With what Tune starts a trial."""

    id: str
    label: str
    """What Ray's dashboard shows of it."""
    params: Parameters
    coordinator: str
    """Name of the actor."""
    namespace: str
    compared: bool
    """Whether it is there to be compared with, and so trains on behind others."""

    def to_tune(self) -> dict[str, object]:
        return dict(vars(self))

    @classmethod
    def from_tune(cls, config: Mapping[str, object]) -> "TrialConfig":
        return cls(**_of(cls, config))


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What Tune, the searcher, the scheduler and the stopper see of an outcome. It has either an
    evaluation, or an end and its reason.
    """

    id: str | None = None
    evaluation: Evaluation | None = None
    val_loss: float | None = None
    """Infinite where the loss was not finite: worse than any."""
    samples_seen: int | None = None
    ended: Literal["finished", "failed", "diverged", "stopped"] | None = None
    """Why the trial has no more to come."""
    reason: str | None = None
    log: str | None = None
    done: bool = False
    """Tune's own word for a trial's last result."""

    def to_tune(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if value is not None}

    @classmethod
    def from_tune(cls, result: Mapping[str, object]) -> "TrialResult":
        return cls(**_of(cls, result))


def result_of(trial: str, outcome: Outcome) -> TrialResult:
    match outcome:
        case Evaluated(evaluation=evaluation):
            loss = evaluation.val_loss
            return TrialResult(
                id=trial,
                evaluation=evaluation,
                val_loss=math.inf if loss is None else loss,
                samples_seen=evaluation.samples_seen,
                ended="finished" if evaluation.finished else None,
                done=evaluation.finished,
            )
        case Failed(reason=reason, log=log):
            return TrialResult(id=trial, ended="failed", reason=reason, log=log, done=True)
        case Diverged(reason=reason):
            return TrialResult(id=trial, ended="diverged", reason=reason, done=True)
        case _:
            return TrialResult(id=trial, ended="stopped", reason=outcome.reason, done=True)


def _of(kind: type, given: Mapping[str, object]) -> dict:
    """Those of `given` that are fields of `kind`: Tune adds keys of its own."""
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in given.items() if key in names}
