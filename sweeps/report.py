"""What a person reads after a sweep: one HTML page that needs no network, and the same as a Weights & Biases Report.

Both take the *board*, the dictionary that `best --json` prints: the sweep's name, folder, status and metric, its winner
(or the reason why nothing may win), baselines, and every trial with its verdict, parameters and evaluations.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import secrets
import urllib.error
import urllib.request
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.display import (
    BEHIND,
    LOST,
    answered_words,
    cost_words,
    expected_words,
    forgetting_words,
    interval,
    test_words,
    verdict_words,
)
from sweeps.leaderboard import Row, leaderboard

if TYPE_CHECKING:
    import optuna
    from wandb_workspaces.reports.v2 import Report

VERDICTS = tuple(
    "healthy, still improving, too early to tell, underfit, overfit, collapsed, diverged, failed".split(", ")
)
ABSENT = object()  # a parameter that a trial does not have, as None is a value

MATRIX_CLASSES = 20  # whose confusion matrix is drawn
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of baselines, beside the curves
LETTER_SPACE = 15 / 300  # of one letter above another, as a share of the axis
MIN_TRIALS = 5  # for importances: two of the best and two of the others are the least that can be compared
TARGET_TRIALS = 5  # PED-ANOVA asks for at least five trials in its top quantile
WANDB_TABLE_ROWS = 25
PROBE_TIMEOUT_S = 3.0


class ReportError(OSError):
    """A report that cannot be made or sent; the message is one line for the user."""


def _baselines(board: dict) -> dict[str, dict]:
    """What needs no training: losses of the untuned model, and of always answering with the shares of the labels."""
    words = {"untuned": "not fine-tuned", "prior": "label shares only"}
    return {
        words.get(name, measured.get("words", name)): measured for name, measured in board.get("baselines", {}).items()
    }


def _by_way(board: dict) -> dict[str, dict]:
    """Metrics on each split, by the name of the winner, the default configuration or a baseline: `validation`, `test`."""
    scores = (board.get("test") or {}).get("scores", {})
    found = {
        name: {
            "validation": board.get("baselines", {}).get(name, {}).get("metrics", {}),
            "test": scores.get(name, {}).get("metrics", {}),
        }
        for name in {*board.get("baselines", {}), *scores}
    }
    for each in (board.get("metrics") or {}).get("alternatives", []):
        found[each["name"]] = {split: (each[split] or {}).get("metrics", {}) for split in ("validation", "test")}
    return found


# --- HTML ---


def html_report(board: dict, study: optuna.Study | None, out: Path) -> Path:
    """Writes the page and returns its path. `study` adds parameter importances and the timeline.

    The page is one file of about 5 MB: plotly.js is inlined, and a content security policy forbids it every request and
    every script but its own.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    rows = leaderboard(board)
    sections = {
        "curves": _curves(board),
        "parallel": _parallel_coordinates(rows),
        "importances": _importances(board, study),
        "timeline": _timeline(board, study),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": interval,
        "test_words": test_words,
        "bounds": _bounds,
        "answered_words": answered_words,
        "share": _share_text,
        "rounded": _rounded,
        "cost_words": cost_words,
        "forgetting_words": forgetting_words,
        "expected_words": expected_words,
        "loss": _loss_text,
        "value": _value_text,
        "tone": _tone,
        "sortable": _sort_value,
    }
    page = environment.get_template("report.html.j2").render(
        board=board,
        rows=rows,
        compared=any(row.trial.get("difference") for row in rows),
        verdicts=_verdict_counts(board),
        baselines=_baselines(board),
        baseline_names=list(board.get("baselines", {})),
        by_way=_by_way(board),
        alternatives={each["name"]: each for each in (board.get("metrics") or {}).get("alternatives", [])},
        matrix_classes=MATRIX_CLASSES,
        lost=[name for name in LOST if any(row.shown and row.shown.get(name) is not None for row in rows)],
        statuses=Counter(trial["status"] for trial in board["trials"]),
        metric_names=_names(row.shown["metrics"] for row in rows if row.shown),
        param_columns=_param_columns(board),
        constants=_constants(board),
        sections=sections,
        objective=_objective(board, study),
        figures_json=_json_for_script([asdict(plot) for section in sections.values() for plot in section.plots]),
        plotly_js=get_plotlyjs(),
        nonce=secrets.token_urlsafe(16),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, out)  # whoever reloads the page of a running sweep never sees half of it
    return out


def _json_for_script(value: Any) -> str:
    """JSON that cannot end the <script> element which holds it."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")


def _verdict_counts(board: dict) -> list[tuple[str, int]]:
    counts = Counter(trial["verdict"] or "no verdict yet" for trial in board["trials"])
    known = [verdict for verdict in VERDICTS if verdict in counts]
    return [(verdict, counts[verdict]) for verdict in known + sorted(set(counts) - set(known))]


def _names(mappings) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _constants(board: dict) -> dict:
    """Parameters that have the same value in every one of several trials: said once, not in every line."""
    every = [trial["params"] for trial in board["trials"]]
    if len(every) < 2:
        return {}
    return {name: value for name, value in every[0].items() if all(p.get(name, ABSENT) == value for p in every)}


def _param_columns(board: dict) -> list[str]:
    constants = _constants(board)
    names = _names(trial["params"] for trial in board["trials"])
    return [name for name in names if name != "method" and name not in constants]


# --- Numbers and words ---


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wants_log(numbers: list[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) >= 8


def _loss_text(value: Any) -> str:
    if value is None:
        return "–"
    if not _is_finite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def _bounds(part: dict | None) -> str:
    """A loss with its 95% interval, where it has one."""
    if part is None:
        return "–"
    between = "" if part.get("low") is None else f" ({_loss_text(part['low'])} to {_loss_text(part['high'])})"
    return _loss_text(part.get("loss")) + between


def _rounded(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _share_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _value_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _sort_value(value: Any) -> str:
    """What the page's script sorts a cell by: a number, else text; empty sorts last."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if _is_finite(value) else str(value)


def _tone(word: str | None) -> str:
    """The name of the CSS colour of a verdict or a trial's state; `other` for a word that the page does not know."""
    slug = (word or "").lower().replace(" ", "-")
    known = {verdict.replace(" ", "-") for verdict in VERDICTS} | {"running", "complete", "pruned", "waiting"}
    return slug if slug in known else "other"


def _hover(trial: dict, first_line: str) -> str:
    lines = [f"<b>{_shielded(trial['id'])}</b> {_shielded(verdict_words(trial))}", first_line]
    lines += [f"{_shielded(name)} = {_shielded(_short(_value_text(v), 60))}" for name, v in trial["params"].items()]
    return "<br>".join(line for line in lines if line)


def _shielded(text: str) -> str:
    """Text as itself for plotly, which reads a subset of HTML and decodes few entities besides these."""
    return html.escape(text, quote=False)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _join(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


# --- Plots: plain plotly dictionaries. A trace names its `tone`; which colour that is, the page knows ---


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plotly figure. A trace's `meta` says how to paint it: `tone`, and `trial` and `winner` for a trial's line."""

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
    meta = {"trial": trial["id"], "tone": _tone(trial["verdict"]), "winner": wins}
    return {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "text": text, "hoverinfo": "text", "meta": meta}


def _finite_losses(trials: list[dict]) -> list[float]:
    found = [e[key] for trial in trials for e in trial["evaluations"] for key in ("val_loss", "probe_loss")]
    return [loss for loss in found if _is_finite(loss)]


def _curves(board: dict) -> Section:
    """Validation and probe loss over samples seen, a line per trial, on one range so that gaps can be compared."""
    trials, winner = board["trials"], board["winner"]
    losses = _finite_losses([t for t in trials if t["verdict"] not in ("diverged", "failed")]) or _finite_losses(trials)
    if not losses:
        return Section(missing="No trial has a finite loss to draw yet.")
    low, top = min(losses), max(losses)
    baselines = [(words, b.get("val_loss"), b.get("probe_loss")) for words, b in _baselines(board).items()]
    near = [v for b in baselines for v in b[1:] if _is_finite(v) and low <= v <= top + 0.35 * (top - low)]
    high = max([top, *near])
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    drawable = sorted(
        (b for b in baselines if b[1] in near or b[2] in near), key=lambda b: (b[1] not in near, b[1] or 0.0)
    )
    lettered = dict(zip((words for words, *_ in drawable), LETTERS, strict=False))  # one letter in both plots
    winning_id = None if winner is None else winner["trial"]
    plots, drawn, above = [], set(), set()
    for column, (key, title) in enumerate((("val_loss", "Validation loss"), ("probe_loss", "Probe loss")), start=1):
        traces = []
        for trial in sorted(trials, key=lambda t: t["id"] == winning_id):  # the winner last, on top
            evaluations = trial["evaluations"]
            y = [e[key] if _is_finite(e[key]) else None for e in evaluations]
            if any(value is not None for value in y):
                drawn.add(trial["id"])
                above |= {trial["id"] for value in y if value is not None and value > high}
                at = [f"{key} {_loss_text(e[key])} at {e['samples_seen']:,} samples" for e in evaluations]
                hovers = [_hover(trial, line) for line in at]
                x = [e["samples_seen"] for e in evaluations]
                traces.append(_trial_trace(trial, trial["id"] == winning_id, x, y, hovers))
        if winner is not None and _is_finite(winner[key]):
            won = f"<b>{_shielded(winning_id)}</b>: the checkpoint that won<br>{key} {_loss_text(winner[key])}"
            star = {"type": "scatter", "mode": "markers", "marker": {"symbol": "star", "size": 15}, "hoverinfo": "text"}
            star |= {"x": [winner["samples_seen"]], "y": [winner[key]], "text": [won]}
            traces.append(star | {"meta": {"trial": winning_id, "tone": "winner", "winner": True}})
        shown = sorted((b[column], b[0]) for b in baselines if b[column] in near)
        lines, letters = _baseline_lines([(y, lettered[words]) for y, words in shown], low - margin, high + margin)
        layout = {
            "xaxis": {"title": {"text": "samples seen"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": title.lower()}, "range": [low - margin, high + margin]},
            "shapes": lines,
            "annotations": letters,
            "margin": {"r": 26},
        }
        said = [(lettered[words], f"{words} {_loss_text(y)}") for y, words in shown]
        plots.append(Plot(id=f"plot-{key}", title=title, height=380, data=traces, layout=layout, key=said))
    notes = []
    if above:
        notes.append(f"Losses of {_join(sorted(above))} go beyond the top of the axis; double-click a plot for all.")
    beyond = [f"{words} ({_loss_text(y)})" for words, y, _ in baselines if _is_finite(y) and y not in near]
    if beyond:
        notes.append(f"Outside the axis of validation loss: {', '.join(beyond)}.")
    if undrawn := [trial["id"] for trial in trials if trial["id"] not in drawn]:
        notes.append(f"Not drawn, having no finite loss: {_join(undrawn)}.")
    return Section(plots=plots, notes=notes)


def _baseline_lines(lettered: list[tuple[float, str]], low: float, high: float) -> tuple[list[dict], list[dict]]:
    """A dotted line for each loss, the lowest first, and its letter beside the plot, where no curve runs; letters of near
    losses are moved apart.
    """
    across = {"type": "line", "layer": "below", "line": {"dash": "dot"}, "xref": "paper", "x0": 0, "x1": 1}
    beside = {"name": "tick", "showarrow": False, "xref": "paper", "x": 1, "xanchor": "left", "xshift": 4}
    space, places = LETTER_SPACE * (high - low), []
    for y, _ in lettered:
        places.append(max(y, places[-1] + space) if places else y)
    top = high
    for i in reversed(range(len(places))):  # what was pushed beyond the top comes down again
        places[i] = min(places[i], top)
        top = places[i] - space
    letters = [
        beside | {"text": letter, "y": y, "yanchor": "middle"} for y, (_, letter) in zip(places, lettered, strict=True)
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
    """Numbers on a linear or, where they span a lot, a logarithmic axis; everything else as categories."""
    present = [value for value in values if value is not ABSENT]
    if not all(_is_finite(value) for value in present):
        labels = sorted({_value_text(value) for value in present})
        at = {label: i / (len(labels) - 1) if len(labels) > 1 else 0.5 for i, label in enumerate(labels)}
        positions = [None if value is ABSENT else at[_value_text(value)] for value in values]
        return Axis(name=name, positions=positions, ticks=[(position, label) for label, position in at.items()])
    log = _wants_log(present)
    scale, unscale = (math.log, math.exp) if log else (float, float)
    start = scale(min(present))
    width = scale(max(present)) - start
    positions = [None if v is ABSENT else (scale(v) - start) / width if width else 0.5 for v in values]
    if len(set(present)) <= 6:
        ticks = sorted({(p, _value_text(v)) for p, v in zip(positions, values, strict=True) if p is not None})
    else:
        ticks = [(i / 4, f"{unscale(start + i / 4 * width):.3g}") for i in range(5)]
        decades = [10.0**power for power in range(math.ceil(math.log10(min(present))), 13)] if log else []
        inner = [((scale(decade) - start) / width, f"{decade:g}") for decade in decades]
        if len(inside := [tick for tick in inner if 0.06 < tick[0] < 0.94]) >= 2:
            ticks = [ticks[0], *inside, ticks[-1]]
    return Axis(name=name, positions=positions, ticks=ticks)


def _parallel_coordinates(rows: list[Row]) -> Section:
    """Every trial as a line over its parameters and its loss; where it lacks one, the line runs below the axes.

    Built here because optuna.visualization leaves out trials that lack a parameter, and all that are not complete.
    """
    if len(rows) < 2:
        return Section(missing="It takes two trials to compare parameters.")
    names = _names(row.trial["params"] for row in rows)
    columns = {name: [row.trial["params"].get(name, ABSENT) for row in rows] for name in names}
    constant = [name for name, values in columns.items() if all(value == values[0] for value in values)]
    columns["val_loss"] = [row.shown["val_loss"] if row.shown else ABSENT for row in rows]
    axes = [_axis(name, v) for name, v in columns.items() if name not in constant and any(x is not ABSENT for x in v)]
    if len(axes) < 2:
        return Section(missing="Nothing to compare: all trials have the same parameters, or none has a finite loss.")
    below = -0.16
    lacking = any(None in axis.positions for axis in axes)
    crowded = [len(set(axis.positions)) <= 0.7 * len(rows) for axis in axes]
    traces = []
    for i, row in sorted(enumerate(rows), key=lambda entry: entry[1].wins):
        apart = 0.05 * (i / (len(rows) - 1) - 0.5)  # so that lines through one category or choice can be told apart
        at = [axis.positions[i] for axis in axes]
        y = [below + apart if p is None else p + apart * crowd for p, crowd in zip(at, crowded, strict=True)]
        first_line = f"val_loss {_loss_text(row.shown['val_loss'])}" if row.shown else _shielded(row.excluded)
        traces.append(_trial_trace(row.trial, row.wins, list(range(len(axes))), y, _hover(row.trial, first_line)))
    words = [
        {"x": x, "y": y, "text": _shielded(_short(label, 16)), "xanchor": "left", "xshift": 6, "name": "tick"}
        for x, axis in enumerate(axes)
        for y, label in axis.ticks
    ]
    words += [{"x": x, "y": 1.14, "text": _shielded(_short(a.name, 20)), "name": "axis"} for x, a in enumerate(axes)]
    lines = [{"x0": x, "x1": x, "y0": -0.03, "y1": 1.03} for x in range(len(axes))]
    if lacking:
        words.append({"x": 0, "y": below, "text": "not used", "xanchor": "right", "xshift": -10, "name": "tick"})
        lines.append({"x0": 0, "x1": len(axes) - 1, "y0": below, "y1": below, "line": {"dash": "dot"}})
    layout = {
        "xaxis": {"visible": False, "range": [-0.7 if lacking else -0.3, len(axes) - 0.4], "fixedrange": True},
        "yaxis": {"visible": False, "range": [-0.24 if lacking else -0.08, 1.2], "fixedrange": True},
        "annotations": [word | {"showarrow": False} for word in words],
        "shapes": [{"type": "line", "layer": "below"} | line for line in lines],
    }
    notes = []
    if lacking:
        notes.append("A line on the dotted row belongs to a trial without that parameter, or without a finite loss.")
    if constant:
        same = ", ".join(f"{name} = {_value_text(columns[name][0])}" for name in constant)
        notes.append(f"Left out, being the same in every trial: {same}.")
    plot = Plot(id="plot-parallel", height=420, min_width=118 * len(axes), data=traces, layout=layout)
    return Section(plots=[plot], notes=notes)


def _objective(board: dict, study: optuna.Study | None) -> str:
    return board["metric"] if study is None else ", ".join(study.metric_names or [board["metric"]])


def _importances(board: dict, study: optuna.Study | None) -> Section:
    """PED-ANOVA on the study's objective: https://arxiv.org/abs/2304.10255, https://arxiv.org/abs/2601.20800."""
    cannot = f"Importances for {_objective(board, study)} cannot be computed: "
    if study is None:
        return Section(missing=cannot + "they need the Optuna study, and this report was written without it.")
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    objective, trials = _objective(board, study), study.get_trials(deepcopy=False)
    # a pruned trial has a loss too: the best that it reached
    told = [
        optuna.create_trial(values=t.values, params=t.params, distributions=t.distributions)
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.values and all(map(math.isfinite, t.values))
    ]
    stopped = sum(t.state == TrialState.PRUNED and bool(t.values) for t in trials)
    if len(told) < MIN_TRIALS:
        counts = Counter(trial.state.name.lower() for trial in trials)
        held = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trial"
        needs = f"they need {MIN_TRIALS} trials with a finite {objective}"
        return Section(missing=f"{cannot}{needs}, and there are {len(told)} (the study holds {held}).")
    if len({tuple(trial.values) for trial in told}) == 1:
        return Section(missing=f"{cannot}all {len(told)} trials have the same {objective}.")
    if not any(trial.params for trial in told):
        return Section(missing=f"{cannot}the study varies no parameter.")
    target = max(0.1, min(0.5, TARGET_TRIALS / len(told)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of_told = optuna.create_study(directions=study.directions)
        of_told.add_trials(told)
        shares = get_param_importances(of_told, evaluator=PedAnovaImportanceEvaluator(target_quantile=target))
    ordered = sorted(shares.items(), key=lambda item: (item[1], item[0]))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [share for _, share in ordered],
        "y": [_shielded(_short(name, 28)) for name, _ in ordered],
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
        f"How much each parameter decided whether a trial came among {best} by the study's objective, {objective} "
        f"({directions}). PED-ANOVA, as shares of the sum."
    ]
    if stopped:
        notes.append(
            f"{stopped} of them were behind and stopped early; they count with the best loss that they reached."
        )
    settled = 10 * TARGET_TRIALS
    if len(told) < settled:
        notes.append(f"With {len(told)} trials the shares are rough; trust them from about {settled} on.")
    if unsure := sorted({n for w in caught for n in re.findall(r"parameter `(.+?)` have less", str(w.message))}):
        notes.append(f"Least certain, as too few trials have it or too few lack it: {_join(unsure)}.")
    plot = Plot(id="plot-importances", height=40 + 34 * len(ordered), data=[bars], layout=layout)
    return Section(plots=[plot], notes=notes)


def _timeline(board: dict, study: optuna.Study | None) -> Section:
    """When each trial of the study ran, and how it ended."""
    if study is None:
        return Section(missing="The timeline needs the Optuna study, and this report was written without it.")
    ids = {trial["id"] for trial in board["trials"]}
    known = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("trial") in ids]
    trials = [trial for trial in known if trial.datetime_start is not None]
    if not trials:
        return Section(missing="No trial has started yet.")
    trials.sort(key=lambda trial: trial.datetime_start)
    now = datetime.now()  # Optuna's times are naive and local
    traces: dict[str, dict] = {}
    for trial in trials:
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        sweep_id = trial.user_attrs["trial"]
        span = max((trial.datetime_complete or now) - trial.datetime_start, timedelta(milliseconds=1))
        ran = f"{trial.datetime_start:%Y-%m-%d %H:%M:%S}, {_span_text(span)}"
        empty = {"type": "bar", "orientation": "h", "name": state, "hoverinfo": "text", "textposition": "none"}
        trace = traces.setdefault(state, empty | {"base": [], "x": [], "y": [], "text": [], "meta": {"tone": state}})
        trace["base"].append(trial.datetime_start.isoformat())
        trace["x"].append(span / timedelta(milliseconds=1))
        trace["y"].append(_shielded(sweep_id))
        trace["text"].append(f"<b>{_shielded(sweep_id)}</b> {state}<br>{ran}")
    layout = {
        "xaxis": {"type": "date"},
        "yaxis": {"type": "category", "categoryorder": "array", "autorange": "reversed", "showgrid": False},
        "barmode": "overlay",
        "bargap": 0.35,
        "showlegend": True,
    }
    in_order = sorted(((base, y) for t in traces.values() for base, y in zip(t["base"], t["y"], strict=True)))
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


# --- Weights & Biases ---


def wandb_report(board: dict, entity: str | None, project: str, group: str) -> Report:
    """The same as a W&B Report over the runs of `group`. Needs neither key nor network until `save_wandb_report`.

    Raises ReportError where `group` holds a character that W&B's filter language would read as its own.
    """
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr

    if unfit := sorted(set(re.findall(r"[^\w .,:/@+#()\[\]{}-]", group))):
        raise ReportError(f"W&B report: a W&B filter cannot express the group {group!r}, which holds {' '.join(unfit)}")
    rows = leaderboard(board)
    params = _names(trial["params"] for trial in board["trials"])
    metrics = _names(row.shown["metrics"] for row in rows if row.shown)
    best = "best/val_loss"
    # A run set that names no entity or project is of the report's own project, and is built without asking the server.
    runs = {
        "order": [
            wr.OrderBy(wr.SummaryMetric("winner"), ascending=False),
            wr.OrderBy(wr.SummaryMetric(best), ascending=True),
        ],
        "visible_columns": [
            *("run:displayName", "run:state"),
            *(f"summary:{name}" for name in ("winner", "verdict", "verdict_reason", "status", best, "samples_seen")),
            *(f"config:{name}.value" for name in params),
        ],
    }
    in_group = expr.Metric("Group") == group
    every_run = wr.Runset(name=board["sweep"], filters=[in_group], **runs)
    winning_run = wr.Runset(name="winner", filters=[in_group, expr.Summary("winner") == True], **runs)  # noqa: E712

    def curve(title: str, names: list[str], x: int, y: int = 0) -> wr.LinePlot:
        layout = wr.Layout(x=x, y=y, w=12, h=9)
        return wr.LinePlot(title=title, x="samples_seen", y=names, title_x="samples seen", layout=layout)

    curves = [curve("Validation loss", ["val/loss"], 0), curve("Probe loss (training split)", ["probe/loss"], 12)]
    curves += [curve(name, [f"val/{name}"], 12 * (i % 2), 9 + 9 * (i // 2)) for i, name in enumerate(metrics)]
    columns_of = {name: [t["params"][name] for t in board["trials"] if name in t["params"]] for name in params}
    numeric = [name for name in params if all(map(_is_finite, columns_of[name])) and len(set(columns_of[name])) > 1]
    log = {name for name in numeric if _wants_log(columns_of[name])}
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name, log=name in log) for name in params]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(best), display_name=best))
    over = [
        wr.ParallelCoordinatesPlot(columns=columns, title="Parameters", layout=wr.Layout(w=24, h=9)),
        wr.ParameterImportancePlot(with_respect_to=best, layout=wr.Layout(y=9, w=12, h=9)),
    ]
    over += [
        wr.ScatterPlot(
            title=f"{name} and {best}",
            x=wr.Config(name),
            y=wr.SummaryMetric(best),
            log_x=name in log,
            layout=wr.Layout(x=12 * ((i + 1) % 2), y=9 + 9 * ((i + 1) // 2), w=12, h=9),
        )
        for i, name in enumerate(numeric)
    ]
    blocks = [wr.MarkdownBlock(text=_winner_markdown(board)), wr.H2(text="Leaderboard")]
    blocks += [wr.MarkdownBlock(text=_leaderboard_markdown(rows, params, metrics)), wr.H2(text="Learning curves")]
    blocks += [wr.PanelGrid(runsets=[every_run], panels=curves)]
    if board["winner"] is not None:
        of_winner = curve("Losses of the winner", ["val/loss", "probe/loss", "train/loss"], 0)
        blocks += [wr.H2(text="The winner's losses"), wr.PanelGrid(runsets=[winning_run], panels=[of_winner])]
    blocks += [wr.H2(text="Parameters"), wr.PanelGrid(runsets=[every_run], panels=over), wr.H2(text="Runs compared")]
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=15))
    blocks += [wr.PanelGrid(runsets=[every_run], panels=[comparer])]
    return wr.Report(
        project=project,
        entity=entity or "",
        title=_short(f"Sweep {board['sweep']}", 128),  # W&B's limit
        description=f"{board['status']}, {len(board['trials'])} trials, selected by {board['metric']}",
        blocks=blocks,
        width="fluid",
    )


def save_wandb_report(report: Report) -> str:
    """Sends the report to W&B and returns its address. A report without an entity goes to the account's default one.

    Raises ReportError, in one line, when W&B cannot be reached or refuses.
    """
    import wandb

    try:
        _ask_server(wandb.setup().settings.base_url)
        if not report.entity:
            report.entity = wandb.Api().default_entity
        return report.save().url
    except Exception as error:  # the outside world: wandb, wandb-core, requests and GraphQL each raise their own
        said = " ".join(str(error).split()) or type(error).__name__
        raise ReportError(f"W&B report: not saved to project {report.project!r}: {_short(said, 300)}") from error


def _ask_server(base_url: str) -> None:
    """Raises OSError where nobody answers. wandb itself tries for 20 s and then speaks of a busy service process."""
    try:
        urllib.request.urlopen(base_url, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # any answer will do
    except urllib.error.URLError as error:
        raise OSError(f"{base_url} does not answer ({error.reason})") from error


def _winner_markdown(board: dict) -> str:
    winner = board["winner"]
    if winner is None:
        return f"**No winner{' yet' if board['status'] == 'running' else ''}.** {_markdown(board['reason'])}"
    numbers = [
        f"validation loss **{_loss_text(winner['val_loss'])}**",
        *([_markdown(expected_words(winner["expected"]))] if winner.get("expected") else []),
        f"probe loss {_loss_text(winner['probe_loss'])}",
        *(f"{_markdown(name)} {_loss_text(value)}" for name, value in winner["metrics"].items()),
        f"after {winner['samples_seen']:,} samples",
    ]
    baselines = _baselines(board).items()
    numbers += [f"{_markdown(words)} {_loss_text(measured.get('val_loss'))}" for words, measured in baselines]
    params = ", ".join(_markdown(f"{name} = {_value_text(value)}") for name, value in winner["params"].items())
    title = f"**{'Best so far' if board['status'] == 'running' else 'Winner'}: {_markdown(winner['trial'])}**"
    worth = f"\n\n**Worth it?** {_markdown(board['worth']['words'])}" if board.get("worth") else ""
    return f"{title}, {', '.join(numbers)}.{worth}\n\n{_markdown(winner['reason'])}\n\n{params}"


def _leaderboard_markdown(rows: list[Row], params: list[str], metrics: list[str]) -> str:
    if not rows:
        return "No trial has started yet."
    head = [
        "#",
        "trial",
        "verdict",
        "status",
        "val loss",
        BEHIND,
        "probe loss",
        *metrics,
        "samples seen",
        *params,
    ]
    head += ["why excluded"]
    lines = [[_markdown(cell) for cell in head], ["---"] * len(head)]
    for row in rows[:WANDB_TABLE_ROWS]:
        shown = row.shown or {"val_loss": None, "probe_loss": None, "metrics": {}, "samples_seen": "–"}
        cells = [f"{row.rank or '–'}{' =' if row.tied else ''}", row.trial["id"], verdict_words(row.trial) or "–"]
        cells += [row.trial["status"]]
        cells += [_loss_text(shown["val_loss"]), interval(row.trial.get("difference")), _loss_text(shown["probe_loss"])]
        cells += [_loss_text(shown["metrics"].get(name)) for name in metrics]
        cells += [shown["samples_seen"]]
        cells += [_value_text(row.trial["params"][name]) if name in row.trial["params"] else "–" for name in params]
        cells = [_markdown(str(cell)) for cell in [*cells, row.excluded]]
        lines.append([f"**{cell}**" if row.wins and cell else cell for cell in cells])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    left = len(rows) - WANDB_TABLE_ROWS
    return text if left <= 0 else f"{text}\n\nand {left} more trials in the run set below."


def _markdown(text: str) -> str:
    """Text as itself: CommonMark lets every ASCII punctuation mark be escaped; that keeps HTML and table bars out."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&$])", r"\\\1", " ".join(text.split()))
