"""What mattered: parameter importances over the study."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.reporting.formatting import join_some, shorten
from sweeps.reporting.plots.figure import Plot, Section, shielded
from sweeps.selection.measure import Measure

if TYPE_CHECKING:
    import optuna

# two of the best and two of the others are the least that can be compared
MIN_TRIALS = 5

TARGET_TRIALS = 5  # PED-ANOVA asks for at least five trials in its top quantile


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Of each parameter, how much it decided."""

    by_name: dict[str, float]
    trials: int
    target: float
    """The share of the trials that count as the best."""
    unsure: list[str]
    """Parameters that too few trials have, or lack."""


def importances(study: optuna.Study | None, searched: Measure) -> Section:
    """PED-ANOVA on the study's objective, `searched`: https://arxiv.org/abs/2304.10255,
    https://arxiv.org/abs/2601.20800.
    """
    objective = searched.name
    cannot = f"Importances for {objective} cannot be computed: "
    if study is None:
        return Section(
            missing=cannot + "they need the Optuna study, and this report was written without it."
        )
    told = _with_a_loss(study)
    if why := _too_little(study, told, objective):
        return Section(missing=cannot + why)
    shares = _shares(study, told)
    return Section(plots=[_bars(shares)], notes=_notes(shares, study, searched))


def _with_a_loss(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """A pruned trial has a loss too: the best that it reached."""
    import optuna
    from optuna.trial import TrialState

    return [
        optuna.create_trial(values=t.values, params=t.params, distributions=t.distributions)
        for t in study.get_trials(deepcopy=False)
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and t.values
        and all(map(math.isfinite, t.values))
    ]


def _too_little(study: optuna.Study, told: list[optuna.trial.FrozenTrial], objective: str) -> str:
    """Why nothing can be said; empty where it can."""
    if len(told) < MIN_TRIALS:
        counts = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
        held = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        needs = f"they need {MIN_TRIALS} trials with a finite {objective}"
        return f"{needs}, and there are {len(told)} (the study holds {held or 'no trial'})."
    if len({tuple(trial.values) for trial in told}) == 1:
        return f"all {len(told)} trials have the same {objective}."
    if not any(trial.params for trial in told):
        return "the study varies no parameter."
    return ""


def _shares(study: optuna.Study, told: list[optuna.trial.FrozenTrial]) -> _Shares:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    target = max(0.1, min(0.5, TARGET_TRIALS / len(told)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of_told = optuna.create_study(directions=study.directions)
        of_told.add_trials(told)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=target)
        by_name = get_param_importances(of_told, evaluator=evaluator)
    said = [re.findall(r"parameter `(.+?)` have less", str(each.message)) for each in caught]
    unsure = sorted({name for names in said for name in names})
    return _Shares(by_name=by_name, trials=len(told), target=target, unsure=unsure)


def _bars(shares: _Shares) -> Plot:
    ordered = sorted(shares.by_name.items(), key=lambda item: (item[1], item[0]))
    bars: dict[str, object] = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [shielded(shorten(name, 28)) for name, _ in ordered],
        "text": [f"{share:.0%}" if share >= 0.01 else "< 1%" for _, share in ordered],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "meta": {"tone": "accent"},
    }
    longest = max(share for _, share in ordered)
    layout: dict[str, object] = {
        "xaxis": {"visible": False, "range": [0, 1.15 * longest], "fixedrange": True},
        "yaxis": {"type": "category", "fixedrange": True, "showgrid": False, "ticksuffix": "  "},
        "bargap": 0.4,
    }
    return Plot(id="plot-importances", height=40 + 34 * len(ordered), data=[bars], layout=layout)


def _notes(shares: _Shares, study: optuna.Study, searched: Measure) -> list[str]:
    from optuna.trial import TrialState

    direction = "minimized" if searched.mode == "min" else "maximized"
    best = f"the best {math.ceil(shares.target * shares.trials)} of {shares.trials} trials"
    notes = [
        f"How much each parameter decided whether a trial came among {best} by the study's"
        f" objective, {searched.name} ({direction}). PED-ANOVA, as shares of the sum."
    ]
    stopped = sum(
        t.state == TrialState.PRUNED and bool(t.values) for t in study.get_trials(deepcopy=False)
    )
    if stopped:
        notes.append(
            f"{stopped} of them were behind and stopped early; they count with the best loss that"
            " they reached."
        )
    settled = 10 * TARGET_TRIALS
    if shares.trials < settled:
        notes.append(
            f"With {shares.trials} trials the shares are rough; trust them from about {settled} on."
        )
    if shares.unsure:
        notes.append(
            "Least certain, as too few trials have it or too few lack it:"
            f" {join_some(shares.unsure)}."
        )
    return notes
