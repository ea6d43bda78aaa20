"""The `tracking` section of the sweep file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

WANDB = "wandb"  # whom `notify` tells without a webhook


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where trials are tracked. Offline runs lie in the sweep's folder, and `python -m sweeps sync`
    uploads them later.
    """

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online when a key is set and the server answers within 3 s, else offline (WANDB_MODE is
    respected).
    """
    project: str = "finetune-sweeps"
    """W&B project; at most 128 characters, none of / \\ # ? % :"""
    entity: str | None = None
    """W&B user or team; None: the default one of the key."""
    tags: list[str] = field(default_factory=list)
    """Tags of every run (1 to 64 characters each); the trial's method is added to them."""
    mlflow: bool | str = False
    """Track in MLflow too. true: where MLFLOW_TRACKING_URI says, else into the sweep's folder; or
    the address of a tracking server or database.
    """
    notify: str | None = None
    """Whom to tell when the sweep ends, fails or stalls. wandb: an alert of W&B; env:NAME: the
    webhook whose URL is in the environment variable NAME (it is a secret, so it stands in no file).
    """
    stall_minutes: float = 60
    """Without an evaluation while trials run, after which the sweep counts as stalled."""
    artifact: Literal["auto", "files", "reference", "off"] = "auto"
    """How the winner becomes an artifact: its files, or a reference to where they lie. auto: files
    where they lie in a local folder and are no more than `artifact_limit_gb`, else a reference.
    """
    artifact_limit_gb: float = 2.0
    """GB (1e9 bytes) of the winner above which `auto` uploads no files; above 0."""
    dataset: Literal["reference", "files", "off"] = "reference"
    """How the data become an artifact that the sweep's run uses. files: uploads sources that are
    local files, those of others stay references.
    """
    registry: str | None = None
    """COLLECTION of W&B's model registry (or REGISTRY/COLLECTION) that the winner is linked to once
    it is online; None: none.
    """
    lora_base: str | None = None
    """Name of a base model that W&B serves: the winner's LoRA adapter then is an artifact of type
    `lora` too, for that service; None: it is not.
    """

    def __post_init__(self) -> None:
        if not self.project or len(self.project) > 128 or re.search(r"[/\\#?%:]", self.project):
            raise ValueError(
                "tracking.project: must be 1 to 128 characters, none of / \\ # ? % :, got"
                f" {self.project!r}"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags: each must be 1 to 64 characters, got {tag!r}")
        if isinstance(self.mlflow, str) and re.search(r"//[^/]*@", self.mlflow):
            raise ValueError(
                "tracking.mlflow: must be without user and password, which stand in"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if self.notify not in (None, WANDB) and not re.fullmatch(r"env:\w+", self.notify):
            # a URL is not shown: it would let whoever reads it write to the channel
            given = "a URL" if "://" in self.notify else repr(self.notify)
            raise ValueError(
                "tracking.notify: must be null, wandb or env:NAME, an environment variable that"
                f" holds a webhook's URL, got {given}"
            )
        if not self.stall_minutes > 0:
            raise ValueError(f"tracking.stall_minutes: must be above 0, got {self.stall_minutes}")
        if not self.artifact_limit_gb > 0:
            raise ValueError(
                f"tracking.artifact_limit_gb: must be above 0, got {self.artifact_limit_gb!r}"
            )
        if self.registry is not None and not re.fullmatch(r"[^/:]+(/[^/:]+)?", self.registry):
            raise ValueError(
                "tracking.registry: must be COLLECTION or REGISTRY/COLLECTION without / and : in"
                f" their names, got {self.registry!r}"
            )
