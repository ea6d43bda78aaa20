"""What a person sees while a sweep runs: a live table in a terminal, plain lines everywhere
else.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.ledger.progress import Progress, RunningTrial
from sweeps.ledger.story import Story
from sweeps.reporting.console import STATES
from sweeps.reporting.words import duration, format_params, head_words, number
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from sweeps.selection.verdicts import best_point, best_trial
from trainables.evaluation.record import Evaluation

LIVE = 100  # columns that the whole live table needs
SUM_UP_S = 600.0  # between lines that say how far a sweep is, where there is no table
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what would steer the terminal
MOST_ENDED = 20  # trials of which those that have ended are shown too


class Display:
    """Prints events as lines; in a terminal keeps a table of the running sweep below them."""

    def __init__(
        self,
        console: Console,
        *,
        name: str,
        selection: SelectionConfig,
        story: Story | None = None,
    ) -> None:
        """story: which is told every event too."""
        self.console = console
        self._name, self._selection, self._story = name, selection, story
        self._began = self._summed_up = time.monotonic()
        self._live: Live | None = None
        self._looked = False

    def say(self, line: str) -> None:
        """One event; with the time since the start where lines are all there is."""
        if self._story is not None:
            self._story.tell(line)
        if self._live is None:
            line = f"[{duration(time.monotonic() - self._began):>6}] {line}"
        self.show(line)

    def show(self, line: str) -> None:
        """Print a line as it is."""
        console = self.console if self._live is None else self._live.console
        line = CONTROL.sub("\N{REPLACEMENT CHARACTER}", line)
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def start(self) -> None:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(self, curves: Sequence[Curve], progress: Progress) -> None:
        """Draw the table anew; where there is none, say from time to time how far the sweep is."""
        due = time.monotonic() - self._summed_up >= SUM_UP_S
        # the first look is for what ended before this process
        if self._live is None and not due and self._looked:
            return
        self._looked = True
        ended = sum(curve.status != "running" for curve in curves)
        head = head_words(self._name, ended, progress)
        if self._live is None:
            if due:
                self._summed_up = time.monotonic()
                self.say(head + self._best_words(curves))
            return
        last = curves[-1] if curves else None
        few = len(curves) <= MOST_ENDED
        shown = [each for each in curves if few or each.status == "running" or each is last]
        rows = [_Row(curve=each, progress=progress.running.get(each.id)) for each in shown]
        table = self._table(rows, narrow=self.console.width < LIVE)
        self._live.update(Group(Text(head, style="bold"), table), refresh=True)

    def _best_words(self, curves: Sequence[Curve]) -> str:
        best = best_trial(curves, self._selection)
        if best is None:
            return ""
        return f"; the best so far is {best[0]}, val loss {number(best[1])}"

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


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A trial in the table."""

    curve: Curve
    progress: RunningTrial | None
    """None: it does not run, or nothing was heard of it yet."""

    def cells(self, best: Evaluation | None, *, narrow: bool) -> dict[str, str | Text]:
        """By column."""
        state = Text(self.curve.status, style=STATES[self.curve.status])
        loss = number(best.val_loss) if best else "-"
        cells: dict[str, str | Text] = {
            "trial": self.curve.id,
            "state": state,
            "best val loss": loss,
            "val loss": loss,
            "progress": state if narrow else "",
            "rows/s": "",
            "slot": "",
            "configuration": Text(format_params(self.curve.params)),
        }
        if self.curve.status == "running":
            cells |= running_cells(self.progress)
        return cells


def running_cells(progress: RunningTrial | None) -> dict[str, str]:
    """Progress, speed and slot of a trial that runs."""
    if progress is None:
        return {"progress": f"{'·' * 10}   0%", "rows/s": "", "slot": "waits"}
    filled = round(10 * progress.share)
    return {
        "progress": f"{'█' * filled}{'·' * (10 - filled)} {progress.share:4.0%}",
        "rows/s": f"{progress.samples_per_s:.0f}" if progress.samples_per_s else "",
        "slot": progress.slot or "waits",
    }
