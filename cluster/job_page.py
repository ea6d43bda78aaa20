"""What the dashboard's page of a submitted job says of it: the job's metadata.

Ray 2.60 takes them when a job is submitted and has no call that changes them. So the job's entry is
written anew, as Ray's own job manager writes it; nothing else here is private to Ray.
"""

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import replace

TIMEOUT_S = 5
SWEEP_FOLDER = "sweep_folder"  # key that every sweep tells of itself: where its folder is


def own_job() -> str | None:
    """Id of the submitted job whose driver this process is; None: of none."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return (told.get("metadata") or {}).get("job_submission_id")


def add_metadata(job: str, metadata: Mapping[str, str]) -> None:
    """Add to the metadata of this process' job; others of its keys stay. An entry that is no longer
    that of a running job is its manager's alone, and stays as it is.

    To be called by the job's driver, and by one thread at a time: so Ray's change of the job's
    status, at the driver's end, comes after the last of these. Raises what Ray raises, also where
    another version keeps its jobs otherwise.
    """
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.dashboard.modules.job.common import JobInfoStorageClient, JobStatus

    head = os.environ["RAY_ADDRESS"]  # a job's driver is given its cluster's
    host, _, port = head.rpartition(":")
    # Ray's client would wait for 40 s
    socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    # its own, as the driver has none before it has joined and after it has left
    entries = JobInfoStorageClient(GcsClient(address=head))

    async def add() -> None:
        entry = await entries.get_info(job, timeout=TIMEOUT_S)
        if entry is not None and entry.status == JobStatus.RUNNING:
            told = {**(entry.metadata or {}), **metadata}
            await entries.put_info(job, replace(entry, metadata=told), timeout=TIMEOUT_S)

    asyncio.run(add())
