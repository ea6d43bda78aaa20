"""`python -m sweeps cancel JOB`"""

import sys
from typing import Annotated

import typer

from sweeps.cli.arguments import Dashboard, Job, Verify
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED


def cancel(
    job: Job = None,
    address: Dashboard = None,
    verify: Verify = None,
    wait: Annotated[bool, typer.Option("--wait", help="until it has ended")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a submitted sweep in order: its trials keep their checkpoints, the best so far is
    selected and told, and it can go on later.

    Example: python -m sweeps cancel quickstart-1a2b --address http://127.0.0.1:8265 --wait
    """
    from cluster.jobs import Jobs
    from sweeps.run.submitted import cancel as cancel_job
    from sweeps.run.submitted import status_lines

    out = sys.stderr if as_json else sys.stdout
    jobs = Jobs(address, verify)
    found = cancel_job(
        jobs, jobs.choose(job), wait=wait, say=lambda line: print(line, file=out, flush=True)
    )
    if as_json:
        print_json(found)
    else:
        for line in status_lines(found):
            print(line)
    if found.was_killed:
        raise typer.Exit(FAILED)
