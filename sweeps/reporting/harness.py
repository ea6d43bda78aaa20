"""What benchmarks gave a winner and its base, as a table."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sweeps.ledger.harness import HarnessScore


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
            difference_words(each),
        )
    return table


def difference_words(score: HarnessScore) -> str:
    """Trained less base, with its standard error."""
    if score.standard_error is None:
        return f"{score.difference:+.4f}"
    how = "" if score.paired else " (not paired)"
    return f"{score.difference:+.4f} ± {score.standard_error:.4f}{how}"
