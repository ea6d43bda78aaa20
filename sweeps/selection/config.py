"""The `selection` section of the sweep file."""

import math
from dataclasses import dataclass, field
from typing import Literal

from sweeps.selection.measure import VAL_LOSS, Measure


@dataclass(frozen=True, kw_only=True)
class FinalistsConfig:
    """The best configurations, trained again with new seeds: a lucky seed must not win."""

    top: int = 0  # configurations; 0: none
    seeds: int = 3  # new ones, of each

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"selection.finalists.top: must be 0 or more, got {self.top}")
        if self.seeds < 1:
            raise ValueError(f"selection.finalists.seeds: must be at least 1, got {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a checkpoint must keep to in order to win, whatever its validation loss. None: no limit.

    Limits on what is forgotten are for language models, and make every evaluation measure it.
    Limits on slices need `data.slice`.
    """

    # nats per token by which the loss on general text may lie above the base's

    forgetting: float | None = None
    # nats by which predictions on the task's prompts may diverge from the base's
    kl: float | None = None
    slice_loss: float | None = None  # highest loss that a slice may have
    # how far the losses of the worst and the best slice may lie apart
    slice_gap: float | None = None
    # lowest accuracy that a slice may have (classification, token_classification)
    slice_accuracy: float | None = None
    # slices of fewer rows count for none of these: their numbers are mostly noise
    slice_rows: int = 30

    def __post_init__(self) -> None:
        for name in ("kl", "slice_loss", "slice_gap"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"selection.limits.{name}: must be above 0, got {value}")
        if self.forgetting is not None and not math.isfinite(self.forgetting):
            raise ValueError(
                f"selection.limits.forgetting: must be a finite number, got {self.forgetting}"
            )
        if self.slice_accuracy is not None and not 0 < self.slice_accuracy <= 1:
            raise ValueError(
                "selection.limits.slice_accuracy: must be above 0 and at most 1, got"
                f" {self.slice_accuracy}"
            )
        if self.slice_rows < 1:
            raise ValueError(
                f"selection.limits.slice_rows: must be at least 1, got {self.slice_rows}"
            )

    @property
    def of_forgetting(self) -> bool:
        return self.forgetting is not None or self.kl is not None

    @property
    def of_slices(self) -> bool:
        return any(
            limit is not None for limit in (self.slice_loss, self.slice_gap, self.slice_accuracy)
        )


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Thresholds of the verdicts; relative numbers are shares (0.02 = 2%)."""

    # metric by which the winner is chosen among what may win; None: the validation loss
    metric: str | None = None
    # whether less or more of it is better; auto: as the metric says
    metric_mode: Literal["auto", "min", "max"] = "auto"

    # validation loss above the trial's minimum, while probe loss fell: Prechelt's generalisation
    # loss
    overfit_rise: float = 0.02
    # a rise must also exceed so many standard deviations of the noise that the curve itself shows
    noise: float = 4.0
    # (validation - probe) / validation above this is told: the training rows are memorised
    overfit_gap: float = 0.9
    # a last evaluation that is the best by more than this is still improving
    improving: float = 0.01
    # a best loss less than this below the untuned model's (and the best single answer's) has
    # learnt nothing
    underfit: float = 0.02
    # the same class for so large a share of the validation rows is no answer to the input
    one_answer: float = 0.99
    diverge_ratio: float = 2.0  # validation and probe loss above so many times the untuned model's
    # a candidate closer to the best than this, paired per example, is tied with it
    tie_standard_errors: float = 1.0
    # of the tied: the lowest validation loss, or what costs least to use
    prefer: Literal["lowest", "cheapest"] = "lowest"
    finalists: FinalistsConfig = field(default_factory=FinalistsConfig)
    # file on which forgetting is measured (language models); None: Python's manual
    general_text: str | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    # also show which trials none beats in validation loss and in this at once
    pareto: Literal["trainable_parameters", "inference_cost"] | None = None
    # measure other ways than fine-tuning too: embeddings, examples in the prompt
    baselines: bool = True
    baseline_minutes: float = 10.0  # for that, on each split; what is not done by then is left out

    @property
    def measure(self) -> Measure:
        """What candidates are ranked by."""
        if self.metric is None or self.metric == VAL_LOSS:
            return Measure()
        return Measure(name=self.metric, mode="min" if self.metric_mode == "min" else "max")

    def __post_init__(self) -> None:
        if self.metric is not None and self.finalists.top:
            raise ValueError(
                "selection.metric: new seeds (selection.finalists) are compared by their validation"
                f" loss; set one of the two, got {self.metric} and top {self.finalists.top}"
            )
        for name in ("overfit_rise", "noise", "improving", "underfit", "tie_standard_errors"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"selection.{name}: must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.overfit_gap <= 1:
            raise ValueError(
                f"selection.overfit_gap: must be above 0 and at most 1, got {self.overfit_gap}"
            )
        if not self.diverge_ratio > 1:
            raise ValueError(f"selection.diverge_ratio: must be above 1, got {self.diverge_ratio}")
        if not 0.5 < self.one_answer <= 1:
            raise ValueError(
                f"selection.one_answer: must be above 0.5 and at most 1, got {self.one_answer}"
            )
        if not self.baseline_minutes > 0:
            raise ValueError(
                f"selection.baseline_minutes: must be above 0, got {self.baseline_minutes}"
            )
