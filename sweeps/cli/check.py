"""`python -m sweeps check FILE`"""

from sweeps.cli.arguments import File, Overrides
from sweeps.cli.terminal import console
from sweeps.config.loading import load


def check(file: File, overrides: Overrides = None) -> None:
    """Check configuration and data, and print the plan; nothing is trained.

    Example: python -m sweeps check sweeps/quickstart.yaml
    """
    from sweeps.run.plan import print_plan

    print_plan(load(file, overrides or []), console())
