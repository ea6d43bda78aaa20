"""What a person sees while a sweep runs: a live table in a terminal, plain lines everywhere
else.
"""

import time
from collections.abc import Callable

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
from trainables.runtime.protocol import Snapshot, TrialProgress

LIVE = 100  # columns that the whole live table needs


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
        narrow = self.console.width < LIVE
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
        done = 0.0
        slots = {
            slot.removeprefix(f"{self._name}-"): trials for slot, trials in snapshot.slots.items()
        }
        where = {trial: slot for slot, trials in slots.items() for trial in trials}
        for curve in curves:
            progress = snapshot.progress.get(curve.id, TrialProgress())
            share = (
                1.0
                if curve.status != "running"
                else min(1.0, progress.samples_seen / max(1, totals(curve)))
            )
            done += share
            best = best_point(curve, self._selection)
            if curve.status == "running" or len(curves) <= 20 or curve is curves[-1]:
                bar = "█" * round(10 * share) + "·" * (10 - round(10 * share))
                runs, state = (
                    curve.status == "running",
                    Text(curve.status, style=STATES[curve.status]),
                )
                cells = {
                    "trial": curve.id,
                    "state": state,
                    "best val loss": number(best.val_loss) if best else "-",
                    "progress": f"{bar} {share:4.0%}" if runs else state if narrow else "",
                    "rows/s": (
                        f"{progress.samples_per_s:.0f}" if runs and progress.samples_per_s else ""
                    ),
                    "slot": where.get(curve.id, "waits") if runs else "",
                    "configuration": Text(format_params(curve.params)),
                }
                cells["val loss"] = cells["best val loss"]
                table.add_row(*(cells[name] for name in columns))
        elapsed = time.monotonic() - self._began
        self._done_before = (
            done if self._done_before is None else self._done_before
        )  # by an earlier process
        fresh = done - self._done_before
        left = elapsed * (self._trials - done) / fresh if fresh > 0.2 else None
        if self._budget is not None:
            left = (
                max(0.0, self._budget - elapsed)
                if left is None
                else min(left, max(0.0, self._budget - elapsed))
            )
        finished = sum(curve.status != "running" for curve in curves)
        rest = f"about {duration(left)} left" if left is not None else "time left not known yet"
        head = (
            f"{self._name}: {finished} of {self._trials} trials ended, {duration(elapsed)} so far,"
            f" {rest}"
        )
        self._live.update(Group(Text(head, style="bold"), table), refresh=True)
