"""What metrics share: numbers of rows, and what stands in an answer's fence."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from trainables.metrics import Answer

FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def of_each(answers: Sequence[Answer], value: Callable[[Answer], float]) -> np.ndarray:
    """Float64 [N]."""
    return np.array([value(answer) for answer in answers], dtype=np.float64)


def fenced(text: str) -> str | None:
    """What stands in the first Markdown fence, which a cut answer may leave open; None where there
    is no fence.
    """
    found = FENCED.search(text)
    return None if found is None else found[1]
