"""A sweep as a Weights & Biases Report over its runs."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.ledger.leaderboard import Leaderboard, RankedTrial, ShownEvaluation
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    loss_text,
    shorten,
    value_text,
    wants_log,
)
from sweeps.reporting.words import (
    BEHIND,
    expected_words,
    interval,
    verdict_words,
)

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report

WANDB_TABLE_ROWS = 25

PROBE_TIMEOUT_S = 3.0


class ReportError(OSError):
    """A report that cannot be made or sent; the message is one line for the user."""


def wandb_report(board: Leaderboard, entity: str | None, project: str, group: str) -> Report:
    """The same as a W&B Report over the runs of `group`. Needs neither key nor network until
    `save_wandb_report`.

    Raises ReportError where `group` holds a character that W&B's filter language would read as its
    own.
    """
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr

    if unfit := sorted(set(re.findall(r"[^\w .,:/@+#()\[\]{}-]", group))):
        raise ReportError(
            f"W&B report: a W&B filter cannot express the group {group!r}, which holds"
            f" {' '.join(unfit)}"
        )
    rows = board.rows
    params = distinct_names(trial.params for trial in board.trials)
    metrics = distinct_names(row.shown.metrics for row in rows if row.shown)
    best = "best/val_loss"
    # A run set that names no entity or project is of the report's own project, and is built without
    # asking the server.
    runs = {
        "order": [
            wr.OrderBy(wr.SummaryMetric("winner"), ascending=False),
            wr.OrderBy(wr.SummaryMetric(best), ascending=True),
        ],
        "visible_columns": [
            *("run:displayName", "run:state"),
            *(
                f"summary:{name}"
                for name in ("winner", "verdict", "verdict_reason", "status", best, "samples_seen")
            ),
            *(f"config:{name}.value" for name in params),
        ],
    }
    in_group = expr.Metric("Group") == group
    every_run = wr.Runset(name=board.sweep, filters=[in_group], **runs)
    is_winner = expr.Summary("winner") == True  # noqa: E712
    winning_run = wr.Runset(name="winner", filters=[in_group, is_winner], **runs)

    def curve(title: str, names: list[str], x: int, y: int = 0) -> wr.LinePlot:
        layout = wr.Layout(x=x, y=y, w=12, h=9)
        return wr.LinePlot(
            title=title, x="samples_seen", y=names, title_x="samples seen", layout=layout
        )

    curves = [
        curve("Validation loss", ["val/loss"], 0),
        curve("Probe loss (training split)", ["probe/loss"], 12),
    ]
    curves += [
        curve(name, [f"val/{name}"], 12 * (i % 2), 9 + 9 * (i // 2))
        for i, name in enumerate(metrics)
    ]
    columns_of = {
        name: [t.params[name] for t in board.trials if name in t.params] for name in params
    }
    numeric = [
        name
        for name in params
        if all(map(is_finite, columns_of[name])) and len(set(columns_of[name])) > 1
    ]
    log = {name for name in numeric if wants_log(columns_of[name])}
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name, log=name in log)
        for name in params
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(best), display_name=best))
    over = [
        wr.ParallelCoordinatesPlot(
            columns=columns, title="Parameters", layout=wr.Layout(w=24, h=9)
        ),
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
    blocks += [
        wr.MarkdownBlock(text=_leaderboard_markdown(rows, params, metrics)),
        wr.H2(text="Learning curves"),
    ]
    blocks += [wr.PanelGrid(runsets=[every_run], panels=curves)]
    if board.winner is not None:
        of_winner = curve("Losses of the winner", ["val/loss", "probe/loss", "train/loss"], 0)
        blocks += [
            wr.H2(text="The winner's losses"),
            wr.PanelGrid(runsets=[winning_run], panels=[of_winner]),
        ]
    blocks += [
        wr.H2(text="Parameters"),
        wr.PanelGrid(runsets=[every_run], panels=over),
        wr.H2(text="Runs compared"),
    ]
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=15))
    blocks += [wr.PanelGrid(runsets=[every_run], panels=[comparer])]
    return wr.Report(
        project=project,
        entity=entity or "",
        title=shorten(f"Sweep {board.sweep}", 128),  # W&B's limit
        description=(f"{board.status}, {len(board.trials)} trials, selected by {board.metric}"),
        blocks=blocks,
        width="fluid",
    )


def save_wandb_report(report: Report) -> str:
    """Sends the report to W&B and returns its address. A report without an entity goes to the
    account's default one.

    Raises ReportError, in one line, when W&B cannot be reached or refuses.
    """
    import wandb

    try:
        _ask_server(wandb.setup().settings.base_url)
        if not report.entity:
            report.entity = wandb.Api().default_entity
        return report.save().url
    except (
        Exception
    ) as error:  # the outside world: wandb, wandb-core, requests and GraphQL each raise their own
        said = " ".join(str(error).split()) or type(error).__name__
        raise ReportError(
            f"W&B report: not saved to project {report.project!r}: {shorten(said, 300)}"
        ) from error


def _ask_server(base_url: str) -> None:
    """Raises OSError where nobody answers. wandb itself tries for 20 s and then speaks of a busy
    service process.
    """
    try:
        urllib.request.urlopen(base_url, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # any answer will do
    except urllib.error.URLError as error:
        raise OSError(f"{base_url} does not answer ({error.reason})") from error


def _winner_markdown(board: Leaderboard) -> str:
    winner = board.winner
    if winner is None:
        return (
            f"**No winner{' yet' if board.status == 'running' else ''}.**"
            f" {_markdown(board.reason or '')}"
        )
    numbers = [
        f"validation loss **{loss_text(winner.val_loss)}**",
        *([_markdown(expected_words(winner.expected))] if winner.expected else []),
        f"probe loss {loss_text(winner.probe_loss)}",
        *(f"{_markdown(name)} {loss_text(value)}" for name, value in winner.metrics.items()),
        f"after {winner.samples_seen:,} samples",
    ]
    numbers += [
        f"{_markdown(board.name_of(name))} {loss_text(measured.val_loss)}"
        for name, measured in board.baselines.items()
    ]
    params = ", ".join(
        _markdown(f"{name} = {value_text(value)}") for name, value in winner.params.items()
    )
    title = (
        f"**{'Best so far' if board.status == 'running' else 'Winner'}: {_markdown(winner.trial)}**"
    )
    worth = f"\n\n**Worth it?** {_markdown(board.worth.words)}" if board.worth else ""
    return f"{title}, {', '.join(numbers)}.{worth}\n\n{_markdown(winner.reason)}\n\n{params}"


def _leaderboard_markdown(
    rows: Sequence[RankedTrial], params: list[str], metrics: list[str]
) -> str:
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
        cells = [_markdown(cell) for cell in _cells(row, params, metrics)]
        lines.append([f"**{cell}**" if row.wins and cell else cell for cell in cells])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    left = len(rows) - WANDB_TABLE_ROWS
    return text if left <= 0 else f"{text}\n\nand {left} more trials in the run set below."


def _cells(row: RankedTrial, params: list[str], metrics: list[str]) -> list[str]:
    trial, shown = row.trial, row.shown or ShownEvaluation()
    return [
        f"{row.rank or '–'}{' =' if row.tied else ''}",
        trial.id,
        verdict_words(trial) or "–",
        trial.status,
        loss_text(shown.val_loss),
        interval(trial.difference),
        loss_text(shown.probe_loss),
        *(loss_text(shown.metrics.get(name)) for name in metrics),
        str(shown.samples_seen) if row.shown else "–",
        *(value_text(trial.params[name]) if name in trial.params else "–" for name in params),
        row.excluded,
    ]


def _markdown(text: str) -> str:
    """Text as itself: CommonMark lets every ASCII punctuation mark be escaped; that keeps HTML and
    table bars out.
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~!&$])", r"\\\1", " ".join(text.split()))
