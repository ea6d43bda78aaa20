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
    average_words,
    expected_words,
    interval,
    verdict_words,
)

if TYPE_CHECKING:
    from wandb_workspaces.expr import FilterExpr
    from wandb_workspaces.reports.v2.interface import LinePlot, PanelTypes, Report, Runset

WANDB_TABLE_ROWS = 25

BEST = "best/val_loss"  # as the tracker writes it into a run's summary

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
    from wandb_workspaces.reports.v2 import interface as wr

    if unfit := sorted(set(re.findall(r"[^\w .,:/@+#()\[\]{}-]", group))):
        raise ReportError(
            f"W&B report: a W&B filter cannot express the group {group!r}, which holds"
            f" {' '.join(unfit)}"
        )
    # A run set that names no entity or project is of the report's own project, and is built without
    # asking the server.
    in_group = expr.Metric("Group") == group
    every_run = _runs(board.sweep, [in_group], board)
    panels = [
        wr.H2(text="Learning curves"),
        wr.PanelGrid(runsets=[every_run], panels=_curves(_metric_names(board))),
    ]
    if board.winner is not None:
        is_winner = expr.Summary("winner") == True  # noqa: E712
        losses = ["val/loss", "probe/loss", "train/loss"]
        panels += [
            wr.H2(text="The winner's losses"),
            wr.PanelGrid(
                runsets=[_runs("winner", [in_group, is_winner], board)],
                panels=[_curve("Losses of the winner", losses, 0)],
            ),
        ]
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=15))
    return wr.Report(
        project=project,
        entity=entity or "",
        title=shorten(f"Sweep {board.sweep}", 128),  # W&B's limit
        description=f"{board.status}, {len(board.trials)} trials, selected by {board.metric}",
        blocks=[
            wr.MarkdownBlock(text=_winner_markdown(board)),
            wr.H2(text="Leaderboard"),
            wr.MarkdownBlock(text=_leaderboard_markdown(board)),
            *panels,
            wr.H2(text="Parameters"),
            wr.PanelGrid(runsets=[every_run], panels=_parameter_panels(board)),
            wr.H2(text="Runs compared"),
            wr.PanelGrid(runsets=[every_run], panels=[comparer]),
        ],
        width="fluid",
    )


def _metric_names(board: Leaderboard) -> list[str]:
    return distinct_names(row.shown.metrics for row in board.rows if row.shown)


def _param_names(board: Leaderboard) -> list[str]:
    return distinct_names(trial.params for trial in board.trials)


def _runs(name: str, filters: list[FilterExpr], board: Leaderboard) -> Runset:
    """The runs of trials, the winner first."""
    from wandb_workspaces.reports.v2 import interface as wr

    summaries = ("winner", "verdict", "verdict_reason", "status", BEST, "samples_seen")
    return wr.Runset(
        name=name,
        filters=filters,
        order=[
            wr.OrderBy(wr.SummaryMetric("winner"), ascending=False),
            wr.OrderBy(wr.SummaryMetric(BEST), ascending=True),
        ],
        visible_columns=[
            *("run:displayName", "run:state"),
            *(f"summary:{each}" for each in summaries),
            *(f"config:{each}.value" for each in _param_names(board)),
        ],
    )


def _curve(title: str, names: Sequence[str], x: int, y: int = 0) -> LinePlot:
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.LinePlot(
        title=title,
        x="samples_seen",
        y=[*names],
        title_x="samples seen",
        layout=wr.Layout(x=x, y=y, w=12, h=9),
    )


def _curves(metrics: Sequence[str]) -> list[PanelTypes]:
    return [
        _curve("Validation loss", ["val/loss"], 0),
        _curve("Probe loss (training split)", ["probe/loss"], 12),
        *(
            _curve(name, [f"val/{name}"], 12 * (i % 2), 9 + 9 * (i // 2))
            for i, name in enumerate(metrics)
        ),
    ]


def _parameter_panels(board: Leaderboard) -> list[PanelTypes]:
    """Parallel coordinates, importances, and each numeric parameter beside the loss."""
    from wandb_workspaces.reports.v2 import interface as wr

    params, numeric = _param_names(board), _numeric(board)
    log = {name for name, numbers in numeric.items() if wants_log(numbers)}
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name, log=name in log)
        for name in params
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(BEST), display_name=BEST))
    return [
        wr.ParallelCoordinatesPlot(
            columns=columns, title="Parameters", layout=wr.Layout(w=24, h=9)
        ),
        wr.ParameterImportancePlot(with_respect_to=BEST, layout=wr.Layout(y=9, w=12, h=9)),
        *(
            wr.ScatterPlot(
                title=f"{name} and {BEST}",
                x=wr.Config(name),
                y=wr.SummaryMetric(BEST),
                log_x=name in log,
                layout=wr.Layout(x=12 * ((i + 1) % 2), y=9 + 9 * ((i + 1) // 2), w=12, h=9),
            )
            for i, name in enumerate(numeric)
        ),
    ]


def _numeric(board: Leaderboard) -> dict[str, list[float]]:
    """The values of each parameter that is a number in every trial that has it, and not always the
    same.
    """
    found = {}
    for name in _param_names(board):
        values = [trial.params[name] for trial in board.trials if name in trial.params]
        numbers = [value for value in values if is_finite(value)]
        if len(numbers) == len(values) and len(set(numbers)) > 1:
            found[name] = numbers
    return found


def save_wandb_report(report: Report) -> str:
    """Sends the report to W&B and returns its address. A report without an entity goes to the
    account's default one.

    Raises ReportError, in one line, when W&B cannot be reached or refuses.
    """
    import wandb

    try:
        _ask_server(wandb.setup().settings.base_url)
        if not report.entity:
            report.entity = wandb.Api().default_entity or ""
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
        f"after {winner.samples_seen:,} samples{average_words(winner)}",
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


def _leaderboard_markdown(board: Leaderboard) -> str:
    rows, params, metrics = board.rows, _param_names(board), _metric_names(board)
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
