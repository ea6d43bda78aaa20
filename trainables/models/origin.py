"""Where a model's files are: those of a base and, where the model is an adapter, the adapter's over
it.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import InputError
from trainables.models.config import ModelConfig, Quantisation
from trainables.models.lineage import read_lineage
from trainables.models.weights import refuse_pickled

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"  # PEFT's name
WEIGHTS = "adapter_model.safetensors"  # of an adapter

# of PEFT: prompts, and what has no weights of the base's own shape
BESIDE = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
)


def resolve(name: str) -> str:
    """The folder of `package:PACKAGE/FOLDER` (the package is found, not imported), of a path, or of
    the winner of a sweep's folder; a hub id as it is.
    """
    if name.startswith("package:"):
        return str(_in_package(*name.removeprefix("package:").partition("/")[::2]))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "sweep.yaml").is_file():
            folder = _winner_of(name, folder)
        if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
            raise InputError(
                f"model.name: {name} is a folder without config.json or {ADAPTER}, so it holds no"
                " model"
            )
        return str(folder.resolve())
    if _is_path(name):
        raise InputError(f"model.name: there is no folder {name}")
    return name


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _winner_of(name: str, sweep: Path) -> Path:
    if not (sweep / "winner").is_dir():
        raise InputError(
            f"model.name: the sweep {name} has no winner yet, with which another could begin; end"
            " it, or name the folder of a checkpoint"
        )
    return sweep / "winner"


def _in_package(package: str, inside: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.name: the package {package!r} is not installed; `pip install` it first"
        )
    folder = Path(spec.origin).parent / inside
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name: {package} has no model at {inside!r} (no config.json there)")
    return folder


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter over a base."""

    folder: Path
    base: ModelConfig
    """What it was trained over; that may be an adapter again."""
    is_beside: bool = False
    """Whether the base lies in the adapter's own folder."""

    def described(self) -> dict[str, object]:
        """What `adapter_config.json` says."""
        return json.loads((self.folder / ADAPTER).read_text(encoding="utf-8"))

    @property
    def weights(self) -> Path:
        """Its file. Raises InputError where there is none."""
        refuse_pickled(str(self.folder), self.folder)
        if (found := self.folder / WEIGHTS).is_file():
            return found
        raise InputError(f"model.name: {self.folder} lacks {WEIGHTS}, the adapter's weights")

    def tensors(self) -> "dict[str, torch.Tensor]":
        """What is in its file, by name."""
        from safetensors.torch import load_file

        return load_file(self.weights)

    def whole_modules(self) -> tuple[str, ...]:
        """How the names of tensors begin that are of modules saved whole, such as a head."""
        whole = self.described().get("modules_to_save")
        return (
            tuple(f"base_model.model.{name}." for name in whole) if isinstance(whole, list) else ()
        )


def adapter_of(config: ModelConfig) -> Adapter | None:
    """The adapter that `config` names, and its base; None where it names a whole model. Raises
    InputError where the base is not found, or a whole model is to be continued as an adapter.
    """
    folder = Path(resolve(config.name))
    if not (folder / ADAPTER).is_file():
        if config.adapter == "continue":
            raise InputError(
                f"model.adapter: continue needs an adapter, and {config.name} is a whole model;"
                " leave it out: every trial then starts from that model"
            )
        return None
    described = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    is_beside = (folder / "config.json").is_file()
    name = str(folder) if is_beside else _base_of(config, folder, described)
    revision = None if is_beside else described.get("revision")
    base = replace(config, name=name, revision=revision, sha256=None, adapter="merge")
    return Adapter(folder=folder, base=base, is_beside=is_beside)


def _base_of(config: ModelConfig, folder: Path, described: dict[str, str]) -> str:
    """Where the base of the adapter in `folder` is: a hub id, or a folder as it is named there,
    from here or from the adapter's folder; else what the sweep that trained it was given.
    """
    named = described.get("base_model_name_or_path") or ""
    for place in _places(folder, Path(named)):
        if named and place.is_dir():
            return str(place.resolve())
    if lineage := read_lineage(folder):
        return lineage[-1].base
    if not named or _is_path(named):
        raise InputError(
            f"model.name: the base of the adapter {config.name} is not found: its {ADAPTER} names"
            f" {named or 'none'} (base_model_name_or_path); put it there, or name there where it is"
        )
    return named


def _places(folder: Path, named: Path) -> tuple[Path, ...]:
    """Where what an adapter in `folder` names may lie."""
    return named.expanduser(), folder / named, folder.parent / named, folder / named.name


def with_files(config: ModelConfig) -> ModelConfig:
    """The model whose folder, or hub id, has the configuration of the architecture."""
    adapter = adapter_of(config)
    return config if adapter is None or adapter.is_beside else with_files(adapter.base)


def why_not_merged(adapter: Adapter) -> str | None:
    """What keeps an adapter from being merged exactly, in words; None where nothing does."""
    lineage = read_lineage(adapter.folder)
    return why_not_exact(adapter.described(), lineage[-1].quantisation if lineage else "none")


def why_not_exact(described: Mapping[str, object], quantisation: Quantisation) -> str | None:
    """The same of an adapter by its `adapter_config.json`. quantisation: of the base that it was
    trained over, where it is merged into the weights as they were before.
    """
    if described.get("adapter_type") == "bottleneck":
        return "bottleneck adapters compute something of their own after a layer"
    kind = str(described.get("peft_type"))
    if kind in BESIDE:
        return f"{kind} stands before the text, or beside the weights"
    if described.get("use_dora") and quantisation != "none":
        return (
            "the magnitudes of DoRA are of the columns of a base of"
            f" {quantisation}, which are others than those of the weights"
        )
    return None
