"""`python -m sweeps run FILE`"""

from sweeps.cli.arguments import File, Overrides
from sweeps.cli.json_output import AsJson
from sweeps.cli.terminal import console, finish
from sweeps.config.loading import load


def run(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run a sweep. The last line is its folder; with --json its board is printed, and the rest
    goes to stderr.

    Example: python -m sweeps run sweeps/quickstart.yaml search.trials=20
    """
    from sweeps.run.start import start

    finish(start(load(file, overrides or []), console(stderr=as_json)), as_json=as_json)
