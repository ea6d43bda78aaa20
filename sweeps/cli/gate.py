"""`python -m sweeps gate DIR`"""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED


def gate(
    folder: Folder,
    against: Annotated[
        str | None,
        typer.Option(
            help="folder of the sweep whose winner is in use: better than that one, too",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="gate.yaml: level, rivals, limits", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="write the checks as JUnit XML", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="write the checks as Markdown", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ship the winner or not: exit code 0 or 1, and one paragraph that says why.

    It must be better than every baseline and than the model in use, beyond noise, on the sealed
    test split; and keep to the limits of gate.yaml.

    Example: python -m sweeps gate runs/tickets-20260201-120000 --against runs/tickets-20260101-1200
    """
    from sweeps.use import gate_files
    from sweeps.use.gate import gate as judge
    from sweeps.use.gate_config import load_gate
    from sweeps.use.verdict import Decided

    found = judge(folder, load_gate(config), against)
    if junit is not None:
        gate_files.write(junit, gate_files.junit(found), "--junit")
    if markdown is not None:
        gate_files.write(markdown, gate_files.markdown(found), "--markdown")
    if as_json:
        print_json(Decided.by(found))
    else:
        print(found.words)
    if not found.ships:
        raise typer.Exit(FAILED)
