"""The `tracking` section of the sweep file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where trials are tracked. Offline runs lie in the sweep's folder, and `wandb sync` uploads
    them later.
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

    def __post_init__(self) -> None:
        if not self.project or len(self.project) > 128 or re.search(r"[/\\#?%:]", self.project):
            raise ValueError(
                "tracking.project: must be 1 to 128 characters, none of / \\ # ? % :, got"
                f" {self.project!r}"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags: each must be 1 to 64 characters, got {tag!r}")
