"""What is told of a sweep to who does not watch it: how it ended, and that it stands still."""

import time
from collections.abc import Callable, Mapping
from typing import Literal

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.reporting.words import number
from sweeps.tracking.notify import News, Notifier

Ending = Literal["finished", "interrupted", "failed"]
VERBS: Mapping[Ending, str] = {"interrupted": "was interrupted"}


def tell_end(
    notifier: Notifier,
    ledger: Ledger,
    status: Ending,
    *,
    why: str = "",
    board: Leaderboard | None = None,
    report: str | None = None,
) -> None:
    """Tell how a sweep ended. why: it did not finish, in words; board: None where it broke off
    before there was one; report: where the report is.
    """
    winner = None if board is None else board.winner
    words = f"Sweep {ledger.name} {VERBS.get(status, status)}"
    if why:
        words += f": {why}"
    elif board is not None and winner is None:
        words += f", and nothing wins: {board.reason}"
    if winner is not None:
        words += f"; the best is {winner.trial}, validation loss {number(winner.val_loss)}"
    news = News(
        text=f"{words}. {report or ledger.folder}",
        sweep=ledger.name,
        status=status,
        winner=None if winner is None else winner.trial,
        val_loss=None if winner is None else winner.val_loss,
        folder=ledger.folder,
        report=report,
    )
    notifier.tell(news, news.winner or _any_trial(ledger))


class StallWatch:
    """Tells once of each time for which no trial is evaluated, though some run or should."""

    def __init__(
        self,
        ledger: Ledger,
        notifier: Notifier,
        minutes: float,
        searching: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """searching: whether trials run or are still to be drawn; else baselines or the test are
        measured.
        """
        self._searching = searching
        self._ledger, self._notifier, self._minutes, self._clock = ledger, notifier, minutes, clock
        self._seen: tuple[int, int, int] | None = None
        self._since = clock()
        self._told = False

    def look(self) -> None:
        curves = self._ledger.curves()
        unfinished = len(self._ledger.unfinished())
        evaluations = sum(len(curve.points) for curve in curves)
        seen = evaluations, len(curves), unfinished
        if seen != self._seen or not self._searching():
            self._seen, self._since, self._told = seen, self._clock(), False
        elif not self._told and self._clock() - self._since >= self._minutes * 60:
            self._told = True
            self._tell(unfinished)

    def _tell(self, unfinished: int) -> None:
        ledger = self._ledger
        trials = f"{unfinished} running" if unfinished else "none runs"
        news = News(
            text=f"Sweep {ledger.name} stalls: no trial was evaluated for {self._minutes:g} minutes"
            f" ({trials}). {ledger.folder}",
            sweep=ledger.name,
            status="stalled",
            folder=ledger.folder,
        )
        self._notifier.tell(news, _any_trial(ledger))


def _any_trial(ledger: Ledger) -> str | None:
    return next((curve.id for curve in ledger.curves()), None)
