"""Rows of multi_label: a text, perhaps a second one, and the names of its classes."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import Encoding, Record
from trainables.data.rows import Row, shorten
from trainables.tasks.classification.format import class_name
from trainables.tasks.texts import Answer, Texts


class Tagged(Texts):
    task = "multi_label"
    setting = "labels"
    stand_in = ()

    def answer(self, row: Row, data: DataConfig) -> Answer:
        found = _names(row, data.labels, data.separator)
        where = repr(data.labels)
        return Answer([class_name(row, name, f"a name in {where}") for name in found])

    def labels(self, records: list[Record], encoding: Encoding) -> list[np.ndarray]:
        """One number for each class: 1 where it stands in the row, else 0."""
        classes = {label: i for i, label in enumerate(encoding.labels)}
        rows = np.zeros((len(records), len(classes)), dtype=np.float32)
        for row, record in zip(rows, records, strict=True):
            row[[classes[name] for name in record.value["labels"]]] = 1
        return list(rows)

    def shown(self, value: dict[str, Any]) -> str:
        return ", ".join(sorted(value["labels"]))


def _names(row: Row, column: str, separator: str) -> Iterable[object]:
    """What stands in the column: a list, or a text in which names are put apart; both may be empty.
    Raises BadRow.
    """
    value = row.value(column)
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _parsed(row, value, column)
        else:
            return [name for part in value.split(separator) if (name := part.strip())]
    if not isinstance(value, list | tuple | np.ndarray):
        raise row.error(
            f"{column!r} must be a list of names, or a text of names with {separator!r} between"
            f" them, got {type(value).__name__} {shorten(value)}"
        )
    return value


def _parsed(row: Row, value: str, column: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        raise row.error(
            f"{column!r} begins as a list of JSON and is none: {shorten(value)}"
        ) from None
