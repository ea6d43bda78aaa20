"""The formats that a trained model is written in, and which of them it can have."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sweeps.reporting.verify import LOW_PRECISION_TOLERANCE, TOLERANCE, computes_exactly
from sweeps.use.trained import Trained
from trainables.errors import InputError
from trainables.models.checkpoint import load_checkpoint, loading_code
from trainables.models.exporting import (
    Base,
    adapter_in,
    whole_model,
    why_not_whole,
    write_adapter,
    write_beside,
)
from trainables.models.gguf import (
    OF_DTYPE,
    check_quantisations,
    find_converter,
    gguf_code,
    why_no_gguf,
    write_gguf,
)

if TYPE_CHECKING:
    import torch

Format = Literal["peft", "transformers", "gguf", "onnx"]
Dtype = Literal["float32", "bfloat16", "float16"]
PACKAGES: dict[Format, tuple[str, ...]] = {
    "gguf": ("gguf", "sentencepiece"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""What formats need beside what every installation has: the extra `export`."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; None: what suits the model."""

    format: Format | None = None
    merge: bool = False
    merge_onto: Base | None = None
    dtype: Dtype | None = None
    quantise: tuple[str, ...] = ()
    converter: str | None = None
    limit: float | None = None
    """Of the relative drift of the loss."""

    def __post_init__(self) -> None:
        _check_name("--format", self.format, get_args(Format))
        _check_name("--merge-onto", self.merge_onto, get_args(Base))
        _check_name("--dtype", self.dtype, get_args(Dtype))
        check_quantisations(self.quantise)
        if self.limit is not None and not 0 <= self.limit < math.inf:
            raise InputError(f"--limit: must be 0 or above, and finite, got {self.limit:g}")
        together = {
            "--quantise: is of --format gguf; leave it out, or add that": (
                self.quantise and self.format != "gguf"
            ),
            "--dtype: --quantise says it already; leave one of them out": (
                self.quantise and self.dtype
            ),
            "--dtype: ONNX graphs are written in float32; leave it out": (
                self.format == "onnx" and self.dtype not in (None, "float32")
            ),
            "--merge: peft takes adapters as they are; leave one of them out": (
                self.merge and self.format == "peft"
            ),
        }
        for words in [words for words, given in together.items() if given]:
            raise InputError(words)


def _check_name(option: str, given: str | None, allowed: tuple[str, ...]) -> None:
    if given is not None and given not in allowed:
        raise InputError(f"{option}: {given!r} is not known; allowed: {', '.join(allowed)}")


# --- what is possible ---


def check_software(request: Request) -> None:
    """Raise InputError where something that writes or loads the format is not on this machine."""
    needed = () if request.format is None else PACKAGES.get(request.format, ())
    if lacking := [name for name in needed if find_spec(name) is None]:
        names = " and ".join(lacking)
        raise InputError(
            f"--format: {request.format} needs {names}, which is not installed; `pip install"
            f" {' '.join(lacking)}`, or install this project with its extra: export"
        )
    if request.format == "gguf":
        find_converter(request.converter)


def chosen_format(trained: Trained, request: Request) -> Format:
    """What is asked for, or suits the model. Raises InputError where it cannot be written so."""
    whole = adapter_in(trained.files) is None
    kind: Format = request.format or ("transformers" if request.merge or whole else "peft")
    which = f"{trained.words} ({method_of(trained)})"
    if whole:
        _check_no_adapter(request, kind, which)
    if request.merge_onto is not None:
        _check_merge_onto(trained, kind, which)
    if kind == "peft" and _is_bottleneck(trained):
        raise InputError(
            f"--format: {which} is no adapter that PEFT has; possible: --format onnx, or the"
            " sweep's folder as it is, with load_adapter of this project"
        )
    if kind in ("transformers", "gguf"):
        _check_whole(trained, request, which)
    if kind == "gguf":
        _check_gguf(trained, which)
    return kind


def _check_no_adapter(request: Request, kind: Format, which: str) -> None:
    if request.merge or kind == "peft":
        option = "--merge" if request.merge else "--format peft"
        raise InputError(
            f"{option}: is of adapters, and {which} is a whole model; leave it out, or choose"
            " --format transformers, gguf or onnx"
        )


def _check_merge_onto(trained: Trained, kind: Format, which: str) -> None:
    if trained.spec.quantisation == "none" or kind == "peft":
        raise InputError(
            "--merge-onto: is of adapters that were trained over a quantised base and are merged;"
            f" {which} is not; leave it out"
        )


def _check_gguf(trained: Trained, which: str) -> None:
    if (why := why_no_gguf(trained.spec)) is not None:
        raise InputError(f"--format gguf: {which}: {why}")


def _check_whole(trained: Trained, request: Request, which: str) -> None:
    why = why_not_whole(trained.files, trained.spec, request.merge_onto or "quantised")
    if why is None:
        return
    if request.merge_onto == "full":
        raise InputError(f"--merge-onto full: {which}: {why}; possible: --merge-onto quantised")
    possible = "--format onnx" if _is_bottleneck(trained) else "--format peft, or onnx"
    raise InputError(f"--merge: {which} cannot be merged: {why}; possible: {possible}")


def _is_bottleneck(trained: Trained) -> bool:
    return (adapter_in(trained.files) or {}).get("adapter_type") == "bottleneck"


def method_of(trained: Trained) -> str:
    return trained.config.hyperparameters(trained.params).method


# --- writing ---


@dataclass(frozen=True, kw_only=True)
class Written:
    """Something in the folder that is loaded by itself."""

    words: str
    """What it is: `merged weights in float32`."""
    code: Callable[[str], list[str]]
    """Python that loads it as `model` from the folder of that name."""
    scoring: Callable[[str], list[str]] = lambda folder: []
    """Python after that, which makes what can be scored a `model`."""
    limit: float
    """Of the relative drift of its loss, where none is given."""


@dataclass(frozen=True)
class Job:
    """What is written, as what, and where."""

    trained: Trained
    request: Request
    folder: Path
    name: str
    """What the folder will be called."""

    @property
    def onto(self) -> Base:
        return self.request.merge_onto or "quantised"

    @property
    def dtype(self) -> "torch.dtype | None":
        import torch

        return None if self.request.dtype is None else getattr(torch, self.request.dtype)

    def limit(self, *, exact: bool) -> float:
        """exact: whether what is loaded computes in float32, with the weights as trained."""
        is_exact = exact and computes_exactly(self.trained.config, self.trained.device)
        return TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE

    @property
    def merged_words(self) -> str:
        """What became of the adapter, where there is one."""
        if adapter_in(self.trained.files) is None:
            return "whole model"
        if self.trained.spec.quantisation == "none":
            return "merged weights"
        if self.onto == "quantised":
            return "merged over the dequantised base, over which it was measured,"
        return "merged over the base as it was before quantisation (measured over the quantised)"


def _tokenizer(folder: str) -> str:
    return f"tokenizer = AutoTokenizer.from_pretrained({folder!r})"


def _write_peft(job: Job) -> list[Written]:
    trained, spec = job.trained, job.trained.spec
    write_adapter(trained.files, spec, job.folder, job.name, job.dtype)
    write_beside(spec, trained.tokenizer, job.folder)
    half = job.request.dtype in ("float16", "bfloat16")
    over = "" if spec.quantisation == "none" else f" over its base in {spec.quantisation}"
    return [
        Written(
            words=f"adapter for PEFT{over}" + (f" in {job.request.dtype}" if half else ""),
            code=lambda name: [*loading_code(job.folder, spec, name), _tokenizer(name)],
            limit=job.limit(exact=spec.quantisation == "none" and not half),
        )
    ]


def _write_transformers(job: Job) -> list[Written]:
    trained = job.trained
    dtype = _write_whole(job, job.folder, job.dtype)
    spec = replace(trained.spec, quantisation="none", dtype=dtype)
    kind = str(dtype).removeprefix("torch.")
    return [
        Written(
            words=f"{job.merged_words} in {kind}",
            code=lambda name: [*loading_code(job.folder, spec, name), _tokenizer(name)],
            limit=job.limit(exact=kind == "float32" and job.onto == "quantised"),
        )
    ]


def _write_whole(job: Job, folder: Path, dtype: "torch.dtype | None") -> "torch.dtype":
    """Write one model of transformers, and what it is used with; returns the weights' type."""
    trained = job.trained
    model = whole_model(trained.files, trained.spec, job.onto, dtype)
    model.save_pretrained(folder)
    write_beside(trained.spec, trained.tokenizer, folder)
    return model.dtype


def _write_gguf(job: Job) -> list[Written]:
    import torch

    converter = find_converter(job.request.converter)
    quantisations = job.request.quantise or (OF_DTYPE[job.request.dtype or "float16"],)
    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        _write_whole(job, Path(scratch), torch.float32)
        return [_write_one_gguf(job, converter, Path(scratch), each) for each in quantisations]


def _write_one_gguf(job: Job, converter: Path, model: Path, quantisation: str) -> Written:
    file = f"model-{quantisation}.gguf"
    write_gguf(converter, model, job.folder / file, quantisation)
    return Written(
        words=f"{file}, {job.merged_words} in {quantisation}",
        code=partial(gguf_code, file=file),
        limit=job.limit(exact=quantisation == "f32" and job.onto == "quantised"),
    )


def _write_onnx(job: Job) -> list[Written]:
    import torch

    from trainables.models.onnx_graph import FILE, onnx_code, onnx_scoring_code, write_onnx
    from trainables.tasks import take_targets

    trained, spec = job.trained, replace(job.trained.spec, dtype=torch.float32)
    words = "ONNX graph"
    if why_not_whole(trained.files, spec, job.onto) is None:
        model = whole_model(trained.files, spec, job.onto, torch.float32)
        words += f", {job.merged_words}"
    else:
        model = load_checkpoint(trained.files, spec, torch.device("cpu"))
    batch = trained.task.collate(trained.split().sequences.rows(np.arange(2)), spec.pad_token_id)
    take_targets(batch, trained.task, model)
    write_onnx(model, batch, job.folder / FILE)
    spec.config().save_pretrained(job.folder)
    write_beside(spec, trained.tokenizer, job.folder)
    return [
        Written(
            words=f"{words} in float32",
            code=lambda name: [*onnx_code(name), _tokenizer(name)],
            scoring=onnx_scoring_code,
            limit=job.limit(exact=job.onto == "quantised"),
        )
    ]


WRITERS: dict[Format, Callable[[Job], list[Written]]] = {
    "peft": _write_peft,
    "transformers": _write_transformers,
    "gguf": _write_gguf,
    "onnx": _write_onnx,
}
