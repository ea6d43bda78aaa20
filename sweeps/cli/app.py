"""The command line as a whole: its commands, its errors in one line, its exit codes."""

import os
import sys

import typer
from typer._click.exceptions import NoArgsIsHelpError, UsageError

from cluster import ClusterError
from search_spaces import SpaceError
from sweeps.cli.best import best
from sweeps.cli.cancel import cancel
from sweeps.cli.chat import chat
from sweeps.cli.check import check
from sweeps.cli.compare import compare
from sweeps.cli.ctl import ctl
from sweeps.cli.diagnose import diagnose
from sweeps.cli.evaluate import evaluate
from sweeps.cli.export import export
from sweeps.cli.gate import gate
from sweeps.cli.logs import logs
from sweeps.cli.mcp import mcp
from sweeps.cli.monitor import monitor
from sweeps.cli.pick import pick
from sweeps.cli.predict import predict
from sweeps.cli.report import report
from sweeps.cli.resume import resume
from sweeps.cli.run import run
from sweeps.cli.samples import samples
from sweeps.cli.schema import schema
from sweeps.cli.serve import serve
from sweeps.cli.status import status
from sweeps.cli.submit import submit
from sweeps.cli.sync import sync
from sweeps.cli.terminal import FAILED, WRONG_INPUT
from sweeps.cli.ui import ui
from sweeps.cli.verify import verify
from sweeps.cli.watch import watch
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
COMMANDS = (
    run,
    resume,
    check,
    watch,
    ctl,
    best,
    compare,
    samples,
    verify,
    report,
    sync,
    pick,
    export,
    predict,
    serve,
    chat,
    gate,
    monitor,
    evaluate,
    diagnose,
    submit,
    status,
    logs,
    cancel,
    schema,
    mcp,
    ui,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # every slot comes with a handful of small actors: that many processes are meant, and no reason
    # for a warning
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        _say(_usage(error))
        sys.exit(WRONG_INPUT)
    except (InputError, SpaceError, ClusterError) as error:
        _say(" ".join(str(error).split("\n")))
        sys.exit(WRONG_INPUT)
    # the outside world: a disk, a store, a network or a server that does not do its part
    except OSError as error:
        _say(" ".join(str(error).split()) or type(error).__name__)
        sys.exit(FAILED)


def _usage(error: UsageError) -> str:
    """A wrong call in one line: where, what is wrong, what is allowed; the whole help where nothing
    was given.
    """
    if error.ctx is None or isinstance(error, NoArgsIsHelpError):
        return error.format_message()
    usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
    problem = " ".join(error.format_message().split()).rstrip(".")
    return f"{error.ctx.command_path}: {problem}; usage: {usage}"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
