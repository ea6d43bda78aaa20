"""`python -m sweeps chat DIR`"""

from typing import Annotated

import typer

from sweeps.cli.arguments import Folder, Trial
from sweeps.cli.terminal import console


def chat(
    folder: Folder,
    trial: Trial = None,
    base: Annotated[
        bool, typer.Option("--base", help="show what the untuned model says beside it")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer, at most")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="of what is drawn", show_default=False)] = None,
) -> None:
    """Talk with the winner in the terminal; a classifier classifies each line.

    Example: python -m sweeps chat runs/chat-20260101-120000 --base
    """
    from sweeps.use.chat import converse, partner_of
    from sweeps.use.generation import Sampling
    from sweeps.use.trained import open_trained

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    with open_trained(folder, trial) as trained:
        converse(partner_of(trained, sampling, beside_base=base), console())
