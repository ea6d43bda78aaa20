"""Plots of the page: plain plotly dictionaries. A trace names its `tone`; which colour that is, the
page knows.
"""

from __future__ import annotations

import html
import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sweeps.ledger.leaderboard import Row
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    join_some,
    loss_text,
    named_baselines,
    shorten,
    value_text,
    wants_log,
)
from sweeps.reporting.words import (
    verdict_words,
)

if TYPE_CHECKING:
    import optuna

VERDICTS = tuple(
    "healthy, still improving, too early to tell, underfit, "
    "overfit, collapsed, diverged, failed".split(", ")
)

ABSENT = object()  # a parameter that a trial does not have, as None is a value

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of baselines, beside the curves

LETTER_SPACE = 15 / 300  # of one letter above another, as a share of the axis

# for importances: two of the best and two of the others are the least that can be compared

MIN_TRIALS = 5

TARGET_TRIALS = 5  # PED-ANOVA asks for at least five trials in its top quantile


def tone(word: str | None) -> str:
    """The name of the CSS colour of a verdict or a trial's state; `other` for a word that the page
    does not know.
    """
    slug = (word or "").lower().replace(" ", "-")
    known = {verdict.replace(" ", "-") for verdict in VERDICTS} | {
        "running",
        "complete",
        "pruned",
        "waiting",
    }
    return slug if slug in known else "other"


def _hover(trial: dict, first_line: str) -> str:
    lines = [f"<b>{_shielded(trial['id'])}</b> {_shielded(verdict_words(trial))}", first_line]
    lines += [
        f"{_shielded(name)} = {_shielded(shorten(value_text(v), 60))}"
        for name, v in trial["params"].items()
    ]
    return "<br>".join(line for line in lines if line)


def _shielded(text: str) -> str:
    """Text as itself for plotly, which reads a subset of HTML and decodes few entities besides
    these.
    """
    return html.escape(text, quote=False)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plotly figure. A trace's `meta` says how to paint it: `tone`, and `trial` and `winner`
    for a trial's line.
    """

    id: str
    title: str = ""
    height: int
    min_width: int = 0
    """Pixels below which the plot scrolls sideways instead of shrinking."""
    data: list[dict]
    layout: dict
    key: list[tuple[str, str]] = field(default_factory=list)
    """What the letters in the plot stand for."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one heading of the page holds."""

    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str = ""
    """Why there is no plot, in words."""


def _trial_trace(trial: dict, wins: bool, x: list, y: list, text: list[str] | str) -> dict:
    """The line of a trial; `text` is its hover, one for every point or one for all."""
    meta = {"trial": trial["id"], "tone": tone(trial["verdict"]), "winner": wins}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "text": text,
        "hoverinfo": "text",
        "meta": meta,
    }


def _finite_losses(trials: list[dict]) -> list[float]:
    found = [
        e[key]
        for trial in trials
        for e in trial["evaluations"]
        for key in ("val_loss", "probe_loss")
    ]
    return [loss for loss in found if is_finite(loss)]


def learning_curves(board: dict) -> Section:
    """Validation and probe loss over samples seen, a line per trial, on one range so that gaps can
    be compared.
    """
    trials, winner = board["trials"], board["winner"]
    losses = _finite_losses(
        [t for t in trials if t["verdict"] not in ("diverged", "failed")]
    ) or _finite_losses(trials)
    if not losses:
        return Section(missing="No trial has a finite loss to draw yet.")
    low, top = min(losses), max(losses)
    baselines = [
        (words, b.get("val_loss"), b.get("probe_loss"))
        for words, b in named_baselines(board).items()
    ]
    near = [
        v for b in baselines for v in b[1:] if is_finite(v) and low <= v <= top + 0.35 * (top - low)
    ]
    high = max([top, *near])
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    drawable = sorted(
        (b for b in baselines if b[1] in near or b[2] in near),
        key=lambda b: (b[1] not in near, b[1] or 0.0),
    )
    lettered = dict(
        zip((words for words, *_ in drawable), LETTERS, strict=False)
    )  # one letter in both plots
    winning_id = None if winner is None else winner["trial"]
    plots, drawn, above = [], set(), set()
    for column, (key, title) in enumerate(
        (("val_loss", "Validation loss"), ("probe_loss", "Probe loss")), start=1
    ):
        traces = []
        for trial in sorted(trials, key=lambda t: t["id"] == winning_id):  # the winner last, on top
            evaluations = trial["evaluations"]
            y = [e[key] if is_finite(e[key]) else None for e in evaluations]
            if any(value is not None for value in y):
                drawn.add(trial["id"])
                above |= {trial["id"] for value in y if value is not None and value > high}
                at = [
                    f"{key} {loss_text(e[key])} at {e['samples_seen']:,} samples"
                    for e in evaluations
                ]
                hovers = [_hover(trial, line) for line in at]
                x = [e["samples_seen"] for e in evaluations]
                traces.append(_trial_trace(trial, trial["id"] == winning_id, x, y, hovers))
        if winner is not None and is_finite(winner[key]):
            won = (
                f"<b>{_shielded(winning_id)}</b>: the checkpoint that won<br>{key}"
                f" {loss_text(winner[key])}"
            )
            star = {
                "type": "scatter",
                "mode": "markers",
                "marker": {"symbol": "star", "size": 15},
                "hoverinfo": "text",
            }
            star |= {"x": [winner["samples_seen"]], "y": [winner[key]], "text": [won]}
            traces.append(star | {"meta": {"trial": winning_id, "tone": "winner", "winner": True}})
        shown = sorted((b[column], b[0]) for b in baselines if b[column] in near)
        lines, letters = baseline_lines(
            [(y, lettered[words]) for y, words in shown], low - margin, high + margin
        )
        layout = {
            "xaxis": {"title": {"text": "samples seen"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": title.lower()}, "range": [low - margin, high + margin]},
            "shapes": lines,
            "annotations": letters,
            "margin": {"r": 26},
        }
        said = [(lettered[words], f"{words} {loss_text(y)}") for y, words in shown]
        plots.append(
            Plot(id=f"plot-{key}", title=title, height=380, data=traces, layout=layout, key=said)
        )
    notes = []
    if above:
        notes.append(
            f"Losses of {join_some(sorted(above))} go beyond the top of the axis; double-click a"
            " plot for all."
        )
    beyond = [
        f"{words} ({loss_text(y)})" for words, y, _ in baselines if is_finite(y) and y not in near
    ]
    if beyond:
        notes.append(f"Outside the axis of validation loss: {', '.join(beyond)}.")
    if undrawn := [trial["id"] for trial in trials if trial["id"] not in drawn]:
        notes.append(f"Not drawn, having no finite loss: {join_some(undrawn)}.")
    return Section(plots=plots, notes=notes)


def baseline_lines(
    lettered: list[tuple[float, str]], low: float, high: float
) -> tuple[list[dict], list[dict]]:
    """A dotted line for each loss, the lowest first, and its letter beside the plot, where no curve
    runs; letters of near losses are moved apart.
    """
    across = {
        "type": "line",
        "layer": "below",
        "line": {"dash": "dot"},
        "xref": "paper",
        "x0": 0,
        "x1": 1,
    }
    beside = {
        "name": "tick",
        "showarrow": False,
        "xref": "paper",
        "x": 1,
        "xanchor": "left",
        "xshift": 4,
    }
    space, places = LETTER_SPACE * (high - low), []
    for y, _ in lettered:
        places.append(max(y, places[-1] + space) if places else y)
    top = high
    for i in reversed(range(len(places))):  # what was pushed beyond the top comes down again
        places[i] = min(places[i], top)
        top = places[i] - space
    letters = [
        beside | {"text": letter, "y": y, "yanchor": "middle"}
        for y, (_, letter) in zip(places, lettered, strict=True)
    ]
    return [across | {"y0": y, "y1": y} for y, _ in lettered], letters


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the parallel coordinates."""

    name: str
    positions: list[float | None]
    """Where each trial's value lies, in [0, 1]; None where it has none."""
    ticks: list[tuple[float, str]]


def _axis(name: str, values: list[Any]) -> Axis:
    """Numbers on a linear or, where they span a lot, a logarithmic axis; everything else as
    categories.
    """
    present = [value for value in values if value is not ABSENT]
    if not all(is_finite(value) for value in present):
        labels = sorted({value_text(value) for value in present})
        at = {
            label: i / (len(labels) - 1) if len(labels) > 1 else 0.5
            for i, label in enumerate(labels)
        }
        positions = [None if value is ABSENT else at[value_text(value)] for value in values]
        return Axis(
            name=name,
            positions=positions,
            ticks=[(position, label) for label, position in at.items()],
        )
    log = wants_log(present)
    scale, unscale = (math.log, math.exp) if log else (float, float)
    start = scale(min(present))
    width = scale(max(present)) - start
    positions = [
        None if v is ABSENT else (scale(v) - start) / width if width else 0.5 for v in values
    ]
    if len(set(present)) <= 6:
        ticks = sorted(
            {(p, value_text(v)) for p, v in zip(positions, values, strict=True) if p is not None}
        )
    else:
        ticks = [(i / 4, f"{unscale(start + i / 4 * width):.3g}") for i in range(5)]
        decades = (
            [10.0**power for power in range(math.ceil(math.log10(min(present))), 13)] if log else []
        )
        inner = [((scale(decade) - start) / width, f"{decade:g}") for decade in decades]
        if len(inside := [tick for tick in inner if 0.06 < tick[0] < 0.94]) >= 2:
            ticks = [ticks[0], *inside, ticks[-1]]
    return Axis(name=name, positions=positions, ticks=ticks)


def parallel_coordinates(rows: list[Row]) -> Section:
    """Every trial as a line over its parameters and its loss; where it lacks one, the line runs
    below the axes.

    Built here because optuna.visualization leaves out trials that lack a parameter, and all that
    are not complete.
    """
    if len(rows) < 2:
        return Section(missing="It takes two trials to compare parameters.")
    names = distinct_names(row.trial["params"] for row in rows)
    columns = {name: [row.trial["params"].get(name, ABSENT) for row in rows] for name in names}
    constant = [
        name for name, values in columns.items() if all(value == values[0] for value in values)
    ]
    columns["val_loss"] = [row.shown["val_loss"] if row.shown else ABSENT for row in rows]
    axes = [
        _axis(name, v)
        for name, v in columns.items()
        if name not in constant and any(x is not ABSENT for x in v)
    ]
    if len(axes) < 2:
        return Section(
            missing=(
                "Nothing to compare: all trials have the same parameters, or none has a finite"
                " loss."
            )
        )
    below = -0.16
    lacking = any(None in axis.positions for axis in axes)
    crowded = [len(set(axis.positions)) <= 0.7 * len(rows) for axis in axes]
    traces = []
    for i, row in sorted(enumerate(rows), key=lambda entry: entry[1].wins):
        apart = 0.05 * (
            i / (len(rows) - 1) - 0.5
        )  # so that lines through one category or choice can be told apart
        at = [axis.positions[i] for axis in axes]
        y = [
            below + apart if p is None else p + apart * crowd
            for p, crowd in zip(at, crowded, strict=True)
        ]
        first_line = (
            f"val_loss {loss_text(row.shown['val_loss'])}" if row.shown else _shielded(row.excluded)
        )
        traces.append(
            _trial_trace(
                row.trial, row.wins, list(range(len(axes))), y, _hover(row.trial, first_line)
            )
        )
    words = [
        {
            "x": x,
            "y": y,
            "text": _shielded(shorten(label, 16)),
            "xanchor": "left",
            "xshift": 6,
            "name": "tick",
        }
        for x, axis in enumerate(axes)
        for y, label in axis.ticks
    ]
    words += [
        {"x": x, "y": 1.14, "text": _shielded(shorten(a.name, 20)), "name": "axis"}
        for x, a in enumerate(axes)
    ]
    lines = [{"x0": x, "x1": x, "y0": -0.03, "y1": 1.03} for x in range(len(axes))]
    if lacking:
        words.append(
            {
                "x": 0,
                "y": below,
                "text": "not used",
                "xanchor": "right",
                "xshift": -10,
                "name": "tick",
            }
        )
        lines.append(
            {"x0": 0, "x1": len(axes) - 1, "y0": below, "y1": below, "line": {"dash": "dot"}}
        )
    layout = {
        "xaxis": {
            "visible": False,
            "range": [-0.7 if lacking else -0.3, len(axes) - 0.4],
            "fixedrange": True,
        },
        "yaxis": {
            "visible": False,
            "range": [-0.24 if lacking else -0.08, 1.2],
            "fixedrange": True,
        },
        "annotations": [word | {"showarrow": False} for word in words],
        "shapes": [{"type": "line", "layer": "below"} | line for line in lines],
    }
    notes = []
    if lacking:
        notes.append(
            "A line on the dotted row belongs to a trial without that parameter, or without a"
            " finite loss."
        )
    if constant:
        same = ", ".join(f"{name} = {value_text(columns[name][0])}" for name in constant)
        notes.append(f"Left out, being the same in every trial: {same}.")
    plot = Plot(
        id="plot-parallel", height=420, min_width=118 * len(axes), data=traces, layout=layout
    )
    return Section(plots=[plot], notes=notes)


def objective_name(board: dict, study: optuna.Study | None) -> str:
    return board["metric"] if study is None else ", ".join(study.metric_names or [board["metric"]])


def importances(board: dict, study: optuna.Study | None) -> Section:
    """PED-ANOVA on the study's objective: https://arxiv.org/abs/2304.10255,
    https://arxiv.org/abs/2601.20800.
    """
    cannot = f"Importances for {objective_name(board, study)} cannot be computed: "
    if study is None:
        return Section(
            missing=cannot + "they need the Optuna study, and this report was written without it."
        )
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    objective, trials = objective_name(board, study), study.get_trials(deepcopy=False)
    # a pruned trial has a loss too: the best that it reached
    told = [
        optuna.create_trial(values=t.values, params=t.params, distributions=t.distributions)
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and t.values
        and all(map(math.isfinite, t.values))
    ]
    stopped = sum(t.state == TrialState.PRUNED and bool(t.values) for t in trials)
    if len(told) < MIN_TRIALS:
        counts = Counter(trial.state.name.lower() for trial in trials)
        held = (
            ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trial"
        )
        needs = f"they need {MIN_TRIALS} trials with a finite {objective}"
        return Section(
            missing=f"{cannot}{needs}, and there are {len(told)} (the study holds {held})."
        )
    if len({tuple(trial.values) for trial in told}) == 1:
        return Section(missing=f"{cannot}all {len(told)} trials have the same {objective}.")
    if not any(trial.params for trial in told):
        return Section(missing=f"{cannot}the study varies no parameter.")
    target = max(0.1, min(0.5, TARGET_TRIALS / len(told)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of_told = optuna.create_study(directions=study.directions)
        of_told.add_trials(told)
        shares = get_param_importances(
            of_told, evaluator=PedAnovaImportanceEvaluator(target_quantile=target)
        )
    ordered = sorted(shares.items(), key=lambda item: (item[1], item[0]))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [_shielded(shorten(name, 28)) for name, _ in ordered],
        "text": [f"{share:.0%}" if share >= 0.01 else "< 1%" for _, share in ordered],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "meta": {"tone": "accent"},
    }
    layout = {
        "xaxis": {"visible": False, "range": [0, 1.15 * max(shares.values())], "fixedrange": True},
        "yaxis": {"type": "category", "fixedrange": True, "showgrid": False, "ticksuffix": "  "},
        "bargap": 0.4,
    }
    directions = ", ".join(f"{direction.name.lower()}d" for direction in study.directions)
    best = f"the best {math.ceil(target * len(told))} of {len(told)} trials"
    notes = [
        f"How much each parameter decided whether a trial came among {best} by the study's"
        f" objective, {objective} ({directions}). PED-ANOVA, as shares of the sum."
    ]
    if stopped:
        notes.append(
            f"{stopped} of them were behind and stopped early; they count with the best loss that"
            " they reached."
        )
    settled = 10 * TARGET_TRIALS
    if len(told) < settled:
        notes.append(
            f"With {len(told)} trials the shares are rough; trust them from about {settled} on."
        )
    if unsure := sorted(
        {n for w in caught for n in re.findall(r"parameter `(.+?)` have less", str(w.message))}
    ):
        notes.append(
            f"Least certain, as too few trials have it or too few lack it: {join_some(unsure)}."
        )
    plot = Plot(id="plot-importances", height=40 + 34 * len(ordered), data=[bars], layout=layout)
    return Section(plots=[plot], notes=notes)


def timeline(board: dict, study: optuna.Study | None) -> Section:
    """When each trial of the study ran, and how it ended."""
    if study is None:
        return Section(
            missing="The timeline needs the Optuna study, and this report was written without it."
        )
    ids = {trial["id"] for trial in board["trials"]}
    known = [
        trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("trial") in ids
    ]
    trials = [trial for trial in known if trial.datetime_start is not None]
    if not trials:
        return Section(missing="No trial has started yet.")
    trials.sort(key=lambda trial: trial.datetime_start)
    now = datetime.now()  # Optuna's times are naive and local
    traces: dict[str, dict] = {}
    for trial in trials:
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        sweep_id = trial.user_attrs["trial"]
        span = max(
            (trial.datetime_complete or now) - trial.datetime_start, timedelta(milliseconds=1)
        )
        ran = f"{trial.datetime_start:%Y-%m-%d %H:%M:%S}, {_span_text(span)}"
        empty = {
            "type": "bar",
            "orientation": "h",
            "name": state,
            "hoverinfo": "text",
            "textposition": "none",
        }
        trace = traces.setdefault(
            state, empty | {"base": [], "x": [], "y": [], "text": [], "meta": {"tone": state}}
        )
        trace["base"].append(trial.datetime_start.isoformat())
        trace["x"].append(span / timedelta(milliseconds=1))
        trace["y"].append(_shielded(sweep_id))
        trace["text"].append(f"<b>{_shielded(sweep_id)}</b> {state}<br>{ran}")
    layout = {
        "xaxis": {"type": "date"},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "autorange": "reversed",
            "showgrid": False,
        },
        "barmode": "overlay",
        "bargap": 0.35,
        "showlegend": True,
    }
    in_order = sorted(
        (base, y) for t in traces.values() for base, y in zip(t["base"], t["y"], strict=True)
    )
    layout["yaxis"]["categoryarray"] = [y for _, y in in_order]
    height = min(max(200, 110 + 18 * len(trials)), 900)
    plot = Plot(id="plot-timeline", height=height, data=list(traces.values()), layout=layout)
    return Section(plots=[plot], notes=["Times are those of the machine that ran the sweep."])


def _span_text(span: timedelta) -> str:
    minutes, seconds = divmod(span.total_seconds(), 60)
    if minutes < 1:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"
