"""`python -m sweeps verify DIR`"""

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.terminal import FAILED
from sweeps.ledger.opening import open_sweep


def verify(folder: Folder) -> None:
    """Load winner and finalists with transformers and PEFT alone, evaluate them again, compare with
    what was reported.

    The winner also on the test split, where it was scored; and that data and base model are what
    they were.

    Example: python -m sweeps verify runs/quickstart-20260101-120000
    """
    from sweeps.reporting.verify import altered
    from sweeps.reporting.verify import verify as check_again

    ledger, config = open_sweep(folder)
    wrong = altered(ledger, config)
    for words in wrong:
        print(f"MISMATCH: {words}")
    for check in check_again(ledger.load(), config):
        print(f"{check.what}:")
        for name, reported in check.reported.items():
            print(
                f"  {name}: reported {reported:.8g}, measured"
                f" {check.measured.get(name, float('nan')):.8g}"
            )
        if check.agrees:
            print(f"  gives what was reported (tolerance {check.tolerance:g} relative)")
        else:
            print(
                f"  MISMATCH: does not give what was reported (tolerance {check.tolerance:g}"
                " relative)"
            )
            wrong.append(check.what)
    if wrong:
        raise typer.Exit(FAILED)
    print(
        "Data and base model are those that the sweep began with."
        if ledger.store.exists("base.json")
        else "The data are as prepared."
    )
