"""What every plot of the page is made of: plain plotly dictionaries. A trace names its `tone`;
which colour that is, the page knows.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.ledger.leaderboard import TrialRow
from sweeps.reporting.formatting import shorten, value_text
from sweeps.reporting.words import verdict_words

Trace = dict[str, object]

VERDICTS = tuple(
    "healthy, still improving, too early to tell, underfit, "
    "overfit, collapsed, diverged, failed".split(", ")
)

ABSENT = object()  # a parameter that a trial does not have, as None is a value


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


def shielded(text: str) -> str:
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
    data: list[Trace]
    layout: dict[str, object]
    key: list[tuple[str, str]] = field(default_factory=list)
    """What the letters in the plot stand for."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one heading of the page holds."""

    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str = ""
    """Why there is no plot, in words."""


def around(trial: TrialRow) -> tuple[str, str]:
    """What stands before and after a point's own words in all that a trial's lines tell."""
    params = [
        f"<br>{shielded(name)} = {shielded(shorten(value_text(v), 60))}"
        for name, v in trial.params.items()
    ]
    head = f"<b>{shielded(trial.id)}</b> {shielded(verdict_words(trial))}<br>"
    return head, "".join(params)


def trial_trace(
    trial: TrialRow,
    wins: bool,
    x: Sequence[float],
    y: Sequence[float | None],
    text: list[str] | str,
) -> Trace:
    """The line of a trial; `text` is what it tells, of every point or of all; the page puts
    `around` it, which is not written anew for each of them.
    """
    meta = {
        "trial": trial.id,
        "tone": tone(trial.verdict),
        "winner": wins,
        "around": around(trial),
    }
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "text": text,
        "hoverinfo": "text",
        "meta": meta,
    }
