"""`python -m sweeps run FILE`"""

from sweeps.cli.arguments import File, Overrides
from sweeps.cli.terminal import console, finish
from sweeps.config.loading import load


def run(file: File, overrides: Overrides = None) -> None:
    """Run a sweep. The last line is its folder.

    Example: python -m sweeps run sweeps/quickstart.yaml search.trials=20
    """
    from sweeps.run.sweep import start

    finish(start(load(file, overrides or []), console()))
