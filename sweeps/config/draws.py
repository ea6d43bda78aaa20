"""What trials will look like, as far as draws from the space show."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sweeps.config.schema import SweepConfig
from trainables.data.manifest import data_of
from trainables.hyperparameters import OPTIONS, base_of, parse


def first_of_each_method(drawn: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """One of these configurations for each method."""
    found: dict[str, dict[str, object]] = {}
    for draw in drawn:
        found.setdefault(str(draw.get("method")), draw)
    return [found[method] for method in OPTIONS if method in found]


def max_epochs(config: SweepConfig) -> float:
    """The most epochs that a trial may train, as far as draws show."""
    return max(parse(draw).epochs for draw in config.draws())


class OfBase(NamedTuple):
    """What is of one base model."""

    word: str
    over: SweepConfig
    """The configuration with this base alone."""
    drawn: list[dict[str, object]]
    """Configurations that trials over it may have."""
    folder: str
    """Where its data lie below those that are prepared."""


def of_each_base(config: SweepConfig) -> Iterator[OfBase]:
    drawn, bases = config.draws(), config.bases
    for base in bases:
        own = [draw for draw in drawn if base_of(draw) == base]
        yield OfBase(base, config.over(base), own, data_of(base, bases[0]))
