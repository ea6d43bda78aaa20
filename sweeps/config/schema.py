"""The sections of a sweep file, typed and frozen, each with the checks that its types do not say.

OmegaConf reads and casts, but knows no ranges. pydantic knows those of single numbers, but names
only the bound that was broken and wraps what a section checks across several settings in an error
of its own: telling all that in our words would take about the lines that it saves.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config import ClusterConfig
from search_spaces import Domain, Setting, Space, SpaceError, auto_space, load_space, load_tree
from sweeps.config.models import ModelsConfig
from sweeps.selection.config import SelectionConfig
from sweeps.tracking.config import TrackingConfig
from trainables.data.config import DataConfig
from trainables.errors import InputError
from trainables.evaluation.generation import writes_answers
from trainables.hyperparameters import COMMON, FIELDS, OPTIONS, Hyperparameters, parse
from trainables.metrics.config import GenerationConfig
from trainables.models.files import width_and_layers
from trainables.tasks import TASKS, Task

# a quarter of the trials, within these: TPE needs a few losses to tell good from bad, and of 7
# trials 10 would be all
MIN_STARTUP, MAX_STARTUP = 3, 10
AUTO = "auto"  # `search.space` that follows from task, model and data
DRAWS = 200  # configurations drawn to know what a space holds


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Stops trials that are behind, overfit or diverged."""

    # epochs that every trial may train before it is compared (asha)
    grace_epochs: float = 1.0
    reduction_factor: float = 3.0  # of the trials that reach a rung, one in so many goes on (asha)
    overfit: bool = True  # stop a trial that has clearly overfit
    overfit_patience: int = 2  # overfit evaluations in a row before it is stopped
    # stop a trial whose losses have left those of the untuned model far behind
    diverged: bool = True

    def __post_init__(self) -> None:
        if self.grace_epochs <= 0:
            raise InputError(
                f"search.early_stopping.grace_epochs: must be above 0, got {self.grace_epochs}"
            )
        if self.reduction_factor <= 1:
            raise InputError(
                "search.early_stopping.reduction_factor: must be above 1, got"
                f" {self.reduction_factor}"
            )
        if self.overfit_patience < 1:
            raise InputError(
                "search.early_stopping.overfit_patience: must be at least 1, got"
                f" {self.overfit_patience}"
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What varies and how it is searched."""

    # auto, the name of a preset (search_spaces/*.yaml), a YAML file, or the space itself
    space: Any = None
    trials: int = 20  # in all, over every resume; those that somebody adds come on top
    # tpe: Optuna's multivariate TPE with constant liar
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    # random trials before TPE models the space; auto: fits the number of trials
    startup_trials: str | int = "auto"
    # asha: trials that are behind are stopped (Li et al. 2020, https://arxiv.org/abs/1810.05934);
    # freeze_thaw: after each evaluation the model of all curves says who trains next, a paused
    # trial or a new one (Swersky et al. 2014, https://arxiv.org/abs/1406.3896)
    scheduler: Literal["asha", "freeze_thaw", "none"] = "asha"
    # freeze_thaw: the search ends where as much training again as so far is expected to lower the
    # lowest loss by less than this
    patience: float = 0.001
    # configurations to try first; what they leave open is sampled
    initial: list[dict[str, Any]] = field(default_factory=list)
    # earlier sweeps of this task, whose trials the search starts from: folders, URLs, or
    # wandb:ENTITY/PROJECT/SWEEP
    prior: list[str] = field(default_factory=list)
    # wall clock over every resume, as 90s, 30m, 8h or 2d; running trials are then stopped, the best
    # so far wins
    time_budget: str | None = None
    # hours of an accelerator, or else of a core, that the slots may hold, over every resume
    device_hours: float | None = None
    cost: float | None = None  # the same in money, at `price` for such an hour
    price: float | None = None
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"search.trials: must be at least 1, got {self.trials}")
        startup = self.startup_trials
        if not (startup == "auto" or (isinstance(startup, int) and startup >= 0)):
            raise InputError(
                f"search.startup_trials: must be auto or 0 or more trials, got {startup!r}"
            )
        if not 0 <= self.patience < math.inf:
            raise InputError(f"search.patience: must be 0 or above, got {self.patience:g}")
        if self.scheduler == "freeze_thaw" and self.sampler == "grid":
            raise InputError(
                "search.sampler: scheduler freeze_thaw chooses configurations itself, at random or"
                " after tpe's first ones, got grid"
            )
        if self.prior and self.sampler != "tpe":
            raise InputError(
                f"search.prior: only sampler tpe learns from trials, got {self.sampler}"
            )
        self.time_budget_s()
        self._check_budgets()

    def _check_budgets(self) -> None:
        for name in ("device_hours", "cost", "price"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"search.{name}: must be above 0, got {value:g}")
        if self.cost is not None and self.price is None:
            raise InputError("search.cost: needs search.price, that of an hour of a device")

    def device_budget_h(self) -> float | None:
        """Device hours that the sweep may take, of what limits them the least."""
        limits = [] if self.device_hours is None else [self.device_hours]
        if self.cost is not None and self.price is not None:
            limits.append(self.cost / self.price)
        return min(limits, default=None)

    def device_budget_words(self) -> str:
        """What sets `device_budget_h`."""
        hours = self.device_budget_h()
        if hours is None:
            return "no budget of device hours"
        if hours == self.device_hours:
            return f"the budget of {hours:g} device hours"
        return f"the budget of {self.cost:g} at {self.price:g} a device hour"

    def random_trials(self) -> int:
        """Trials at random before TPE models the space."""
        if isinstance(self.startup_trials, int):
            return self.startup_trials
        return min(MAX_STARTUP, max(MIN_STARTUP, round(self.trials / 4)))

    def time_budget_s(self) -> float | None:
        if self.time_budget is None:
            return None
        if (found := seconds_of(self.time_budget)) is None:
            raise InputError(
                "search.time_budget: must be a number with s, m, h or d, such as 8h, got"
                f" {self.time_budget!r}"
            )
        return found


UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}  # of spans of time, in seconds


def seconds_of(span: str) -> float | None:
    """Of `90s`, `30m`, `8h` or `2d`; None where it is no such span of time."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", span)
    if match is None or float(match[1]) == 0:
        return None
    return float(match[1]) * UNITS[match[2]]


HYPERPARAMETERS = tuple(FIELDS)  # of every method, as the methods declare them

# a field for each of them, null where it is not set
_Fixed = dataclasses.make_dataclass(
    "_Fixed",
    [(name, kind, field(default=None)) for name, kind in FIELDS.items()],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Fixed):
    """What is fixed: how trials are trained, and hyperparameters that do not vary."""

    evaluate_every: str | int = "epoch"  # or a number of samples
    # padded tokens in one micro-batch; memory only, results do not depend on it; None: 4096 (CPU),
    # 16384 (GPU)
    max_tokens: int | None = None
    # of the arithmetic; auto: bfloat16 on GPUs that have it
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # of the weights that full and partial fine-tuning leave; auto: the type of the base's own files
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gradient_checkpointing: bool = False  # trade compute for memory
    probe_rows: int = 512  # training rows whose loss is measured beside the validation loss

    def __post_init__(self) -> None:
        every = self.evaluate_every
        if not (every == "epoch" or (isinstance(every, int) and every > 0)):
            raise InputError(
                f"train.evaluate_every: must be epoch or a number of samples above 0, got {every!r}"
            )
        for name in ("max_tokens", "probe_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"train.{name}: must be at least 1, got {value}")

    def fixed(self) -> dict[str, object]:
        """The hyperparameters that are set here."""
        return {
            name: value for name in HYPERPARAMETERS if (value := getattr(self, name)) is not None
        }


def tasks_that(are: Callable[[Task], bool]) -> str:
    """Their names, in words."""
    return " or ".join(name for name, task in TASKS.items() if are(task))


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep."""

    name: str = ""  # part of the folder's name
    storage: str = "runs"  # folder or fsspec URL under which the sweep's folder is made
    # what checkpoints may take, such as 50GB: those out of the race are deleted
    storage_budget: str | None = None
    seed: int = 0
    # take every method through its whole life at a size of seconds before anything is spent
    rehearse: bool = True
    task: str = "classification"  # one of trainables.tasks.TASKS
    model: ModelsConfig
    data: DataConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    # of what models write to rows: names, or {name: options}
    metrics: list[Any] = field(default_factory=list)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise InputError(
                "name: must be 1 to 64 letters, digits, dots, dashes or underscores, got"
                f" {self.name!r}"
            )
        if self.task not in TASKS:
            raise InputError(f"task: must be one of {', '.join(TASKS)}, got {self.task!r}")
        self.storage_budget_bytes()
        if self.seed < 0:
            raise InputError(f"seed: must be 0 or more, got {self.seed}")
        self._check_limits()
        self._check_metrics()
        if not self.data.train:
            raise InputError(
                "data.train: not given; a file, a folder or a pattern of files, a URL, or"
                " hf:owner/name"
            )

    def storage_budget_bytes(self) -> float | None:
        if self.storage_budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|TB)", self.storage_budget)
        if match is None or float(match[1]) == 0:
            raise InputError(
                "storage_budget: must be a number with MB, GB or TB, such as 50GB, got"
                f" {self.storage_budget!r}"
            )
        return float(match[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[match[2]]

    def _check_limits(self) -> None:
        """What selection asks for must be what the task and the data can give."""
        task, limits = TASKS[self.task], self.selection.limits
        if self.selection.general_text is not None and not task.continues_text:
            raise InputError(
                "selection.general_text: is for language models that read any text (task"
                f" {tasks_that(lambda each: each.continues_text)}), got task {self.task}"
            )
        if limits.of_forgetting and not task.continues_text:
            raise InputError(
                "selection.limits: forgetting and kl are measured of language models (task"
                f" {tasks_that(lambda each: each.continues_text)}), got task {self.task}"
            )
        if limits.of_slices and self.data.slice is None:
            raise InputError(
                "selection.limits: limits on slices need data.slice, the column that tells them;"
                " got none"
            )
        if limits.slice_accuracy is not None and "accuracy" not in task.metric_names:
            raise InputError(
                "selection.limits.slice_accuracy: is for"
                f" {tasks_that(lambda each: 'accuracy' in each.metric_names)}, got task"
                f" {self.task}; slice_loss is for all"
            )

    def _check_metrics(self) -> None:
        """Metrics of answers need a task that writes them; what they are is looked at later."""
        task = TASKS[self.task]
        if self.metrics and not writes_answers(task):
            raise InputError(
                f"metrics: are of answers that a model writes (task {tasks_that(writes_answers)}),"
                f" got task {self.task}, which measures {', '.join(task.metric_names) or 'none'};"
                " selection.metric names one of these"
            )

    @property
    def searching(self) -> SelectionConfig:
        """By what the search tells trials apart: the metric that chooses the winner, where every
        evaluation has it, else the loss.
        """
        everywhere = self.generation.when == "evaluations"
        if everywhere or self.selection.metric in TASKS[self.task].metric_names:
            return self.selection
        return dataclasses.replace(self.selection, metric=None)

    @property
    def bases(self) -> tuple[str, ...]:
        """The words for the base models that trials may have; "" for the only one."""
        return tuple(self.model.choice) or ("",)

    @property
    def compares_tokenizers(self) -> bool:
        """Whether trials have bases whose tokens differ, and a loss of each token: then losses are
        told in bits per byte of the text, which are the same for all.
        """
        return len(self.bases) > 1 and TASKS[self.task].loss.of_tokens

    def over(self, base: str) -> "SweepConfig":
        """As of a sweep that has this base alone."""
        one = self.model.base(base)
        return dataclasses.replace(self, model=ModelsConfig(**vars(one)))

    def space(self) -> Space:
        given = self.search.space
        if given == AUTO:
            given = self.auto_space()
        if not self.model.choice or not isinstance(given, str | Mapping):
            return load_space(given)
        tree = load_tree(given) if isinstance(given, str) else given
        if isinstance(tree, Mapping) and "model" not in tree:
            tree = {"model": {"choice": list(self.bases)}, **tree}
        return load_space(tree)

    def auto_space(self, rows: int | None = None) -> dict[str, object]:
        """What `search.space: auto` stands for: of several bases each with a branch of its own."""
        fixed = self.train.fixed()
        if not self.model.choice:
            return auto_space(self.setting(rows), fixed)
        found = {base: auto_space(self.over(base).setting(rows), fixed) for base in self.bases}
        return {"model": found}

    def setting(self, rows: int | None = None) -> Setting:
        """What `search.space: auto` goes by, of the only base. rows: of train, where they are
        known. Raises InputError where the model cannot be found.
        """
        width, layers = width_and_layers(self.model)
        task = TASKS[self.task]
        return Setting(
            classifies=not task.is_language_model,
            compares=task.has_pairs,
            width=width,
            layers=layers,
            rows=rows,
        )

    def draws(self) -> list[dict[str, object]]:
        """Valid complete configurations drawn at random from the space, always the same: what
        trials will look like.
        """
        return [params for params, _ in self.survey() if self._is_valid(params)]

    @staticmethod
    def _is_valid(params: Mapping[str, object]) -> bool:
        try:
            parse(params)
        except InputError:
            return False
        return True

    def survey(self) -> list[tuple[dict[str, object], dict[str, Domain]]]:
        """Draws, each with the domains that it was drawn from; without those in which a tied value
        has none.
        """
        space, generator = self.space(), random.Random(0)
        found, broken = [], None
        for _ in range(DRAWS):
            asked: dict[str, Domain] = {}

            def suggest(name: str, domain: Domain, asked: dict[str, Domain] = asked) -> object:
                asked[name] = domain
                return domain.draw(generator)

            try:
                found.append((self.complete(space.sample(suggest)), asked))
            except SpaceError as error:
                broken = error
        if broken is not None and not found:
            raise broken
        return found

    def hyperparameters(self, params: Mapping[str, object]) -> Hyperparameters:
        """What one sampled configuration trains with: what is fixed, overlaid with `params`."""
        return parse(self.complete(params))

    def complete(self, params: Mapping[str, object]) -> dict[str, Any]:
        """`params` with what `train` fixes for their method; the seed is the sweep's unless it is
        varied.
        """
        merged: dict[str, object] = {"seed": self.seed} | self.train.fixed() | dict(params)
        options = OPTIONS.get(str(merged.get("method")))
        if options is None:
            return merged
        allowed = {"method", "model", *COMMON, *(f.name for f in dataclasses.fields(options))}
        return {name: value for name, value in merged.items() if name in allowed or name in params}
