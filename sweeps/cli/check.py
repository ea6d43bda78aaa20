"""`python -m sweeps check FILE`"""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.arguments import File, Overrides
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import console
from sweeps.config.loading import load
from trainables.errors import InputError


def check(
    file: File,
    overrides: Overrides = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="write what was found to this page")] = None,
    rows: Annotated[
        int, typer.Option(min=0, help="show so many rows, with what of them is learnt")
    ] = 0,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="a file of which nothing must stand in train (may be repeated)"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9, help="rows a second that the cluster trains, for the hours it takes"
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="of the cluster for an hour, for the cost")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="train some steps of each method here, for the hours it takes"
        ),
    ] = False,
) -> None:
    """Check configuration and data, and print the plan; nothing is trained but what --measure
    times.

    Example: python -m sweeps check sweeps/quickstart.yaml --rows 3
    """
    from sweeps.reporting.check import check_page, print_plan
    from sweeps.run.plan import Rates, make_plan
    from sweeps.run.preflight import preflight

    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"--html: {html}: there is no folder {html.absolute().parent}")
    if measure and rate is not None:
        raise InputError("--measure: cannot be combined with --rate: one rate tells the hours")
    if price is not None and rate is None and not measure:
        raise InputError("--price: needs --rate or --measure, which tell the hours")
    config = load(file, overrides or [])
    terminal = console(stderr=as_json)
    with preflight(config, lambda line: terminal.print(line, markup=False)) as rehearse:
        plan = make_plan(
            config,
            rows=rows,
            benchmarks=benchmark or [],
            rates=Rates(samples_per_s=rate, price=price, measure=measure),
            rehearse=rehearse,
        )
    if html is not None:
        check_page(plan, html)
    if as_json:
        print_json(plan)
        return
    print_plan(plan, console())
    if html is not None:
        console().print(f"Page: {html}", highlight=False, markup=False)
