"""A study whose search space has changed."""

from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Space, SpaceError
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.search.outcome import constraints, outcome
from sweeps.search.points import Point, distribution, located, parsed, trained_with
from sweeps.search.study import TRIAL, storage_of, trials_of
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
    space = config.space()
    now = {key: distribution(domain) for key, domain in space.domains.items()}
    curves = {curve.id: curve for curve in ledger.curves() if curve.finalist_of is None}
    points, outside = _points(config, space, curves)
    if _fits(study, now, curves, points):
        return study
    fresh = _next_study(study)
    for trial, point in points.items():
        fresh.add_trial(
            _frozen(curves[trial], point, {key: now[key] for key in point}, config.searching)
        )
    more = ", ..." if len(outside) > 5 else ""
    say(
        f"The search space has changed: {len(points)} of {len(curves)} trials fit it and stay known"
        f" to the search{'; outside it: ' if outside else ''}{', '.join(outside[:5])}{more}"
    )
    return fresh


def _next_study(study: optuna.Study) -> optuna.Study:
    """An empty study in the same journal; `study` has no open trials any more."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:  # its point is in the new study
            study.tell(trial.number, state=TrialState.FAIL)
    storage = storage_of(study)
    names = optuna.get_all_study_names(storage)
    return optuna.create_study(
        study_name=f"{names[0]}-{len(names) + 1}",
        storage=storage,
        direction="minimize",
        sampler=study.sampler,
    )


def _points(
    config: SweepConfig, space: Space, curves: Mapping[str, Curve]
) -> tuple[dict[str, Point], list[str]]:
    """Where in `space` the configurations of trials lie, by trial; and in words those that lie
    outside.
    """
    points, outside = {}, []
    for trial, curve in curves.items():
        try:
            points[trial] = _point(config, space, curve)
        except (SpaceError, InputError) as error:
            outside.append(f"{trial} ({error})")
    return points, outside


def _fits(
    study: optuna.Study,
    now: Mapping[str, BaseDistribution],
    curves: Mapping[str, Curve],
    points: Mapping[str, Point],
) -> bool:
    """Whether `study` knows the trials at their points, and nothing of another space."""
    known = {trial: set(of.params) for trial, of in trials_of(study) if trial in curves}
    drawn = [
        (key, of)
        for trial in study.get_trials(deepcopy=False)
        for key, of in trial.distributions.items()
    ]
    return all(now.get(key) == of for key, of in drawn) and known == {
        trial: set(point) for trial, point in points.items()
    }


def _point(config: SweepConfig, space: Space, curve: Curve) -> Point:
    """Where in `space` the configuration of a trial lies, as Optuna stores it; SpaceError or
    InputError where it does not.
    """
    values = trained_with(config, curve.params)
    encoded, params = located(space, values)
    before, there = (parsed(config.hyperparameters(each)) for each in (curve.params, params))
    for name, value in there.items():
        if value != before[name]:
            raise SpaceError(f"{name}: got {values.get(name)!r}, and there it is {value!r}")
    return encoded


def _frozen(
    curve: Curve,
    point: Point,
    distributions: dict[str, BaseDistribution],
    selection: SelectionConfig,
) -> FrozenTrial:
    """A trial of the ledger as Optuna keeps it."""
    attributes = {TRIAL: curve.id} | ({"reason": curve.reason} if curve.reason else {})
    if curve.status == "running":
        state, value, reports = TrialState.RUNNING, None, {}
    else:
        state, value, reports = outcome(curve, selection)
    return optuna.create_trial(
        state=state,
        value=value,
        params=point,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=reports,
        constraints=constraints(curve),
    )
