"""`python -m sweeps sync DIR`"""

from sweeps.cli.arguments import Folder
from sweeps.ledger.opening import open_sweep


def sync(folder: Folder) -> None:
    """Upload to W&B what stayed on this machine, hand over the winner there and write the W&B
    Report; called again, it goes on with what is left.

    Example: python -m sweeps sync runs/quickstart-20260101-120000
    """
    from sweeps.reporting.leaderboard import leaderboard
    from sweeps.reporting.publish import publish_report
    from sweeps.run.syncing import sync_sweep

    ledger, config = open_sweep(folder)
    print(sync_sweep(ledger, config), flush=True)
    board = leaderboard(ledger.load(), config.name, config.selection)
    print(f"W&B Report: {publish_report(ledger, config, board)}")
