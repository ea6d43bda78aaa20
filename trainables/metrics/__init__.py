"""What answers that a model writes are worth: one number for each row. No torch, no Ray."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Answer(NamedTuple):
    """What a model wrote to a row, and what stands there."""

    prompt: str
    """All that the model was given, as it was rendered."""
    text: str
    """What it wrote, without special tokens."""
    reference: str
    """What the row's own answer is."""


class Metric(Protocol):
    """Of answers. Shapes: N rows."""

    @property
    def name(self) -> str:
        """By which boards, `selection.metric` and users call it."""
        ...

    @property
    def lower_is_better(self) -> bool: ...

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Float64 [N]; NaN where a row has none (a reference that cannot be run, a judge that did
        not answer).
        """
        ...
