"""Metrics of answers that are to be JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.rows import fenced, of_each

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def read_json(text: str) -> Any:
    """`text` as JSON, or what stands in its first fence. Raises ValueError where neither is JSON,
    or is too deep to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    except ValueError:
        if (inner := fenced(text)) is None:
            raise
    try:
        return json.loads(inner, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class JsonValid:
    """1 where the answer is JSON (RFC 8259), perhaps in a fence."""

    name: str = "json_valid"
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        return of_each(answers, lambda each: _is_json(each.text))


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class JsonSchema:
    """1 where the answer is JSON that a JSON Schema allows; the schema's `$schema` says which
    draft, 2020-12 where it has none. Nothing is fetched from elsewhere.
    """

    name: str = "json_schema"
    schema: Path
    lower_is_better = False
    _schema: dict[str, Any] | bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_schema", read_schema(self.schema))

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        validator = _validator(self._schema)
        return of_each(answers, lambda each: _is_allowed(validator, each.text))


def _is_allowed(validator: Validator, text: str) -> bool:
    """What is nested deeper than can be compared is not."""
    try:
        return validator.is_valid(read_json(text))
    except (ValueError, RecursionError):
        return False


def read_schema(path: Path) -> dict[str, Any] | bool:
    """Raises InputError where it cannot be read, is no JSON Schema, or refers to what is not in
    it.
    """
    from jsonschema.exceptions import SchemaError

    where = "json_schema.schema"
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot read {str(path)!r} as JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise InputError(f"{where}: {path} must hold an object, got {type(schema).__name__}")
    try:
        validator = _validator(schema)
        validator.check_schema(schema)  # type: ignore[arg-type]  # true and false are schemas, too
    except SchemaError as error:
        at = "/".join(map(str, error.absolute_path)) or "its top"
        raise InputError(f"{where}: {path} is no JSON Schema: at {at}: {error.message}") from None
    if (lost := next(_unresolvable(validator, schema), None)) is not None:
        raise InputError(f"{where}: {path} refers to {lost!r}, which is not in it")
    try:
        validator.is_valid({})
    except RecursionError:
        raise InputError(f"{where}: {path} refers to itself without end") from None
    return schema


def _validator(schema: dict[str, Any] | bool) -> Validator:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    kind = validator_for(schema, default=Draft202012Validator)
    # a registry of its own, or jsonschema would fetch what is not in the schema
    return kind(schema, registry=EMPTY_REGISTRY)


def _unresolvable(validator: Validator, schema: dict[str, Any] | bool) -> Iterator[str]:
    """References to what neither the schema nor the drafts hold."""
    from jsonschema_specifications import REGISTRY
    from referencing import Specification
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    name = str(schema.get("$schema", "")) if isinstance(schema, Mapping) else ""
    draft: Specification = specification_with(name, default=DRAFT202012)
    root = draft.create_resource(schema)
    left = [(root, REGISTRY.resolver_with_root(root))]
    while left:
        resource, resolver = left.pop()
        contents = resource.contents
        if isinstance(contents, Mapping) and isinstance(ref := contents.get("$ref"), str):
            try:
                resolver.lookup(ref)
            except Unresolvable:
                yield ref
        left += [(each, resolver.in_subresource(each)) for each in resource.subresources()]
