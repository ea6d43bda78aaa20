"""What trials will look like, as far as draws from the space show."""

from sweeps.config.schema import SweepConfig
from trainables.hyperparameters import OPTIONS, parse


def first_of_each_method(config: SweepConfig) -> list[dict[str, object]]:
    """A configuration of each method that the sweep may draw."""
    found: dict[str, dict[str, object]] = {}
    for draw in config.draws():
        found.setdefault(str(draw.get("method")), draw)
    return [found[method] for method in OPTIONS if method in found]


def max_epochs(config: SweepConfig) -> float:
    """The most epochs that a trial may train, as far as draws show."""
    return max(parse(draw).epochs for draw in config.draws())
