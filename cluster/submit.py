"""Run a sweep as a Ray job: ship the code and the files that it needs, start it on the cluster,
follow its log.
"""

import asyncio
import ipaddress
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, urlsplit

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobSubmissionClient

from cluster import ClusterError
from cluster.connect import PROBE_TIMEOUT_S, TOKEN_HELP

PACKAGES = ("sweeps", "trainables", "search_spaces", "cluster")
# Ray's dashboard refuses larger uploads (ray_constants.DASHBOARD_CLIENT_MAX_SIZE). It counts the
# zip; we count files,
# so that the answer does not depend on how well they compress.
MAX_UPLOAD_MIB = 100
LOST_TIMEOUT_S = 60.0  # how long a head may be out of reach before we stop following
# a log that is silent for so long is opened anew: a dead connection looks like a silent one
SILENCE_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What became of a job, as far as we followed it."""

    job_id: str
    # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; the first two when we did not wait to the end
    status: str
    message: str  # Ray's words for the status
    exit_code: int | None  # of the job's process, once it has ended
    url: str  # the job's page on the dashboard


def submit(
    *,
    name: str,
    entry: Sequence[str],
    working_dir: Path,
    address: str,
    metadata: Mapping[str, str],
    env: Mapping[str, str],
    wait: bool,
    print_line: Callable[[str], None],
    python: str | None = None,
) -> JobOutcome:
    """Run `python -m ENTRY...` in a copy of `working_dir` on the cluster with its dashboard at
    `address` (http://host:8265).

    `name` becomes the job_name and the beginning of the job's id; `env` is set in the job and in
    all its workers. `python` is the interpreter on the head: by default this one where `address` is
    loopback, else `python` of its PATH. With `wait` the job's log goes to `print_line`, line by
    line, until the job ends; Ctrl-C leaves the job running. Raises ClusterError: bad address,
    nothing answers, wrong or missing token, upload too large, contact lost.
    """
    for each in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{each}").setLevel(
            logging.ERROR
        )  # they tell of every upload and every closed socket
    url, host, port = parse_address(address)
    client = _client(url, host, port)
    interpreter = python or (sys.executable if is_loopback(host) else "python")
    job_id = f"{name}-{uuid.uuid4().hex[:8]}"
    with _one_line_errors(url):
        client.submit_job(
            entrypoint=shlex.join([interpreter, "-m", *entry]),
            submission_id=job_id,
            runtime_env={"working_dir": str(working_dir), "env_vars": dict(env)},
            metadata={**metadata, "job_name": name},
        )
    if wait:
        try:
            asyncio.run(_follow(client, job_id, url, print_line))
        except KeyboardInterrupt:
            print_line(f"{job_id} goes on without us.")
            print_line(f"Follow it:  ray job logs --address {url} --follow {job_id}")
            print_line(f"Stop it:    ray job stop --address {url} {job_id}")
    with _one_line_errors(url):
        info = client.get_job_info(job_id)
    return JobOutcome(
        job_id=job_id,
        status=info.status.value,
        message=info.message or "",
        exit_code=info.driver_exit_code,
        url=f"{url}/#/jobs/{job_id}",
    )


@contextmanager
def stage(packages_root: Path, files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder to submit: the platform's packages from `packages_root`, and `files`
    (relative name: source).

    Raises ClusterError: a file is missing, a name leaves the folder, or all is more than
    MAX_UPLOAD_MIB.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-job-") as temporary:
        folder = Path(temporary)
        for package in PACKAGES:
            shutil.copytree(
                packages_root / package,
                folder / package,
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            )
        for name, source in files.items():
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or not relative.parts:
                raise ClusterError(
                    f"{name}: a file that travels with a job needs a relative path inside its"
                    " folder"
                )
            if relative.parts[0] in PACKAGES:
                raise ClusterError(
                    f"{name}: {relative.parts[0]} is a package of the platform; choose another name"
                )
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns(".gitignore")
                )  # Ray would obey it
            elif source.is_file():
                shutil.copyfile(source, target)
            else:
                raise ClusterError(f"{source}: no such file")
        _check_size(folder)
        yield folder


def _check_size(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * 2**20:
        largest = max(sizes, key=sizes.__getitem__)
        raise ClusterError(
            f"submit: {total / 2**20:.0f} MiB to send, of which {sizes[largest] / 2**20:.0f} in"
            f" {largest.relative_to(folder)}; {MAX_UPLOAD_MIB} can travel with a job: put data"
            " where every node reads it"
        )


def parse_address(address: str) -> tuple[str, str, int]:
    """(url without a trailing slash, host, port) of a dashboard."""
    example = "such as http://127.0.0.1:8265"
    if address.startswith("ray://"):
        raise ClusterError(
            f"submit: {address} is a Ray Client address; must be the dashboard's, {example}"
        )
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterError(
            f"submit: must be the dashboard's address, {example}, got {address!r} ({error})"
        ) from error
    if not host or not _is_dashboard(parts, address):
        raise ClusterError(f"submit: must be the dashboard's address, {example}, got {address!r}")
    port = port or (443 if parts.scheme == "https" else 8265)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}", host, port


def _is_dashboard(parts: SplitResult, address: str) -> bool:
    extra = parts.query or parts.fragment or any(map(str.isspace, address))
    return parts.scheme in ("http", "https") and not extra


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _client(url: str, host: str, port: int) -> JobSubmissionClient:
    for variable in (
        "RAY_API_SERVER_ADDRESS",
        "RAY_ADDRESS",
    ):  # Ray lets them override the address that it is given
        if (other := os.environ.get(variable)) and other.rstrip("/") != url:
            raise ClusterError(f"submit: {variable}={other} would override {url}: unset it")
    try:
        socket.create_connection(
            (host, port), timeout=PROBE_TIMEOUT_S
        ).close()  # Ray's own request has no time limit
    except OSError as error:
        raise ClusterError(
            f"submit: nothing answers at {url} ({error.strerror or error}); does the head run"
            " there?"
        ) from error
    with _one_line_errors(url):
        return JobSubmissionClient(url, headers=_token_header(host))


def _token_header(host: str) -> dict[str, str]:
    """The token, from where Ray takes it; Ray sends it only if RAY_AUTH_MODE was set when Ray was
    imported.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token and (path := os.environ.get("RAY_AUTH_TOKEN_PATH")):
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error.strerror}"
            ) from error
    default = Path.home() / ".ray" / "auth_token"
    if not token and (mode == "token" or is_loopback(host)) and default.is_file():
        token = default.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(f"submit: {url} refused our token: {TOKEN_HELP}") from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(
            f"submit: {url} does not answer as a Ray dashboard ({type(error).__name__})"
        ) from error
    except (
        RuntimeError
    ) as error:  # what the head answered: often a traceback, which ends with what went wrong
        raise ClusterError(f"submit: {url}: {str(error).strip().splitlines()[-1]}") from error


async def _follow(
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
                    f"submit: lost contact with {url}; {job_id} may go on there ({error})"
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
