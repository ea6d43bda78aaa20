"""`python -m sweeps verify DIR`"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED
from sweeps.ledger.opening import open_sweep

if TYPE_CHECKING:
    from sweeps.reporting.verify import Check


def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Load winner and finalists with transformers and PEFT alone, evaluate them again, compare with
    what was reported.

    The winner also on the test split, where it was scored; and that data and base model are what
    they were.

    Example: python -m sweeps verify runs/quickstart-20260101-120000
    """
    from sweeps.reporting.verify import Verified, altered, changed_sources
    from sweeps.reporting.verify import verify as check_again

    ledger, config = open_sweep(folder)
    wrong, changed = altered(ledger, config), changed_sources(ledger.manifest())
    checks = check_again(ledger.load(), config)
    agrees = not wrong and all(check.agrees for check in checks)
    if as_json:
        print_json(
            Verified(
                agrees=agrees,
                altered=tuple(wrong),
                changed_sources=tuple(changed),
                checks=tuple(checks),
            )
        )
    else:
        for words in changed:
            print(words)
        _print(wrong, checks)
    if not agrees:
        raise typer.Exit(FAILED)
    if not as_json:
        print(
            "Prepared data and base model are those that the sweep began with."
            if ledger.store.exists("base.json")
            else "The data are as prepared."
        )


def _print(wrong: Sequence[str], checks: "Sequence[Check]") -> None:
    for words in wrong:
        print(f"MISMATCH: {words}")
    for check in checks:
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
