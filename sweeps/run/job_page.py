"""How far a sweep is, on the dashboard's page of the job that it was submitted as."""

from collections.abc import Callable

from cluster.job_page import SWEEP_FOLDER, add_metadata, own_job
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.reporting.words import number
from sweeps.selection.config import SelectionConfig
from sweeps.selection.verdicts import best_trial
from sweeps.tracking.background import one_line

# keys; the first is of where the sweep's folder is
FOLDER, STATE, TRIALS = SWEEP_FOLDER, "sweep_state", "sweep_trials"
BEST, REPORT = "sweep_best", "sweep_report"
TELL_S = 10.0  # between looks, while the sweep runs, for something to tell


class JobPage:
    """Tells the metadata of a job how its sweep goes; nothing where there is no job. No call
    fails: what does not work is said once.
    """

    def __init__(
        self, ledger: Ledger, selection: SelectionConfig, trials: int, say: Callable[[str], None]
    ) -> None:
        """trials: that the sweep will have."""
        self._ledger, self._selection, self.trials, self._say = ledger, selection, trials, say
        self._job = own_job()
        self._told: dict[str, str] = {}
        self._failed = False

    def tell(
        self, state: str, *, board: Leaderboard | None = None, report: str | None = None
    ) -> None:
        """board: None of a sweep that has not come to its end; report: where its W&B Report is."""
        if self._job is None:
            return
        try:
            told = self._words(state, board) | ({REPORT: report} if report else {})
            if told != self._told:
                add_metadata(self._job, told)
                self._told = told
        # the border to Ray's own bookkeeping, of which another version may have other names
        except Exception as error:
            if not self._failed:
                self._say(f"The job's page does not tell how far the sweep is: {one_line(error)}")
            self._failed = True

    def _words(self, state: str, board: Leaderboard | None) -> dict[str, str]:
        curves = self._ledger.curves()
        ended = sum(curve.status != "running" for curve in curves)
        told = {
            FOLDER: self._ledger.folder,
            STATE: state,
            TRIALS: f"{ended} of {self.trials} ended",
        }
        best = None
        if board is None:
            best = best_trial(curves, self._selection)
        elif board.winner is not None:
            best = board.winner.trial, board.winner.val_loss
        if best is not None:
            told[BEST] = f"{best[0]}, val loss {number(best[1])}"
        return told
