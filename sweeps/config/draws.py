"""What trials will look like, as far as draws from the space show."""

from collections.abc import Iterator, Sequence

from sweeps.config.schema import SweepConfig
from trainables.hyperparameters import OPTIONS, parse


def first_of_each_method(drawn: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """One of these configurations for each method."""
    found: dict[str, dict[str, object]] = {}
    for draw in drawn:
        found.setdefault(str(draw.get("method")), draw)
    return [found[method] for method in OPTIONS if method in found]


def max_epochs(config: SweepConfig) -> float:
    """The most epochs that a trial may train, as far as draws show."""
    return max(parse(draw).epochs for draw in config.draws())


def of_each_base(config: SweepConfig) -> Iterator[tuple[SweepConfig, list[dict[str, object]]]]:
    """The configuration over each base model, and configurations that trials of it may have."""
    drawn = config.draws()
    for base in config.bases:
        yield config.over(base), [draw for draw in drawn if draw.get("model", "") == base]
