"""When each trial of the study ran."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sweeps.ledger.leaderboard import Leaderboard
from sweeps.reporting.plots.figure import Plot, Section, Trace, shielded

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class _Stay:
    """A trial's time from its start to its end, or to now."""

    trial: str
    state: str
    start: datetime
    span: timedelta


def timeline(board: Leaderboard, study: optuna.Study | None) -> Section:
    """When each trial of the study ran, and how it ended."""
    if study is None:
        return Section(
            missing="The timeline needs the Optuna study, and this report was written without it."
        )
    stays = _stays(board, study)
    if not stays:
        return Section(missing="No trial has started yet.")
    layout: dict[str, object] = {
        "xaxis": {"type": "date"},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "autorange": "reversed",
            "showgrid": False,
            "categoryarray": [y for _, y in sorted((_base(s), shielded(s.trial)) for s in stays)],
        },
        "barmode": "overlay",
        "bargap": 0.35,
        "showlegend": True,
    }
    states = dict.fromkeys(stay.state for stay in stays)
    bars = [_bars(state, [stay for stay in stays if stay.state == state]) for state in states]
    height = min(max(200, 110 + 18 * len(stays)), 900)
    plot = Plot(id="plot-timeline", height=height, data=bars, layout=layout)
    return Section(plots=[plot], notes=["Times are those of the machine that ran the sweep."])


def _stays(board: Leaderboard, study: optuna.Study) -> list[_Stay]:
    """Of the trials that the leaderboard knows, by their start."""
    ids = {trial.id for trial in board.trials}
    now = datetime.now()  # Optuna's times are naive and local
    found = []
    for trial in study.get_trials(deepcopy=False):
        start, name = trial.datetime_start, trial.user_attrs.get("trial")
        if name not in ids or start is None:
            continue
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        span = max((trial.datetime_complete or now) - start, timedelta(milliseconds=1))
        found.append(_Stay(trial=name, state=state, start=start, span=span))
    return sorted(found, key=lambda stay: stay.start)


def _bars(state: str, stays: list[_Stay]) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "name": state,
        "hoverinfo": "text",
        "textposition": "none",
        "base": [_base(stay) for stay in stays],
        "x": [stay.span / timedelta(milliseconds=1) for stay in stays],
        "y": [shielded(stay.trial) for stay in stays],
        "text": [_hover(stay) for stay in stays],
        "meta": {"tone": state},
    }


def _hover(stay: _Stay) -> str:
    ran = f"{stay.start:%Y-%m-%d %H:%M:%S}, {_span_text(stay.span)}"
    return f"<b>{shielded(stay.trial)}</b> {stay.state}<br>{ran}"


def _base(stay: _Stay) -> str:
    return stay.start.isoformat()


def _span_text(span: timedelta) -> str:
    minutes, seconds = divmod(span.total_seconds(), 60)
    if minutes < 1:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"
