"""python -m sweeps COMMAND"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from yaml import YAMLError

from cluster import ClusterError
from search_spaces import SpaceError
from sweeps.config.errors import ConfigError
from sweeps.config.loading import from_tree, load
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import leaderboard_json
from sweeps.reporting.leaderboard import leaderboard
from trainables.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Sweeps over fine-tuning methods and hyperparameters; the winner reloads to the number"
        " shown."
    ),
)

File = Annotated[Path, typer.Argument(help="the sweep file (YAML)", show_default=False)]
Folder = Annotated[str, typer.Argument(help="the sweep's folder", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as search.trials=4", show_default=False)
]


@app.command()
def run(file: File, overrides: Overrides = None) -> None:
    """Run a sweep. The last line is its folder.

    Example: python -m sweeps run sweeps/quickstart.yaml search.trials=20
    """
    from sweeps.run.sweep import start

    _finish(start(load(file, overrides or []), _console()))


@app.command()
def resume(folder: Folder, overrides: Overrides = None) -> None:
    """Go on with an interrupted sweep, or extend or amend one: any setting of search, selection,
    cluster, tracking and most of train can be overridden.

    Example: python -m sweeps resume runs/quickstart-20260101-120000 search.trials=50
    search.time_budget=4h
    """
    from sweeps.run.sweep import resume as go_on

    ledger, config = _open(folder, overrides or [])
    _finish(go_on(ledger, config, _console()))


@app.command()
def check(file: File, overrides: Overrides = None) -> None:
    """Check configuration and data, and print the plan; nothing is trained.

    Example: python -m sweeps check sweeps/quickstart.yaml
    """
    from sweeps.run.plan import print_plan

    print_plan(load(file, overrides or []), _console())


@app.command()
def best(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print the board as JSON")] = False,
) -> None:
    """Leaderboard, winner and reason, of a finished or a running sweep.

    Example: python -m sweeps best runs/quickstart-20260101-120000 --json
    """
    ledger, config = _open(folder)
    board = leaderboard(ledger.load(), config.name, config.selection)
    if as_json:
        print(json.dumps(leaderboard_json(board), indent=1, allow_nan=False))
    else:
        from sweeps.reporting.console import print_board

        print_board(_console(), board)
        if board.winner is not None and ledger.holds(board.winner.trial, board.winner.step):
            print(f"Checkpoint: {ledger.store.path('winner')}")
        if ledger.store.exists("report.html"):
            print(f"Report: {ledger.store.path('report.html')}")
    if board.winner is None:
        raise typer.Exit(1)


@app.command()
def verify(folder: Folder) -> None:
    """Load winner and finalists with transformers and PEFT alone, evaluate them again, compare with
    what was reported.

    The winner also on the test split, where it was scored; and that data and base model are what
    they were.

    Example: python -m sweeps verify runs/quickstart-20260101-120000
    """
    from sweeps.reporting.verify import altered
    from sweeps.reporting.verify import verify as check_again

    ledger, config = _open(folder)
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
        raise typer.Exit(1)
    print(
        "Data and base model are those that the sweep began with."
        if ledger.store.exists("base.json")
        else "The data are as prepared."
    )


@app.command()
def diagnose(
    curves: Annotated[
        Path,
        typer.Argument(
            help="CSV with columns trial, samples_seen, train_loss, probe_loss, val_loss",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON")] = False,
    untuned_loss: Annotated[
        float | None,
        typer.Option(
            help="validation loss of the untuned model, where no line at 0 samples says it"
        ),
    ] = None,
    prior_loss: Annotated[
        float | None, typer.Option(help="validation loss of always answering with the label shares")
    ] = None,
) -> None:
    """A verdict for each trial of a CSV of curves: healthy, overfit, underfit, collapsed, ...; from
    any trainer.

    Example: python -m sweeps diagnose curves.csv --json
    """
    from sweeps.selection.config import SelectionConfig
    from sweeps.selection.diagnose import diagnose as judge

    trials = judge(curves, SelectionConfig(), untuned_loss=untuned_loss, prior_loss=prior_loss)
    if as_json:
        print(json.dumps({"trials": trials}, indent=1))
        return
    width = max(len(trial["id"]) for trial in trials)
    for trial in trials:
        print(f"{trial['id']:<{width}}  {trial['verdict']:<17}  {trial['verdict_reason']}")


@app.command()
def submit(
    file: File,
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(
            help="the cluster's dashboard, such as http://127.0.0.1:8265", show_default=False
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="follow the job's log to its end")] = False,
) -> None:
    """Run a sweep as a Ray job on a cluster.

    Example: python -m sweeps submit sweeps/quickstart.yaml --address http://127.0.0.1:8265 --wait
    """
    from sweeps.run.remote import submit_sweep

    config = load(file, overrides or [])
    outcome = submit_sweep(
        config, address=address, wait=wait, print_line=lambda line: print(line, flush=True)
    )
    if outcome.status in ("FAILED", "STOPPED"):
        raise typer.Exit(1)


@app.command()
def report(
    folder: Folder,
    wandb: Annotated[bool, typer.Option("--wandb", help="publish it as a W&B Report too")] = False,
) -> None:
    """Write report.html, one self-contained page, into the sweep's folder.

    Example: python -m sweeps report runs/quickstart-20260101-120000
    """
    from sweeps.reporting.publish import write_report

    ledger, config = _open(folder)
    print(write_report(ledger.load(), config, wandb=wandb))


def _open(folder: str, overrides: list[str] | None = None) -> tuple[Ledger, SweepConfig]:
    from omegaconf import OmegaConf

    try:
        ledger = Ledger(folder if "://" in folder else str(Path(folder).expanduser().absolute()))
    except (
        ValueError,
        ImportError,
    ) as error:  # a protocol that fsspec does not know, or whose package is not there
        raise ConfigError(f"{folder}: {error}") from error
    if not ledger.store.exists("sweep.yaml"):
        raise ConfigError(f"{folder}: not a sweep's folder (it has no sweep.yaml)")
    try:
        tree = OmegaConf.create(ledger.store.read_bytes("sweep.yaml").decode())
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder}/sweep.yaml: damaged, it is not YAML ({error})") from error
    return ledger, from_tree(tree, overrides or (), f"{folder}/sweep.yaml")


def _console() -> Console:
    """Full lines where nobody watches a terminal, so that logs and the job page read well."""
    console = Console()
    return console if console.is_terminal else Console(width=200, force_terminal=False)


def _finish(outcome: Any) -> None:
    print(outcome.folder, flush=True)
    if outcome.status == "interrupted":
        print(f"Interrupted. Go on with: python -m sweeps resume {outcome.folder}", file=sys.stderr)
    if outcome.status != "finished" or outcome.board.winner is None:
        raise typer.Exit(1)


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # every slot comes with a handful of small actors: that many processes are meant, and no reason
    # for a warning
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    try:
        app()
    except (ConfigError, InputError, SpaceError, ClusterError) as error:
        print(" ".join(str(error).split("\n")), file=sys.stderr)
        sys.exit(2)
    # the outside world: a disk, a store, a network or a server that does not do its part
    except OSError as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
