"""What a winner is held against on the sealed test split, row by row, by what the sweep chose it
by.

Letters of shapes: N rows of the test split, G units of it (see `sweeps.selection.statistics`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sweeps.ledger.comparing import Rows, only
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.selection.config import SelectionConfig
from sweeps.selection.measure import VAL_LOSS, Measure
from sweeps.selection.statistics import by_unit
from sweeps.use.against import InUse
from sweeps.use.gains import Gains, loss_gains, metric_gains, rows_told
from sweeps.use.gate_config import GateConfig
from sweeps.use.measured import TEST, Measured, if_told, metric_rows, row_losses
from sweeps.use.trained import Trained
from trainables.errors import InputError
from trainables.evaluation.prior import prior_losses


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The winner and what it is held against: by `by` where both have it, else by the loss."""

    ledger: Ledger
    by: Measure
    winner: Measured
    others: Mapping[str, Measured] = field(default_factory=dict)
    """By what they are called."""
    gains: Mapping[str, Gains] = field(default_factory=dict)
    """Of the winner over each of them."""
    lacking: tuple[str, ...] = ()
    """What is known on the whole, but not row by row over the winner's units."""
    in_use: str | None = None
    """Which of them is the model in use."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else is to be said of one."""

    def beside(self, name: str, other: Measured) -> "Rivals":
        """With another one."""
        gains = self._by_metric(other) or self._by_loss(other)
        if gains is None:
            return replace(self, lacking=(*self.lacking, name))
        return replace(self, others={**self.others, name: other}, gains={**self.gains, name: gains})

    def beside_in_use(self, model: InUse) -> "Rivals":
        """With the model in use among them."""
        found = self.beside(model.words, model.measured)
        return replace(found, in_use=model.words, notes={model.words: model.known_words})

    def gains_inside(self, name: str, inside: np.ndarray, least: int) -> Gains | None:
        """Over one of them on some rows alone, those that are true in `inside` [N]; by the metric
        where it is told of `least` of them. None where nothing is known of the same rows.
        """
        other = self.others[name]
        found = self._by_metric(other, inside)
        return found if found is not None and found.rows >= least else self._by_loss(other, inside)

    def _by_metric(self, other: Measured, inside: np.ndarray | None = None) -> Gains | None:
        rows = [self.winner.rows, other.rows]
        own, its = (None if each is None else _inside(each, inside, self.by) for each in rows)
        return None if own is None or its is None else metric_gains(own, its, self.by)

    def _by_loss(self, other: Measured, inside: np.ndarray | None = None) -> Gains | None:
        assert self.winner.losses is not None, "the winner was scored"
        if other.losses is None or (inside is not None and len(inside) != len(other.losses)):
            return None
        own, its = (self._units(each, inside) for each in (self.winner.losses, other.losses))
        rows = len(other.losses) if inside is None else int(inside.sum())
        return loss_gains(own, its, rows) if own.shape == its.shape else None

    def _units(self, losses: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
        """Losses of rows [N, 2] as those of units [G, 2]."""
        groups = self.ledger.groups(TEST, len(losses))
        if inside is None:
            return by_unit(losses, groups)
        return by_unit(losses[inside], None if groups is None else groups[inside])

    @property
    def rows(self) -> int:
        """Of the test split, that are told of the winner and of all that are compared by what it
        is.
        """
        if self.winner.rows is None:
            assert self.winner.losses is not None, "the winner was scored"
            return len(self.winner.losses)
        compared = [each.rows for each in self.gains.values() if not each.by.is_loss]
        return min([rows_told(self.winner.rows, self.by), *compared])

    @property
    def hardest(self) -> str | None:
        """That over which the winner gains least."""
        return min(self.gains, key=lambda name: self.gains[name].hardness, default=None)


def _inside(rows: Rows, inside: np.ndarray | None, by: Measure) -> Rows | None:
    """None where the metric is not told of those rows."""
    if inside is None:
        return rows
    of = np.arange(len(rows.outcomes)) if rows.of is None else np.array(rows.of)
    return if_told(only(rows, np.flatnonzero(inside[of])), by)


# --- of a sweep ---


def measure_of(ledger: Ledger, selection: SelectionConfig, config: GateConfig) -> Measure:
    """What the winner is compared by: what the sweep chose it by, or what `config` names. Raises
    InputError for a metric that the sweep has not.
    """
    own = selection.measure
    name = config.metric or own.name
    if name in (VAL_LOSS, *ledger.task.loss_metrics(1.0)):  # which are the loss in other words
        return Measure()
    if name == own.name:
        return own
    lower = _lower_is_better(ledger)
    if name not in lower:
        raise InputError(
            f"metric: must be {VAL_LOSS} or a metric that the sweep has"
            f" ({', '.join(lower) or 'none'}), got {name!r}"
        )
    return Measure(name=name, mode="min" if lower[name] else "max")


def _lower_is_better(ledger: Ledger) -> dict[str, bool]:
    """Of each metric that the winner may have been measured by on the test split."""
    task, answers = ledger.task, ledger.answers(f"baselines/{TEST}/winner")
    found = {name: name in task.lower_is_better for name in task.metric_names}
    if answers is not None:
        found |= {name: name in answers.lower_is_better for name in answers.scores}
    return found


def rivals_of(trained: Trained, board: Leaderboard, config: GateConfig, by: Measure) -> Rivals:
    """Those of the baselines that `config` names and that the sweep has scored."""
    ledger = trained.ledger
    winner = _measured(ledger, "winner", by)
    found = Rivals(ledger=ledger, by=by, winner=winner)
    for name, score in board.scores.items():
        if name == "winner" or not config.holds_against(name) or score.loss is None:
            continue
        other = _prior(trained, winner, by) if name == "prior" else _measured(ledger, name, by)
        found = found.beside(board.name_of(name), other)
    return found


def _measured(ledger: Ledger, name: str, by: Measure) -> Measured:
    return Measured(losses=row_losses(ledger, name), rows=metric_rows(ledger, name, by))


def _prior(trained: Trained, winner: Measured, by: Measure) -> Measured:
    """Its loss is known as a mean; of each row it follows from the row's labels, as do its
    answers.
    """
    manifest, task = trained.manifest, trained.task
    split, rows = trained.split(TEST), winner.rows
    assert winner.losses is not None, "the winner was scored"
    if len(split) != len(winner.losses):
        return Measured(losses=None, rows=None)
    targets = winner.losses[:, 1]
    losses = prior_losses(task, manifest.train, split, targets, manifest.labels)
    if rows is None or rows.of is not None:
        return Measured(losses=losses, rows=None)
    answers = task.prior_outcomes(rows.outcomes, manifest.train, manifest.labels)
    its = None if answers is None else if_told(rows._replace(outcomes=answers), by)
    return Measured(losses=losses, rows=its)
