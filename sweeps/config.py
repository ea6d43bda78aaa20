"""The sweep file: YAML and `key=value` overrides in, one typed and frozen configuration out. Past this door no DictConfig."""

import dataclasses
import difflib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from cluster.config import ClusterConfig
from search_spaces import Choice, Domain, Space, SpaceError, load_space, load_tree
from sweeps.selection import SelectionConfig
from sweeps.tracking import TrackingConfig
from trainables.data.config import DataConfig
from trainables.errors import InputError
from trainables.hyperparameters import COMMON, OPTIONS, Hyperparameters, parse
from trainables.model import ModelConfig

# a quarter of the trials, within these: TPE needs a few losses to tell good from bad, and of 7 trials 10 would be all
MIN_STARTUP, MAX_STARTUP = 3, 10
DRAWS = 200  # configurations drawn to know what a space holds


class ConfigError(ValueError):
    """What a user wrote cannot be run. The message is one line: where, what is wrong, what we got, what is allowed."""


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Stops trials that are behind (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934), overfit or diverged."""

    asha: bool = True  # compare trials at the same samples seen, like with like, and stop the worse ones
    grace_epochs: float = 1.0  # epochs that every trial may train before it is compared
    reduction_factor: float = 3.0  # of the trials that reach a rung, one in so many goes on
    overfit: bool = True  # stop a trial that has clearly overfit
    overfit_patience: int = 2  # overfit evaluations in a row before it is stopped
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
    startup_trials: str | int = "auto"  # random trials before TPE models the space; auto: fits the number of trials
    initial: list[dict[str, Any]] = field(
        default_factory=list
    )  # configurations to try first; what they leave open is sampled
    time_budget: str | None = (
        None  # wall clock over every resume, as 90s, 30m, 8h or 2d; running trials are then stopped, the best so far wins
    )
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"search.trials: must be at least 1, got {self.trials}")
        startup = self.startup_trials
        if not (startup == "auto" or (isinstance(startup, int) and startup >= 0)):
            raise ConfigError(f"search.startup_trials: must be auto or 0 or more trials, got {startup!r}")
        self.time_budget_s()

    def random_trials(self) -> int:
        """Trials at random before TPE models the space."""
        if isinstance(self.startup_trials, int):
            return self.startup_trials
        return min(MAX_STARTUP, max(MIN_STARTUP, round(self.trials / 4)))

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
    # of the weights that full and partial fine-tuning leave; auto: the type of the base's own files
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
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
    loraplus_ratio: float | None = None
    bits: int | None = None
    virtual_tokens: int | None = None
    bottleneck: int | None = None

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
    rehearse: bool = True  # take every method through its whole life at a size of seconds before anything is spent
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
        if self.selection.general_text is not None and self.task == "classification":
            raise ConfigError("selection.general_text: is for language models, got task classification")
        limits = self.selection.limits
        if limits.of_forgetting and self.task == "classification":
            raise ConfigError(
                "selection.limits: forgetting and kl are measured of language models (task instruction or causal_lm), "
                "got task classification"
            )
        if limits.of_slices and self.data.slice is None:
            raise ConfigError(
                "selection.limits: limits on slices need data.slice, the column that tells them; got none"
            )
        if limits.slice_accuracy is not None and self.task != "classification":
            raise ConfigError(
                f"selection.limits.slice_accuracy: is for classification, got task {self.task}; slice_loss is for all"
            )
        if not self.data.train:
            raise ConfigError(
                "data.train: not given; a file (.csv, .tsv, .jsonl, .json, .parquet, .txt) or hf:owner/name"
            )

    def space(self) -> Space:
        return load_space(self.search.space)

    def draws(self) -> list[dict[str, Any]]:
        """Valid complete configurations drawn at random from the space, always the same: what trials will look like."""
        return [params for params, _ in self._survey() if self._is_valid(params)]

    @staticmethod
    def _is_valid(params: Mapping[str, Any]) -> bool:
        try:
            parse(params)
        except InputError:
            return False
        return True

    def _survey(self) -> list[tuple[dict[str, Any], dict[str, Domain]]]:
        """Draws, each with the domains that it was drawn from; without those in which a tied value has none."""
        space, generator = self.space(), random.Random(0)
        found, broken = [], None
        for _ in range(DRAWS):
            asked: dict[str, Domain] = {}

            def suggest(name: str, domain: Domain, asked: dict[str, Domain] = asked) -> Any:
                asked[name] = domain
                return domain.draw(generator)

            try:
                found.append((self.complete(space.sample(suggest)), asked))
            except SpaceError as error:
                broken = error
        if broken is not None and not found:
            raise broken
        return found

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
    """Read and validate a sweep file, whole, before anything starts. Raises ConfigError."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        given = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML{_yaml_problem(error)}") from error
    except OSError as error:  # also what OmegaConf raises for a file that holds a lone scalar
        raise ConfigError(f"{file}: must be a mapping with name, model, task, data and search ({error})") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{file}: must be a mapping with name, model, task, data and search, got a list")
    return from_tree(given, overrides, str(file))


def from_tree(given: DictConfig, overrides: Sequence[str], where: str) -> SweepConfig:
    for override in overrides:
        _override(given, override)
    tree = OmegaConf.to_container(given, resolve=False)
    try:
        _check_sections(tree, SweepConfig, "")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SweepConfig), _yaml_words(given)))
        assert isinstance(config, SweepConfig)
        _check_hyperparameters(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_explain(error, tree)}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def _override(given: DictConfig, override: str) -> None:
    """Set what `key=value` names; the value is YAML, and replaces what was there."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[\w-]+|\[\d+\])*", key):
        raise ConfigError(f"{override}: an override must be key=value, such as search.trials=4")
    try:
        if key.startswith("search.space."):
            key = _open_space(given, key)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
        OmegaConf.update(given, key, parsed["value"], merge=False, force_add=True)
    except YAMLError as error:
        raise ConfigError(f"{override}: not valid YAML{_yaml_problem(error)}") from error
    except SpaceError as error:
        raise ConfigError(f"{override}: {error}") from error
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise ConfigError(f"{override}: there is no {key} to set") from error


def _open_space(given: DictConfig, key: str) -> str:
    """Put what a preset or a file holds in the place of its name, for `key` to be set in it. Returns the key as it stands
    there: what is shown as lora.rank is method.lora.rank.
    """
    source = OmegaConf.select(given, "search.space")
    if isinstance(source, str):
        OmegaConf.update(given, "search.space", load_tree(source), merge=False)
    path = key.removeprefix("search.space.")
    branches = OmegaConf.select(given, "search.space.method")
    if re.split(r"[.\[]", path)[0] in OPTIONS and isinstance(branches, DictConfig):
        return f"search.space.method.{path}"
    return key


def _yaml_problem(error: YAMLError | UnicodeDecodeError) -> str:
    mark = getattr(error, "problem_mark", None)
    at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{at}: {getattr(error, 'problem', None) or ' '.join(str(error).split())}"


def _yaml_words(given: DictConfig) -> DictConfig:
    """YAML reads off as false: give the word back where it is one of those allowed."""
    if OmegaConf.select(given, "tracking.wandb") is False:
        OmegaConf.update(given, "tracking.wandb", "off")
    return given


def with_own_space(config: SweepConfig) -> SweepConfig:
    """The configuration with the search space itself in the place of a preset's or a file's name, which may change."""
    if not isinstance(config.search.space, str):
        return config
    space = load_tree(config.search.space)
    return dataclasses.replace(config, search=dataclasses.replace(config.search, space=space))


FIXED_ON_RESUME = {  # what a sweep that has begun cannot change, and why
    "name": "it names the sweep's folder",
    "storage": "it is where the sweep's folder lies",
    "seed": "data, order and heads hang on it; another seed is another sweep",
    "task": "losses of another task do not compare",
    "model": "losses of another base model do not compare",
    "data": "losses on other data do not compare",
    "train.evaluate_every": "trials that are measured more often have more chances to win",
    "train.probe_rows": "probe losses on other rows do not compare",
    "train.precision": "losses in other arithmetic do not compare",
    "selection.general_text": "it was prepared with the data",
    "selection.limits.forgetting": "it was not measured of the trials that have run",
    "selection.limits.kl": "it was not measured of the trials that have run",
}


def differences(former: SweepConfig, config: SweepConfig) -> list[str]:
    """What is set otherwise, in words."""
    before, now = dict(_leaves(former, "")), dict(_leaves(config, ""))
    return [
        key if isinstance(now[key], dict | list) else f"{key}: {_got(before[key])} to {_got(now[key])}"
        for key in before
        if before[key] != now[key]
    ]


def _leaves(section: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(section):
        yield key, section
        return
    for part in dataclasses.fields(section):
        yield from _leaves(getattr(section, part.name), f"{key}.{part.name}" if key else part.name)


def check_resumable(former: SweepConfig, config: SweepConfig) -> None:
    """Raise ConfigError where a sweep that ran as `former` cannot go on as `config`."""
    before, now = dict(_leaves(former, "")), dict(_leaves(config, ""))
    found = []
    for key in [key for key in before if before[key] != now[key]]:
        if key.startswith("selection.limits.") and (now[key] is None or former.selection.limits.of_forgetting):
            continue
        why = next((why for fixed, why in FIXED_ON_RESUME.items() if f"{key}.".startswith(f"{fixed}.")), None)
        if why is not None:
            words = f"{_got(before[key])} to {_got(now[key])}"
            found.append(f"{key}: cannot change when a sweep is resumed ({words}): {why}; run a new sweep for that")
    if found:
        raise ConfigError("; ".join(found))


def as_trained(former: SweepConfig, config: SweepConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a trial of `former` that give the same hyperparameters under `config`: what `train` fixed for it, and fixes
    otherwise or no longer, becomes a parameter of its own.
    """
    before, now = former.train.fixed(), config.train.fixed()
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if not changed:
        return dict(params)
    hp, complete = former.hyperparameters(params), former.complete(params)
    trained = {**vars(hp), **vars(hp.options), **complete}
    return dict(params) | {name: trained[name] for name in HYPERPARAMETERS if name in changed and name in trained}


def dump(config: SweepConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back to the same."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check_sections(given: Any, hint: Any, key: str) -> None:
    """Unknown keys, missing sections, and what should be a section or a list and is not: OmegaConf does not say where."""
    if isinstance(given, str) and given.startswith("${"):
        return
    if dataclasses.is_dataclass(hint) or get_origin(hint) in (dict, list):
        if not isinstance(given, list if get_origin(hint) is list else dict):
            raise ConfigError(f"{key}: must be {_allowed(hint)}, got {_got(given)}")
    if get_origin(hint) is list:
        for index, item in enumerate(given):
            _check_sections(item, get_args(hint)[0], f"{key}[{index}]")
    if not dataclasses.is_dataclass(hint):
        return
    hints = get_type_hints(hint)
    for name, value in given.items():
        at = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise ConfigError(f"{at}: unknown key. {_meant(str(name), hints)}")
        _check_sections(value, hints[name], at)
    for part in dataclasses.fields(hint):
        if part.default is part.default_factory is dataclasses.MISSING and part.name not in given:
            raise ConfigError(f"{f'{key}.' if key else ''}{part.name}: not given; must be {_allowed(hints[part.name])}")


def _meant(name: str, here: Iterable[str]) -> str:
    """What an unknown key may stand for: a near name in its own section, else in another the same, nearly the same, or
    the only one that begins with it.
    """
    places: dict[str, list[str]] = {}
    for own, place in (*_keys(SweepConfig), *((own, f"search.space.{own}") for own in HYPERPARAMETERS)):
        places.setdefault(own, []).append(place)
    # a key of another section is seldom a slip of one here that it only resembles, as search.pack is none of space
    if near := difflib.get_close_matches(name, here, 1, 0.8 if name in places else 0.6):
        return f"Did you mean {near[0]!r}?"
    near = difflib.get_close_matches(name, places, 1, 0.8) or [own for own in places if own.startswith(f"{name}_")]
    if len(near) == 1:
        return f"Did you mean {' or '.join(places[near[0]])}?"
    return f"Allowed: {', '.join(here)}"


def _keys(schema: type, section: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a sweep file: (its name, where it stands)."""
    for name, hint in get_type_hints(schema).items():
        yield name, section + name
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{section}{name}.")


def _explain(error: OmegaConfBaseException, tree: Any) -> str:
    """OmegaConf's error in our words: where, what is allowed, what we got."""
    key, hint, value = error.full_key or "", SweepConfig, tree
    for part in re.findall(r"[^.\[\]]+", key):
        if get_origin(hint) in (Union, UnionType):
            hint = get_args(hint)[0]
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint).get(part, Any)
        else:
            hint = get_args(hint)[-1] if get_origin(hint) in (dict, list) else Any
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    if not key or hint is Any or isinstance(error, InterpolationResolutionError | GrammarParseError):
        return f"{key}: {str(error.msg or error).strip().splitlines()[0]}"
    return f"{key}: must be {_allowed(hint)}, got {_got(value)}"


def _allowed(hint: Any) -> str:
    """A type, as a person would say it."""
    if dataclasses.is_dataclass(hint):
        return f"a section with {', '.join(f.name for f in dataclasses.fields(hint))}"
    if get_origin(hint) is Literal:
        words = [str(value) for value in get_args(hint)]
        return ("one of " if len(words) > 1 else "") + ", ".join(words)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_allowed(kind) for kind in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each item {_allowed(get_args(hint)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint, "a mapping of names to values" if get_origin(hint) is dict else str(hint))


def _got(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _check_hyperparameters(config: SweepConfig) -> None:
    """The space and what is fixed must fit together for every branch: all that can be known before a trial is drawn."""
    if config.search.space is None:
        raise ConfigError("search.space: not given; the name of a preset, a YAML file, or the space itself")
    space = config.space()
    if config.search.sampler == "grid" and space.size() is None:
        raise ConfigError(
            "search.sampler: grid needs a finite space, got one in which a float varies; allowed: tpe, random"
        )
    fixed = config.train.fixed()
    for path, _ in space.parameters:
        name = path.rsplit(".", 1)[-1]
        if name in fixed:
            raise ConfigError(f"train.{name}: also varies in search.space; set it in one place")
        if name not in HYPERPARAMETERS:
            raise ConfigError(f"search.space.{path}: not a hyperparameter. {_meant(name, HYPERPARAMETERS)}")
    if "method" not in fixed and not any(path == "method" for path, _ in space.parameters):
        raise ConfigError(f"search.space.method: not given; one of {', '.join(OPTIONS)}, here or as train.method")
    wrong: dict[str, str] = {}
    right: set[str] = set()
    for draw, _ in config._survey():
        method = str(draw.get("method"))
        try:
            parse(draw)
            right.add(method)
        except InputError as error:
            wrong.setdefault(method, str(error))
    for method, reason in wrong.items():
        if method in right:  # single configurations may be invalid: they are drawn again when they come up
            continue
        if reason.partition(":")[0] in fixed:
            raise ConfigError(f"train.{reason}")
        if method not in OPTIONS:
            raise ConfigError(f"search.space.{reason}")
        raise ConfigError(f"search.space: no configuration of method {method} is valid: {reason}")
    _check_values(config)
    for number, initial in enumerate(config.search.initial):
        space.encode(initial, f"search.initial[{number}]")


def _check_values(config: SweepConfig) -> None:
    """Every value of a choice and both ends of every range must be ones that can be trained: a typo is not a rare draw."""
    checked: set[str] = set()
    for draw, asked in config._survey():
        for path, domain in asked.items():
            name = path.rsplit(".", 1)[-1]
            if path in checked or name == "method":
                continue
            checked.add(path)
            for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
                try:
                    parse({**draw, name: value})
                except InputError as error:
                    if str(error).startswith(f"{name}:"):
                        raise ConfigError(f"search.space.{path}: {str(error).removeprefix(f'{name}: ')}") from error
