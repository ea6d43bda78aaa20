"""What a person sees while a sweep runs: a live table in a terminal, plain lines everywhere
else.
"""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeps.ledger.leaderboard import leaderboard as ranked
from sweeps.reporting.words import (
    BEHIND,
    LOST,
    alternatives_columns,
    answered_words,
    baseline_cost,
    cost_words,
    expected_words,
    forgetting_words,
    format_params,
    interval,
    number,
    slices_words,
    test_words,
    verdict_words,
)

WIDE = 150  # columns that the whole leaderboard needs
MOST_CLASSES = 12  # of the winner's, in a terminal
STATES = {"running": "yellow", "complete": "green", "pruned": "cyan", "failed": "red"}


def leaderboard(board: Mapping[str, Any], width: int = WIDE) -> Table:
    """The trials of a board in their order (sweeps.ledger.leaderboard).

    Trials that are tied with the winner have a `=` before them. Below WIDE columns only what
    decides is shown: id, loss, first metric, verdict, configuration.
    """
    metrics = sorted(
        {name for trial in board["trials"] for e in trial["evaluations"] for name in e["metrics"]}
    )
    compared = [BEHIND] if any(trial.get("difference") for trial in board["trials"]) else []
    lost = [
        name
        for name in LOST
        if any(e.get(name) is not None for t in board["trials"] for e in t["evaluations"])
    ]
    numbers = ["val loss", *compared, "probe", *metrics, *lost, "epoch"]
    columns = ["", "trial", *numbers, "state", "verdict", "configuration"]
    if width < WIDE:
        columns = ["", "trial", "val loss", *metrics[:1], "verdict", "configuration"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in numbers else "left", no_wrap=name != "configuration"
        )

    def add(cells: dict[str, Any], style: str | None) -> None:
        table.add_row(*(cells.get(name, "-") for name in columns), style=style)

    for row in ranked(board):
        trial, best = row.trial, row.shown
        cells: dict[str, Any] = {
            "": "*" if row.wins else "=" if row.tied else "",
            BEHIND: interval(trial.get("difference")),
            "trial": trial["id"],
            "state": Text(trial["status"], style=STATES[trial["status"]]),
            "verdict": verdict_words(trial),
            "configuration": Text(format_params(trial["params"]) + _again(trial)),
        }
        if best is not None:
            cells |= {name: number(best["metrics"].get(name)) for name in metrics}
            cells |= {name: number(best.get(name)) for name in lost}
            cells |= {
                "val loss": number(best["val_loss"]),
                "probe": number(best["probe_loss"]),
                "epoch": f"{best['epoch']:g}",
            }
        add(cells, "bold" if row.wins else None)
    for name, baseline in board["baselines"].items():
        words = baseline.get("words", name)
        if name == "prior":
            words = f"always {baseline['class']}, at train's label shares"
        words += f" ({cost})" if (cost := baseline_cost(baseline)) else ""
        cells = {name: number(baseline["metrics"].get(name)) for name in metrics}
        cells[BEHIND] = interval(baseline.get("difference"))
        cells |= {
            "val loss": number(baseline["val_loss"]),
            "probe": number(baseline.get("probe_loss")),
        }
        add(
            {
                **cells,
                "": "",
                "state": "",
                "epoch": "0",
                "verdict": "baseline",
                "configuration": Text(words),
            },
            "dim",
        )
    return table


def alternatives_table(metrics: Mapping[str, Any]) -> Table:
    """Loss and metrics of the winner and of all that it is compared with, on each split that was
    measured.
    """
    splits = [
        split
        for split in ("validation", "test")
        if any(each[split] for each in metrics["alternatives"])
    ]
    columns = alternatives_columns(metrics)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nway")
    for split in splits:
        for name in columns:
            table.add_column(f"{split}\n{name}", justify="right", no_wrap=True)
    for each in metrics["alternatives"]:
        measured = [each[split] or {} for split in splits]
        numbers = [
            {"loss": found.get("loss"), **found.get("metrics", {})}.get(name)
            for found in measured
            for name in columns
        ]
        table.add_row(
            Text(each["words"]),
            *map(number, numbers),
            style="bold" if each["name"] == "winner" else None,
        )
    return table


def classes_table(found: Mapping[str, Any]) -> Table:
    """What the winner answers, by class; where there are many the ones that it finds least."""
    classes = found["classes"]
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda each: (each["recall"] is None, each["recall"]))[
            :MOST_CLASSES
        ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("class", "rows", "answered", "recall", "precision", "its rows are answered"):
        table.add_column(
            name, justify="right" if name in ("rows", "answered", "recall", "precision") else "left"
        )
    for each in classes:
        table.add_row(
            Text(each["label"], style="yellow" if each["label"] in found["hardly"] else ""),
            str(each["rows"]),
            str(each["answered"]),
            _share(each["recall"]),
            _share(each["precision"]),
            Text(answered_words(each)),
        )
    return table


def pareto_table(pareto: Mapping[str, Any]) -> Table:
    """The trials that none beats in validation loss and in a cost at once."""
    cost = pareto["cost"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "val loss", cost.replace("_", " ")):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for point in pareto["front"]:
        table.add_row(point["trial"], number(point["val_loss"]), cost_words(point[cost]))
    return table


def _again(trial: Mapping[str, Any]) -> str:
    if trial.get("finalist_of"):
        return f" (again: {trial['finalist_of']})"
    return " (the default)" if trial.get("default") else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_board(console: Console, board: dict[str, Any]) -> None:
    """Leaderboard, winner and reason."""
    console.print(leaderboard(board, console.width))
    if board["winner"] is None:
        console.print(board["reason"], highlight=False, markup=False, soft_wrap=True)
        return
    winner = board["winner"]
    so_far = " so far" if board["status"] == "running" else ""
    console.print(
        f"Winner{so_far}: {winner['trial']}, step {winner['step']} (epoch {winner['epoch']:g}): "
        f"{format_params(winner['params'])}",
        highlight=False,
        markup=False,
        soft_wrap=True,
        style="bold",
    )
    lines = [f"Reason: {winner['reason']}"]
    if winner.get("expected"):
        lines.append(
            f"Validation loss: {winner['val_loss']:.4f}, {expected_words(winner['expected'])}"
        )
    if board.get("test"):
        lines.append(f"Test: {test_words(board['test'])}")
    if board.get("slices"):
        lines.append(f"Slices: {slices_words(board['slices'])}")
    if board.get("forgetting"):
        lines.append(f"Forgetting: {forgetting_words(board['forgetting'])}")
    if board.get("worth"):
        lines.append(f"Worth it? {board['worth']['words']}")
    for left_out in board.get("not_measured") or ():
        lines.append(
            f"Not measured on {left_out['split']}: {left_out['words']}: {left_out['error']}"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if metrics := board.get("metrics"):
        console.print(alternatives_table(metrics))
        for split, found in (metrics["classes"] or {}).items():
            console.print(f"The winner's answers on {split}, by class:", highlight=False)
            console.print(classes_table(found))
    if board.get("pareto"):
        console.print(
            f"Pareto front of validation loss and {board['pareto']['cost'].replace('_', ' ')}:"
        )
        console.print(pareto_table(board["pareto"]))
