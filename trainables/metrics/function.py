"""A metric that is a function of the user's."""

import importlib
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainables.data.rows import shorten
from trainables.errors import InputError, did_you_mean
from trainables.metrics import Answer


@dataclass(frozen=True, kw_only=True)
class FunctionMetric:
    """What a function gives that takes a list of `Answer` and returns a number for each; NaN for a
    row that has none.
    """

    name: str
    function: str
    """`module:function`; the module stands in the current folder or on PYTHONPATH."""
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        find(self.function)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Raises InputError where the function fails, or gives anything else."""
        function = find(self.function)
        try:
            given = function(list(answers))
        except (Exception, SystemExit) as error:  # theirs, and may be anything
            raise InputError(f"metric {self.function}: {_told(error)}") from error
        try:
            values = list(given)  # type: ignore[call-overload]
        except TypeError:
            raise InputError(
                f"metric {self.function}: must return a number for each of the {len(answers)} rows,"
                f" got {shorten(given)}"
            ) from None
        if len(values) != len(answers):
            first = min(len(values), len(answers)) + 1
            raise InputError(
                f"metric {self.function}: must return a number for each of the {len(answers)} rows,"
                f" got {len(values)}: they differ from row {first} on"
            )
        return np.array(
            [self._number(value, row) for row, value in enumerate(values, 1)], dtype=np.float64
        )

    def _number(self, value: object, row: int) -> float:
        with suppress(TypeError, ValueError, AttributeError):
            plain = value if isinstance(value, numbers.Real) else value.item()  # type: ignore[attr-defined]
            if isinstance(plain, numbers.Real) and not math.isinf(plain):
                return float(plain)
        raise InputError(
            f"metric {self.function}: row {row}: must be a finite number, or NaN where the row has"
            f" none, got {shorten(value)}"
        )


def _told(error: BaseException) -> str:
    """What was raised, and where in the user's file."""
    *_, last = traceback.extract_tb(error.__traceback__)
    said = f"raised {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if last.filename == __file__:  # it did not take the call
        return said
    return f"{said} ({Path(last.filename).name} line {last.lineno})"


def find(place: str) -> Callable[[list[Answer]], object]:
    """The function `module:function`. Raises InputError where there is none."""
    module, _, name = place.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise InputError(f"{place!r} must be like my_metrics:rhymes, a module and a function of it")
    try:
        with _current_folder():
            found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of theirs runs as it is imported
        raise InputError(
            f"the module {module!r} of {place} cannot be imported from {str(Path.cwd())!r} or"
            f" PYTHONPATH: {type(error).__name__}: {error}"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        known = [each for each, value in vars(found).items() if callable(value)]
        raise InputError(
            f"{module} ({found.__file__}) has no function {name!r}.{did_you_mean(name, known)}"
        )
    return function


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, too, after all others."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
