"""The leaderboard in a terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeps.ledger.leaderboard import (
    AnswersByClass,
    BaselineRow,
    Front,
    Leaderboard,
    LossAndMetrics,
    MetricsReport,
    RankedTrial,
    TrialRow,
    WinnerRow,
)
from sweeps.reporting.samples import Sample
from sweeps.reporting.words import (
    BEHIND,
    LOST,
    alternatives_columns,
    answered_words,
    baseline_cost,
    cost_words,
    earlier_words,
    expected_words,
    forgetting_words,
    format_params,
    harness_words,
    interval,
    lineage_words,
    measured_splits,
    number,
    slices_words,
    test_words,
    verdict_words,
)

WIDE = 150  # columns that the whole leaderboard needs
MOST_CLASSES = 12  # of the winner's, in a terminal
STATES = {"running": "yellow", "complete": "green", "pruned": "cyan", "failed": "red"}


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """What there is to show in columns of numbers."""

    metrics: list[str]
    lost: list[str]
    compared: bool

    @property
    def numbers(self) -> list[str]:
        behind = [BEHIND] if self.compared else []
        return ["val loss", *behind, "probe", *self.metrics, *self.lost, "epoch"]


def leaderboard(board: Leaderboard, width: int = WIDE) -> Table:
    """The trials in their order, and the baselines.

    Trials that are tied with the winner have a `=` before them. Below WIDE columns only what
    decides is shown: id, loss, first metric, verdict, configuration.
    """
    shown = _columns(board)
    columns = ["", "trial", *shown.numbers, "state", "verdict", "configuration"]
    if width < WIDE:
        columns = ["", "trial", "val loss", *shown.metrics[:1], "verdict", "configuration"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in shown.numbers else "left",
            no_wrap=name != "configuration",
        )
    for row in board.rows:
        cells = _trial_cells(row, shown)
        style = "bold" if row.wins else None
        table.add_row(*(cells.get(name, "-") for name in columns), style=style)
    for name, baseline in board.baselines.items():
        cells = _baseline_cells(board.name_of(name), baseline, shown)
        table.add_row(*(cells.get(name, "-") for name in columns), style="dim")
    if board.losses is not None:
        table.caption, table.caption_justify = f"Losses are {board.losses}.", "left"
    return table


def _columns(board: Leaderboard) -> _Columns:
    evaluations = [e for trial in board.trials for e in trial.evaluations]
    return _Columns(
        metrics=sorted(
            {name for e in evaluations for name in e.metrics},
            key=lambda name: (name != board.metric, name),
        ),
        lost=[name for name in LOST if any(getattr(e, name) is not None for e in evaluations)],
        compared=any(trial.difference is not None for trial in board.trials),
    )


def _trial_cells(row: RankedTrial, columns: _Columns) -> dict[str, str | Text]:
    trial, shown = row.trial, row.shown
    cells: dict[str, str | Text] = {
        "": "*" if row.wins else "=" if row.tied else "",
        BEHIND: interval(trial.difference),
        "trial": trial.id,
        "state": Text(trial.status, style=STATES[trial.status]),
        "verdict": verdict_words(trial),
        "configuration": Text(format_params(trial.params) + _again(trial)),
    }
    if shown is None:
        return cells
    cells |= {name: number(shown.metrics.get(name)) for name in columns.metrics}
    cells |= {name: number(getattr(shown, name)) for name in columns.lost}
    return cells | {
        "val loss": number(shown.val_loss),
        "probe": number(shown.probe_loss),
        "epoch": f"{shown.epoch:g}",
    }


def _baseline_cells(words: str, baseline: BaselineRow, columns: _Columns) -> dict[str, str | Text]:
    words += f" ({cost})" if (cost := baseline_cost(baseline)) else ""
    cells: dict[str, str | Text] = {
        name: number(baseline.metrics.get(name)) for name in columns.metrics
    }
    return cells | {
        BEHIND: interval(baseline.difference),
        "val loss": number(baseline.val_loss),
        "probe": number(baseline.probe_loss),
        "": "",
        "state": "",
        "epoch": "0",
        "verdict": "baseline",
        "configuration": Text(words),
    }


def alternatives_table(metrics: MetricsReport) -> Table:
    """Loss and metrics of the winner and of all that it is compared with, on each split that was
    measured.
    """
    splits = measured_splits(metrics)
    columns = alternatives_columns(metrics)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nway")
    for split in splits:
        for name in columns:
            table.add_column(f"{split}\n{name}", justify="right", no_wrap=True)
    for each in metrics.alternatives:
        measured = [each.on(split) or LossAndMetrics() for split in splits]
        numbers = [number(found.number(name)) for found in measured for name in columns]
        style = "bold" if each.name == "winner" else None
        table.add_row(Text(each.words), *numbers, style=style)
    return table


def classes_table(found: AnswersByClass) -> Table:
    """What the winner answers, by class; where there are many the ones that it finds least."""
    classes = list(found.classes)
    if len(classes) > MOST_CLASSES:
        classes.sort(key=lambda each: math.inf if each.recall is None else each.recall)
        classes = classes[:MOST_CLASSES]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for name in ("rows", "answered", "recall", "precision"):
        table.add_column(name, justify="right")
    if found.has_confusion:
        table.add_column("its rows are answered")
    for each in classes:
        words = [Text(answered_words(each))] if found.has_confusion else []
        table.add_row(
            Text(each.label, style="yellow" if each.label in found.hardly else ""),
            str(each.rows),
            str(each.answered),
            _share(each.recall),
            _share(each.precision),
            *words,
        )
    return table


def pareto_table(pareto: Front) -> Table:
    """The trials that none beats in validation loss and in a cost at once."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "val loss", pareto.cost.replace("_", " ")):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for point in pareto.front:
        table.add_row(point.trial, number(point.val_loss), cost_words(pareto.cost_of(point)))
    return table


def _again(trial: TrialRow) -> str:
    if trial.finalist_of:
        return f" (again: {trial.finalist_of})"
    return " (the default)" if trial.default else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_board(console: Console, board: Leaderboard) -> None:
    """Leaderboard, winner and reason."""
    console.print(leaderboard(board, console.width))
    winner = board.winner
    if winner is None:
        console.print(board.reason, highlight=False, markup=False, soft_wrap=True)
        return
    so_far = " so far" if board.status == "running" else ""
    console.print(
        f"Winner{so_far}: {winner.trial}, step {winner.step} (epoch {winner.epoch:g}): "
        f"{format_params(winner.params)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
        style="bold",
    )
    for line in _findings(board, winner):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if board.metrics is not None:
        console.print(alternatives_table(board.metrics))
        for split, found in (board.metrics.classes or {}).items():
            console.print(f"The winner's answers on {split}, by class:", highlight=False)
            console.print(classes_table(found))
    if board.pareto is not None:
        cost = board.pareto.cost.replace("_", " ")
        console.print(f"Pareto front of validation loss and {cost}:")
        console.print(pareto_table(board.pareto))


def print_samples(console: Console, samples: Sequence[Sample]) -> None:
    """What models wrote to rows, one row after another."""

    def say(words: str, text: str, style: str = "") -> None:
        console.print(Text(f"{words}:", style="bold"), Text(text.strip(), style=style))

    for sample in samples:
        console.rule(f"row {sample.row}", align="left")
        say("given", sample.prompt, "dim")
        say("its own answer", sample.reference)
        for each in sample.answers:
            scores = [f"{name} {number(value)}" for name, value in each.scores.items()]
            say(f"{each.by} ({', '.join(scores)})", each.text)


def _findings(board: Leaderboard, winner: WinnerRow) -> list[str]:
    """What was found of the winner, a line each."""
    lines = [f"Reason: {winner.reason}"]
    if winner.expected is not None:
        lines.append(
            f"Validation loss: {number(winner.val_loss)}, {expected_words(winner.expected)}"
        )
    if board.test is not None:
        lines.append(f"Test: {test_words(board.test)}")
    if board.slices is not None:
        lines.append(f"Slices: {slices_words(board.slices)}")
    if board.forgetting is not None:
        lines.append(f"Forgetting: {forgetting_words(board.forgetting)}")
    if board.earlier_forgetting is not None:
        lines.append(f"Forgetting: {earlier_words(board.earlier_forgetting)}")
    if board.harness:
        lines.append(f"lm-eval: {harness_words(board.harness)}")
    if board.lineage:
        lines.append(f"Went on from: {lineage_words(board.lineage)}")
    if board.worth is not None:
        lines.append(f"Worth it? {board.worth.words}")
    for each in board.not_measured:
        lines.append(f"Not measured on {each.split}: {each.words}: {each.error}")
    return lines
