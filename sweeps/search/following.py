"""A study whose search space has changed."""

from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Domain, Int, Space, SpaceError
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.search.outcome import outcome
from sweeps.search.study import distribution, plain
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from trainables.errors import InputError


def follow_space(
    study: optuna.Study, config: SweepConfig, ledger: Ledger, say: Callable[[str], None]
) -> optuna.Study:
    """`study`, or where the space has changed since, a new one in its journal that knows the trials
    which fit the new space.

    Optuna refuses other choices for a parameter, and models no parameter whose ranges differ
    between trials.
    """
    space, places, outside = config.space(), {}, []
    now = {key: distribution(domain) for key, domain in space.domains.items()}
    curves = {curve.id: curve for curve in ledger.curves() if curve.finalist_of is None}
    for trial, curve in curves.items():
        try:
            places[trial] = _place(config, space, curve)
        except (SpaceError, InputError) as error:
            outside.append(f"{trial} ({error})")
    trials = study.get_trials(deepcopy=False)
    own = {
        t.user_attrs["trial"]: t
        for t in trials
        if "trial" in t.user_attrs and "duplicate_of" not in t.user_attrs
    }
    known = {trial: set(of.params) for trial, of in own.items() if trial in curves}
    fits = all(now.get(key) == of for trial in trials for key, of in trial.distributions.items())
    if fits and known == {trial: set(place) for trial, place in places.items()}:
        return study
    for trial in trials:
        if trial.state == TrialState.RUNNING:  # its place is in the new study
            study.tell(trial.number, state=TrialState.FAIL)
    names = optuna.get_all_study_names(study._storage)
    fresh = optuna.create_study(
        study_name=f"{names[0]}-{len(names) + 1}",
        storage=study._storage,
        direction="minimize",
        sampler=study.sampler,
    )
    for trial, place in places.items():
        fresh.add_trial(
            _frozen(curves[trial], place, {key: now[key] for key in place}, config.selection)
        )
    more = ", ..." if len(outside) > 5 else ""
    say(
        f"The search space has changed: {len(places)} of {len(curves)} trials fit it and stay known"
        f" to the search{'; outside it: ' if outside else ''}{', '.join(outside[:5])}{more}"
    )
    return fresh


def _place(config: SweepConfig, space: Space, curve: Curve) -> dict[str, Any]:
    """Where in `space` the configuration of a trial lies, as Optuna stores it; SpaceError or
    InputError where it does not.
    """
    hp = config.hyperparameters(curve.params)
    values = {
        **vars(hp),
        **vars(hp.options),
        **config.complete(curve.params),
    }  # the last as they were written
    encoded: dict[str, Any] = {}

    def suggest(key: str, domain: Domain) -> Any:
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

    there = config.hyperparameters(space.sample(suggest))
    for name, value in {**vars(there), **vars(there.options)}.items():
        if name != "options" and value != {**vars(hp), **vars(hp.options)}[name]:
            raise SpaceError(f"{name}: got {values.get(name)!r}, and there it is {value!r}")
    return encoded


def _frozen(
    curve: Curve,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    selection: SelectionConfig,
) -> FrozenTrial:
    """A trial of the ledger as Optuna keeps it."""
    attributes = {"trial": curve.id} | ({"reason": curve.reason} if curve.reason else {})
    if curve.status == "running":
        state, value, reports = TrialState.RUNNING, None, {}
    else:
        state, value, reports = outcome(curve, selection)
    return optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=reports,
    )
