"""The leaderboard as one HTML page that needs no network."""

from __future__ import annotations

import json
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.ledger.leaderboard import (
    SPLITS,
    Alternative,
    Leaderboard,
    RankedTrial,
    Score,
    SlicePart,
    SplitName,
)
from sweeps.ledger.progress import Progress, RunningTrial
from sweeps.reporting.details import TrialDetails, details_of
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    loss_text,
    value_text,
)
from sweeps.reporting.plots.curves import learning_curves
from sweeps.reporting.plots.figure import ABSENT, VERDICTS, Section, tone
from sweeps.reporting.plots.importances import importances
from sweeps.reporting.plots.parallel import parallel_coordinates
from sweeps.reporting.plots.timeline import timeline
from sweeps.reporting.words import (
    LOST,
    answered_words,
    average_words,
    cost_words,
    earlier_words,
    expected_words,
    forgetting_words,
    format_params,
    harness_words,
    head_words,
    interval,
    lineage_words,
    test_words,
    when,
)
from sweeps.selection.measure import Measure
from trainables.evaluation.record import Metrics

if TYPE_CHECKING:
    import jinja2
    import optuna

    from sweeps.reporting.samples import Sample


MATRIX_CLASSES = 20  # whose confusion matrix is drawn


def _alternatives(board: Leaderboard) -> tuple[Alternative, ...]:
    return () if board.metrics is None else board.metrics.alternatives


LOSS = Measure()
SAMPLES = 20  # rows whose answers the page shows
LINES = 60  # of the log, the last


def _by_way(board: Leaderboard) -> dict[str, dict[SplitName, Metrics]]:
    """Metrics on each split, by the name of the winner, the default configuration or a baseline."""
    found: dict[str, dict[SplitName, Metrics]] = {}
    for name in {*board.baselines, *board.scores}:
        row, score = board.baselines.get(name), board.scores.get(name)
        found[name] = {
            "validation": {} if row is None else row.metrics,
            "test": {} if score is None else score.metrics,
        }
    for each in _alternatives(board):
        found[each.name] = {
            split: {} if (measured := each.on(split)) is None else measured.metrics
            for split in SPLITS
        }
    return found


# --- HTML ---


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What the page shows beside the leaderboard."""

    study: optuna.Study | None = None
    """Adds parameter importances and the timeline."""
    searched: Measure = LOSS
    """What the search was told of trials."""
    samples: Sequence[Sample] = ()
    """What models wrote to the same rows."""
    details: Mapping[str, TrialDetails] | None = None
    """Of each trial; None: what the leaderboard holds."""
    story: Sequence[str] = ()
    progress: Progress | None = None
    """Of a sweep that runs."""


NOTHING = Beside()


def html_report(board: Leaderboard, beside: Beside = NOTHING, *, live: str | None = None) -> str:
    """The page, of about 5 MB with plotly.js in it. A content security policy forbids it every
    request and every script but its own. live: which version it shows to whom it asks whether
    there is another, and from whom it has plotly.js.
    """
    rows, study, progress = board.rows, beside.study, beside.progress
    sections = {
        "curves": learning_curves(board),
        "parallel": parallel_coordinates(rows),
        "importances": importances(study, beside.searched),
        "timeline": timeline(board, study),
    }
    details = details_of(board) if beside.details is None else beside.details
    return template("report.html.j2").render(
        board=board,
        rows=rows,
        live=live,
        running=[] if progress is None else _running(board, progress),
        pace="" if progress is None else head_words(board.sweep, _ended(board), progress),
        story=beside.story[-LINES:],
        samples=beside.samples[:SAMPLES],
        compared=any(row.trial.difference for row in rows),
        verdicts=_verdict_counts(board),
        by_way=_by_way(board),
        alternatives={each.name: each for each in _alternatives(board)},
        matrix_classes=MATRIX_CLASSES,
        lost=_lost(rows),
        statuses=Counter(trial.status for trial in board.trials),
        metric_names=distinct_names(row.shown.metrics for row in rows if row.shown),
        param_columns=_param_columns(board),
        constants=_constants(board),
        sections=sections,
        objective=beside.searched.name,
        figures_json=_figures_json(sections.values()),
        details_json=_json_for_script(dict(details)),
        plotly_js="" if live else plotly_js(),
        script=(Path(__file__).parent / "report.js").read_text(encoding="utf-8"),
        nonce=secrets.token_urlsafe(16),
        written=datetime.now(UTC).strftime(
            "%Y-%m-%d %H:%M:%S UTC" if live else "%Y-%m-%d %H:%M UTC"
        ),
    )


def plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _running(
    board: Leaderboard, progress: Progress
) -> list[tuple[str, float | None, RunningTrial | None, str]]:
    """Trials that run: each with its best loss so far, how far it is, and its configuration."""
    found = []
    for row in board.trials:
        if row.status == "running":
            best = min(row.may_win, key=board.measure.key, default=None)
            loss, words = best and best.val_loss, format_params(row.params)
            found.append((row.id, loss, progress.running.get(row.id), words))
    return found


def _ended(board: Leaderboard) -> int:
    return sum(row.status != "running" for row in board.trials)


def template(name: str) -> jinja2.Template:
    """A page's template of this folder."""
    import jinja2

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
        "average_words": average_words,
        "share": _share_text,
        "rounded": _rounded,
        "cost_words": cost_words,
        "forgetting_words": forgetting_words,
        "earlier_words": earlier_words,
        "harness_words": harness_words,
        "lineage_words": lineage_words,
        "expected_words": expected_words,
        "loss": loss_text,
        "value": value_text,
        "tone": tone,
        "sortable": _sort_value,
        "when": when,
    }
    return environment.get_template(name)


def _lost(rows: Sequence[RankedTrial]) -> list[str]:
    """What of the base was measured as lost, of any trial."""
    shown = [row.shown for row in rows if row.shown]
    return [name for name in LOST if any(getattr(each, name) is not None for each in shown)]


def _figures_json(sections: Iterable[Section]) -> str:
    return _json_for_script([plot for section in sections for plot in section.plots])


def _json_for_script(value: object) -> str:
    """JSON that cannot end the <script> element which holds it; of dataclasses too, which are not
    copied for that.
    """
    written = json.dumps(value, allow_nan=False, ensure_ascii=True, default=vars)
    return written.replace("<", "\\u003c")


def _verdict_counts(board: Leaderboard) -> list[tuple[str, int]]:
    counts = Counter(trial.verdict or "no verdict yet" for trial in board.trials)
    known = [verdict for verdict in VERDICTS if verdict in counts]
    return [(verdict, counts[verdict]) for verdict in known + sorted(set(counts) - set(known))]


def _constants(board: Leaderboard) -> dict[str, object]:
    """Parameters that have the same value in every one of several trials: said once, not in every
    line.
    """
    every = [trial.params for trial in board.trials]
    if len(every) < 2:
        return {}
    return {
        name: value
        for name, value in every[0].items()
        if all(p.get(name, ABSENT) == value for p in every)
    }


def _param_columns(board: Leaderboard) -> list[str]:
    constants = _constants(board)
    names = distinct_names(trial.params for trial in board.trials)
    return [name for name in names if name != "method" and name not in constants]


# --- Numbers and words ---


def _bounds(part: Score | SlicePart | None) -> str:
    """A loss with its 95% interval, where it has one."""
    if part is None:
        return "–"
    between = "" if part.low is None else f" ({loss_text(part.low)} to {loss_text(part.high)})"
    return loss_text(part.loss) + between


def _rounded(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _share_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _sort_value(value: object) -> str:
    """What the page's script sorts a cell by: a number, else text; empty sorts last."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if is_finite(value) else str(value)
