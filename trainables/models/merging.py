"""The plain model that transformers loads: of an adapter, its base with the adapter merged into it.

Merging is done once on a machine, and what comes of it is kept as a folder like any other model's.
So training, resuming, the test, verification and hand-over load the very same weights, quantised or
not. Merged weights are float32 unless `model.dtype` says otherwise: rounding them to the few digits
of the base's files would lose part of what the adapter has learnt.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainables.data.cache import cache_folder
from trainables.errors import InputError
from trainables.models.base import PEFT_TASKS
from trainables.models.config import ModelConfig
from trainables.models.heads import head_outputs
from trainables.models.origin import ADAPTER, Adapter, adapter_of, resolve
from trainables.models.weights import refuse_pickled

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

UNUSED_S = 7 * 86400.0  # after which a kept model goes
LOADED_BY = {kind: auto for auto, kind in PEFT_TASKS.items()} | {"FEATURE_EXTRACTION": "AutoModel"}


def plain(model: ModelConfig) -> ModelConfig:
    """What transformers loads for `model`, by its name and revision: a hub id or a folder, in which
    there is no adapter.
    """
    adapter = adapter_of(model)
    if adapter is None:
        return model
    base = _base_of(adapter)
    if model.adapter == "continue":
        return base
    source = base

    def merge(folder: Path) -> None:
        _merge(source, adapter, folder)

    kept = _kept([base.dtype, *_states(Path(resolve(base.name))), *_states(adapter.folder)], merge)
    return replace(base, name=str(kept), revision=None)


def is_made(model: ModelConfig) -> bool:
    """Whether what is loaded for `model` lies nowhere but among what is kept here."""
    return Path(resolve(plain(model).name)).parent == _root().resolve()


def _root() -> Path:
    return cache_folder().parent / "models"


def _base_of(adapter: Adapter) -> ModelConfig:
    if not adapter.is_beside:
        return plain(adapter.base)

    def link(folder: Path) -> None:
        for file in adapter.folder.iterdir():
            if file.is_file() and not file.name.startswith("adapter_"):
                (folder / file.name).symlink_to(file)

    return replace(adapter.base, name=str(_kept(["base", *_states(adapter.folder)], link)))


def _states(folder: Path) -> Iterator[str]:
    """What tells the files of a folder from others without reading them; of a hub id itself."""
    yield str(folder)
    if folder.is_dir():
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            state = file.stat()
            yield f"{file.name} {state.st_size} {state.st_mtime_ns}"


def _kept(key: list[str], make: Callable[[Path], None]) -> Path:
    """The folder that is kept under `key`, made where there is none."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    if not folder.is_dir():
        partial = Path(tempfile.mkdtemp(dir=root, prefix=".partial-"))
        try:
            make(partial)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    os.utime(folder)
    for other in root.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _merge(base: ModelConfig, adapter: Adapter, folder: Path) -> None:
    """Write the base with the adapter merged into it, as PEFT merges, to `folder`."""
    import torch
    import transformers

    refuse_pickled(str(adapter.folder), adapter.folder)
    described = adapter.described()
    auto = LOADED_BY.get(str(described.get("task_type")))
    if auto is None:
        raise InputError(
            f"model.name: {adapter.folder / ADAPTER} has task_type"
            f" {described.get('task_type') or 'null'}; what can be merged has one of"
            f" {', '.join(LOADED_BY)}"
        )
    model = getattr(transformers, auto).from_pretrained(
        resolve(base.name),
        revision=base.revision,
        trust_remote_code=base.trust_remote_code,
        use_safetensors=True,
        dtype=torch.float32 if base.dtype == "auto" else getattr(torch, base.dtype),
        **_head(adapter, str(described.get("task_type"))),
    )
    try:
        merged = merged_into(model, adapter.folder)
    except (ValueError, RuntimeError, AttributeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.name: the adapter {adapter.folder} does not fit its base, or cannot be merged"
            f" into it: {first}"
        ) from error
    merged.save_pretrained(folder)


def merged_into(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """`model` with the adapter in `folder` merged into it, as PEFT merges."""
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(folder))
    _take_saved(tuned)
    return cast("PreTrainedModel", tuned.merge_and_unload())  # pyright: ignore[reportCallIssue]


def _take_saved(tuned: "PeftModel") -> None:
    """Put the modules that are saved whole, such as heads, where PEFT wraps the base's: of all its
    tuners only LoRA's (as of 0.21) takes one out of its wrapper that is no single layer.
    """
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(tuned.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            own = module.unload_and_optionally_merge_module(True, False, None)
            tuned.set_submodule(name, own)


def _head(adapter: Adapter, task: str) -> dict[str, object]:
    """What transformers must know of the head that the adapter was trained with; nothing of a
    language model.
    """
    if task not in ("SEQ_CLS", "TOKEN_CLS"):
        return {}
    outputs = head_outputs(adapter)
    return {
        "num_labels": len(outputs),
        "id2label": dict(enumerate(outputs)),
        "label2id": {name: i for i, name in enumerate(outputs)},
        "ignore_mismatched_sizes": True,
    }
