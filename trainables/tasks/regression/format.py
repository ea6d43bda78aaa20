"""Rows of regression: a text, perhaps a second one, and a number."""

import math
import re

import numpy as np

from trainables.data.config import DataConfig
from trainables.data.records import Encoding, Record
from trainables.data.rows import Row, shorten
from trainables.tasks.texts import Answer, Texts

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
LARGEST = 1e15  # its square is still far from what float32 holds


class Measured(Texts):
    task = "regression"
    stand_in = 0.0

    def answer(self, row: Row, data: DataConfig) -> Answer:
        return Answer(_number(row, data.label))

    def labels(self, records: list[Record], encoding: Encoding) -> np.ndarray:
        return np.array([r.value["label"] for r in records], dtype=np.float64)


def _number(row: Row, column: str) -> float:
    """Raises BadRow unless the column holds a number, be it as text: all columns of a CSV file
    are.
    """
    value = row.value(column)
    if isinstance(value, str) and NUMBER.fullmatch(value):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= LARGEST else math.inf
    else:
        raise row.error(f"{column!r} must be a number, got {type(value).__name__} {shorten(value)}")
    if abs(number) > LARGEST:
        raise row.error(
            f"{column!r} must be a finite number of at most {LARGEST:g}, got {shorten(value)}"
        )
    return number
