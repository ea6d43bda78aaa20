"""Submitted sweeps as their cluster knows them: how one stands, and its end in order."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster.jobs import SWEEP, SWEEP_FOLDER, Jobs, RunningJob
from sweeps.reporting.words import duration
from sweeps.run.job_page import BEST, REPORT, STATE, TRIALS

ASK_S = 0.5  # between looks, while a job comes to its end
ENDED = ("finished", "interrupted", "failed")  # states in which a sweep has come to its end


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """How a submitted sweep stands, by what its job says."""

    job_id: str
    status: str
    """Of the job: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    sweep: str | None
    state: str | None
    """Of the sweep; None: it has not begun."""
    trials: str | None
    """How many have ended."""
    best: str | None
    """So far, and at the end the winner."""
    folder: str | None
    report: str | None
    """The W&B Report."""
    message: str
    """Ray's words for the job's status; of one that failed with the end of its log."""
    exit_code: int | None
    started: str | None
    ended: str | None
    url: str
    """The job's page on the dashboard."""
    go_on: str | None
    """The command that goes on with the sweep; None: there is nothing to go on with now."""
    was_killed: bool
    """The job has ended before its sweep came to its own end; what was evaluated is kept."""


def status_of(job: RunningJob, url: str) -> Submitted:
    """url: of the dashboard."""
    told = job.metadata
    state, folder = told.get(STATE), told.get(SWEEP_FOLDER)
    was_killed = job.has_ended and state is not None and state not in ENDED
    goes_on = job.has_ended and state != "finished"
    return Submitted(
        job_id=job.job_id,
        status=job.status,
        sweep=told.get(SWEEP),
        state="interrupted" if was_killed else state,
        trials=told.get(TRIALS),
        best=told.get(BEST),
        folder=folder,
        report=told.get(REPORT),
        message=job.message,
        exit_code=job.exit_code,
        started=_moment(job.started),
        ended=_moment(job.ended),
        url=f"{url}/#/jobs/{job.job_id}",
        go_on=_go_on(folder, url) if folder is not None and goes_on else None,
        was_killed=was_killed,
    )


def _go_on(folder: str, url: str) -> str:
    return f"python -m sweeps submit {shlex.quote(folder)} --address {url} --wait"


def _moment(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat("T", "seconds")
    )


def status_lines(found: Submitted) -> Iterator[str]:
    """For people; what is not known is left out."""
    took = ""
    if found.started:
        until = datetime.fromisoformat(found.ended) if found.ended else datetime.now(UTC)
        took = f", {duration((until - datetime.fromisoformat(found.started)).total_seconds())}"
    yield f"Job {found.job_id}: {found.status}{took}, {found.url}"
    if found.status == "FAILED" and found.state != "failed":
        yield f"Said: {(found.message.strip().splitlines() or [''])[-1]}"
    if found.was_killed:
        yield "It was killed before its own end; what was evaluated is kept."
    told = {
        "Sweep": ", ".join(filter(None, (found.state or "not begun", found.trials))),
        "Best": found.best,
        "Folder": found.folder,
        "W&B Report": found.report,
        "Go on": found.go_on,
    }
    yield from (f"{what}: {words}" for what, words in told.items() if words)


def cancel(jobs: Jobs, job: RunningJob, *, wait: bool, say: Callable[[str], None]) -> Submitted:
    """Ask a job to end its sweep in order; wait: until it has ended."""
    if job.has_ended:
        say(f"{job.job_id} had ended before.")
        return status_of(job, jobs.url)
    jobs.stop(job.job_id)
    say(
        f"Stopping {job.job_id}: it has {job.stop_wait_s} s to end its sweep in order, and what was"
        " evaluated is kept in any case."
    )
    if not wait and (folder := job.metadata.get(SWEEP_FOLDER)) is not None:
        say(f"Once it has ended, go on: {_go_on(folder, jobs.url)}")
    while wait and not (job := jobs.find(job.job_id)).has_ended:
        time.sleep(ASK_S)
    return status_of(jobs.find(job.job_id), jobs.url)
