"""The leaderboard as one HTML page that needs no network."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
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
    interval,
    lineage_words,
    test_words,
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


def html_report(
    board: Leaderboard,
    study: optuna.Study | None,
    out: Path,
    samples: Sequence[Sample] = (),
    searched: Measure = LOSS,
) -> Path:
    """Writes the page and returns its path. `study` adds parameter importances and the timeline,
    `samples` what models wrote to the same rows; `searched` is what the search was told of trials.

    The page is one file of about 5 MB: plotly.js is inlined, and a content security policy forbids
    it every request and every script but its own.
    """
    from plotly.offline import get_plotlyjs

    rows = board.rows
    sections = {
        "curves": learning_curves(board),
        "parallel": parallel_coordinates(rows),
        "importances": importances(study, searched),
        "timeline": timeline(board, study),
    }
    page = template("report.html.j2").render(
        board=board,
        rows=rows,
        samples=samples[:SAMPLES],
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
        objective=searched.name,
        figures_json=_figures_json(sections.values()),
        plotly_js=get_plotlyjs(),
        nonce=secrets.token_urlsafe(16),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, out)  # whoever reloads the page of a running sweep never sees half of it
    return out


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
        "lineage_words": lineage_words,
        "expected_words": expected_words,
        "loss": loss_text,
        "value": value_text,
        "tone": tone,
        "sortable": _sort_value,
    }
    return environment.get_template(name)


def _lost(rows: Sequence[RankedTrial]) -> list[str]:
    """What of the base was measured as lost, of any trial."""
    shown = [row.shown for row in rows if row.shown]
    return [name for name in LOST if any(getattr(each, name) is not None for each in shown)]


def _figures_json(sections: Iterable[Section]) -> str:
    return _json_for_script([asdict(plot) for section in sections for plot in section.plots])


def _json_for_script(value: object) -> str:
    """JSON that cannot end the <script> element which holds it."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")


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
