"""`python -m sweeps status JOB`"""

from sweeps.cli.arguments import Dashboard, Job, Verify
from sweeps.cli.json_output import AsJson, print_json


def status(
    job: Job = None, address: Dashboard = None, verify: Verify = None, as_json: AsJson = False
) -> None:
    """Say how a submitted sweep stands.

    Example: python -m sweeps status --address http://127.0.0.1:8265
    """
    from cluster.jobs import Jobs
    from sweeps.run.submitted import status_lines, status_of

    jobs = Jobs(address, verify)
    found = status_of(jobs.choose(job), jobs.url)
    if as_json:
        print_json(found)
        return
    for line in status_lines(found):
        print(line)
