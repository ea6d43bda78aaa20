"""What a winner came from. It is written beside it, so that who goes on from it knows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainables.models.config import Quantisation
from trainables.storage.records import Json, from_json, to_json

LINEAGE = "lineage.json"


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """The winner of a sweep."""

    sweep: str
    """Name of its folder."""
    trial: str
    step: int
    val_loss: float | None = None
    """On that sweep's own validation split."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of that sweep's splits."""
    base: str
    """What it was trained over, as that sweep's file names it."""
    method: str
    task: str
    auto_class: str
    """Of transformers, which loads it."""
    problem_type: str | None = None
    outputs: tuple[str, ...] = ()
    """Names of what its head gives; none of a language model."""
    quantisation: Quantisation = "none"
    """Of the base, while it was trained."""

    @property
    def words(self) -> str:
        loss = "" if self.val_loss is None else f", validation loss {self.val_loss:.4f}"
        return f"{self.sweep} (trial {self.trial}, step {self.step}{loss}; {self.method})"


def read_lineage(folder: Path) -> tuple[Ancestor, ...]:
    """The winner in `folder`, last, and those that it came from, the oldest first; none where the
    folder does not say.
    """
    path = folder / LINEAGE
    if not path.is_file():
        return ()
    return lineage_of(json.loads(path.read_text(encoding="utf-8")), str(path))


def lineage_of(content: Sequence[Mapping[str, object]], where: str) -> tuple[Ancestor, ...]:
    """As it was read from `where`."""
    return tuple(from_json(Ancestor, each, where) for each in content)


def lineage_json(lineage: Sequence[Ancestor]) -> list[dict[str, Json]]:
    return [to_json(each) for each in lineage]
