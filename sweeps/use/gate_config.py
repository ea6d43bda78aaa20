"""What a winner must keep to in order to ship: gate.yaml."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from sweeps.config.loading import load_settings
from sweeps.selection.config import LimitsConfig
from trainables.errors import InputError, did_you_mean

RIVALS = {
    "untuned": ("untuned",),
    "prior": ("prior",),
    "prompts": ("zero_shot", "few_shot", "retrieved"),
    "embeddings": ("embeddings_",),
    "default": ("default",),
}
"""Kinds of what a winner is held against: how the names of their baselines begin."""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How long a request takes on this machine, one at a time. Measured where there is a limit, or
    a price. None: no limit.
    """

    requests: int = 50  # that are timed, of validation rows
    new_tokens: int = 32  # that a language model writes in each
    p50_ms: float | None = None  # highest median
    p95_ms: float | None = None  # highest 95th percentile
    times_base: float | None = None  # highest ratio of the winner's median to its untuned base's

    def __post_init__(self) -> None:
        _check_counts("latency", self, "requests", "new_tokens")
        _check_above_0("latency", self, "p50_ms", "p95_ms", "times_base")


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What requests cost. None: no limit."""

    # of this machine; 1,000 requests then cost what it takes to answer them one after another
    price_per_hour: float | None = None
    per_1000_requests: float | None = None  # highest, in the unit of the price
    inference_cost: float | None = None  # highest arithmetic of a request over the untuned model's

    def __post_init__(self) -> None:
        _check_above_0("cost", self, "price_per_hour", "per_1000_requests", "inference_cost")
        if self.per_1000_requests is not None and self.price_per_hour is None:
            raise InputError(
                "cost.per_1000_requests: needs the price of this machine; give cost.price_per_hour"
            )


@dataclass(frozen=True, kw_only=True)
class MetricLimit:
    """Between what a metric of the winner must lie on the test split. None: no limit."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise InputError("metrics: each must have a min or a max, got neither")

    def holds(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    @property
    def words(self) -> str:
        """What is asked."""
        least = "" if self.min is None else f"at least {self.min:g}"
        most = "" if self.max is None else f"at most {self.max:g}"
        return " and ".join(filter(None, (least, most)))


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """All of gate.yaml; what is not given has these defaults."""

    # chance of shipping a winner that is no better than a rival, over all winners that are ever
    # held against these test rows
    level: float = 0.01
    # what the winner must be better than, as far as the sweep measured it on its test split; the
    # model in use (--against) comes on top
    rivals: list[str] = field(default_factory=lambda: list(RIVALS))
    # by what: val_loss or a metric of the sweep; null: what the sweep chose its winner by
    metric: str | None = None
    test_rows: int = 100  # of a test split that may decide, as far as what is compared is told
    # chance of holding back a winner for a slice on which it is no worse than the model in use (the
    # hardest rival where there is none), over all slices; null: slices may become worse
    slice_level: float | None = 0.05
    limits: LimitsConfig = field(default_factory=LimitsConfig)  # as selection.limits, on the test
    metrics: dict[str, MetricLimit] = field(default_factory=dict)  # the same of metrics, by name
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    cost: CostConfig = field(default_factory=CostConfig)

    def __post_init__(self) -> None:
        for name, value in (("level", self.level), ("slice_level", self.slice_level)):
            if value is not None and not 0 < value < 0.5:
                raise InputError(f"{name}: must be above 0 and below 0.5, got {value:g}")
        _check_counts("", self, "test_rows")
        for rival in self.rivals:
            if rival not in RIVALS:
                raise InputError(
                    f"rivals: {rival!r} is unknown; allowed are"
                    f" {', '.join(RIVALS)}.{did_you_mean(rival, RIVALS)}"
                )

    def holds_against(self, baseline: str) -> bool:
        """Whether a baseline of this name is one of the rivals."""
        return any(baseline.startswith(RIVALS[kind]) for kind in self.rivals)

    @property
    def is_timed(self) -> bool:
        """Whether a limit or a price asks for the latency."""
        limits = (self.latency.p50_ms, self.latency.p95_ms, self.latency.times_base)
        return any(limit is not None for limit in (*limits, self.cost.price_per_hour))

    @property
    def single_limits(self) -> dict[str, LimitsConfig]:
        """Each limit of `limits` that is set, by itself."""
        names = [each.name for each in fields(LimitsConfig) if each.name != "slice_rows"]
        return {
            name: LimitsConfig(**{name: value, "slice_rows": self.limits.slice_rows})
            for name in names
            if (value := getattr(self.limits, name)) is not None
        }


def load_gate(file: Path | None) -> GateConfig:
    """The file's; None: the defaults. Raises InputError."""
    if file is None:
        return GateConfig()
    try:
        return load_settings(file, GateConfig)
    except InputError as error:  # limits say where a sweep file has them
        raise InputError(str(error).replace("selection.limits", "limits")) from error


def _check_counts(section: str, given: object, *names: str) -> None:
    for name in names:
        if (value := getattr(given, name)) < 1:
            raise InputError(f"{_key(section, name)}: must be at least 1, got {value}")


def _check_above_0(section: str, given: object, *names: str) -> None:
    for name in names:
        if (value := getattr(given, name)) is not None and not value > 0:
            raise InputError(f"{_key(section, name)}: must be above 0, got {value:g}")


def _key(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name
