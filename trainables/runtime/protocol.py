"""What slots, the coordinator, trials and the sweep say to one another: frozen records, which
travel between processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainables.engine.memory import MemoryEstimate
from trainables.evaluation.record import Evaluation, Job, JobResult, Untuned
from trainables.metrics.config import GenerationConfig
from trainables.models.config import ModelConfig
from trainables.storage.patience import WAIT_S

Parameters = Mapping[str, object]
"""Hyperparameters by name, as `trainables.hyperparameters.parse` reads them."""


@dataclass(frozen=True, kw_only=True)
class SlotBase:
    """One of the base models that trials may have."""

    model: ModelConfig
    pad_token_id: int
    baseline: Parameters
    """Of a trial: the base that it would train over is evaluated untuned."""
    estimates: Mapping[str, MemoryEstimate] = field(default_factory=dict)
    """On a GPU, of the smallest trials of the sweep over it."""


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """All that a worker of a slot needs to know; the same for every slot of a sweep, but for its
    name.
    """

    sweep: str
    slot: str
    coordinator: str
    """Name of the actor."""
    namespace: str
    storage: str
    """URL or folder of the sweep."""
    bases: Mapping[str, SlotBase]
    """By the words for them; "" is the only one."""
    task: str
    seed: int
    evaluate_every: int | None
    max_tokens: int | None
    precision: str
    save_dtype: str
    gradient_checkpointing: bool
    most: int
    """Trials that `auto` tries to let share the slot."""
    probe_rows: int
    forgetting: bool
    """Whether every evaluation also says what a trial has lost of its base."""
    baseline_minutes: float
    threads: int
    metrics: Sequence[object] = ()
    """Of answers, as the sweep file has them (see trainables.metrics.choosing)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How answers are written."""
    storage_wait_s: float = WAIT_S
    """For how long what storage refuses is tried again."""

    @property
    def first(self) -> str:
        """The word for the base that stands for all where no trial says which."""
        return next(iter(self.bases))


# --- what comes of a trial's way to its next evaluation ---


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The trial has been evaluated and its checkpoint saved."""

    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The trial cannot go on."""

    reason: str
    certain: bool = False
    """Whether it would fail on every slot."""
    log: str | None = None
    """Path or URL of the traceback."""


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """The trial's loss or gradient is no longer a number."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The trial was not let go on."""

    reason: str


Outcome = Evaluated | Failed | Diverged | Stopped


# --- what a slot has to do ---


@dataclass(frozen=True, kw_only=True)
class AssignedTrial:
    """A trial that should be on a slot."""

    parameters: Parameters
    may_train: bool
    """Whether somebody waits for its next evaluation."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A wish to know how many trials of a cost class should share a slot."""

    cost_class: str
    parameters: Parameters
    """Of one of them."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a slot should be doing. A state, not a message: a slot that restarts reads it again."""

    version: int
    trials: Mapping[str, AssignedTrial] = field(default_factory=dict)
    baseline: bool = False
    """Whether to evaluate the untuned base first."""
    profile: Sequence[Profile] = ()
    job: tuple[str, Job] | None = None
    """Something to do with an empty slot: its name, and what."""
    stop: bool = False
    retire: bool = False
    """Whether the slot must go: its trials are paused as they stand, and go on elsewhere."""

    @property
    def asks_for_work(self) -> bool:
        """Whether there is something to do at once."""
        trains = any(trial.may_train for trial in self.trials.values())
        return trains or self.baseline or bool(self.profile) or self.job is not None


# --- what the coordinator knows ---


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """How far a trial has trained, and how fast it last did."""

    samples_seen: int = 0
    samples_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What the coordinator knows at a moment."""

    slots: Mapping[str, Sequence[str]]
    """Slots that run, and the trials on each."""
    nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ids of the nodes that their workers are on."""
    lost: Mapping[str, str]
    """Slots that are gone for good, and why."""
    waiting: Sequence[str] = ()
    """Slots that have no workers, and no room for them."""
    retired: Sequence[str] = ()
    """Slots that have gone as they were told to."""
    hung: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Slots whose workers were killed, as they made no progress, and the trials that trained."""
    quarantined: Mapping[str, Mapping[str, str]]
    """Slots that get no more trials; those that failed there one after another, and how."""
    progress: Mapping[str, TrialProgress]
    baseline: Untuned | None
    limits: Mapping[str, int]
    """How many trials of a cost class should share a slot."""
    jobs: Mapping[str, JobResult | None]
    """What came of each post-search job; None: nothing yet."""
    storage: Mapping[str, str] = field(default_factory=dict)
    """Slots that wait for storage, or are lost as it does not work; and what is wrong with it."""
