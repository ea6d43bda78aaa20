"""The sweep file: YAML and `key=value` overrides in, one typed and frozen configuration out. Past
this door no DictConfig.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from search_spaces import SpaceError, load_tree
from sweeps.config.checks import check_hyperparameters
from sweeps.config.messages import allowed, explained, shown, what_was_meant
from sweeps.config.renamed import in_present_words, refuse_former_names
from sweeps.config.schema import AUTO, SweepConfig
from sweeps.config.secrets import refuse_environment, refuse_secret_urls
from trainables.errors import InputError
from trainables.hyperparameters import OPTIONS

Container = TypeVar("Container", dict, list)
Settings = TypeVar("Settings")
SWEEP_FILE = "a mapping with name, model, task, data and search"


def load(file: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and validate a sweep file, whole, before anything starts. Raises InputError."""
    given = _read(file, SWEEP_FILE)
    try:
        refuse_secret_urls(OmegaConf.to_container(given, resolve=False))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return from_tree(given, overrides, str(file))


def load_settings(file: Path, schema: type[Settings]) -> Settings:
    """Read and validate another file of settings, all of which have defaults. Raises
    InputError.
    """
    given = _read(file, allowed(schema))
    tree = OmegaConf.to_container(given, resolve=False)
    try:
        _check_sections(tree, schema, "")
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
        assert isinstance(found, schema)
        return found
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: {explained(error, tree, schema)}") from error
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def _read(file: Path, wanted: str) -> DictConfig:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        given = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid YAML{_yaml_problem(error)}") from error
    except OSError as error:  # also what OmegaConf raises for a file that holds a lone scalar
        raise InputError(f"{file}: must be {wanted} ({error})") from error
    if not isinstance(given, DictConfig):
        raise InputError(f"{file}: must be {wanted}, got a list")
    return given


def from_folder(content: bytes, overrides: Sequence[str], where: str) -> SweepConfig:
    """What a sweep's folder holds of its configuration, also where an earlier version wrote it."""
    try:
        given = OmegaConf.create(content.decode())
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: damaged, it is not YAML ({error})") from error
    if not isinstance(given, DictConfig):
        raise InputError(f"{where}: damaged, it is not a mapping")
    given = in_present_words(given)
    if any(override.startswith("selection.metric=") for override in overrides):
        # the direction that is written there is that of the former metric
        _override(given, "selection.metric_mode=auto")
    return from_tree(given, overrides, where)


def from_tree(given: DictConfig, overrides: Sequence[str], where: str) -> SweepConfig:
    for override in overrides:
        _override(given, override)
    tree = OmegaConf.to_container(given, resolve=False)
    try:
        refuse_environment(tree)
        refuse_former_names(given)
        _check_sections(tree, SweepConfig, "")
        config = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(SweepConfig), _yaml_words(given))
        )
        assert isinstance(config, SweepConfig)
        if config.search.space != AUTO:
            check_hyperparameters(config)
    except OmegaConfBaseException as error:
        raise InputError(f"{where}: {explained(error, tree)}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return config


def _override(given: DictConfig, override: str) -> None:
    """Set what `key=value` names; the value is YAML, and replaces what was there."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[\w-]+|\[\d+\])*", key):
        raise InputError(f"{override}: an override must be key=value, such as search.trials=4")
    try:
        if key.startswith("search.space."):
            key = _open_space(given, key)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
        assert isinstance(parsed, dict)
        refuse_secret_urls({key: parsed["value"]})
        OmegaConf.update(given, key, parsed["value"], merge=False, force_add=True)
    except YAMLError as error:
        raise InputError(f"{override}: not valid YAML{_yaml_problem(error)}") from error
    except SpaceError as error:
        raise InputError(f"{override}: {error}") from error
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise InputError(f"{override}: there is no {key} to set") from error


def _open_space(given: DictConfig, key: str) -> str:
    """Put what a preset or a file holds in the place of its name, for `key` to be set in it.
    Returns the key as it stands there: what is shown as lora.rank is method.lora.rank.
    """
    source = OmegaConf.select(given, "search.space")
    if source == AUTO:
        raise SpaceError(
            "search.space: auto is not known before the data are read; what is fixed under train"
            " takes the place of what it would vary, and `check` prints the ranges to start from"
        )
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


def with_own_space(config: SweepConfig, rows: int | None = None) -> SweepConfig:
    """The configuration with the search space itself in the place of a preset's or a file's name,
    which may change, and of `auto` where the `rows` of train are known.
    """
    if config.search.space == AUTO:
        if rows is None:
            return config
        space = config.auto_space(rows)
    elif isinstance(config.search.space, str):
        space = load_tree(config.search.space)
    else:
        return config
    found = dataclasses.replace(config, search=dataclasses.replace(config.search, space=space))
    check_hyperparameters(found)
    return found


def dump(config: SweepConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back to the same."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check_sections(given: object, hint: object, key: str) -> None:
    """Unknown keys, missing sections, and what should be a section or a list and is not: OmegaConf
    does not say where.
    """
    if isinstance(given, str) and given.startswith("${"):
        return
    if get_origin(hint) is dict:
        for name, item in _expect(dict, given, hint, key).items():
            _check_sections(item, get_args(hint)[1], f"{key}.{name}")
    elif get_origin(hint) is list:
        for index, item in enumerate(_expect(list, given, hint, key)):
            _check_sections(item, get_args(hint)[0], f"{key}[{index}]")
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _check_keys(_expect(dict, given, hint, key), hint, f"{key}." if key else "")


def _expect(kind: type[Container], given: object, hint: object, key: str) -> Container:
    if not isinstance(given, kind):
        raise InputError(f"{key}: must be {allowed(hint)}, got {shown(given)}")
    return given


def _check_keys(given: Mapping[object, object], schema: type, section: str) -> None:
    hints = get_type_hints(schema)
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"{section}{name}: unknown key. {what_was_meant(str(name), hints)}")
        _check_sections(value, hints[str(name)], f"{section}{name}")
    for part in dataclasses.fields(schema):
        if part.default is part.default_factory is dataclasses.MISSING and part.name not in given:
            raise InputError(
                f"{section}{part.name}: not given; must be {allowed(hints[part.name])}"
            )
