"""What was measured, as it is written into the sweep's folder, and read back from it. Neither torch
nor Ray here.

Losses are means over targets, in the unit that the task declares. None stands for a number that was
not measured, or was not finite.

Letters of shapes: N rows of a split, M numbers that the task keeps of a row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from trainables.data.manifest import TokenSummary, data_of
from trainables.evaluation.answered import Answered

Metrics = Mapping[str, float | None]
Slices = Mapping[str, Mapping[str, int | float | None]]
"""By a slice's value: `rows`, `loss` and the task's metrics."""

POSITION = "position.json"


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a trial is that may go on elsewhere."""

    step: int
    train_nll: float = 0.0
    """What it has minimised since the last evaluation, summed."""
    train_targets: float = 0.0
    """Over so many targets."""


POSITIONS = [each.name for each in fields(Position)]


def read_position(folder: Path) -> Position:
    """Where the trial is that was evaluated or paused in `folder`."""
    paused = folder / POSITION
    content = json.loads((paused if paused.is_file() else folder / "evaluation.json").read_text())
    return Position(**{name: content[name] for name in POSITIONS if name in content})


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
    """Whether it is the trial's last."""
    averaged: Annotated[int, Field(exclude_if=lambda averaged: not averaged)] = 0
    """Number of evaluations whose weights it has the average of; 0: it has those of training."""
    majority_share: float | None = None
    """Share of the validation rows that got the commonest answer; None where there are no
    classes.
    """
    slices: Slices = field(default_factory=dict)
    forgetting: float | None = None
    """Rise of the loss on general text over the base's."""
    kl: float | None = None
    """Divergence of the predictions on the task's prompts from the base's (an estimate), in nats.
    """
    trainable_parameters: int = 0
    inference_cost: float = 1.0
    """Arithmetic of a request over that of the untuned base."""
    base_cost: float = 1.0
    """Floating-point operations of a request to the untuned base, where a sweep has several.
    """
    attempt: int = 0
    """Number of the trial's stay on a slot in which it was evaluated."""
    folder: str = ""
    """Where the sweep's folder holds its rows' losses and its checkpoint."""
    checkpoint_bytes: int = 0
    """What the checkpoint takes on disk: an adapter, or a whole model."""
    checkpoint: str | None = None
    """Path or URL of the checkpoint; None: it has been deleted, or nobody has looked."""

    @property
    def request_cost(self) -> float:
        """Floating-point operations of a request, over whichever base."""
        return self.base_cost * self.inference_cost


@dataclass(frozen=True, kw_only=True)
class MeasuredEvaluation(Evaluation):
    """An evaluation with what it was of every validation row [N], before it is written."""

    losses: np.ndarray
    """Summed loss and targets (the sum of their weights, where they have some), float32 [N, 2]."""
    outcomes: np.ndarray | None = None
    """As the task has them, float32 [N, M]; None for language models."""
    answered: Answered | None = None
    """What it wrote to rows, where every evaluation does; its metrics are among `metrics`."""


# --- what is measured beside the trials ---


@dataclass(frozen=True, kw_only=True)
class UntunedResults:
    """What the untuned base makes of the validation rows and of the probe."""

    val_loss: float | None
    probe_loss: float | None
    metrics: Metrics = field(default_factory=dict)
    others: Annotated[
        "Mapping[str, UntunedResults]", Field(exclude_if=lambda others: not others)
    ] = field(default_factory=dict)
    """Of the other bases of a sweep that has several, by the words for them."""


def untuned_name(base: str, first: str) -> str:
    """What is measured of an untuned base is called so; first: the word for the sweep's first."""
    return "untuned" if base == first else f"untuned_{data_of(base, first)}"


@dataclass(frozen=True, kw_only=True)
class UntunedFailed:
    """Why nothing is known of the untuned base; a sweep is possible without."""

    error: str


Untuned = UntunedResults | UntunedFailed


def is_absent(value: object) -> bool:
    return value is None


# what is left out of the JSON where it was not measured
OptionalNumber = Annotated[float | None, Field(exclude_if=is_absent)]
OptionalText = Annotated[str | None, Field(exclude_if=is_absent)]


@dataclass(frozen=True, kw_only=True)
class OtherWay:
    """What a way without fine-tuning takes, whatever split it is measured on."""

    tokens_per_request: OptionalNumber = None
    """Mean tokens of a prompt with its examples, or of what is embedded."""
    examples_per_request: OptionalNumber = None
    """Examples that the context held, on average."""
    text_share: OptionalNumber = None
    """Share of the texts' tokens that the context held, on average."""
    seconds: OptionalNumber = None
    words: OptionalText = None
    error: OptionalText = None
    """Why it was left out."""


@dataclass(frozen=True, kw_only=True)
class Baseline(OtherWay):
    """What another way than fine-tuning gives on the validation split, or why it was left out."""

    val_loss: OptionalNumber = None
    metrics: Annotated[Metrics, Field(exclude_if=lambda metrics: not metrics)] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredBaseline(Baseline):
    """A baseline with what it was of every row [N], before it is written."""

    losses: np.ndarray | None = None
    """As of `MeasuredEvaluation`, float32 [N, 2]; None: it broke."""
    outcomes: np.ndarray | None = None
    """As the task has them, float32 [N, M]; None for language models."""

    def written(self) -> Baseline:
        """Without the rows."""
        return Baseline(**{each.name: getattr(self, each.name) for each in fields(Baseline)})


@dataclass(frozen=True, kw_only=True)
class Score(OtherWay):
    """What the test split gave the winner, the default configuration or a baseline."""

    loss: float | None = None
    metrics: Metrics = field(default_factory=dict)
    slices: Annotated[Slices | None, Field(exclude_if=is_absent)] = None
    low: OptionalNumber = None
    """With `high`: 95% interval of the loss."""
    high: OptionalNumber = None


# --- post-search jobs and what comes of them ---


@dataclass(frozen=True, kw_only=True)
class TrainedCheckpoint:
    """A checkpoint in the sweep's folder, and the parameters that it was trained with."""

    checkpoint: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class BaselinesJob:
    """Measure other ways than fine-tuning on the validation split."""


@dataclass(frozen=True, kw_only=True)
class TestJob:
    """Score the sealed test split."""

    __test__ = False  # pytest takes what is called Test... for a test

    winner: TrainedCheckpoint
    default: TrainedCheckpoint | None
    """The default configuration's, where that is not the winner."""
    baselines: bool = True
    """Whether other ways than fine-tuning are scored beside them."""


@dataclass(frozen=True, kw_only=True)
class ForgettingJob:
    """Measure what the winner has lost of what its base knew."""

    winner: TrainedCheckpoint


@dataclass(frozen=True, kw_only=True)
class EarlierJob:
    """Measure what the winner has forgotten of the data of the sweep that it went on from."""

    winner: TrainedCheckpoint


@dataclass(frozen=True, kw_only=True)
class AnswersJob:
    """Have rows of the validation split answered by one model, and score its answers."""

    folder: str
    """Of the evaluation, or `baselines/validation/NAME` of an untuned base."""
    base: str
    """The word for the model's base."""
    trained: TrainedCheckpoint | None = None
    """None: the base as it is untuned."""


Job = BaselinesJob | TestJob | ForgettingJob | EarlierJob | AnswersJob


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """By name."""

    found: Mapping[str, Baseline]


@dataclass(frozen=True, kw_only=True)
class ScoredTest:
    """The tokenised test split, and what it gave, by name."""

    split: TokenSummary
    scores: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True)
class MeasuredForgetting:
    """Loss on general text in nats per token before and after fine-tuning, and how far predictions
    on the task's prompts have moved (KL divergence, in nats).
    """

    before: float
    after: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class MeasuredEarlier:
    """What the earlier winner and this one give on the earlier sweep's validation rows."""

    before: Score
    after: Score


@dataclass(frozen=True, kw_only=True)
class MeasuredAnswers:
    """What a model's answers are worth on average; they lie in the sweep's folder."""

    metrics: Metrics
    rows: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobFailed:
    """Why nothing came of a job; a sweep is possible without."""

    error: str


JobResult = (
    Baselines | ScoredTest | MeasuredForgetting | MeasuredEarlier | MeasuredAnswers | JobFailed
)
