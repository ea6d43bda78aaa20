"""The leaderboard: everything that `best --json` prints, and from which every report renders.

Which evaluation stands for a trial, and in which order trials are shown, is decided here alone.
Neither torch nor Ray here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_serializer, model_validator

from sweeps.ledger.control import Steered
from sweeps.ledger.harness import HarnessScore
from sweeps.selection.measure import VAL_LOSS, Measure, Mode
from sweeps.selection.results import Final
from sweeps.selection.statistics import Difference
from trainables.data.manifest import TokenSummary
from trainables.evaluation.record import (
    Baseline,
    Metrics,
    OptionalNumber,
    OptionalText,
    OtherWay,
    Score,
    Slices,
    is_absent,
)
from trainables.models.lineage import Ancestor
from trainables.storage.records import from_json

SplitName = Literal["validation", "test"]
SPLITS: tuple[SplitName, ...] = ("validation", "test")

BASELINE_NAMES = {
    "untuned": "the untuned model",
    "prior": "train's label shares",
    "default": "the default configuration",
}

CANNOT_WIN = (
    "overfit",
    "diverged",
    "failed",
)  # verdicts of trials that failed and may not win, though an evaluation has a loss


@dataclass(frozen=True, kw_only=True)
class OfTrial:
    """Whose evaluation it is."""

    trial: str


@dataclass(frozen=True, kw_only=True)
class ShownEvaluation:
    """An evaluation of a trial, as reports show it (see trainables.evaluation.record)."""

    step: int = 0
    samples_seen: int = 0
    epoch: float = 0.0
    averaged: Annotated[int, Field(exclude_if=lambda averaged: not averaged)] = 0
    val_loss: float | None = None
    probe_loss: float | None = None
    train_loss: float | None = None
    metrics: Metrics = field(default_factory=dict)
    slices: Slices = field(default_factory=dict)
    forgetting: float | None = None
    kl: float | None = None
    inference_cost: float = 1.0
    trainable_parameters: int = 0
    checkpoint_bytes: int = 0
    checkpoint: str | None = None
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgedEvaluation(ShownEvaluation):
    """One of a trial's evaluations, and why it may not win."""

    excluded: str | None = None


@dataclass(frozen=True, kw_only=True)
class FrontPoint(ShownEvaluation, OfTrial):
    """A trial that none beats in validation loss and in a cost at once."""


@dataclass(frozen=True, kw_only=True)
class WinnerRow(ShownEvaluation, OfTrial):
    """The checkpoint that wins."""

    params: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""
    tied: tuple[str, ...] = ()
    """Trials that noise does not tell from it."""
    expected: Final | None = None
    """What new seeds of its configuration gave, where it ran again."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial with its verdict and all its evaluations."""

    rank: int | None = None
    id: str
    status: str = "complete"
    status_reason: str | None = None
    verdict: str | None = None
    verdict_reason: str | None = None
    verdict_later: str | None = None
    difference: Difference | None = None
    """How far its loss lies above the lowest."""
    params: Mapping[str, object] = field(default_factory=dict)
    default: bool = False
    """Whether it is the configuration that one would train without a search."""
    finalist_of: str | None = None
    by_hand: OptionalText = None
    """How somebody asked for it, and who."""
    evaluations: tuple[JudgedEvaluation, ...] = ()

    @property
    def may_win(self) -> list[JudgedEvaluation]:
        """Evaluations that may win, and whose checkpoint is kept."""
        return [e for e in self.evaluations if e.checkpoint is not None and e.excluded is None]


@dataclass(frozen=True, kw_only=True)
class RankedTrial:
    """A trial at its place in the order in which trials are shown."""

    trial: TrialRow
    shown: ShownEvaluation | None
    """The evaluation that stands for it: the winner's for its trial, else the best that may win,
    else the best.
    """
    rank: int | None
    """1 is the winner, the others follow by validation loss; None where the trial may not win."""
    wins: bool
    tied: bool
    excluded: str
    """Why the trial may not win, in words; empty where it may."""


@dataclass(frozen=True, kw_only=True)
class BaselineRow(OtherWay):
    """What another way than fine-tuning gives on the validation split."""

    val_loss: float | None = None
    probe_loss: OptionalNumber = None
    metrics: Metrics = field(default_factory=dict)
    label: Annotated[str | None, Field(alias="class", exclude_if=is_absent)] = None
    """What the answer is called that is always given."""
    difference: Difference | None = None

    @classmethod
    def of(cls, measured: Baseline) -> "BaselineRow":
        return cls(**vars(measured))


@dataclass(frozen=True, kw_only=True)
class EarlierScoring:
    """A checkpoint that was scored on the same test split before."""

    sweep: str
    trial: str
    step: int
    time: float


@dataclass(frozen=True, kw_only=True)
class TestScores:
    """What the sealed test split gave."""

    __test__ = False  # pytest takes what is called Test... for a test

    trial: str | None = None
    step: int | None = None
    split: Mapping[str, object] = field(default_factory=dict)
    """The split as the manifest describes it."""
    scores: Mapping[str, Score]
    optimism: float = 0.0
    """How far the winner's test loss lies above its validation loss."""
    scored_before: tuple[EarlierScoring, ...] = ()

    @property
    def winner(self) -> Score:
        return self.scores["winner"]

    @property
    def summary(self) -> TokenSummary:
        return from_json(TokenSummary, self.split, "test.json: split")


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Loss on general text before and after fine-tuning, and how far predictions have moved."""

    trial: str | None = None
    step: int | None = None
    before: float
    after: float
    kl: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class EarlierForgetting:
    """What the earlier winner (`before`) and this one (`after`) give on the validation rows of the
    sweep that this one went on from.
    """

    trial: str | None = None
    step: int | None = None
    sweep: str
    before: Score
    after: Score
    interval: tuple[float, float] | None = None
    """Of the rise of the loss, 95%."""


@dataclass(frozen=True, kw_only=True)
class SlicePart:
    """The winner's loss and metrics on the rows of one slice; in JSON its metrics stand beside."""

    value: str
    rows: int
    loss: float | None
    metrics: Metrics = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    @model_serializer
    def _flat(self) -> dict[str, object]:
        counted = {"value": self.value, "rows": self.rows, "loss": self.loss}
        return {**counted, **self.metrics, "low": self.low, "high": self.high}

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, content: Mapping[str, object]) -> object:
        own = ("value", "rows", "loss", "low", "high")
        metrics = {name: value for name, value in content.items() if name not in own}
        return {name: content[name] for name in own if name in content} | {"metrics": metrics}


@dataclass(frozen=True, kw_only=True)
class WinnerSlices:
    """The winner by the values of a column, on each split; the worst slice first."""

    column: str
    validation: Annotated[tuple[SlicePart, ...], Field(exclude_if=lambda parts: not parts)] = ()
    test: Annotated[tuple[SlicePart, ...], Field(exclude_if=lambda parts: not parts)] = ()

    def on(self, split: SplitName) -> tuple[SlicePart, ...]:
        return self.validation if split == "validation" else self.test


@dataclass(frozen=True, kw_only=True)
class Front:
    """The trials that none beats in validation loss and in `cost` at once."""

    cost: Literal["trainable_parameters", "inference_cost"]
    front: tuple[FrontPoint, ...]

    def cost_of(self, point: FrontPoint) -> float:
        return getattr(point, self.cost)


@dataclass(frozen=True, kw_only=True)
class LossAndMetrics:
    loss: float | None = None
    metrics: Metrics = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """The `loss`, or a metric."""
        return self.loss if name == "loss" else self.metrics.get(name)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The winner, or what it is compared with, on both splits; None where it was not measured."""

    name: str
    words: str
    validation: LossAndMetrics | None = None
    test: LossAndMetrics | None = None

    def on(self, split: SplitName) -> LossAndMetrics | None:
        return self.validation if split == "validation" else self.test


@dataclass(frozen=True, kw_only=True)
class ClassAnswers:
    """What the winner answers to the rows of one class; None where there is nothing to divide
    by.
    """

    label: str
    rows: int
    answered: int
    """How often the class is the answer, to rows of any."""
    recall: float | None
    precision: float | None
    answered_as: Mapping[str, int]
    """The answers that its rows got, the commonest first."""


@dataclass(frozen=True, kw_only=True)
class AnswersByClass:
    """What the winner answers on one split."""

    classes: tuple[ClassAnswers, ...]
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Rows by true and predicted class, in the order of `classes`; None where these are many, or
    where a row may have several.
    """
    hardly: tuple[str, ...] = ()
    """Labels that are hardly ever answered."""

    @property
    def has_confusion(self) -> bool:
        """Whether it is known which answers the rows of a class got."""
        return any(each.answered_as for each in self.classes)


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """How far an alternative lies above the winner in one metric."""

    metric: str
    among: Literal["default", "baselines"]
    name: str
    value: float
    winner: float
    difference: float
    low: float
    high: float
    of: int
    """Comparisons that the interval is corrected for."""
    lower_is_better: Annotated[bool, Field(exclude_if=lambda lower: not lower)] = False

    @property
    def gain(self) -> tuple[float, float]:
        """Between which bounds the alternative is better."""
        return (-self.high, -self.low) if self.lower_is_better else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class MetricsReport:
    """The task's own metrics beside the loss."""

    alternatives: tuple[Alternative, ...] = ()
    classes: Mapping[SplitName, AnswersByClass] | None = None
    compared: Mapping[SplitName, tuple[MetricDifference, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the sweep took."""

    device: str
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """A baseline that was left out of a split, and why."""

    split: SplitName
    words: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Whether fine-tuning, and the search, were worth it."""

    verdict: Literal["yes", "no", "within noise", "unknown"]
    split: SplitName
    best_baseline: str
    gain: float
    interval: tuple[float, float] | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """What a sweep has found so far."""

    sweep: str = ""
    folder: str = ""
    status: str = "finished"
    metric: str = VAL_LOSS
    """What the winner is chosen by."""
    metric_mode: Mode = "min"
    losses: OptionalText = None
    """What they are, with their unit: `means in nats per example`."""
    winner: WinnerRow | None = None
    winner_folder: str | None = None
    """Where the winner's checkpoint lies with its tokenizer and card, once it was handed over."""
    baselines: Mapping[str, BaselineRow] = field(default_factory=dict)
    reason: OptionalText = None
    """Why nothing may win; None where there is a winner, which has its own."""
    pareto: Front | None = None
    finalists: tuple[Final, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    cost: Cost | None = None
    test: TestScores | None = None
    forgetting: Forgetting | None = None
    earlier_forgetting: EarlierForgetting | None = None
    harness: tuple[HarnessScore, ...] = ()
    """What tasks of lm-eval gave the winner and its base, where `evaluate` has run."""
    lineage: tuple[Ancestor, ...] = ()
    """The winners that the sweep went on from, the oldest first."""
    tokens_per_request: float | None = None
    slices: WinnerSlices | None = None
    metrics: MetricsReport | None = None
    not_measured: tuple[NotMeasured, ...] = ()
    worth: Worth | None = None
    steered: tuple[Steered, ...] = ()
    """What people have asked of the sweep while it ran, and what came of it."""

    @property
    def measure(self) -> Measure:
        return Measure(name=self.metric, mode=self.metric_mode)

    @cached_property
    def rows(self) -> tuple[RankedTrial, ...]:
        """The trials in the order in which they are shown."""
        return in_order(self.trials, self.winner, self.measure)

    @property
    def scores(self) -> Mapping[str, Score]:
        """By name, what the test split gave; empty where it was not scored."""
        return {} if self.test is None else self.test.scores

    def name_of(self, baseline: str) -> str:
        """A baseline in words, the same wherever it is named."""
        measured = self.baselines.get(baseline) or self.scores.get(baseline)
        words = measured.words if measured is not None else None
        words = words or BASELINE_NAMES.get(baseline, baseline)
        prior = self.baselines.get("prior")
        if baseline != "prior" or prior is None or prior.label is None:
            return words
        return f"always {prior.label}, at {words}"


def in_order(
    trials: Sequence[TrialRow], winner: WinnerRow | None, measure: Measure
) -> tuple[RankedTrial, ...]:
    """The winner, the other trials by the best evaluation that may win, and then those that may
    not. measure: what the winner is chosen by.
    """
    found = [(trial, *_standing(trial, winner, measure)) for trial in trials]

    def key(
        entry: tuple[TrialRow, ShownEvaluation | None, str],
    ) -> tuple[bool, bool, tuple[float, float], str]:
        trial, shown, excluded = entry
        best = (math.inf, math.inf) if shown is None else measure.key(shown)
        return not _wins(trial, winner), bool(excluded), best, trial.id

    return tuple(
        RankedTrial(
            trial=trial,
            shown=shown,
            rank=None if excluded else rank,
            wins=_wins(trial, winner),
            tied=winner is not None and trial.id in winner.tied,
            excluded=excluded,
        )
        for rank, (trial, shown, excluded) in enumerate(sorted(found, key=key), start=1)
    )


def _wins(trial: TrialRow, winner: WinnerRow | None) -> bool:
    return winner is not None and trial.id == winner.trial


def _standing(
    trial: TrialRow, winner: WinnerRow | None, measure: Measure
) -> tuple[ShownEvaluation | None, str]:
    """The evaluation that stands for a trial, and why the trial may not win; empty where it may."""
    if winner is not None and _wins(trial, winner):
        return winner, ""
    finite = [e for e in trial.evaluations if e.val_loss is not None and math.isfinite(e.val_loss)]
    finite.sort(key=measure.key)
    for evaluation in finite:
        if not _why_not(trial, evaluation):
            return evaluation, ""
    return (finite[0], _why_not(trial, finite[0])) if finite else (None, _no_loss(trial))


def _why_not(trial: TrialRow, evaluation: JudgedEvaluation) -> str:
    """Why an evaluation with a finite validation loss may not win; empty where it may."""
    if trial.status == "failed":
        failed = trial.verdict in CANNOT_WIN
        return (trial.verdict_reason or trial.verdict or "") if failed else ""
    if evaluation.excluded:
        return evaluation.excluded
    if evaluation.probe_loss is None or not math.isfinite(evaluation.probe_loss):
        return "its probe loss is not finite"
    return "" if evaluation.checkpoint is not None else "its checkpoint is gone"


def _no_loss(trial: TrialRow) -> str:
    if trial.status == "running":
        return "no evaluation yet"
    return trial.verdict_reason or "no evaluation with a finite validation loss"
