"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="the sweep file (YAML)", show_default=False)]
Folder = Annotated[str, typer.Argument(help="the sweep's folder", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as search.trials=4", show_default=False)
]
Address = Annotated[
    str | None,
    typer.Option(
        help="a running Ray cluster: auto, or the head's host:port; else RAY_ADDRESS, else a Ray of"
        " its own",
        show_default=False,
    ),
]
Trial = Annotated[
    str | None,
    typer.Option(help="a trial's best checkpoint instead of the winner", show_default=False),
]
