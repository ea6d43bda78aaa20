"""What a person sees while a sweep runs: a live table in a terminal, plain lines everywhere
else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.reporting.console import STATES
from sweeps.reporting.words import duration, format_params, number
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from sweeps.selection.verdicts import best_point
from trainables.evaluation.record import Evaluation
from trainables.runtime.protocol import Snapshot, TrialProgress

LIVE = 100  # columns that the whole live table needs
MOST_ENDED = 20  # trials of which those that have ended are shown too


class Display:
    """Prints events as lines; in a terminal keeps a table of the running sweep below them."""

    def __init__(
        self,
        console: Console,
        *,
        name: str,
        trials: int,
        selection: SelectionConfig,
        time_budget_s: float | None,
    ) -> None:
        self.console = console
        self._name, self._trials, self._selection, self._budget = (
            name,
            trials,
            selection,
            time_budget_s,
        )
        self._began = time.monotonic()
        self._live: Live | None = None
        self._done_before: float | None = None

    def say(self, line: str) -> None:
        """One event; with the time since the start where lines are all there is."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self.console.print(
                f"[{duration(time.monotonic() - self._began):>6}] {line}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def start(self) -> None:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(
        self, curves: list[Curve], snapshot: Snapshot, totals: Callable[[Curve], int]
    ) -> None:
        """Draw the table anew. `totals(curve)`: the samples that a trial sees when it trains to its
        end.
        """
        if self._live is None:
            return
        rows = _rows(curves, snapshot, totals, prefix=f"{self._name}-")
        shown = [row for row in rows if row.runs or len(rows) <= MOST_ENDED or row is rows[-1]]
        table = self._table(shown, narrow=self.console.width < LIVE)
        head = Text(self._head(rows), style="bold")
        self._live.update(Group(head, table), refresh=True)

    def _table(self, rows: "Sequence[_Row]", *, narrow: bool) -> Table:
        columns = ["trial", "state", "best val loss", "progress", "rows/s", "slot", "configuration"]
        if narrow:  # what is left of the width is the configuration's
            columns = ["trial", "val loss", "progress", "slot", "configuration"]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(
                name,
                no_wrap=name != "configuration",
                justify="right" if name in ("val loss", "best val loss", "rows/s") else "left",
            )
        for row in rows:
            cells = row.cells(best_point(row.curve, self._selection), narrow=narrow)
            table.add_row(*(cells[name] for name in columns))
        return table

    def _head(self, rows: "Sequence[_Row]") -> str:
        elapsed = time.monotonic() - self._began
        left = self._left(sum(row.share for row in rows), elapsed)
        finished = sum(not row.runs for row in rows)
        rest = f"about {duration(left)} left" if left is not None else "time left not known yet"
        return (
            f"{self._name}: {finished} of {self._trials} trials ended, {duration(elapsed)} so far,"
            f" {rest}"
        )

    def _left(self, done: float, elapsed: float) -> float | None:
        """Seconds until the sweep ends; done: trials, a running one by its share."""
        if self._done_before is None:
            self._done_before = done  # by an earlier process
        fresh = done - self._done_before
        left = elapsed * (self._trials - done) / fresh if fresh > 0.2 else None
        if self._budget is None:
            return left
        of_budget = max(0.0, self._budget - elapsed)
        return of_budget if left is None else min(left, of_budget)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A trial in the table."""

    curve: Curve
    progress: TrialProgress
    share: float
    """Of its samples, those that it has seen."""
    slot: str | None

    @property
    def runs(self) -> bool:
        return self.curve.status == "running"

    def cells(self, best: Evaluation | None, *, narrow: bool) -> dict[str, str | Text]:
        """By column."""
        state = Text(self.curve.status, style=STATES[self.curve.status])
        loss = number(best.val_loss) if best else "-"
        speed = self.progress.samples_per_s
        bar = "█" * round(10 * self.share) + "·" * (10 - round(10 * self.share))
        ended = state if narrow else ""
        return {
            "trial": self.curve.id,
            "state": state,
            "best val loss": loss,
            "val loss": loss,
            "progress": f"{bar} {self.share:4.0%}" if self.runs else ended,
            "rows/s": f"{speed:.0f}" if self.runs and speed else "",
            "slot": (self.slot or "waits") if self.runs else "",
            "configuration": Text(format_params(self.curve.params)),
        }


def _rows(
    curves: Sequence[Curve], snapshot: Snapshot, totals: Callable[[Curve], int], *, prefix: str
) -> list[_Row]:
    """prefix: that all slots of the sweep have in their names."""
    slots = {
        trial: slot.removeprefix(prefix)
        for slot, trials in snapshot.slots.items()
        for trial in trials
    }
    rows = []
    for curve in curves:
        progress, share = snapshot.progress.get(curve.id, TrialProgress()), 1.0
        if curve.status == "running":
            share = min(1.0, progress.samples_seen / max(1, totals(curve)))
        rows.append(_Row(curve=curve, progress=progress, share=share, slot=slots.get(curve.id)))
    return rows
