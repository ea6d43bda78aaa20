"""The jobs of a cluster: found, read, stopped."""

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster import ClusterError
from cluster.endpoint import find_endpoint, one_line_errors, open_client
from cluster.job_page import SWEEP_FOLDER

LOST_TIMEOUT_S = 60.0  # how long a head may be out of reach before we stop following
# a log that is silent for so long is opened anew: a dead connection looks like a silent one
SILENCE_TIMEOUT_S = 120.0
# variable: seconds from the signal that stops a job to the one that kills it
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
RAYS_STOP_WAIT_S = 3
SWEEP = "sweep"  # key of the metadata of a job that runs one: its name


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A job that was submitted, as its cluster knows it."""

    status: str
    message: str
    metadata: Mapping[str, str]
    entrypoint: str
    working_dir: str | None
    """A package that the cluster keeps."""
    job_id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    """Seconds since 1970; None: it has not begun."""
    ended: float | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, info: JobDetails) -> "RunningJob":
        runtime_env = info.runtime_env or {}
        return cls(
            status=info.status.value,
            message=info.message or "",
            metadata=info.metadata or {},
            entrypoint=info.entrypoint,
            working_dir=runtime_env.get("working_dir"),
            job_id=info.submission_id or info.job_id or "",
            env=runtime_env.get("env_vars") or {},
            started=info.start_time / 1000 if info.start_time else None,
            ended=info.end_time / 1000 if info.end_time else None,
            exit_code=info.driver_exit_code,
        )

    @property
    def has_ended(self) -> bool:
        return JobStatus(self.status).is_terminal()

    @property
    def is_sweep(self) -> bool:
        return SWEEP in self.metadata or SWEEP_FOLDER in self.metadata

    @property
    def stop_wait_s(self) -> int:
        """What it has from the signal that stops it to the one that kills it."""
        return int(self.env.get(STOP_WAIT, RAYS_STOP_WAIT_S))


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, address: str | None, verify: str | None = None) -> None:
        """Raises ClusterError as `submit` does."""
        endpoint = find_endpoint(address)
        self.url, self._where = endpoint.url, endpoint.where
        self._client = open_client(endpoint, verify)

    def find(self, job_id: str) -> RunningJob:
        """Raises ClusterError where there is no such job."""
        with one_line_errors(self.url, self._where):
            return RunningJob.of(self._client.get_job_info(job_id))

    def all(self) -> list[RunningJob]:
        """Those that were submitted, in the order in which they began."""
        with one_line_errors(self.url, self._where):
            found = [RunningJob.of(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda job: job.started or float("inf"))

    def choose(self, word: str | None) -> RunningJob:
        """The job with this id, or the one whose id begins so: of several the one that runs. None:
        the only sweep that runs, or where none does the last. Raises ClusterError where that is not
        one job.
        """
        jobs = self.all()
        sweeps = [job for job in jobs if job.is_sweep]
        found = _running(sweeps) or sweeps[-1:] if word is None else _called(word, jobs)
        if len(running := _running(found)) == 1:
            return running[0]
        if len(found) == 1:
            return found[0]
        said = "not given, and sweeps that run" if word is None else f"those that begin with {word}"
        raise ClusterError(
            f"JOB: {said} at {self.url}: {_ids(found)}"
            f"{'' if found else f'; sweeps there: {_ids(sweeps)}'}"
        )

    def start_beside(self, job: RunningJob, job_id: str, entry: Sequence[str]) -> None:
        """Start `python -m ENTRY...` in the code of another job, on the head as that one."""
        interpreter = shlex.split(job.entrypoint)[0]
        with one_line_errors(self.url, self._where):
            self._client.submit_job(
                entrypoint=shlex.join([interpreter, "-m", *entry]),
                submission_id=job_id,
                runtime_env={"working_dir": job.working_dir} if job.working_dir else {},
                metadata={"job_name": job_id},
            )

    def read(self, job_id: str, take: Callable[[str], None]) -> None:
        """Give each line of a job's log to `take`, until the job has ended."""
        asyncio.run(follow(self._client, job_id, self.url, take))

    def log(self, job_id: str) -> str:
        """What a job has written so far."""
        with one_line_errors(self.url, self._where):
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> None:
        """Ask for a job's end; does not wait for it."""
        with one_line_errors(self.url, self._where):
            self._client.stop_job(job_id)


def _running(jobs: Sequence[RunningJob]) -> list[RunningJob]:
    return [job for job in jobs if not job.has_ended]


def _called(word: str, jobs: Sequence[RunningJob]) -> list[RunningJob]:
    begin = [job for job in jobs if job.job_id.startswith(word)]
    return [job for job in begin if job.job_id == word] or begin


def _ids(jobs: Sequence[RunningJob]) -> str:
    """The last of them."""
    shown = ["…"] * (len(jobs) > 8) + [f"{job.job_id} ({job.status})" for job in jobs[-8:]]
    return ", ".join(shown) or "none"


async def follow(
    client: JobSubmissionClient, job_id: str, url: str, print_line: Callable[[str], None]
) -> None:
    """Print the job's log until the job has ended."""
    lines = _Lines(print_line)
    while True:
        try:
            await _tail(client, job_id, lines)
            status = await asyncio.to_thread(client.get_job_status, job_id)
        except (
            RuntimeError,
            OSError,
            aiohttp.ClientError,
        ) as error:  # requests' errors are OSErrors
            if time.monotonic() - lines.contact > LOST_TIMEOUT_S:
                raise ClusterError(
                    f"--address: lost contact with {url}; {job_id} may go on there ({error})"
                ) from error
        else:
            if status.is_terminal():
                break
            lines.contact = time.monotonic()
        await asyncio.sleep(1.0)
    lines.end()


async def _tail(client: JobSubmissionClient, job_id: str, lines: "_Lines") -> None:
    """Take in the log, which starts over with every connection, until it ends or has been silent
    for long.
    """
    lines.start_over()
    log = aiter(client.tail_job_logs(job_id))
    try:
        while (chunk := await asyncio.wait_for(anext(log, None), SILENCE_TIMEOUT_S)) is not None:
            lines.add(chunk)
    except TimeoutError:
        return


class _Lines:
    """Cuts chunks of a log that may start over into lines."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print = print_line
        self._seen = 0  # characters taken in, over all connections
        self._skip = 0  # characters that this connection will repeat
        self._open = ""  # a line whose end has not come yet
        self.contact = time.monotonic()  # when the head last let us hear from it

    def start_over(self) -> None:
        self._skip = self._seen

    def add(self, chunk: str) -> None:
        self.contact = time.monotonic()
        new = chunk[self._skip :]
        self._skip = max(0, self._skip - len(chunk))
        self._seen += len(new)
        *whole, self._open = (self._open + new).split("\n")
        for line in whole:
            self._print(line)

    def end(self) -> None:
        if self._open:
            self._print(self._open)
