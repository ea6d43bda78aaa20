"""Frozen dataclasses as JSON and back: one writer and one reader for everything that a sweep's
folder holds.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from trainables.errors import InputError

Record = TypeVar("Record")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def finite_or_none(value: Json) -> Json:
    """JSON has no NaN: numbers that are none become null, in nested values too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite_or_none(inner) for inner in value]
    return value


def to_json(record: object, kind: type | None = None) -> dict[str, Json]:
    """The fields of `record` as JSON; numbers that are none become null. kind: the dataclass whose
    fields are meant, where `record` is of a subclass that has more.
    """
    written = _adapter(kind or type(record)).dump_python(record, mode="json", by_alias=True)
    return {key: finite_or_none(value) for key, value in written.items()}


def schema_of(kind: type) -> dict[str, object]:
    """What `to_json` writes of a dataclass, as a JSON Schema (draft 2020-12)."""
    return _adapter(kind).json_schema(mode="serialization", by_alias=True)


def finite(record: Record) -> Record:
    """`record` with None for each number that is none."""
    return from_json(type(record), to_json(record), type(record).__name__)


def from_json(kind: type[Record], content: Mapping[str, object], where: str) -> Record:
    """`content` as a dataclass; keys that it does not know are left out. Raises InputError for what
    does not fit, which names `where` it was read and the field.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: {field}: {first['msg'][0].lower()}{first['msg'][1:]}; it was written by"
            " another version, or damaged"
        ) from error


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)
