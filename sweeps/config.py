"""The sweep file: YAML and `key=value` overrides in, one typed and frozen configuration out. Past this door no DictConfig."""

import dataclasses
import difflib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import YAMLError

from cluster.config import ClusterConfig
from search_spaces import Choice, Domain, Int, LogUniform, Space, load_space
from sweeps.selection import SelectionConfig
from sweeps.tracking import TrackingConfig
from trainables.data.config import DataConfig
from trainables.errors import InputError
from trainables.hyperparameters import COMMON, OPTIONS, Hyperparameters, parse
from trainables.model import ModelConfig

DRAWS = 200  # configurations drawn to know what a space holds


class ConfigError(ValueError):
    """What a user wrote cannot be run. The message is one line: where, what is wrong, what we got, what is allowed."""


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Stops trials that are behind (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934), overfit or diverged."""

    asha: bool = True  # compare trials at the same number of samples seen, and stop the worse ones
    grace_epochs: float = 1.0  # epochs that every trial may train before it is compared
    reduction_factor: float = 3.0  # of the trials that reach a rung, one in so many goes on
    overfit: bool = True  # stop a trial that has clearly overfit
    overfit_patience: int = 1  # overfit evaluations in a row before it is stopped
    diverged: bool = True  # stop a trial whose losses have left those of the untuned model far behind

    def __post_init__(self) -> None:
        if self.grace_epochs <= 0:
            raise ConfigError(f"search.early_stopping.grace_epochs: must be above 0, got {self.grace_epochs}")
        if self.reduction_factor <= 1:
            raise ConfigError(f"search.early_stopping.reduction_factor: must be above 1, got {self.reduction_factor}")
        if self.overfit_patience < 1:
            raise ConfigError(
                f"search.early_stopping.overfit_patience: must be at least 1, got {self.overfit_patience}"
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What varies and how it is searched."""

    space: Any = None  # name of a preset (search_spaces/*.yaml), a YAML file, or the space itself
    trials: int = 20  # in all, over every resume
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # tpe: Optuna's multivariate TPE with constant liar
    startup_trials: int = 10  # random trials before TPE models the space
    initial: list[dict[str, Any]] = field(
        default_factory=list
    )  # configurations to try first; what they leave open is sampled
    time_budget: str | None = (
        None  # wall clock, as 90s, 30m, 8h or 2d; running trials are then stopped, the best so far wins
    )
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"search.trials: must be at least 1, got {self.trials}")
        if self.startup_trials < 0:
            raise ConfigError(f"search.startup_trials: must be 0 or more, got {self.startup_trials}")
        self.time_budget_s()

    def time_budget_s(self) -> float | None:
        if self.time_budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", self.time_budget)
        if match is None or float(match[1]) == 0:
            raise ConfigError(
                f"search.time_budget: must be a number with s, m, h or d, such as 8h, got {self.time_budget!r}"
            )
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is fixed: how trials are trained, and hyperparameters that do not vary."""

    evaluate_every: str | int = "epoch"  # or a number of samples
    max_tokens: int | None = (
        None  # padded tokens in one pass; memory only, results do not depend on it; None: 4096 (CPU), 16384 (GPU)
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the arithmetic; auto: bfloat16 on GPUs that have it
    gradient_checkpointing: bool = False  # trade compute for memory
    probe_rows: int = 512  # training rows whose loss is measured beside the validation loss

    method: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    schedule: str | None = None
    max_grad_norm: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    seed: int | None = None
    layers: int | None = None
    patterns: list[str] | None = None
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: Any = None
    rslora: bool | None = None

    def __post_init__(self) -> None:
        every = self.evaluate_every
        if not (every == "epoch" or (isinstance(every, int) and every > 0)):
            raise ConfigError(f"train.evaluate_every: must be epoch or a number of samples above 0, got {every!r}")
        for name in ("max_tokens", "probe_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name}: must be at least 1, got {value}")

    def fixed(self) -> dict[str, Any]:
        """The hyperparameters that are set here."""
        return {name: value for name in HYPERPARAMETERS if (value := getattr(self, name)) is not None}


HYPERPARAMETERS = (
    "method",
    *COMMON,
    *dict.fromkeys(f.name for options in OPTIONS.values() for f in dataclasses.fields(options)),
)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep."""

    name: str = ""  # part of the folder's name
    storage: str = "runs"  # folder or fsspec URL under which the sweep's folder is made
    seed: int = 0
    task: Literal["classification", "instruction", "causal_lm"] = "classification"
    model: ModelConfig
    data: DataConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ConfigError(f"name: must be 1 to 64 letters, digits, dots, dashes or underscores, got {self.name!r}")
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more, got {self.seed}")

    def space(self) -> Space:
        return load_space(self.search.space)

    def draws(self) -> list[dict[str, Any]]:
        """Complete configurations drawn at random from the space, always the same ones: what trials will look like."""
        space, generator = self.space(), random.Random(0)

        def suggest(name: str, domain: Domain) -> Any:
            match domain:
                case Choice(values=values):
                    return generator.choice(values)
                case Int(low=low, high=high, step=step):
                    return generator.randrange(low, high + 1, step)
                case LogUniform(low=low, high=high):
                    return min(high, max(low, low * (high / low) ** generator.random()))
            return generator.uniform(domain.low, domain.high)

        return [self.complete(space.sample(suggest)) for _ in range(DRAWS)]

    def hyperparameters(self, params: Mapping[str, Any]) -> Hyperparameters:
        """What one sampled configuration trains with: what is fixed, overlaid with `params`."""
        return parse(self.complete(params))

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` with what `train` fixes for their method; the seed is the sweep's unless it is varied."""
        merged = {"seed": self.seed} | self.train.fixed() | dict(params)
        options = OPTIONS.get(merged.get("method", ""))
        if options is None:
            return merged
        allowed = {"method", *COMMON, *(f.name for f in dataclasses.fields(options))}
        return {name: value for name, value in merged.items() if name in allowed or name in params}


def load(file: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and validate a sweep file, whole, before anything starts. Raises ConfigError (or a leaf package's ValueError)."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        given = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}: not valid YAML{at}: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{file}: must be a mapping with name, model, task, data and search")
    return from_tree(given, overrides, str(file))


def from_tree(given: DictConfig, overrides: Sequence[str], where: str) -> SweepConfig:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override}: an override must be key=value, such as search.trials=4")
    schema = OmegaConf.structured(SweepConfig)
    try:
        typed = OmegaConf.merge(schema, given, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    except (ConfigError, InputError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    assert isinstance(config, SweepConfig)
    try:
        _check_hyperparameters(config)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def dump(config: SweepConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back to the same."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's message in one line, with the full key and the nearest right name."""
    message = str(error.msg or error).strip().splitlines()[0]
    key = error.full_key or ""
    if isinstance(error, ConfigKeyError) or "not in" in message:
        known = _names_beside(key)
        last = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(last, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Allowed: {', '.join(known)}." if known else ""
        return f"{key}: unknown key.{hint}"
    if isinstance(error, ConfigTypeError) and not message:
        message = "wrong type"
    return f"{key}: {message}" if key else message


def _names_beside(key: str) -> list[str]:
    schema: Any = SweepConfig
    for part in key.split(".")[:-1]:
        kinds = {f.name: f.type for f in dataclasses.fields(schema)}
        schema = kinds.get(part)
        if not dataclasses.is_dataclass(schema):
            return []
    return [f.name for f in dataclasses.fields(schema)]


def _check_hyperparameters(config: SweepConfig) -> None:
    """The space and what is fixed must fit together for every branch: all that can be known before a trial is drawn."""
    if config.search.space is None:
        raise ConfigError("search.space: not given; the name of a preset, a YAML file, or the space itself")
    space = config.space()
    fixed = config.train.fixed()
    for path, _ in space.parameters:
        name = path.rsplit(".", 1)[-1]
        if name in fixed:
            raise ConfigError(f"train.{name}: also varies in search.space; set it in one place")
        if name not in HYPERPARAMETERS:
            near = difflib.get_close_matches(name, HYPERPARAMETERS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Allowed: {', '.join(HYPERPARAMETERS)}."
            raise ConfigError(f"search.space.{path}: not a hyperparameter.{hint}")
    wrong: dict[str, str] = {}
    right: set[str] = set()
    for draw in config.draws():
        method = str(draw.get("method"))
        try:
            parse(draw)
            right.add(method)
        except InputError as error:
            wrong.setdefault(method, str(error))
    for method in wrong.keys() - right:  # single configurations may be invalid: they are drawn again when they come up
        raise ConfigError(f"search.space: no configuration of method {method} is valid: {wrong[method]}")
    for number, initial in enumerate(config.search.initial):
        try:
            space.encode(initial)
        except ValueError as error:
            raise ConfigError(f"search.initial[{number}]: {error}") from error
