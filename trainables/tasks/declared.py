"""What a task says of itself, in words that others show and numbers that others compare. No torch.

Letters of shapes: N rows of a split, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trainables.data.findings import Severity


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss that is trained, and that verdicts, ties and baselines are of: a sum over targets
    that is divided once by their number.
    """

    words: str
    """What it is, with its unit: `means in nats per example`."""
    is_likelihood: bool
    """Whether it is a negative log-likelihood, in nats."""
    of_tokens: bool = False
    """Whether its targets are tokens: losses over bases with other tokenizers are then told in bits
    per byte of the text, which is the same for all.
    """


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """The labels of a split's rows."""

    counts: Mapping[str, int] | None = None
    """How often each class stands there."""
    mean: float | None = None
    """With `variance`: of labels that are numbers."""
    variance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What always giving one answer, the best that train's labels tell, is worth on a split."""

    what: str
    """What of train's labels it is made of, in words: `label shares`."""
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None
    """That answer, where it has a name."""


class Counts(NamedTuple):
    """How often each class [C] is right, answered and true."""

    hits: np.ndarray
    answered: np.ndarray
    true: np.ndarray

    @property
    def macro_f1(self) -> float:
        """F1, averaged over the classes that occur among labels or answers; 0 where none does."""
        f1 = self.f1[self.answered + self.true > 0]
        return float(f1.mean()) if len(f1) else 0.0

    @property
    def weighted_f1(self) -> float:
        """F1, averaged over the classes by how often they are true; 0 where none is."""
        return float(self.f1 @ self.true / max(self.true.sum(), 1))

    @property
    def f1(self) -> np.ndarray:
        """Of each class [C]; 0 of one that neither is true nor answered."""
        return 2 * self.hits / np.maximum(self.answered + self.true, 1)


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """Answers by class."""

    names: tuple[str, ...]
    counts: Counts
    confusion: np.ndarray | None = None
    """By true and answered class [C, C]; None where an example may have several, or none."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a model with a head answers to a row."""

    prediction: object
    """A class, a list of classes, a number, or a tag for each word (None: the model did not read
    it).
    """
    probabilities: Mapping[str, float] | list[float | None] | None = None
    """Of each class; of the tag of each word; None of a number."""


class Words(NamedTuple):
    """What is said of all rows of a split."""

    severity: Severity
    message: str
    """{messages}: how many it is about, of {rows} rows."""
    setting: str = ""
    """What changes it, as it stands in the sweep file."""
