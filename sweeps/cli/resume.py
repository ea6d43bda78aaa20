"""`python -m sweeps resume DIR`"""

from sweeps.cli.arguments import Folder, Overrides
from sweeps.cli.json_output import AsJson
from sweeps.cli.terminal import console, finish
from sweeps.ledger.opening import open_sweep


def resume(folder: Folder, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Go on with an interrupted sweep, or extend or amend one: any setting of search, selection,
    cluster, tracking and most of train can be overridden.

    Example: python -m sweeps resume runs/quickstart-20260101-120000 search.trials=50
    search.time_budget=4h
    """
    from sweeps.run.start import resume as go_on

    ledger, config = open_sweep(folder, overrides or [])
    finish(go_on(ledger, config, console(stderr=as_json)), as_json=as_json)
