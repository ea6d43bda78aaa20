"""`python -m sweeps evaluate DIR --tasks a,b`"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder, Trial
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import console
from trainables.errors import InputError


def evaluate(
    folder: Folder,
    tasks: Annotated[
        str, typer.Option(help="of lm-eval, such as hellaswag,gsm8k", show_default=False)
    ],
    trial: Trial = None,
    include: Annotated[
        Path | None,
        typer.Option(help="a folder with tasks of your own (YAML)", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="samples of each task, at most", show_default=False)
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="examples before each question; else as the task says"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="ask by the tokenizer's chat template")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="requests that are computed at once")] = 8,
    as_json: AsJson = False,
) -> None:
    """The winner and its untuned base on tasks of EleutherAI's lm-eval; also into harness.json.

    Example: python -m sweeps evaluate runs/chat-20260101-120000 --tasks hellaswag --limit 200
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for who watches
    from sweeps.reporting.harness import harness_table
    from sweeps.reporting.words import forgetting_words
    from sweeps.use.evaluate import evaluate as run
    from trainables.evaluation.harness import Asked

    for name, value in (("limit", limit), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"--{name}: must be at least 1, got {value}")
    names = tuple(filter(None, (name.strip() for name in tasks.split(","))))
    if not names:
        raise InputError("--tasks: must be names of tasks with commas between them, got none")
    asked = Asked(
        tasks=names,
        include=include,
        limit=limit,
        shots=shots,
        chat=chat,
        batch_size=batch_size,
    )
    found = run(folder, asked, trial)
    if as_json:
        print_json(found)
        return
    console().print(harness_table(found.scores))
    if found.forgetting is not None:
        print(f"Forgetting: {forgetting_words(found.forgetting)}")
