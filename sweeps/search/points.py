"""Where in a search space a configuration lies, as Optuna stores it."""

import json
from collections.abc import Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces import Choice, Domain, Int, LogUniform, Space, SpaceError, Uniform
from search_spaces.domains import Value
from sweeps.config.schema import SweepConfig
from trainables.hyperparameters import Hyperparameters

Point = dict[str, CategoricalChoiceType]
"""Where in a space a configuration lies, as Optuna stores it: values by domain."""


def plain(value: object) -> CategoricalChoiceType:
    """A choice as Optuna stores it: lists become JSON text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case LogUniform(low=low, high=high):
            return FloatDistribution(low, high, log=True)
        case Uniform(low=low, high=high):
            return FloatDistribution(low, high)
        case Int(low=low, high=high, log=log, step=step):
            return IntDistribution(low, high, log=log, step=step)
        case Choice(values=values):
            return CategoricalDistribution([plain(value) for value in values])


def parsed(hp: Hyperparameters) -> dict[str, object]:
    """By name, those of its method among them."""
    values = {**vars(hp), **vars(hp.options)}
    return {name: value for name, value in values.items() if name != "options"}


def trained_with(config: SweepConfig, params: Mapping[str, object]) -> dict[str, object]:
    """Every hyperparameter of a trial of `config`; those that were given, as they were written.
    Raises InputError.
    """
    return {**parsed(config.hyperparameters(params)), **config.complete(params)}


def located(space: Space, values: Mapping[str, object]) -> tuple[Point, dict[str, Value]]:
    """Where in `space` these hyperparameters lie, as Optuna stores it, and the configuration that
    the space has there; SpaceError where a free one lies outside.
    """
    encoded: Point = {}

    def suggest(key: str, domain: Domain) -> object:
        name = key.rsplit(".", 1)[-1]
        value = values.get(name)
        if isinstance(domain, Int) and isinstance(value, float) and value.is_integer():
            value = int(value)  # a default that is a whole number
        try:
            found = domain.match(value)
        except SpaceError as error:
            raise SpaceError(f"{name}: {error}") from None
        encoded[key] = plain(found)
        return found

    return encoded, space.sample(suggest)
