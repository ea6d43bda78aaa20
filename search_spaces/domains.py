"""The distributions that a hyperparameter may follow, read from YAML.

learning_rate: {log_uniform: [1e-5, 3e-4]}
dropout: {uniform: [0.0, 0.1]}
layers: {int: [1, 4]}                       # both bounds included
rank: {int: [1, 64], log: true}
epochs: {int: [2, 10], step: 2}
targets: {choice: [all-linear, [q_proj, v_proj]]}
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from search_spaces.errors import SpaceError, did_you_mean

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar] | tuple[Scalar, ...]
"""What a hyperparameter may be set to."""


def is_whole(value: object) -> TypeGuard[int]:
    """An int; true and false are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """An int or a finite float."""
    return is_whole(value) or isinstance(value, float) and math.isfinite(value)


def is_plain(value: object) -> TypeGuard[Value]:
    """What a parameter may be set to: a scalar (null included) or a list of scalars."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) and not isinstance(item, list | tuple) for item in value)
    return value is None or isinstance(value, bool | str) or is_number(value)


def same(left: object, right: object) -> bool:
    """Equal as settings: true is not 1, and a tuple equals a list of the same items."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def show(value: object) -> str:
    """A value as one writes it in YAML: null, true, 0.01, [q_proj, v_proj]."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_order(kind: str, low: float, high: float) -> None:
    if low >= high:
        raise SpaceError(
            f"{kind} needs low < high, got {show([low, high])}; a fixed value is written alone"
        )


def _match_between(value: object, low: float, high: float, domain: object) -> float:
    # exp(log(low)) may fall short of low by a rounding error, so the bounds are compared with a
    # tolerance.
    if is_number(value) and (
        low <= value <= high or math.isclose(value, low) or math.isclose(value, high)
    ):
        return float(value)
    raise SpaceError(f"got {value!r}, allowed: {domain}")


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A float whose logarithm is uniform between `low` and `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_order("log_uniform", self.low, self.high)
        if self.low <= 0:
            raise SpaceError(f"log_uniform needs low > 0, got {show(self.low)}")

    def __str__(self) -> str:
        return f"log-uniform {self.low} … {self.high}"

    def middle(self) -> float:
        """The geometric mean of the bounds, to two digits where those are inside."""
        exact = math.sqrt(self.low * self.high)
        short = float(f"{exact:.2g}")
        return short if self.low <= short <= self.high else exact

    def draw(self, generator: random.Random) -> float:
        return min(
            self.high, max(self.low, self.low * (self.high / self.low) ** generator.random())
        )

    def match(self, value: object) -> float:
        """The value as this domain holds it; SpaceError if it lies outside."""
        return _match_between(value, self.low, self.high, self)


@dataclass(frozen=True, slots=True)
class Uniform:
    """A float between `low` and `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_order("uniform", self.low, self.high)

    def __str__(self) -> str:
        return f"uniform {self.low} … {self.high}"

    def middle(self) -> float:
        return (self.low + self.high) / 2

    def draw(self, generator: random.Random) -> float:
        return generator.uniform(self.low, self.high)

    def match(self, value: object) -> float:
        """The value as this domain holds it; SpaceError if it lies outside."""
        return _match_between(value, self.low, self.high, self)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number, `low`, `low + step`, … `high`; with `log`, small numbers are as likely as
    large ones.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        _check_order("int", self.low, self.high)
        if not isinstance(self.log, bool):
            raise SpaceError(f"int: log must be true or false, got {show(self.log)}")
        if not is_whole(self.step) or self.step < 1:
            raise SpaceError(
                f"int: step must be a whole number of at least 1, got {show(self.step)}"
            )
        if self.log and self.step != 1:
            raise SpaceError("int takes log or step, not both")
        if self.log and self.low < 1:
            raise SpaceError(f"int with log needs low >= 1, got {self.low}")
        if (self.high - self.low) % self.step:
            raise SpaceError(f"int: steps of {self.step} from {self.low} do not meet {self.high}")

    def __str__(self) -> str:
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"int {self.low} … {self.high}{' (log)' if self.log else ''}{steps}"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def values(self) -> range:
        """All that there are."""
        return range(self.low, self.high + 1, self.step)

    def middle(self) -> int:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.low + self.step * round((middle - self.low) / self.step)

    def draw(self, generator: random.Random) -> int:
        return generator.choice(self.values)

    def match(self, value: object) -> int:
        """The value as this domain holds it; SpaceError if it lies outside."""
        if (
            not is_whole(value)
            or not self.low <= value <= self.high
            or (value - self.low) % self.step
        ):
            raise SpaceError(f"got {value!r}, allowed: {self}")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some scalars or lists of scalars."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SpaceError("choice needs at least one value")
        for index, value in enumerate(self.values):
            if not is_plain(value):
                raise SpaceError(f"choice takes finite scalars or lists of them, got {value!r}")
            # Plain equality: 1, 1.0 and true could not be told apart in a study's storage.
            if value in self.values[:index]:
                raise SpaceError(f"choice has {show(value)} twice")

    def __str__(self) -> str:
        return f"one of {', '.join(map(show, self.values))}"

    def __len__(self) -> int:
        return len(self.values)

    def middle(self) -> Value:
        """The first: who writes a list begins with what is usual."""
        return self.values[0]

    def draw(self, generator: random.Random) -> Value:
        return generator.choice(self.values)

    def match(self, value: object) -> Value:
        """The value as this domain holds it; SpaceError if it is not one of them."""
        for own in self.values:
            if same(own, value):
                return own
        words = [own for own in self.values if isinstance(own, str)]
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        raise SpaceError(f"got {value!r}, allowed: {self}{'.' if hint else ''}{hint}")


Domain = LogUniform | Uniform | Int | Choice

KINDS = ("log_uniform", "uniform", "int", "choice")
_OPTIONS = {"int": ("log", "step")}


def read_domain(tree: Mapping[object, object], where: str) -> Domain:
    """Read a mapping that names one of KINDS, such as `{int: [1, 64], log: true}`; SpaceError if it
    is wrong.
    """
    kind, *others = [str(key) for key in tree if key in KINDS]
    if others:
        raise SpaceError(f"{where}: one distribution only, got {', '.join([kind, *others])}")
    options = {str(key): value for key, value in tree.items() if key != kind}
    allowed = _OPTIONS.get(kind, ())
    for option in options:
        if option not in allowed:
            takes = f"takes {' and '.join(allowed)}" if allowed else "takes no options"
            raise SpaceError(
                f"{where}: unknown option {option!r}.{did_you_mean(option, allowed)} {kind} {takes}"
            )
    try:
        return _build(kind, tree[kind], options)
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from None


def _build(kind: str, arguments: object, options: Mapping[str, Any]) -> Domain:
    if kind == "choice":
        if not isinstance(arguments, list | tuple):
            raise SpaceError(f"choice takes a list of values, got {arguments!r}")
        return Choice(tuple(arguments))
    if not isinstance(arguments, list | tuple) or len(arguments) != 2:
        raise SpaceError(f"{kind} takes two bounds [low, high], got {arguments!r}")
    if kind == "int":
        low, high = _whole_bounds(arguments)
        return Int(low, high, **options)
    low, high = _bounds(kind, arguments)
    return (LogUniform if kind == "log_uniform" else Uniform)(low, high)


def _bounds(kind: str, given: Sequence[object]) -> list[float]:
    for bound in given:
        if not is_number(bound):
            raise SpaceError(f"{kind} takes finite numbers as bounds, got {bound!r}")
    return [float(bound) for bound in given if is_number(bound)]


def _whole_bounds(given: Sequence[object]) -> list[int]:
    for bound in given:
        if not is_whole(bound):
            raise SpaceError(f"int takes whole numbers as bounds, got {bound!r}")
    return [bound for bound in given if is_whole(bound)]
