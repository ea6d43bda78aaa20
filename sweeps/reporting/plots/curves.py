"""Learning curves: validation and probe loss over samples seen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.ledger.leaderboard import Leaderboard, ShownEvaluation, TrialRow, WinnerRow
from sweeps.reporting.formatting import is_finite, join_some, loss_text
from sweeps.reporting.plots.figure import Plot, Section, Trace, shielded, trial_trace
from sweeps.reporting.words import average_words

LossName = Literal["val_loss", "probe_loss"]
TITLES: dict[LossName, str] = {"val_loss": "Validation loss", "probe_loss": "Probe loss"}

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of baselines, beside the curves

ABOVE = 0.35  # of the range of the trials' losses: how far above it a baseline is still drawn

LETTER_SPACE = 15 / 300  # of one letter above another, as a share of the axis


@dataclass(frozen=True, kw_only=True)
class _Baseline:
    words: str
    val_loss: float | None
    probe_loss: float | None


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What both plots share, so that gaps can be compared."""

    low: float
    high: float
    margin: float
    baselines: list[_Baseline]
    near: list[float]
    """Losses of baselines that lie within the axis."""
    letters: dict[str, str]
    """By a baseline's words; one letter in both plots."""


def learning_curves(board: Leaderboard) -> Section:
    """Validation and probe loss over samples seen, a line per trial, on one range so that gaps can
    be compared.
    """
    trials = board.trials
    losses = _finite_losses(
        t for t in trials if t.verdict not in ("diverged", "failed")
    ) or _finite_losses(trials)
    if not losses:
        return Section(missing="No trial has a finite loss to draw yet.")
    frame = _frame(board, min(losses), max(losses))
    return Section(
        plots=[_plot(board, name, frame) for name in TITLES], notes=_notes(trials, frame)
    )


def _finite_losses(trials: Iterable[TrialRow]) -> list[float]:
    return [
        loss
        for trial in trials
        for e in trial.evaluations
        for loss in (e.val_loss, e.probe_loss)
        if is_finite(loss)
    ]


def _frame(board: Leaderboard, low: float, top: float) -> _Frame:
    baselines = [
        _Baseline(words=board.name_of(name), val_loss=b.val_loss, probe_loss=b.probe_loss)
        for name, b in board.baselines.items()
    ]
    losses = [loss for b in baselines for loss in (b.val_loss, b.probe_loss) if is_finite(loss)]
    near = [loss for loss in losses if low <= loss <= top + ABOVE * (top - low)]
    high = max([top, *near])
    return _Frame(
        low=low,
        high=high,
        margin=0.06 * (high - low) or 0.1 * abs(high) or 0.1,
        baselines=baselines,
        near=near,
        letters=_letters(baselines, near),
    )


def _letters(baselines: Sequence[_Baseline], near: Sequence[float]) -> dict[str, str]:
    """Of the baselines that are drawn, the lowest validation loss first."""
    drawn = [b for b in baselines if b.val_loss in near or b.probe_loss in near]
    drawn.sort(key=lambda b: (b.val_loss not in near, b.val_loss or 0.0))
    return dict(zip((b.words for b in drawn), LETTERS, strict=False))


def _loss(of: ShownEvaluation | _Baseline, name: LossName) -> float | None:
    return of.val_loss if name == "val_loss" else of.probe_loss


def _plot(board: Leaderboard, name: LossName, frame: _Frame) -> Plot:
    shown = sorted(
        (loss, b.words)
        for b in frame.baselines
        if (loss := _loss(b, name)) is not None and loss in frame.near
    )
    bounds = [frame.low - frame.margin, frame.high + frame.margin]
    lines, letters = baseline_lines([(y, frame.letters[words]) for y, words in shown], *bounds)
    layout = {
        "xaxis": {"title": {"text": "samples seen"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": TITLES[name].lower()}, "range": bounds},
        "shapes": lines,
        "annotations": letters,
        "margin": {"r": 26},
    }
    said = [(frame.letters[words], f"{words} {loss_text(y)}") for y, words in shown]
    return Plot(
        id=f"plot-{name}",
        title=TITLES[name],
        height=380,
        data=_traces(board, name),
        layout=layout,
        key=said,
    )


def _traces(board: Leaderboard, name: LossName) -> list[Trace]:
    """A line for each trial with a finite loss, the winner's last, on top."""
    winner, traces = board.winner, []
    winning = None if winner is None else winner.trial
    for trial in sorted(board.trials, key=lambda t: t.id == winning):
        if any(is_finite(_loss(e, name)) for e in trial.evaluations):
            traces.append(_line(trial, name, wins=trial.id == winning))
    if winner is not None and is_finite(_loss(winner, name)):
        traces.append(_star(winner, name))
    return traces


def _line(trial: TrialRow, name: LossName, *, wins: bool) -> Trace:
    losses = [_loss(e, name) for e in trial.evaluations]
    told = [
        f"{name} {loss_text(loss)} at {e.samples_seen:,} samples{average_words(e)}"
        for e, loss in zip(trial.evaluations, losses, strict=True)
    ]
    y = [loss if is_finite(loss) else None for loss in losses]
    return trial_trace(trial, wins, [e.samples_seen for e in trial.evaluations], y, told)


def _star(winner: WinnerRow, name: LossName) -> Trace:
    loss = _loss(winner, name)
    won = f"<b>{shielded(winner.trial)}</b>: the checkpoint that won<br>{name} {loss_text(loss)}"
    return {
        "type": "scatter",
        "mode": "markers",
        "marker": {"symbol": "star", "size": 15},
        "hoverinfo": "text",
        "x": [winner.samples_seen],
        "y": [loss],
        "text": [won],
        "meta": {"trial": winner.trial, "tone": "winner", "winner": True},
    }


def _notes(trials: Sequence[TrialRow], frame: _Frame) -> list[str]:
    """What the plots cannot show."""
    notes, losses = [], {trial.id: _finite_losses([trial]) for trial in trials}
    above = sorted(trial for trial, own in losses.items() if own and max(own) > frame.high)
    if above:
        notes.append(
            f"Losses of {join_some(above)} go beyond the top of the axis; double-click a"
            " plot for all."
        )
    if beyond := _outside(frame):
        notes.append(f"Outside the axis of validation loss: {', '.join(beyond)}.")
    if undrawn := [trial for trial, own in losses.items() if not own]:
        notes.append(f"Not drawn, having no finite loss: {join_some(undrawn)}.")
    return notes


def _outside(frame: _Frame) -> list[str]:
    """Baselines whose validation loss lies outside the axis, in words."""
    return [
        f"{b.words} ({loss_text(b.val_loss)})"
        for b in frame.baselines
        if is_finite(b.val_loss) and b.val_loss not in frame.near
    ]


def baseline_lines(
    lettered: list[tuple[float, str]], low: float, high: float
) -> tuple[list[Trace], list[Trace]]:
    """A dotted line for each loss, the lowest first, and its letter beside the plot, where no curve
    runs; letters of near losses are moved apart.
    """
    across: Trace = {
        "type": "line",
        "layer": "below",
        "line": {"dash": "dot"},
        "xref": "paper",
        "x0": 0,
        "x1": 1,
    }
    beside: Trace = {
        "name": "tick",
        "showarrow": False,
        "xref": "paper",
        "x": 1,
        "xanchor": "left",
        "xshift": 4,
    }
    space = LETTER_SPACE * (high - low)
    places: list[float] = []
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
