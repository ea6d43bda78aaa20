"""A running sweep, steered from wherever its folder, or the cluster that runs it, is reached."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster import ClusterError
from cluster.jobs import Jobs
from sweeps.ledger.control import ControlBox, Steered
from sweeps.ledger.opening import open_sweep
from sweeps.run.commands import check_command, read_command
from sweeps.run.watch_job import begun, is_reached
from trainables.errors import InputError
from trainables.storage.records import from_json

WAIT_S = 60.0  # for an answer
LOOK_S = 0.3  # between looks for it
STORE_S = 2.0  # the same at an object store


def steer(folder: str, words: Sequence[str], *, by: str, wait_s: float = WAIT_S) -> Steered:
    """Leave a command in a sweep's folder, and wait for what comes of it. Raises InputError for
    what is no command, and for what this sweep cannot do.
    """
    command = read_command(words, by)
    ledger, config = open_sweep(folder)
    check_command(command, config, ledger.load())
    if ledger.status()[0] == "finished" and command.what in ("pause", "go-on"):
        raise InputError(f"ctl: {words[0]}: the sweep has finished, and nothing runs")
    box, until = ControlBox(ledger.store), time.monotonic() + wait_s
    number = box.put(command)
    every_s = LOOK_S if ledger.store.local is not None else STORE_S
    while number in box.waiting():
        status = ledger.status()[0]
        if status != "running" and number in box.waiting():  # its last act may have been this
            go_on = f"python -m sweeps resume {ledger.folder}"
            return replace(
                box.of(number),
                words=f"the sweep does not run ({status}); {go_on}, or of a submitted one submit"
                f" {ledger.folder} --address URL, takes it up",
            )
        if time.monotonic() > until:
            return replace(
                box.of(number),
                words=f"the sweep has not answered within {wait_s:g} s; it stays in the folder,"
                " and is done as soon as it can be, by `resume` at the latest",
            )
        time.sleep(every_s)
    return box.of(number)


def steer_job(
    address: str,
    word: str,
    words: Sequence[str],
    *,
    verify: str | None = None,
    by: str,
    say: Callable[[str], None],
) -> Steered:
    """The same of the sweep that a job runs: by its folder where this machine reads it too, else by
    a second job beside it. word: the job's id, or its beginning. Raises ClusterError as
    `watched_job` does.
    """
    read_command(words, by)
    jobs = Jobs(address, verify)
    job, folder = begun(jobs, jobs.choose(word).job_id, say)
    if is_reached(folder):
        return steer(folder, words, by=by)
    own, lines = f"ctl-{uuid.uuid4().hex[:8]}", list[str]()
    jobs.start_beside(job, own, ["sweeps", "ctl", folder, *words, "--json", "--by", by])
    jobs.read(own, lines.append)
    found = _printed(lines)
    if found is None:
        said = lines[-1] if lines else jobs.find(own).message
        raise ClusterError(f"ctl: {said}")
    return found


def _printed(lines: Sequence[str]) -> Steered | None:
    """The one JSON object among the lines of a job's log."""
    for first in (at for at, line in enumerate(lines) if line == "{"):
        last = next((at for at in range(first, len(lines)) if lines[at] == "}"), first)
        try:
            content = json.loads("\n".join(lines[first : last + 1]))
        except ValueError:
            continue
        return from_json(Steered, content, "what the cluster's job says")
    return None
