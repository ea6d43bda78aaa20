"""What benchmarks gave a winner and its base, as a table."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sweeps.ledger.harness import HarnessScore
from sweeps.reporting.words import score_difference


def harness_table(scores: Sequence[HarnessScore]) -> Table:
    """One line a metric."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "metric", "samples", "base", "trained", "difference"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for each in scores:
        better = {True: " ↑", False: " ↓", None: ""}[each.higher_is_better]
        metric = each.metric if each.filter == "none" else f"{each.metric} ({each.filter})"
        shots = f", {each.shots} shots" if each.shots else ""
        table.add_row(
            f"{each.task}{shots}",
            f"{metric}{better}",
            str(each.samples),
            f"{each.base:.4f}",
            f"{each.trained:.4f}",
            score_difference(each),
        )
    return table
