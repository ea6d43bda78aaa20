"""The `model` section of the sweep file."""

from dataclasses import dataclass
from typing import Literal

from trainables.errors import InputError

# how the weights of the base are stored in memory; trials of one quantisation share a loaded base
Quantisation = Literal["none", "nf4", "int8"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`model` in the sweep file."""

    # hub id, folder, or package:PACKAGE/FOLDER for a model that an installed Python package
    # carries; an adapter's folder, or a sweep's, of which the winner is meant
    name: str = ""
    # where that is an adapter: merge it into its base, over which trials train, or let every trial
    # continue the adapter itself
    adapter: Literal["merge", "continue"] = "merge"
    revision: str | None = None  # branch, tag or commit on the hub
    # of the base weights; auto: see `base_dtype`
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False  # run Python code that comes with the model
    # of model.safetensors (folder or package); checked before the weights are loaded
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("model.name: not given; a hub id, a folder, or package:PACKAGE/FOLDER")
