"""Upload what a sweep's tracking has left in its folder."""

import tempfile
from pathlib import Path

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.reporting.ending import sweep_end
from sweeps.reporting.leaderboard import leaderboard
from sweeps.run.folder import TRACKING, about
from sweeps.tracking.protocol import SweepEnd
from trainables.errors import InputError


def sync_sweep(ledger: Ledger, config: SweepConfig) -> str:
    """Says in a line what was done. Of a sweep on an object store a copy is worked on, and what
    changes in it is written back. Raises as `sweeps.tracking.sync.sync`, and InputError for a sweep
    that runs.
    """
    from sweeps.tracking.sync import sync

    store = ledger.store
    if ledger.status()[0] == "running":
        raise InputError(
            f"{store.url}: the sweep runs, and tracks by itself; call again at its end"
        )
    end = _end(ledger, config)
    with (
        tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch,
        store.working_copy(TRACKING, Path(scratch)) as folder,
    ):
        return sync(config.tracking, ledger.name, folder, about(ledger, config), end)


def _end(ledger: Ledger, config: SweepConfig) -> SweepEnd | None:
    """What the finished sweep tells now: its folder may have been moved since it was told, and more
    have been measured. None where it has not finished.
    """
    board = leaderboard(ledger.load(), config.name, config.selection)
    winner = board.winner
    if winner is None or board.status != "finished" or not ledger.holds(winner.trial, winner.step):
        return None
    return sweep_end(ledger, config, board, ledger.store.path(WINNER))
