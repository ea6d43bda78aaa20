"""What is looked at on a node before a sweep uses it: run there, as a small task."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.storage.store import Store

if TYPE_CHECKING:
    from trainables.rehearsal.rehearse import Rehearsal

SUBMITTED = "submitted.json"  # in a job's folder: `Sent`
PYTHON, RAY = "Python", "ray"
# without which no trial trains; others may differ at a price, or not at all
NEEDED = ("torch", "transformers", "peft", "datasets", "safetensors", "omegaconf", "fsspec")
PACKAGES = (
    RAY,
    *NEEDED,
    "tokenizers",
    "accelerate",
    "bitsandbytes",
    "optuna",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "wandb",
    "pydantic",
)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What `submit` says of where it ran."""

    versions: Mapping[str, str]
    needs: tuple[str, ...] = ()
    """Names of the variables that every node must have."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a node is asked."""

    storage: str
    """A place that is there already: the storage, or the nearest folder above it."""
    mark: str
    """Name of a file there, which the driver has written."""
    folders: Mapping[str, Mapping[str, int]]
    """Of base models: their files with the bytes of each."""
    files: tuple[str, ...] = ()
    """Others that workers read."""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a node has said."""

    versions: Mapping[str, str]
    problems: tuple[str, ...]
    """A line each, without the node's name."""


def look(question: Question) -> Found:
    """To be run on the node itself."""
    return Found(versions=versions(), problems=tuple(_problems(question)))


def versions() -> dict[str, str]:
    """Of Python and of the packages that count; those that are not there are left out."""
    found = {PYTHON: platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _problems(question: Question) -> Iterator[str]:
    if (why := _storage(question)) is not None:
        yield f"storage: {why}"
    for folder, sizes in question.folders.items():
        if (why := _model(Path(folder), sizes)) is not None:
            yield f"model.name: {why}"
    for file in question.files:
        if not os.access(file, os.R_OK):
            yield f"metrics: cannot read {file}"
    lacking = [name for name in question.needs if not os.environ.get(name)]
    if lacking:
        yield f"--env: {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set"


def _storage(question: Question) -> str | None:
    """Why a worker here could not save what the sweep is to read."""
    place, own = question.storage, f"{question.mark}-{os.uname().nodename}-{os.getpid()}"
    try:
        store = Store(place)
        if not store.exists(question.mark):
            return f"{place} is not the same place as on the head: what was written there is not"
        store.write_bytes(own, b"")
        store.delete(own)
    except Exception as error:  # the border to file systems, each with errors of its own
        return f"cannot write to {place}: {reason(error)}"
    return None


def _model(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """Why the model's folder here is not that of the head."""
    if not folder.is_dir():
        return f"no such folder: {folder}"
    try:
        here = file_sizes(folder)
    except OSError as error:
        return f"cannot read {folder}: {reason(error)}"
    if lacking := sorted(sizes.keys() - here.keys()):
        return f"{folder} lacks {', '.join(lacking[:3])}, which the head has"
    if unlike := sorted(name for name in sizes if here[name] != sizes[name]):
        return f"{folder} has another {unlike[0]} than the head"
    return None


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files in `folder`."""
    return {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()}


def reason(error: BaseException) -> str:
    """In one line."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    return words or type(error).__name__


def unusable_gpu() -> str:
    """Why a worker that was given a GPU cannot use it; empty where it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        f"a worker was given a GPU on {os.uname().nodename}, and torch {torch.__version__} finds"
        " none there: its driver, or a torch that is built for no GPU"
    )


def rehearse_rows(
    model: ModelConfig,
    task: str,
    rows: Mapping[str, bytes],
    trials: Sequence[Mapping[str, Any]],
    pad_token_id: int,
) -> "Rehearsal | str":
    """A rehearsal with an excerpt of the data, file by file; what the user must put right as a
    text.
    """
    from trainables.rehearsal.rehearse import rehearse

    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        for name, content in rows.items():
            (Path(scratch) / name).write_bytes(content)
        try:
            return rehearse(model, task, Path(scratch), trials, pad_token_id)
        except InputError as error:
            return str(error)
