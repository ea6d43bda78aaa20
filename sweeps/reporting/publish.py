"""The `report` command: one page in the sweep's folder and, where asked for, a W&B Report."""

import tempfile
from pathlib import Path

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.reporting.html import html_report
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.samples import samples_of
from sweeps.reporting.wandb_report import save_wandb_report, wandb_report
from sweeps.search.study import STUDY, open_study


def write_report(ledger: Ledger, config: SweepConfig, *, wandb: bool = False) -> str:
    """Write report.html; returns where it is, or the address of the W&B Report."""
    board = leaderboard(ledger, config.name, config.selection)
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / STUDY
        study = None
        if ledger.store.exists(STUDY):
            journal.write_bytes(
                ledger.store.read_bytes(STUDY)
            )  # a copy: a running sweep writes to the other
            study = open_study(journal, ledger.name, config.search, config.seed, read_only=True)
        page = html_report(
            board,
            study,
            Path(scratch) / "report.html",
            samples_of(ledger, board),
            config.searching.measure,
        )
        ledger.store.write_bytes("report.html", page.read_bytes())
    if wandb:
        return save_wandb_report(
            wandb_report(board, config.tracking.entity, config.tracking.project, ledger.name)
        )
    return ledger.store.path("report.html")
