"""What a winner is held against on the sealed test split, row by row.

Letters of shapes: N rows of the test split, G units of it (see `sweeps.selection.statistics`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.selection.statistics import by_unit
from sweeps.use.against import TEST, InUse
from sweeps.use.gate_config import GateConfig
from sweeps.use.trained import Trained
from trainables.evaluation.prior import prior_losses


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """Losses of the winner and of what it is held against."""

    ledger: Ledger
    winner: np.ndarray
    """Of its rows [N, 2]."""
    rows: Mapping[str, np.ndarray]
    """Of the rivals', by what they are called [N, 2]."""
    lacking: tuple[str, ...] = ()
    """Rivals whose losses are known, but not row by row over the winner's units."""
    in_use: str | None = None
    """Which of them is the model in use."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else is to be said of one."""

    def beside(self, in_use: InUse) -> "Rivals":
        """With the model in use among them."""
        return replace(
            self,
            rows={**self.rows, in_use.words: in_use.losses},
            in_use=in_use.words,
            notes={in_use.words: in_use.known_words},
        )

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Losses of rows [N, 2] as those of units [G, 2]."""
        return by_unit(rows, self.ledger.groups(TEST, len(rows)))

    def units_of(self, rows: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The same of some rows alone: those that are true in `inside` [N]."""
        groups = self.ledger.groups(TEST, len(rows))
        return by_unit(rows[inside], None if groups is None else groups[inside])

    @property
    def hardest(self) -> str | None:
        """That of the lowest loss."""
        means = {name: each[:, 0].sum() / each[:, 1].sum() for name, each in self.rows.items()}
        return min(means, key=lambda name: means[name]) if means else None


def rivals_of(trained: Trained, board: Leaderboard, config: GateConfig) -> Rivals:
    """Those of the baselines that `config` names and that the sweep has scored."""
    ledger = trained.ledger
    winner = row_losses(ledger, "winner")
    assert winner is not None, "the winner was scored"
    measured = [
        name
        for name, score in board.scores.items()
        if name != "winner" and config.holds_against(name) and score.loss is not None
    ]
    units = by_unit(winner, ledger.groups(TEST, len(winner)))
    rows, lacking = {}, []
    for name in measured:
        found = _prior(trained, winner) if name == "prior" else row_losses(ledger, name)
        alike = found is not None and (
            by_unit(found, ledger.groups(TEST, len(found))).shape == units.shape
        )
        if found is not None and alike:
            rows[board.name_of(name)] = found
        else:
            lacking.append(board.name_of(name))
    return Rivals(ledger=ledger, winner=winner, rows=rows, lacking=tuple(lacking))


def row_losses(ledger: Ledger, name: str) -> np.ndarray | None:
    """Of what was scored on the test split under this name [N, 2]."""
    return ledger.row_losses(f"baselines/{TEST}/{name}")


def _prior(trained: Trained, winner: np.ndarray) -> np.ndarray | None:
    """Its loss is known as a mean; of each row it follows from the row's labels."""
    manifest = trained.manifest
    split = trained.split(TEST)
    if len(split) != len(winner):
        return None
    return prior_losses(trained.task, manifest.train, split, winner[:, 1], manifest.labels)
