"""The `metrics` of a sweep file: names, or names with options, as metrics that can score."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import get_args, get_type_hints

from trainables.data.rows import shorten
from trainables.errors import InputError, did_you_mean
from trainables.metrics import Metric
from trainables.metrics.function import FunctionMetric
from trainables.metrics.judge import Judge
from trainables.metrics.libraries import ERRORS, FUNCTIONALS, EvaluateMetric, TorchMetric
from trainables.metrics.sql import SqlExecution
from trainables.metrics.structured import JsonSchema, JsonValid
from trainables.metrics.text import Bleu, Chrf, ExactMatch, RougeL, TokenF1
from trainables.metrics.tool_calls import ToolCalls

Kind = Callable[..., Metric]
BUILT_IN: Mapping[str, Kind] = {
    "exact_match": ExactMatch,
    "token_f1": TokenF1,
    "rouge_l": RougeL,
    "chrf": Chrf,
    "bleu": Bleu,
    "json_valid": JsonValid,
    "json_schema": JsonSchema,
    "sql_execution": SqlExecution,
    "tool_calls": ToolCalls,
    "judge": Judge,
}
ELSEWHERE = "evaluate:NAME, torchmetrics:NAME or module:function"
NAME = re.compile(r"[A-Za-z_][\w.-]*")


def metrics_from(entries: Sequence[object], where: str = "metrics") -> tuple[Metric, ...]:
    """Metrics of a list of names and of mappings {name: options}, in its order.

    All that can be known before there are answers is looked at: files are opened, modules imported,
    a library's metric computed of one row. Paths are those of the current folder. Raises
    InputError.
    """
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Sequence):
        raise InputError(
            f"{where}: must be a list of names, or of mappings like {{rouge_l: {{stemmer: true}}}},"
            f" got {shorten(entries)}"
        )
    found = tuple(_metric(entry, f"{where}[{k}]") for k, entry in enumerate(entries))
    name, count = next(iter(Counter(each.name for each in found).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(
            f"{where}: {count} of them are called {name!r}: give all but one another `name`, like"
            f" {{{name}: {{name: {name}_2}}}}"
        )
    return found


def _metric(entry: object, where: str) -> Metric:
    name, options = _name_and_options(entry, where)
    chosen = _chosen(name, where)
    checked = _options(options, chosen, f"{where}.{name}")
    if not NAME.fullmatch(called := str(checked.get("name", "m"))):
        raise InputError(
            f"{where}.{name}.name: must be letters, digits, '_', '.' and '-', got {called!r}"
        )
    try:
        return chosen.kind(**{**chosen.defaults, **chosen.fixed, **checked})
    except InputError as error:
        raise InputError(f"{where}{'.' if name in BUILT_IN else ': '}{error}") from error


def _name_and_options(entry: object, where: str) -> tuple[str, Mapping[str, object]]:
    match entry:
        case str():
            return entry, {}
        case Mapping() if len(entry) == 1:
            ((name, options),) = entry.items()
            if isinstance(name, str) and isinstance(options, Mapping | None):
                return name, options or {}
    raise InputError(
        f"{where}: must be a name, or a mapping of one name to its options, like"
        f" {{rouge_l: {{stemmer: true}}}}, got {shorten(entry)}"
    )


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What makes a metric."""

    kind: Kind
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Fields that its place tells, and that are no options."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Of fields that are."""


def _chosen(name: str, where: str) -> _Chosen:
    if name in BUILT_IN:
        return _Chosen(kind=BUILT_IN[name])
    library, colon, rest = name.partition(":")
    if not (colon and rest):
        raise InputError(
            f"{where}: must be one of {', '.join(BUILT_IN)}, or {ELSEWHERE}, got {shorten(name)}."
            f"{did_you_mean(name, BUILT_IN)}"
        )
    match library:
        case "evaluate":
            called = PurePath(rest).stem
            return _Chosen(
                kind=EvaluateMetric,
                fixed={"module": rest},
                defaults={"name": called, "lower_is_better": called in ERRORS},
            )
        case "torchmetrics":
            lower = rest in FUNCTIONALS and FUNCTIONALS[rest].lower_is_better
            return _Chosen(
                kind=TorchMetric,
                fixed={"function": rest},
                defaults={"name": rest, "lower_is_better": lower},
            )
    return _Chosen(kind=FunctionMetric, fixed={"function": name}, defaults={"name": rest})


def _options(options: Mapping[str, object], chosen: _Chosen, where: str) -> dict[str, object]:
    """By their types. Raises InputError."""
    kind = chosen.kind
    assert isinstance(kind, type)
    fields = {
        each.name: each
        for each in dataclasses.fields(kind)
        if each.init and each.name not in chosen.fixed
    }
    for key in options:
        if key not in fields:
            raise InputError(
                f"{where}: has no option {shorten(key)}; its options are {', '.join(fields)}."
                f"{did_you_mean(key, fields)}"
            )
    for each in fields.values():
        if _is_needed(each) and each.name not in {**chosen.defaults, **options}:
            raise InputError(f"{where}: needs the option {each.name!r}")
    types = get_type_hints(kind)
    return {key: _checked(value, types[key], f"{where}.{key}") for key, value in options.items()}


def _is_needed(each: dataclasses.Field) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _checked(value: object, kind: type, where: str) -> object:
    """Of the field's type. By JSON's rules: a path is a text there, and a number is none."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where += "".join(f"[{part}]" for part in first["loc"])
        said = first["msg"][:1].lower() + first["msg"][1:]
    except (TypeError, ValueError, RecursionError):
        said = "must be what JSON can hold"
    raise InputError(f"{where}: {said.replace('input should be', 'must be')}, got {shorten(value)}")


def located_options(entries: Sequence[object], locate: Callable[[str], str]) -> list[object]:
    """The entries with `locate` of each file or folder that one names: by an option, or as the
    script of evaluate:FILE; what is wrong with an entry is left to `metrics_from`.
    """
    return [_located(entry, locate) for entry in entries]


def _located(entry: object, locate: Callable[[str], str]) -> object:
    if isinstance(entry, str):
        return _located_name(entry, locate)
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return entry
    ((name, options),) = entry.items()
    name = _located_name(str(name), locate)
    kind = BUILT_IN.get(name)
    if kind is None or not isinstance(options, Mapping):
        return {name: options}
    types = get_type_hints(kind)
    return {
        name: {
            key: locate(value)
            if isinstance(value, str) and Path in _kinds(types.get(key))
            else value
            for key, value in options.items()
        }
    }


def _located_name(name: str, locate: Callable[[str], str]) -> str:
    """A script of `evaluate`, or the folder of one; names of its hub as they are."""
    library, _, rest = name.partition(":")
    if library != "evaluate" or not rest or not Path(rest).exists():
        return name
    return f"{library}:{locate(rest)}"


def _kinds(hint: object) -> tuple[object, ...]:
    """What a type hint allows."""
    return get_args(hint) or (hint,)
