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
Dashboard = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="the cluster's dashboard, such as http://127.0.0.1:8265; else RAY_API_SERVER_ADDRESS",
        show_default=False,
    ),
]
Verify = Annotated[
    str | None,
    typer.Option(
        help="of an https:// dashboard: the file of its certificate authority, or false; else"
        " REQUESTS_CA_BUNDLE",
        show_default=False,
    ),
]
Job = Annotated[
    str | None,
    typer.Argument(
        help="the job's id, or its beginning; else the only sweep that runs, or the last that did",
        show_default=False,
    ),
]
