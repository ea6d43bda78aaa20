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
    places: dict[str, list[str]] = {}
    for own, place in (
        *_keys(SweepConfig),
        *((own, f"search.space.{own}") for own in HYPERPARAMETERS),
    ):
        places.setdefault(own, []).append(place)
    # a key of another section is seldom a slip of one here that it only resembles, as
    # search.trials_per_slot is none of space
    if near := difflib.get_close_matches(name, here, 1, 0.8 if name in places else 0.6):
        return f"Did you mean {near[0]!r}?"
    near = difflib.get_close_matches(name, places, 1, 0.8) or [
        own for own in places if own.startswith(f"{name}_")
    ]
    if len(near) == 1:
        return f"Did you mean {' or '.join(places[near[0]])}?"
    return f"Allowed: {', '.join(here)}"


def _keys(schema: type, section: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a sweep file: (its name, where it stands)."""
    for name, hint in get_type_hints(schema).items():
        yield name, section + name
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{section}{name}.")


def explained(error: OmegaConfBaseException, tree: Any) -> str:
    """OmegaConf's error in our words: where, what is allowed, what we got."""
    key, hint, value = error.full_key or "", SweepConfig, tree
    for part in re.findall(r"[^.\[\]]+", key):
        if get_origin(hint) in (Union, UnionType):
            hint = get_args(hint)[0]
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint).get(part, Any)
        else:
            hint = get_args(hint)[-1] if get_origin(hint) in (dict, list) else Any
        value = (
            value[int(part)]
            if isinstance(value, list)
            else value.get(part)
            if isinstance(value, dict)
            else None
        )
    if (
        not key
        or hint is Any
        or isinstance(error, InterpolationResolutionError | GrammarParseError)
    ):
        return f"{key}: {str(error.msg or error).strip().splitlines()[0]}"
    return f"{key}: must be {allowed(hint)}, got {shown(value)}"


def allowed(hint: Any) -> str:
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
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        NoneType: "null",
    }
    return words.get(
        hint, "a mapping of names to values" if get_origin(hint) is dict else str(hint)
    )


def shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )
