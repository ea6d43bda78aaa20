"""Run a sweep as a Ray job: start it on the cluster, follow its log."""

import asyncio
import logging
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.job_submission import JobSubmissionClient

from cluster import ClusterError
from cluster.endpoint import Endpoint, find_endpoint, one_line_errors, open_client
from cluster.jobs import follow

# variable: the interpreter on the head; for one that is reached through a tunnel, whose address
# looks like that of this machine
HEAD_PYTHON = "SWEEPS_HEAD_PYTHON"


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
    address: str | None,
    metadata: Mapping[str, str],
    env: Mapping[str, str],
    wait: bool,
    print_line: Callable[[str], None],
    python: str | None = None,
    verify: str | None = None,
) -> JobOutcome:
    """Run `python -m ENTRY...` in a copy of `working_dir` on the cluster with its dashboard at
    `address` (http://host:8265), as `find_endpoint` and `open_client` take it.

    `name` becomes the job_name and the beginning of the job's id; `env` is set in the job and in
    all its workers, and shown with the job. `python` is the interpreter on the head: by default
    SWEEPS_HEAD_PYTHON, else this one where the address is loopback, else `python` of its PATH. With
    `wait` the job's log goes to `print_line`, line by line, until the job ends; Ctrl-C leaves the
    job running. Raises ClusterError: bad address, nothing answers, wrong or missing token, another
    Ray, upload too large, contact lost.
    """
    for each in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{each}").setLevel(
            logging.ERROR
        )  # they tell of every upload and every closed socket
    endpoint = find_endpoint(address)
    client, url = open_client(endpoint, verify), endpoint.url
    _refuse_another_ray(client, endpoint)
    python = python or os.environ.get(HEAD_PYTHON)
    interpreter = python or (sys.executable if endpoint.is_here else "python")
    job_id = f"{name}-{uuid.uuid4().hex[:8]}"
    with one_line_errors(url, endpoint.where):
        client.submit_job(
            entrypoint=shlex.join([interpreter, "-m", *entry]),
            submission_id=job_id,
            runtime_env={"working_dir": str(working_dir), "env_vars": dict(env)},
            metadata={**metadata, "job_name": name},
        )
    if wait:
        try:
            asyncio.run(follow(client, job_id, url, print_line))
        except KeyboardInterrupt:
            print_line(f"{job_id} goes on without us.")
            print_line(f"Follow it:  python -m sweeps watch {job_id} --address {url}")
            print_line(f"Stop it:    python -m sweeps cancel {job_id} --address {url}")
    with one_line_errors(url, endpoint.where):
        info = client.get_job_info(job_id)
    return JobOutcome(
        job_id=job_id,
        status=info.status.value,
        message=info.message or "",
        exit_code=info.driver_exit_code,
        url=f"{url}/#/jobs/{job_id}",
    )


def _refuse_another_ray(client: JobSubmissionClient, endpoint: Endpoint) -> None:
    """The project is written for one version of Ray, of which each has bookkeeping of its own."""
    there = getattr(client, "_server_ray_version", None)
    if there is not None and there != ray.__version__:
        raise ClusterError(
            f"{endpoint.where}: {endpoint.url} runs Ray {there}, and here is {ray.__version__}:"
            " install the dependencies of this project (requirements.lock) on both"
        )
