"""`python -m sweeps submit FILE`"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.arguments import Dashboard, Overrides, Verify
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED
from sweeps.config.loading import load
from trainables.errors import InputError


def submit(
    file: Annotated[
        str,
        typer.Argument(
            help="the sweep file (YAML), or the folder of a sweep to go on with",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    address: Dashboard = None,
    verify: Verify = None,
    env: Annotated[
        list[str],
        typer.Option(
            help="name of a variable that every node must have, such as HF_TOKEN (may be repeated)",
            show_default=False,
        ),
    ] = [],  # noqa: B006  # typer's own default of a list
    wait: Annotated[bool, typer.Option("--wait", help="follow the job's log to its end")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="only look on the cluster whether it could run there")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep as a Ray job on a cluster, or go on with one.

    Example: python -m sweeps submit sweeps/quickstart.yaml --address http://127.0.0.1:8265 --wait
    """
    from sweeps.run.remote import Submission, submit_resume, submit_sweep

    out = sys.stderr if as_json else sys.stdout
    how = Submission(
        address=address,
        verify=verify,
        needs=env,
        wait=wait or check,
        print_line=lambda line: print(line, file=out, flush=True),
    )
    if _is_folder(file, check=check):
        outcome = submit_resume(file, overrides or (), how)
    else:
        outcome = submit_sweep(load(Path(file), overrides or []), how, check=check)
    if as_json:
        print_json(outcome)
    if outcome.status in ("FAILED", "STOPPED"):
        raise typer.Exit(outcome.exit_code or FAILED)


def _is_folder(file: str, *, check: bool) -> bool:
    """Whether it is a sweep's folder, which may be where only the cluster reaches it."""
    there = "://" in file or Path(file).is_dir()
    found = there or not (Path(file).is_file() or file.endswith((".yaml", ".yml")))
    if found and check:
        raise InputError("--check: is of a sweep file; a sweep that goes on is looked at anyway")
    return found
