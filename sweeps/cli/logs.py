"""`python -m sweeps logs JOB`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Dashboard, Job, Verify
from sweeps.cli.terminal import FAILED


def logs(
    job: Job = None,
    address: Dashboard = None,
    verify: Verify = None,
    follow: Annotated[bool, typer.Option("--follow", help="to the job's end")] = False,
) -> None:
    """Print the log of a submitted sweep. With --follow it ends as the job does.

    Example: python -m sweeps logs quickstart-1a2b --address http://127.0.0.1:8265 --follow
    """
    from cluster.jobs import Jobs

    jobs = Jobs(address, verify)
    chosen = jobs.choose(job)
    if not follow:
        print(jobs.log(chosen.job_id), end="")
        return
    jobs.read(chosen.job_id, lambda line: print(line, flush=True))
    ended = jobs.find(chosen.job_id)
    if ended.status != "SUCCEEDED":
        raise typer.Exit(ended.exit_code or FAILED)
