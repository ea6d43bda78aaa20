"""Suggestions that an interruption does not change."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class DrawnByNumber(BaseSampler):
    """A sampler of Optuna that draws from the sweep's seed, the trial's number and the parameter's
    name, whatever its process has drawn before: a search that goes on in another process draws what
    it would have drawn in this one, also of a trial that was drawn by half.
    """

    def __init__(self, sampler: RandomSampler | TPESampler | BruteForceSampler, seed: int) -> None:
        self._sampler, self._seed = sampler, seed
        self._generators = [sampler._rng]
        if isinstance(sampler, TPESampler):  # for its trials before it has a model
            self._generators.append(sampler._random_sampler._rng)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._draw_for(trial)
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._draw_for(trial, param_name)
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def _draw_for(self, trial: FrozenTrial, name: str = "") -> None:
        for each in self._generators:
            each.rng.seed([self._seed, trial.number, crc32(name.encode())])
