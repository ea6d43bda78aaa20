"""A row as it was read from its source, and what may be stored of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainables.errors import InputError, did_you_mean

MOST_DIGITS = 4300  # of an integer: what Python reads back from JSON
EXCERPT = 24  # characters that are shown of either side of a fault in JSON
PYTHONS = {"None": "null", "True": "true", "False": "false", "nan": "null"}
TOO_LARGE = 10**MOST_DIGITS
MOST_LEVELS = 200  # of lists and objects in each other: far from where Python's own recursion ends


class BadRow(InputError):
    """A row that cannot be used; the others can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Values as they were read; nothing is converted, since a reader that guesses types turns the
    text 'NA' into a missing value.
    """

    key: str
    """Setting that named the source: `data.train`, `data.validation` or `data.test`."""
    place: str
    """`train.csv row 12`."""
    columns: Mapping[str, object]

    def error(self, message: str) -> BadRow:
        return BadRow(f"{self.key}: {self.place}: {message}")

    def value(self, column: str) -> object:
        """Raises BadRow where the row lacks it."""
        value = self.columns.get(column)
        if is_missing(value):
            raise self.error(f"{column!r} is missing")
        return value

    def text(self, column: str) -> str:
        """Raises BadRow unless it is a string with something in it that a tokenizer can read."""
        text = self.value(column)
        if not isinstance(text, str):
            raise self.error(f"{column!r} must be text, got {type(text).__name__} {shorten(text)}")
        self.check_text(text, repr(column))
        return text

    def check_text(self, text: str, where: str) -> None:
        """Raise BadRow unless `text` has something in it that a tokenizer can read."""
        if not text.strip():
            raise self.error(f"{where} is empty")
        self._check_unicode(text, where)

    def check_storable(self, value: object, where: str) -> None:
        """Raise BadRow, naming the part of `value`, unless all of it can be written as JSON and
        read back the same.
        """
        self._check_storable(value, where, MOST_LEVELS)

    def _check_storable(self, value: object, where: str, levels: int) -> None:
        if isinstance(value, str):
            self._check_unicode(value, where)
        elif value is None or isinstance(value, bool):
            return
        elif isinstance(value, dict | list | tuple) and not levels:
            top = where.partition("[")[0].partition(".")[0]
            raise self.error(f"{top} is nested more than {MOST_LEVELS} levels deep")
        elif isinstance(value, dict):
            for name, item in value.items():
                if not isinstance(name, str):
                    raise self.error(f"{where} has a key that is no text: {shorten(name)}")
                self._check_unicode(name, f"a key of {where}")
                self._check_storable(item, f"{where}.{name}", levels - 1)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                self._check_storable(item, f"{where}[{i}]", levels - 1)
        elif isinstance(value, int):
            if abs(value) >= TOO_LARGE:
                raise self.error(f"{where} is an integer of more than {MOST_DIGITS} digits")
        elif not isinstance(value, float) or not math.isfinite(value):
            raise self.error(
                f"{where} must be text, a number, a list or an object, got"
                f" {type(value).__name__} {shorten(value)}"
            )

    def _check_unicode(self, text: str, where: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # half of a character beyond U+FFFF, as a careless cut of JSON leaves it
            half = text[error.start]
            raise self.error(
                f"{where} is not Unicode text: it has a lone surrogate {half!r}"
            ) from None


def check_column(columns: Sequence[str], name: str, column: str | None, setting: str) -> None:
    """Raise InputError where the source `name` lacks the column that `data.SETTING` names."""
    if column is not None and column not in columns:
        raise InputError(
            f"data.{setting}: {name} has no column {column!r}, only"
            f" {', '.join(columns)}.{did_you_mean(column, columns)}"
        )


def is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def shorten(value: object, characters: int = 60) -> str:
    """`value` on one line and cut: as JSON what a file of JSON may hold, as Python writes it what
    else there is, texts among it.
    """
    try:
        text = _written(value)
    except ValueError:  # an integer of thousands of digits
        text = "an integer too long to show"
    except RecursionError:
        text = "objects too deep to show"
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _written(value: object) -> str:
    if value is None or isinstance(value, bool | list | dict):
        try:
            text = json.dumps(value, ensure_ascii=False)
        except TypeError:
            return repr(value)
        return text.encode(errors="backslashreplace").decode()
    return repr(value)


def json_fault(error: json.JSONDecodeError) -> str:
    """What is wrong with a text that is no JSON, in which column of its line, and between what."""
    before = error.doc[: error.pos].rpartition("\n")[2]
    after = error.doc[error.pos :].partition("\n")[0]
    ahead = repr(before if len(before) <= EXCERPT else "…" + before[-EXCERPT:])
    behind = repr(after if len(after) <= EXCERPT else after[:EXCERPT] + "…")
    if not before and not after:
        return error.msg
    if not after:
        place = f", at the end of {ahead}"
    else:
        place = f", between {ahead} and {behind}" if before else f", before {behind}"
    return f"{error.msg} in column {error.colno}{place}{_as_json(after)}"


def _as_json(text: str) -> str:
    """What to do where it is Python's."""
    if text.startswith("'"):
        return "; texts stand in double quotes, as json.dumps writes them"
    for python, written in PYTHONS.items():
        if text.startswith(python):
            return f"; JSON has {written} for {python}"
    return ""
