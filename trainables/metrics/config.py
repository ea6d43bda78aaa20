"""The `generation` section of the sweep file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from trainables.errors import InputError

When = Literal["winner", "finalists", "evaluations"]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are written that `metrics` are of."""

    # of the winner alone; of the best candidates of the search; at every evaluation of every trial
    when: When = "finalists"
    candidates: int = 5  # whose answers are written, where `when` is finalists
    rows: int = 100  # of the validation split, always the same
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest token each time
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("candidates", "rows", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"generation.{name}: must be at least 1, got {getattr(self, name)}"
                )
        if not self.temperature >= 0:
            raise InputError(f"generation.temperature: must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"generation.top_p: must be above 0 and at most 1, got {self.top_p}")


def settings_digest(metrics: Sequence[object], generation: GenerationConfig) -> str:
    """Equal where answers are written and scored alike, whoever's they are."""
    written = asdict(generation)
    del written["when"], written["candidates"]
    content = json.dumps([list(metrics), written], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
