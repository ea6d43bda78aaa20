"""A submitted sweep, watched from where it was submitted."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import ClusterError
from cluster.jobs import Jobs, RunningJob
from sweeps.reporting.relay import Relayed
from sweeps.reporting.watched import Source, Watched
from sweeps.run.job_page import FOLDER
from trainables.errors import InputError

ASK_S = 1.0  # between looks for the sweep's folder


@contextmanager
def watched_job(
    address: str,
    word: str,
    *,
    verify: str | None = None,
    pages: bool,
    say: Callable[[str], None],
) -> Iterator[Source]:
    """The sweep that a job runs: by its folder where this machine reads it too, else by a second
    job beside it that reads it there. word: the job's id, or its beginning; pages: whether its page
    is wanted.

    Raises ClusterError: no such job, or one that ended before it began a sweep.
    """
    jobs = Jobs(address, verify)
    job, folder = begun(jobs, jobs.choose(word).job_id, say)
    if is_reached(folder):
        yield Watched(folder)
        return
    with relayed(jobs, job, folder, pages=pages) as found:
        yield found


def begun(jobs: Jobs, job_id: str, say: Callable[[str], None]) -> tuple[RunningJob, str]:
    """The job and its sweep's folder, once it has one."""
    waited = False
    while True:
        job = jobs.find(job_id)
        if FOLDER in job.metadata:
            return job, job.metadata[FOLDER]
        if job.has_ended:
            raise ClusterError(f"{job_id}: {job.status} before it began a sweep: {job.message}")
        if not waited:
            waited = True
            say(f"{job_id} is {job.status}; its sweep has not begun yet.")
        time.sleep(ASK_S)


def is_reached(folder: str) -> bool:
    """Whether this machine reads a sweep's folder too."""
    try:
        if "://" not in folder:
            return (Path(folder) / "sweep.yaml").is_file()
        return Watched(folder).look() is not None
    # such as a folder that only root may open, or no credentials here for the cluster's bucket
    except (InputError, OSError):
        return False


@contextmanager
def relayed(jobs: Jobs, job: RunningJob, folder: str, *, pages: bool) -> Iterator[Relayed]:
    """What a job beside another one says of a sweep's folder; it is stopped in the end."""
    found, started = Relayed(), []
    entry = ["sweeps", "watch", folder, "--relay", *(["--open"] if pages else [])]
    last: deque[str] = deque(maxlen=1)
    left = threading.Event()

    def take(line: str) -> None:
        last.append(line)
        found.take(line)

    def read() -> None:
        try:
            while not (left.is_set() or found.ended):
                last.clear()
                found.start_over()
                own = f"watch-{uuid.uuid4().hex[:8]}"
                started.append(own)
                jobs.start_beside(job, own, entry)
                jobs.read(own, take)
                if not found.heard and not left.is_set():
                    said = last[0] if last else jobs.find(own).message
                    raise ClusterError(f"watch: the job that reads {folder} said: {said}")
        # the border of a thread: whoever waits for news is told
        except Exception as error:
            found.fail(error)

    thread = threading.Thread(target=read, name="relay", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        left.set()
        with suppress(ClusterError):  # it ends by itself, later
            if started:
                jobs.stop(started[-1])
