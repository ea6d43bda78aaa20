"""Every trial as a line over its parameters and its loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sweeps.ledger.leaderboard import RankedTrial
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    loss_text,
    shorten,
    value_text,
    wants_log,
)
from sweeps.reporting.plots.figure import (
    ABSENT,
    Plot,
    Section,
    Trace,
    shielded,
    trial_trace,
)

BELOW = -0.16  # where the line of a trial runs that lacks a parameter


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the parallel coordinates."""

    name: str
    positions: list[float | None]
    """Where each trial's value lies, in [0, 1]; None where it has none."""
    ticks: list[tuple[float, str]]


def _axis(name: str, values: Sequence[object]) -> Axis:
    """Numbers on a linear or, where they span a lot, a logarithmic axis; everything else as
    categories.
    """
    present = [value for value in values if value is not ABSENT]
    numbers = [value for value in present if is_finite(value)]
    if len(numbers) == len(present):
        return _numeric_axis(name, values, numbers)
    return _categorical_axis(name, values, present)


def _categorical_axis(name: str, values: Sequence[object], present: Sequence[object]) -> Axis:
    """present: the values but for those that are absent."""
    labels = sorted({value_text(value) for value in present})
    apart = max(len(labels) - 1, 1)
    at = {label: i / apart if len(labels) > 1 else 0.5 for i, label in enumerate(labels)}
    return Axis(
        name=name,
        positions=[None if value is ABSENT else at[value_text(value)] for value in values],
        ticks=[(position, label) for label, position in at.items()],
    )


def _numeric_axis(name: str, values: Sequence[object], numbers: list[float]) -> Axis:
    """numbers: the values but for those that are absent."""
    log = wants_log(numbers)
    scale, unscale = (math.log, math.exp) if log else (float, float)
    start = scale(min(numbers))
    width = scale(max(numbers)) - start

    def position(value: float) -> float:
        return (scale(value) - start) / width if width else 0.5

    if len(set(numbers)) <= 6:
        ticks = sorted({(position(value), value_text(value)) for value in numbers})
    else:
        ticks = [(i / 4, f"{unscale(start + i / 4 * width):.3g}") for i in range(5)]
        inside = [tick for tick in _decades(numbers, position, log) if 0.06 < tick[0] < 0.94]
        if len(inside) >= 2:
            ticks = [ticks[0], *inside, ticks[-1]]
    positions = [position(value) if is_finite(value) else None for value in values]
    return Axis(name=name, positions=positions, ticks=ticks)


def _decades(
    numbers: list[float], position: Callable[[float], float], log: bool
) -> list[tuple[float, str]]:
    if not log:
        return []
    decades = [10.0**power for power in range(math.ceil(math.log10(min(numbers))), 13)]
    return [(position(decade), f"{decade:g}") for decade in decades]


def parallel_coordinates(rows: Sequence[RankedTrial]) -> Section:
    """Every trial as a line over its parameters and its loss; where it lacks one, the line runs
    below the axes.

    Built here because optuna.visualization leaves out trials that lack a parameter, and all that
    are not complete.
    """
    if len(rows) < 2:
        return Section(missing="It takes two trials to compare parameters.")
    params = _params(rows)
    constant = {name: values[0] for name, values in params.items() if _is_constant(values)}
    axes = [_axis(name, values) for name, values in params.items() if name not in constant]
    axes += _loss_axis(rows)
    if len(axes) < 2:
        return Section(
            missing=(
                "Nothing to compare: all trials have the same parameters, or none has a finite"
                " loss."
            )
        )
    lacking = any(None in axis.positions for axis in axes)
    plot = Plot(
        id="plot-parallel",
        height=420,
        min_width=118 * len(axes),
        data=_lines(rows, axes),
        layout=_layout(axes, lacking),
    )
    return Section(plots=[plot], notes=_notes(constant, lacking))


def _params(rows: Sequence[RankedTrial]) -> dict[str, list[object]]:
    """Each trial's value of every parameter."""
    names = distinct_names(row.trial.params for row in rows)
    return {name: [row.trial.params.get(name, ABSENT) for row in rows] for name in names}


def _loss_axis(rows: Sequence[RankedTrial]) -> list[Axis]:
    """The last; none where no trial has a loss to show."""
    losses = [row.shown.val_loss if row.shown else ABSENT for row in rows]
    return [_axis("val_loss", losses)] if any(loss is not ABSENT for loss in losses) else []


def _is_constant(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)


def _lines(rows: Sequence[RankedTrial], axes: Sequence[Axis]) -> list[Trace]:
    """A line per trial, the winner's last."""
    crowded = [len(set(axis.positions)) <= 0.7 * len(rows) for axis in axes]
    traces = []
    for i, row in sorted(enumerate(rows), key=lambda entry: entry[1].wins):
        # so that lines through one category or choice can be told apart
        apart = 0.05 * (i / (len(rows) - 1) - 0.5)
        y = [
            BELOW + apart if (at := axis.positions[i]) is None else at + apart * crowd
            for axis, crowd in zip(axes, crowded, strict=True)
        ]
        first_line = (
            f"val_loss {loss_text(row.shown.val_loss)}" if row.shown else shielded(row.excluded)
        )
        traces.append(trial_trace(row.trial, row.wins, list(range(len(axes))), y, first_line))
    return traces


def _layout(axes: Sequence[Axis], lacking: bool) -> dict[str, object]:
    """Axes and their ticks, drawn as lines and words: plotly's own would fold the lines away."""
    beside = {"xanchor": "left", "xshift": 6, "name": "tick"}
    words: list[Trace] = [
        {"x": x, "y": y, "text": shielded(shorten(label, 16)), **beside}
        for x, axis in enumerate(axes)
        for y, label in axis.ticks
    ]
    words += [
        {"x": x, "y": 1.14, "text": shielded(shorten(a.name, 20)), "name": "axis"}
        for x, a in enumerate(axes)
    ]
    lines: list[Trace] = [{"x0": x, "x1": x, "y0": -0.03, "y1": 1.03} for x in range(len(axes))]
    if lacking:
        left = {"xanchor": "right", "xshift": -10, "name": "tick"}
        words.append({"x": 0, "y": BELOW, "text": "not used", **left})
        lines.append(
            {"x0": 0, "x1": len(axes) - 1, "y0": BELOW, "y1": BELOW, "line": {"dash": "dot"}}
        )
    across, up = [-0.7 if lacking else -0.3, len(axes) - 0.4], [-0.24 if lacking else -0.08, 1.2]
    return {
        "xaxis": {"visible": False, "range": across, "fixedrange": True},
        "yaxis": {"visible": False, "range": up, "fixedrange": True},
        "annotations": [word | {"showarrow": False} for word in words],
        "shapes": [{"type": "line", "layer": "below"} | line for line in lines],
    }


def _notes(constant: Mapping[str, object], lacking: bool) -> list[str]:
    """constant: the value of each parameter that is the same in every trial."""
    notes = []
    if lacking:
        notes.append(
            "A line on the dotted row belongs to a trial without that parameter, or without a"
            " finite loss."
        )
    if constant:
        same = ", ".join(f"{name} = {value_text(value)}" for name, value in constant.items())
        notes.append(f"Left out, being the same in every trial: {same}.")
    return notes
