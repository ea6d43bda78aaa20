"""A sweep as a Weights & Biases Report over its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from sweeps.ledger.leaderboard import Leaderboard, RankedTrial, ShownEvaluation, WinnerRow
from sweeps.reporting.formatting import (
    distinct_names,
    is_finite,
    loss_text,
    shorten,
    value_text,
    wants_log,
)
from sweeps.reporting.samples import samples_table
from sweeps.reporting.words import (
    BEHIND,
    average_words,
    earlier_words,
    expected_words,
    forgetting_words,
    interval,
    lineage_words,
    slices_words,
    test_words,
    verdict_words,
)
from sweeps.tracking.online import probe, session_settings
from sweeps.tracking.wandb import SWEEP, artifact_name, run_id

if TYPE_CHECKING:
    from wandb_workspaces.expr import FilterExpr
    from wandb_workspaces.reports.v2.interface import (
        BlockTypes,
        LinePlot,
        PanelTypes,
        Report,
        Runset,
    )

    from sweeps.reporting.samples import Sample
    from sweeps.tracking.config import TrackingConfig

WANDB_TABLE_ROWS = 25
MOST_COMPARED = 5  # runs beside one another
MOST_SAMPLES = 5  # rows whose answers are shown
LONGEST_CELL = 300  # characters of an answer

BEST = "best/val_loss"  # as the tracker writes it into a run's summary


class ReportError(OSError):
    """A report that cannot be made or sent; the message is one line for the user."""


@dataclass(frozen=True, kw_only=True)
class SavedReport:
    """Where a report is."""

    server: str
    url: str


def wandb_report(
    board: Leaderboard,
    entity: str | None,
    project: str,
    group: str,
    samples: Sequence[Sample] = (),
    *,
    is_kept: bool = True,
) -> Report:
    """The same as a W&B Report over the runs of `group`, the name of the sweep's folder. Needs
    neither key nor network until `save_wandb_report`. Without an `entity` it neither shows the
    winner's artifact nor says how to pick it. samples: what models wrote to the same rows; is_kept:
    whether the winner is an artifact.

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
    of_trials = [expr.Metric("Group") == group, expr.Metric("JobType") != SWEEP]
    every_run = _runs(board.sweep, of_trials, board)
    artifact = None
    if is_kept and entity and board.winner is not None and board.status == "finished":
        artifact = f"{entity}/{project}/{artifact_name(group)}"
    return wr.Report(
        project=project,
        entity=entity or "",
        title=shorten(f"Sweep {board.sweep}", 128),  # W&B's limit
        description=f"{board.status}, {len(board.trials)} trials, selected by {board.metric}",
        blocks=[
            *_winner_blocks(board, artifact),
            wr.H2(text="Leaderboard"),
            wr.MarkdownBlock(text=_leaderboard_markdown(board)),
            wr.H2(text="Learning curves"),
            wr.PanelGrid(runsets=[every_run], panels=_curves(_metric_names(board))),
            *_validation_against_probe(board, group),
            wr.H2(text="Parameters"),
            wr.PanelGrid(runsets=[every_run], panels=_parameter_panels(board)),
            *_methods(board, every_run),
            *_answers(samples),
            *_best_compared(board, group),
            *_lineage(artifact),
        ],
        width="fluid",
    )


def _winner_blocks(board: Leaderboard, artifact: str | None) -> list[BlockTypes]:
    """What won and why, how to get it, and what was measured of it."""
    from wandb_workspaces.reports.v2 import interface as wr

    blocks: list[BlockTypes] = [wr.CalloutBlock(text=_winner_words(board))]
    if artifact is not None:
        command = f"python -m sweeps pick {artifact}:winner --to winner"
        blocks.append(wr.CodeBlock(code=command, language=None))
    if board.winner is not None:
        blocks.append(wr.MarkdownBlock(text=_winner_markdown(board, board.winner)))
    return blocks


def _validation_against_probe(board: Leaderboard, group: str) -> list[BlockTypes]:
    """The winner's losses in one panel: where they part, it began to memorise."""
    from wandb_workspaces.reports.v2 import interface as wr

    if board.winner is None:
        return []
    losses = ["val/loss", "probe/loss", "train/loss"]
    winner = _runs("winner", [_is_of([board.winner.trial], group)], board)
    curves = _curve("Losses of the winner", losses, 0)
    return [
        wr.H2(text="Validation against probe"),
        wr.PanelGrid(runsets=[winner], panels=[curves]),
    ]


def _methods(board: Leaderboard, every_run: Runset) -> list[BlockTypes]:
    """What each method reached, where there are several."""
    from wandb_workspaces.reports.v2 import interface as wr

    by_method: dict[str, list[RankedTrial]] = {}
    for row in board.rows:
        by_method.setdefault(str(row.trial.params.get("method", "–")), []).append(row)
    if len(by_method) < 2:
        return []
    lines = [_method_cells(method, rows) for method, rows in by_method.items()]
    bars = wr.BarPlot(
        title=f"Lowest {BEST} of each method",
        metrics=[wr.SummaryMetric(BEST)],
        groupby=wr.Config("method"),
        groupby_aggfunc="min",
        layout=wr.Layout(w=24, h=8),
    )
    head = ["method", "trials", "may win", "best trial", "val loss", "median", "samples seen"]
    return [
        wr.H2(text="Methods"),
        wr.MarkdownBlock(text=_table(head, lines)),
        wr.PanelGrid(runsets=[every_run], panels=[bars]),
    ]


def _method_cells(method: str, rows: Sequence[RankedTrial]) -> list[str]:
    """rows: its trials, in the order of the board."""
    fit = [(row, row.shown) for row in rows if row.rank is not None and row.shown is not None]
    if not fit:
        return [method, str(len(rows)), "0", *["–"] * 4]
    best, shown = fit[0]
    losses = [loss for _, each in fit if is_finite(loss := each.val_loss)]
    return [
        method,
        str(len(rows)),
        str(len(fit)),
        best.trial.id,
        loss_text(shown.val_loss),
        loss_text(median(losses)),
        f"{shown.samples_seen:,}",
    ]


def _answers(samples: Sequence[Sample]) -> list[BlockTypes]:
    from wandb_workspaces.reports.v2 import interface as wr

    if not samples:
        return []
    columns, rows = samples_table(samples[:MOST_SAMPLES])
    lines = [[shorten(_cell(value), LONGEST_CELL) for value in row] for row in rows]
    return [wr.H2(text="Answers"), wr.MarkdownBlock(text=_table(columns, lines))]


def _best_compared(board: Leaderboard, group: str) -> list[BlockTypes]:
    """The runs that one would choose among: of all runs a comparison shows nothing."""
    from wandb_workspaces.reports.v2 import interface as wr

    chosen = _best_trials(board)
    if len(chosen) < 2:
        return []
    best = _runs("the best", [_is_of(chosen, group)], board)
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=15))
    return [
        wr.H2(text="The best compared"),
        wr.PanelGrid(runsets=[best], panels=[comparer]),
    ]


def _best_trials(board: Leaderboard) -> list[str]:
    """The winner, what noise does not tell from it, finalists, and those that follow; and what one
    would train without a search.
    """
    rows = [row for row in board.rows if row.rank is not None]
    rows.sort(key=lambda row: not (row.wins or row.tied or row.trial.finalist_of))
    best = [row.trial.id for row in rows[:MOST_COMPARED]]
    default = [trial.id for trial in board.trials if trial.default]
    return list(dict.fromkeys([*best, *default]))


def _lineage(artifact: str | None) -> list[BlockTypes]:
    from wandb_workspaces.reports.v2 import interface as wr

    if artifact is None:
        return []
    entity, project, name = artifact.split("/")
    block = wr.WeaveBlockArtifact(entity=entity, project=project, artifact=name, tab="lineage")
    return [wr.H2(text="Where the winner comes from"), block]


def _is_of(trials: Sequence[str], group: str) -> FilterExpr:
    """Whether a run is of one of these trials."""
    from wandb_workspaces import expr

    return expr.Metric("ID").isin([run_id(group, trial) for trial in trials])


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


def save_wandb_report(
    board: Leaderboard,
    config: TrackingConfig,
    group: str,
    samples: Sequence[Sample] = (),
    former: SavedReport | None = None,
) -> SavedReport:
    """Sends the report to W&B. `former`, the one that an earlier call saved, is written anew, as
    long as it is there; what people said beside it stays. A report without an entity goes to the
    account's default one.

    Raises ReportError, in one line, when W&B cannot be reached or refuses.
    """
    import wandb

    try:
        settings = session_settings()
        server = settings.base_url
        # wandb itself tries for 20 s and then speaks of a busy service process
        if problem := probe(server, settings.api_key):
            raise OSError(problem.why)
        entity = config.entity or wandb.Api().default_entity or ""
        is_kept = config.artifact != "off"
        report = wandb_report(board, entity, config.project, group, samples, is_kept=is_kept)
        if former is not None and former.server == server:
            report = _over(former, report)
        return SavedReport(server=server, url=report.save().url)
    except ReportError:
        raise
    except (
        Exception
    ) as error:  # the outside world: wandb, wandb-core, requests and GraphQL each raise their own
        said = " ".join(str(error).split()) or type(error).__name__
        raise ReportError(
            f"W&B report: not saved to project {config.project!r}: {shorten(said, 300)}"
        ) from error


def _over(former: SavedReport, report: Report) -> Report:
    """The report of before with what this one says; this one where that is gone, or elsewhere."""
    from wandb_workspaces.reports.v2 import interface as wr

    try:
        found = wr.Report.from_url(former.url)
    except Exception:  # of a report that was deleted the client raises whatever it stumbles over
        return report
    is_report = isinstance(found, wr.Report)  # the client may also give its own model of one
    if not is_report or (found.entity, found.project) != (report.entity, report.project):
        return report
    found.title, found.description = report.title, report.description
    found.blocks, found.width = report.blocks, report.width
    return found


def _winner_words(board: Leaderboard) -> str:
    """Plain: a callout knows no Markdown."""
    running, winner = board.status == "running", board.winner
    if winner is None:
        return f"No winner{' yet' if running else ''}. {board.reason or ''}".strip()
    title = f"{'Best so far' if running else 'Winner'}: {winner.trial}"
    return f"{title}, validation loss {loss_text(winner.val_loss)}. {winner.reason}"


def _winner_markdown(board: Leaderboard, winner: WinnerRow) -> str:
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
    measured = "".join(
        f"\n\n**{title}** {_markdown(words)}" for title, words in _measured(board).items()
    )
    return f"**{_markdown(winner.trial)}**: {', '.join(numbers)}.\n\n{params}{measured}"


def _measured(board: Leaderboard) -> dict[str, str]:
    """What else was measured of the winner, in words."""
    found: dict[str, str] = {}
    if board.worth is not None:
        found["Worth it?"] = board.worth.words
    if board.test is not None:
        found["Test:"] = test_words(board.test)
    if board.forgetting is not None:
        found["Forgetting:"] = forgetting_words(board.forgetting)
    if board.earlier_forgetting is not None:
        found["Earlier data:"] = earlier_words(board.earlier_forgetting)
    if board.slices is not None:
        found["Slices:"] = slices_words(board.slices)
    if board.lineage:
        found["Went on from:"] = lineage_words(board.lineage)
    return found


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
    shown = rows[:WANDB_TABLE_ROWS]
    bold = [index for index, row in enumerate(shown) if row.wins]
    text = _table(head, [_cells(row, params, metrics) for row in shown], bold)
    left = len(rows) - WANDB_TABLE_ROWS
    return text if left <= 0 else f"{text}\n\nand {left} more trials in the run set below."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[int] = ()) -> str:
    """Markdown. bold: numbers of rows that are."""
    lines = [[_markdown(cell) for cell in head], ["---"] * len(head)]
    for index, row in enumerate(rows):
        cells = [_markdown(cell) for cell in row]
        lines.append([f"**{cell}**" if index in bold and cell else cell for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: object) -> str:
    """An answer, or a score of it."""
    return str(value) if isinstance(value, str | int) else loss_text(value)


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
