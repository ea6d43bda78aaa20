"""What is said of a sweep file that is wrong: where, what is allowed, what we got."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from sweeps.config.schema import HYPERPARAMETERS, SweepConfig


def what_was_meant(name: str, here: Iterable[str]) -> str:
    """What an unknown key may stand for: a near name in its own section, else in another the same,
    nearly the same, or the only one that begins with it.
    """
    keys: dict[str, list[str]] = {}
    for own, key in (
        *_keys(SweepConfig),
        *((own, f"search.space.{own}") for own in HYPERPARAMETERS),
    ):
        keys.setdefault(own, []).append(key)
    # a key of another section is seldom a slip of one here that it only resembles, as
    # search.trials_per_slot is none of space
    if near := difflib.get_close_matches(name, here, 1, 0.8 if name in keys else 0.6):
        return f"Did you mean {near[0]!r}?"
    near = difflib.get_close_matches(name, keys, 1, 0.8) or [
        own for own in keys if own.startswith(f"{name}_")
    ]
    if len(near) == 1:
        return f"Did you mean {' or '.join(keys[near[0]])}?"
    return f"Allowed: {', '.join(here)}"


def _keys(schema: type, section: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a sweep file: (its name, where it stands)."""
    for name, hint in get_type_hints(schema).items():
        yield name, section + name
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{section}{name}.")


def explained(error: OmegaConfBaseException, tree: object, schema: type = SweepConfig) -> str:
    """OmegaConf's error in our words: where, what is allowed, what we got. schema: of all of
    `tree`.
    """
    key = error.full_key or ""
    hint: object = schema
    value = tree
    for part in re.findall(r"[^.\[\]]+", key):
        hint, value = _hint_inside(hint, part), _value_inside(value, part)
    grammar = isinstance(error, InterpolationResolutionError | GrammarParseError)
    if not key or hint is Any or grammar:
        return f"{key}: {str(error.msg or error).strip().splitlines()[0]}"
    return f"{key}: must be {allowed(hint)}, got {shown(value)}"


def _hint_inside(hint: object, part: str) -> object:
    """The type of what stands at `part` in a section, a mapping or a list."""
    if get_origin(hint) in (Union, UnionType):
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return get_type_hints(hint).get(part, Any)
    return get_args(hint)[-1] if get_origin(hint) in (dict, list) else Any


def _value_inside(value: object, part: str) -> object:
    if isinstance(value, list):
        return value[int(part)]
    return value.get(part) if isinstance(value, dict) else None


def allowed(hint: object) -> str:
    """A type, as a person would say it."""
    if dataclasses.is_dataclass(hint):
        return f"a section with {', '.join(f.name for f in dataclasses.fields(hint))}"
    if get_origin(hint) is Literal:
        words = [str(value) for value in get_args(hint)]
        return ("one of " if len(words) > 1 else "") + ", ".join(words)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(allowed(kind) for kind in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each item {allowed(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "a mapping of names to values"
    return WORDS.get(hint, str(hint))


WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def shown(value: object) -> str:
    """A value, as one would write it in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
