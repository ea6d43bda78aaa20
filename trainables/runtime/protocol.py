"""What slots, the coordinator and trials say to one another."""

from dataclasses import dataclass, field
from typing import Any

from trainables.engine.memory import MemoryEstimate
from trainables.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """All that a worker of a slot needs to know; the same for every slot of a sweep, but for its
    name.
    """

    slot: str
    coordinator: str  # name of the actor
    namespace: str
    storage: str  # URL or folder of the sweep
    model: ModelConfig
    task: str
    baseline: dict[
        str, Any
    ]  # parameters of a trial: the base that it would train over is measured untuned
    seed: int
    pad_token_id: int
    evaluate_every: int | None
    max_tokens: int | None
    precision: str
    save_dtype: str
    gradient_checkpointing: bool
    most: int  # trials that `auto` tries to let share the slot
    probe_rows: int
    forgetting: bool  # measure with every evaluation what a trial has lost of its base
    baseline_minutes: float
    threads: int
    estimates: dict[str, MemoryEstimate] = field(
        default_factory=dict
    )  # on a GPU, of the smallest trials of the sweep


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The trials that should be on a slot: parameters of each, and whether it may train on towards
    its next evaluation.
    """

    version: int
    trials: dict[str, tuple[dict[str, Any], bool]] = field(default_factory=dict)
    baseline: bool = False  # measure the untuned base first
    profile: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # find out how many trials of these kinds should share
    # something to do with an empty slot: its name, and what
    job: tuple[str, dict[str, Any]] | None = None
    stop: bool = False
