"""Metrics of two libraries by their names: Hugging Face `evaluate` and `torchmetrics`."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from trainables.data.rows import shorten
from trainables.errors import InputError, did_you_mean
from trainables.metrics import Answer

if TYPE_CHECKING:
    from evaluate import EvaluationModule

Texts = Sequence[str]
Compute = Callable[[Texts, Texts], object]
"""What a library gives of some answers and their references."""
PROBE = Answer("", "the cat sat on the mat", "the cat sat on the mat")
ERRORS = frozenset({"wer", "cer", "ter", "character"})  # of `evaluate`: the lower, the better
INSTALL = "pip install 'finetune-sweeps[metrics]'"


class Unusable(Exception):
    """A result that is not one number a row; the message says what it is."""


def one_value(given: object, key: str | None, name: str, rows: int) -> object:
    """Of a library's result of some rows: the value of `key`, of the metric's own name, or the only
    one that can be of rows.
    """
    if not isinstance(given, Mapping):
        return given
    if key is not None:
        if key in given:
            return given[key]
        raise Unusable(f"has no key {key!r}, but {', '.join(map(str, given))}")
    usable = [each for each, value in given.items() if len(numbers_in(value) or ()) in (1, rows)]
    if name in usable:
        return given[name]
    if len(usable) == 1:
        return given[usable[0]]
    raise Unusable(f"gives {', '.join(map(str, given)) or 'nothing'}: choose one by `key`")


def numbers_in(value: object) -> list[float] | None:
    """A number, or a list of numbers, whatever the library's type of it; None: neither."""
    if hasattr(value, "tolist"):  # arrays, tensors
        value = value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, numbers.Real):
        return [float(value)]
    if isinstance(value, Sequence) and all(isinstance(each, numbers.Real) for each in value):
        return [float(each) for each in value]
    return None


def by_row(compute: Compute, answers: Sequence[Answer], key: str | None, name: str) -> np.ndarray:
    """Float64 [N], of each row by itself; at once where the result of one row is a list, so that
    the library itself counts by row. Raises Unusable.
    """

    def found(rows: Sequence[Answer]) -> tuple[list[float], bool]:
        given = compute([row.text for row in rows], [row.reference for row in rows])
        value = one_value(given, key, name, len(rows))
        values = numbers_in(value)
        if values is None or len(values) != len(rows):
            raise Unusable(f"must give one number a row, got {shorten(value)}")
        return values, not isinstance(value, numbers.Real) and np.ndim(value) > 0  # type: ignore[arg-type]

    if not answers:
        return np.zeros(0)
    first, is_list = found(answers[:1])
    if is_list:
        values = found(answers)[0]
    else:
        values = first + [found([row])[0][0] for row in answers[1:]]
    return np.array([value if math.isfinite(value) else math.nan for value in values])


def _row_values(
    place: str, compute: Compute, answers: Sequence[Answer], key: str | None
) -> np.ndarray:
    """Raises InputError with whatever the library says."""
    try:
        return by_row(compute, answers, key, PurePath(place.partition(":")[2]).stem)
    except Unusable as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:  # of the library, and may be anything
        raise InputError(f"{place}: {type(error).__name__}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """The first line with a word in it."""
    return next((line.strip() for line in str(error).splitlines() if re.search(r"\w", line)), "")


# --- evaluate ---


@dataclass(frozen=True, kw_only=True)
class EvaluateMetric:
    """A metric of the library `evaluate`, of each row by itself; a name of its hub or a path."""

    name: str
    module: str
    key: str | None = None
    """Of the result; needed where that holds several numbers."""
    lower_is_better: bool = False
    config: str | None = None
    """Of those that a module has, as GLUE's."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Handed on to `compute`."""

    def __post_init__(self) -> None:
        self.score([PROBE])

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        place = f"evaluate:{self.module}"
        module = load_evaluate(self.module, self.config)

        def compute(texts: Texts, references: Texts) -> object:
            return module.compute(predictions=texts, references=references, **self.options)

        return _row_values(place, compute, answers, self.key)


def load_evaluate(name: str, config: str | None) -> EvaluationModule:
    """Raises InputError where the library, or the metric in it, is not there."""
    try:
        import evaluate
    except ImportError:
        raise InputError(
            f"evaluate:{name}: the library evaluate is not installed: {INSTALL}"
        ) from None
    try:
        return evaluate.load(name, config, keep_in_memory=True)
    except ImportError as error:
        raise InputError(f"evaluate:{name}: {_told(error)}") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"evaluate:{name}: its script is neither a file here, nor in the cache, nor can it be"
            f" fetched: {_told(error)}"
        ) from None


# --- torchmetrics ---


@dataclass(frozen=True, kw_only=True)
class Functional:
    """How a function of `torchmetrics.functional.text` is called."""

    in_lists: bool = False
    """Whether it takes a list of references for each answer."""
    lower_is_better: bool = False


FUNCTIONALS = {
    "bert_score": Functional(),
    "bleu_score": Functional(in_lists=True),
    "char_error_rate": Functional(lower_is_better=True),
    "chrf_score": Functional(in_lists=True),
    "edit_distance": Functional(lower_is_better=True),
    "extended_edit_distance": Functional(in_lists=True, lower_is_better=True),
    "infolm": Functional(lower_is_better=True),
    "match_error_rate": Functional(lower_is_better=True),
    "rouge_score": Functional(),
    "sacre_bleu_score": Functional(in_lists=True),
    "translation_edit_rate": Functional(in_lists=True, lower_is_better=True),
    "word_error_rate": Functional(lower_is_better=True),
    "word_information_lost": Functional(lower_is_better=True),
    "word_information_preserved": Functional(),
}


@dataclass(frozen=True, kw_only=True)
class TorchMetric:
    """A function of `torchmetrics.functional.text`, of each row by itself."""

    name: str
    function: str
    key: str | None = None
    """Of the result; needed where that holds several numbers."""
    lower_is_better: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    """Handed on to the function."""

    def __post_init__(self) -> None:
        self.score([PROBE])

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        how = functional(self.function)
        place = f"torchmetrics:{self.function}"
        try:
            from torchmetrics.functional import text
        except ImportError:
            raise InputError(f"{place}: torchmetrics is not installed: {INSTALL}") from None
        if (function := getattr(text, self.function, None)) is None:
            raise InputError(f"{place}: needs a library that is not installed")

        def compute(texts: Texts, references: Texts) -> object:
            target = [[each] for each in references] if how.in_lists else references
            return function(texts, target, **self.options)

        return _row_values(place, compute, answers, self.key)


def functional(name: str) -> Functional:
    """Raises InputError where it is not one that texts can be given to."""
    if name not in FUNCTIONALS:
        raise InputError(
            f"torchmetrics:{name}: must be one of {', '.join(FUNCTIONALS)}, got {name!r}."
            f"{did_you_mean(name, FUNCTIONALS)}"
        )
    return FUNCTIONALS[name]
