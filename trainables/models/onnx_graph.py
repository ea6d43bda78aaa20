"""Models as ONNX graphs: token ids in, logits out."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainables.errors import NotExported

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import PreTrainedModel

FILE = "model.onnx"


class _Logits(nn.Module):
    """A model whose forward takes its inputs by position, and gives logits alone."""

    def __init__(self, model: "PreTrainedModel", names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def write_onnx(model: "PreTrainedModel", batch: dict[str, Tensor], file: Path) -> None:
    """Write `model` to `file`, with as many rows and tokens as one likes. batch: its inputs, for
    example; int64 [B, T] each. Raises NotExported where torch cannot.
    """
    model.config.use_cache = False  # keys and values are no output
    names = list(batch)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of packages that it could use, too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Logits(model, names).eval(),
                tuple(batch.values()),
                str(file),
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=(tuple(dict(free) for _ in names),),
                dynamo=True,
                verbose=False,
            )
    # whatever torch, onnxscript or the model's own code cannot trace
    except Exception as error:
        raise NotExported(
            f"torch.onnx.export cannot write {type(model).__name__}: {_cause(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    """What was raised first, in a line: what torch makes of it are steps and advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:300]


class OnnxModel(nn.Module):
    """A session of onnxruntime, called as a model of transformers is."""

    def __init__(self, session: "InferenceSession", folder: str) -> None:
        from transformers import AutoConfig

        super().__init__()
        self.config = AutoConfig.from_pretrained(folder)
        self.session = session
        self.names = {each.name for each in session.get_inputs()}
        self.place = nn.Parameter(torch.zeros(()))  # tells device and type

    def get_output_embeddings(self) -> None:
        """The graph gives logits, and none of what they are made of."""

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        inputs = {name: x.cpu().numpy() for name, x in batch.items() if name in self.names}
        (logits,) = self.session.run(["logits"], inputs)
        return SimpleNamespace(logits=torch.from_numpy(logits).to(self.place.device))


def onnx_code(folder: str) -> list[str]:
    """Python that loads what lies in `folder`, as `session`."""
    return [
        "from onnxruntime import InferenceSession",
        "from transformers import AutoTokenizer",
        f'session = InferenceSession("{folder}/{FILE}")',
    ]


def onnx_scoring_code(folder: str) -> list[str]:
    """Python that makes of that a `model`."""
    return [
        "from trainables.models.onnx_graph import OnnxModel",
        f"model = OnnxModel(session, {folder!r})",
    ]
