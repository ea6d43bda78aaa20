"""`python -m sweeps serve DIR ...`"""

from typing import Annotated, Literal

import typer

from sweeps.cli.arguments import Address, Trial


def serve(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...",
            help="folders of sweeps, each perhaps as NAME=DIR: what clients call its winner",
            show_default=False,
        ),
    ],
    trial: Trial = None,
    host: Annotated[str, typer.Option(help="where it listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="where it listens")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="a variable's name, or a file, with the token that clients must have; required"
            " beyond loopback",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="processes that hold the models")] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="tokens of an answer, at most, and where none are named")
    ] = 1024,
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        typer.Option(help="auto: vLLM where there is a GPU and vllm is installed"),
    ] = "auto",
    address: Address = None,
) -> None:
    """Serve winners over HTTP, as OpenAI's interface does.

    Example: python -m sweeps serve runs/chat-20260101-120000 --port 8000
    """
    from dataclasses import replace

    from sweeps.use.serving.address import Address, read_token

    where = Address(host=host, port=port, token=read_token(token))

    from sweeps.use.serving.run import named, run

    models = named(folders, trial)
    cluster = replace(models[0][1].config.cluster, address=address, workers_per_slot=1)
    run(
        models,
        where,
        cluster,
        replicas=replicas,
        most_tokens=max_new_tokens,
        engine=engine,
        say=lambda line: print(line, flush=True),
    )
