"""Rows of classification: a text, perhaps a second one, and a class."""

import re

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import Encoding, Record
from trainables.data.rows import Row, shorten
from trainables.tasks.texts import Answer, Texts


class Labelled(Texts):
    task = "classification"
    stand_in = "0"

    def answer(self, row: Row, data: DataConfig) -> Answer:
        label = class_name(row, row.value(data.label), repr(data.label))
        return Answer(label, label)

    def labels(self, records: list[Record], encoding: Encoding) -> np.ndarray:
        class_of = {label: i for i, label in enumerate(encoding.labels)}
        return np.array([class_of[str(r.label)] for r in records], dtype=np.int64)


def class_name(row: Row, value: object, where: str) -> str:
    """Raises BadRow unless the value, which stands at `where` of the row, names a class."""
    if not isinstance(value, str | int):
        raise row.error(
            f"{where} must be a string or an integer, got {type(value).__name__} {shorten(value)}"
        )
    row.check_storable(value, where)
    if not str(value).strip():
        raise row.error(f"{where} is empty")
    return str(value)


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """The classes in the order of their ids: by number where all are integers, else by the
    alphabet.
    """
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))
