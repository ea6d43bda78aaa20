"""A row of conversations by the names of our formats, and what of it none of them uses."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trainables.data.config import DataConfig
from trainables.data.rows import BadRow, Row, is_missing, json_fault, shorten
from trainables.errors import InputError, did_you_mean

Message = dict[str, object]
"""As chat templates take it: OpenAI's format, whose keys a template may ask for by any name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Of one source."""

    found: Sequence[str]
    renamed: Mapping[str, str]
    """Our name -> the file's, where they differ."""

    @classmethod
    def of(cls, found: Sequence[str], name: str, data: DataConfig) -> "Columns":
        """Raises InputError where `data.columns` names one that the source `name` lacks."""
        for ours, theirs in data.columns.items():
            # Of several sources one may need the setting and another have our name already.
            if theirs not in found and ours not in found:
                raise InputError(
                    f"data.columns: {name} has no column {theirs!r}, only"
                    f" {', '.join(map(printable, found))}.{did_you_mean(theirs, found)}"
                )
        renamed = {ours: theirs for ours, theirs in data.columns.items() if theirs in found}
        return cls(found=found, renamed=renamed)

    def name(self, ours: str) -> str:
        return self.renamed.get(ours, ours)

    def shown(self) -> str:
        return ", ".join(map(printable, self.found))

    def have(self, ours: Collection[str]) -> bool:
        return all(self.name(column) in self.found for column in ours)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Each `get` marks its column as used; what is left over is told."""

    row: Row
    columns: Columns
    used: set[str] = field(default_factory=set)
    unused: dict[str, None] = field(default_factory=dict)
    """Keys inside messages, as paths: `messages[].mood`; a set that keeps its order."""

    def get(self, ours: str) -> object:
        """None where it is missing."""
        column = self.columns.name(ours)
        self.used.add(column)
        value = self.row.columns.get(column)
        return None if is_missing(value) else value

    def text(self, ours: str) -> str:
        """Raises BadRow unless it is a string with something in it."""
        column = self.columns.name(ours)
        self.used.add(column)
        return self.row.text(column)

    def optional_text(self, ours: str) -> str | None:
        """None where it is missing or has nothing in it."""
        return self.text(ours) if not is_blank(self.get(ours)) else None

    def note_unused(self, path: str, key: str, value: object) -> None:
        if not is_empty(value):
            self.unused[f"{path}.{printable(key)}"] = None

    def rest(self, others: Collection[str | None]) -> tuple[str, ...]:
        """Keys that hold something and were not used. others: columns that other settings use."""
        columns = [
            printable(column)
            for column, value in self.row.columns.items()
            if column not in self.used and column not in others and not is_empty(value)
        ]
        return (*columns, *self.unused)

    def parsed(self, value: object, where: str) -> object:
        """Of JSON text what it says (CSV and Parquet keep lists and objects so)."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise self.error(f"{where}: not JSON: {json_fault(error)}") from None
        except ValueError:
            raise self.error(
                f"{where}: not JSON: an integer too long to read: {shorten(value)}"
            ) from None

    def error(self, message: str) -> BadRow:
        return self.row.error(message)

    def can_store(self, value: object) -> bool:
        try:
            self.row.check_storable(value, "")
        except BadRow:
            return False
        return True


def is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip() or value is None


def is_empty(value: object) -> bool:
    """Whether nothing is lost with it."""
    return is_missing(value) or (isinstance(value, str | list | dict) and not value)


def printable(name: object) -> str:
    """A key as it can be shown on one line of Unicode text."""
    return name if isinstance(name, str) and name and name.isprintable() else shorten(name)
