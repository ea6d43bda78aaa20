"""A sweep's reports: one page in its folder and, where asked for, a W&B Report."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import REPORT, Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.story import read_story
from sweeps.reporting.details import details_of
from sweeps.reporting.html import Beside, html_report
from sweeps.reporting.samples import answers_of_trial, samples_of
from sweeps.reporting.wandb_report import ReportError, SavedReport, save_wandb_report
from sweeps.search.study import STUDY, open_study
from sweeps.tracking.background import one_line
from sweeps.tracking.online import session_key
from trainables.storage.records import from_json, to_json

if TYPE_CHECKING:
    import optuna

SAVED = "tracking/report.json"
"""Where the W&B Report is, so that the next call writes the same one anew."""
PUBLISH_TIMEOUT_S = 30.0
ANSWERED = 20  # trials, the first in their order, whose own answers the page has
ANSWERS = 5  # rows of each


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `report --json` prints."""

    page: str
    wandb: str | None = None
    """Address of the W&B Report, where it was asked for."""


def write_report(ledger: Ledger, config: SweepConfig, board: Leaderboard) -> str:
    """Write report.html; returns where it is."""
    page = report_page(ledger, config, board)
    ledger.store.write_bytes(REPORT, page.encode())
    return ledger.store.path(REPORT)


def report_page(
    ledger: Ledger, config: SweepConfig, board: Leaderboard, *, live: str | None = None
) -> str:
    """The page with all that the sweep's folder has for it; live: see `html_report`."""
    story = read_story(ledger.store)
    answers = {
        row.trial.id: answers_of_trial(ledger, board, row.trial.id)[:ANSWERS]
        for row in board.rows[:ANSWERED]
    }
    with _study(ledger, config) as study:
        beside = Beside(
            study=study,
            searched=config.searching.measure,
            samples=samples_of(ledger, board),
            details=details_of(board, story, answers),
            story=story,
            progress=ledger.progress(),
        )
        return html_report(board, beside, live=live)


@contextmanager
def _study(ledger: Ledger, config: SweepConfig) -> "Iterator[optuna.Study | None]":
    if not ledger.store.exists(STUDY):
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / STUDY
        # a copy: a running sweep writes to the other
        journal.write_bytes(ledger.store.read_bytes(STUDY))
        yield open_study(journal, ledger.name, config.search, config.seed, read_only=True)


def publish_report(ledger: Ledger, config: SweepConfig, board: Leaderboard) -> str:
    """Send the W&B Report, the same one each time; returns its address. Raises ReportError."""
    former = None
    if ledger.store.exists(SAVED):
        former = from_json(SavedReport, ledger.store.read_json(SAVED), ledger.store.path(SAVED))
    samples = samples_of(ledger, board)
    saved = save_wandb_report(board, config.tracking, ledger.name, samples, former)
    ledger.store.write_json(SAVED, to_json(saved))
    return saved.url


def publish_in_time(
    ledger: Ledger, config: SweepConfig, board: Leaderboard, say: Callable[[str], None]
) -> str | None:
    """The same at the end of a sweep that is tracked online; waits PUBLISH_TIMEOUT_S at most, and
    does not fail. Returns None where it did not come of it; say: takes the line that says why.
    """
    published: list[str] = []
    failed: list[str] = []

    def publish() -> None:
        try:
            if session_key(config.tracking) is not None:
                published.append(publish_report(ledger, config, board))
        except ReportError as error:
            failed.append(str(error))
        except Exception as error:  # the sweep is done, and its page is written
            failed.append(f"W&B report: not saved: {one_line(error)}")

    thread = threading.Thread(target=publish, name="W&B report", daemon=True)
    thread.start()
    thread.join(PUBLISH_TIMEOUT_S)
    if thread.is_alive():
        failed.append(f"W&B report: not saved within {PUBLISH_TIMEOUT_S:g} s")
    for line in failed:
        say(f"{line}; again with: python -m sweeps report {board.folder} --wandb")
    return published[0] if published and not failed else None
