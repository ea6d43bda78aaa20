"""`python -m sweeps export DIR --to OUT`"""

import sys
from typing import Annotated

import typer

from sweeps.cli.arguments import Folder, Trial
from sweeps.cli.json_output import AsJson, print_json
from sweeps.cli.terminal import FAILED
from trainables.errors import NotExported


def export(
    folder: Folder,
    to: Annotated[
        str, typer.Option("--to", help="a folder that is not there yet, or is empty", metavar="OUT")
    ],
    trial: Trial = None,
    merge: Annotated[bool, typer.Option("--merge", help="merge the adapter into its base")] = False,
    merge_onto: Annotated[
        str | None,
        typer.Option(
            help="of QLoRA: quantised (what it was measured over, dequantised) or full (the base as"
            " it was before)",
            metavar="BASE",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="of the weights: float32, bfloat16, float16")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="peft, transformers, gguf or onnx", metavar="FORMAT")
    ] = None,
    quantise: Annotated[
        list[str] | None,
        typer.Option(help="of GGUF: f32, f16, bf16, q8_0, tq1_0 or tq2_0; may be repeated"),
    ] = None,
    converter: Annotated[
        str | None, typer.Option(help="of GGUF: path of llama.cpp's convert_hf_to_gguf.py")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            help="relative drift of the validation loss above which nothing is written; 1e-5 in"
            " float32, else 0.02",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the winner, or the best of a trial, for other software: an adapter for PEFT and vLLM,
    a whole model of transformers, GGUF, or ONNX.

    It is loaded again in a fresh process and scored on the sweep's validation split first.

    Example: python -m sweeps export runs/quickstart-20260101-120000 --to model --merge
    """
    from sweeps.use.export import export as hand_over
    from sweeps.use.export_formats import Request

    request = Request(
        format=format,  # pyright: ignore[reportArgumentType]  which it checks itself
        merge=merge,
        merge_onto=merge_onto,  # pyright: ignore[reportArgumentType]
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        quantise=tuple(quantise or ()),
        converter=converter,
        limit=limit,
    )
    try:
        exported = hand_over(folder, to, trial, request)
    except NotExported as error:
        print(error, file=sys.stderr)
        raise typer.Exit(FAILED) from None
    if as_json:
        print_json(exported)
        return
    for note in exported.notes:
        print(note, file=sys.stderr)
    print(exported.words)
