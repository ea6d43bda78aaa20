"""What a person reads after a sweep: one HTML page that needs no network, and the same as a Weights
& Biases Report.

Both take the *board*, the dictionary that `best --json` prints: the sweep's name, folder, status
and metric, its winner (or the reason why nothing may win), baselines, and every trial with its
verdict, parameters and evaluations.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.ledger.leaderboard import leaderboard
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    loss_text,
    named_baselines,
    value_text,
)
from sweeps.reporting.plots import (
    ABSENT,
    VERDICTS,
    importances,
    learning_curves,
    objective_name,
    parallel_coordinates,
    timeline,
    tone,
)
from sweeps.reporting.words import (
    LOST,
    answered_words,
    cost_words,
    expected_words,
    forgetting_words,
    interval,
    test_words,
)

if TYPE_CHECKING:
    import optuna


MATRIX_CLASSES = 20  # whose confusion matrix is drawn


def _by_way(board: dict) -> dict[str, dict]:
    """Metrics on each split, by the name of the winner, the default configuration or a baseline:
    `validation`, `test`.
    """
    scores = (board.get("test") or {}).get("scores", {})
    found = {
        name: {
            "validation": board.get("baselines", {}).get(name, {}).get("metrics", {}),
            "test": scores.get(name, {}).get("metrics", {}),
        }
        for name in {*board.get("baselines", {}), *scores}
    }
    for each in (board.get("metrics") or {}).get("alternatives", []):
        found[each["name"]] = {
            split: (each[split] or {}).get("metrics", {}) for split in ("validation", "test")
        }
    return found


# --- HTML ---


def html_report(board: dict, study: optuna.Study | None, out: Path) -> Path:
    """Writes the page and returns its path. `study` adds parameter importances and the timeline.

    The page is one file of about 5 MB: plotly.js is inlined, and a content security policy forbids
    it every request and every script but its own.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    rows = leaderboard(board)
    sections = {
        "curves": learning_curves(board),
        "parallel": parallel_coordinates(rows),
        "importances": importances(board, study),
        "timeline": timeline(board, study),
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
        "loss": loss_text,
        "value": value_text,
        "tone": tone,
        "sortable": _sort_value,
    }
    page = environment.get_template("report.html.j2").render(
        board=board,
        rows=rows,
        compared=any(row.trial.get("difference") for row in rows),
        verdicts=_verdict_counts(board),
        baselines=named_baselines(board),
        baseline_names=list(board.get("baselines", {})),
        by_way=_by_way(board),
        alternatives={
            each["name"]: each for each in (board.get("metrics") or {}).get("alternatives", [])
        },
        matrix_classes=MATRIX_CLASSES,
        lost=[
            name
            for name in LOST
            if any(row.shown and row.shown.get(name) is not None for row in rows)
        ],
        statuses=Counter(trial["status"] for trial in board["trials"]),
        metric_names=distinct_names(row.shown["metrics"] for row in rows if row.shown),
        param_columns=_param_columns(board),
        constants=_constants(board),
        sections=sections,
        objective=objective_name(board, study),
        figures_json=_json_for_script(
            [asdict(plot) for section in sections.values() for plot in section.plots]
        ),
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


def _constants(board: dict) -> dict:
    """Parameters that have the same value in every one of several trials: said once, not in every
    line.
    """
    every = [trial["params"] for trial in board["trials"]]
    if len(every) < 2:
        return {}
    return {
        name: value
        for name, value in every[0].items()
        if all(p.get(name, ABSENT) == value for p in every)
    }


def _param_columns(board: dict) -> list[str]:
    constants = _constants(board)
    names = distinct_names(trial["params"] for trial in board["trials"])
    return [name for name in names if name != "method" and name not in constants]


# --- Numbers and words ---


def _bounds(part: dict | None) -> str:
    """A loss with its 95% interval, where it has one."""
    if part is None:
        return "–"
    between = (
        ""
        if part.get("low") is None
        else f" ({loss_text(part['low'])} to {loss_text(part['high'])})"
    )
    return loss_text(part.get("loss")) + between


def _rounded(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _share_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _sort_value(value: Any) -> str:
    """What the page's script sorts a cell by: a number, else text; empty sorts last."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if is_finite(value) else str(value)


# --- Plots: plain plotly dictionaries. A trace names its `tone`; which colour that is, the page
# knows ---


# --- Weights & Biases ---
