"""Several sweeps beside each other: what each has found, and how far the winners' losses lie apart
where they were measured on the same rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Difference, Leaderboard, SplitName
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.words import interval
from sweeps.selection.statistics import by_unit, compare
from trainables.errors import InputError
from trainables.hyperparameters import base_of
from trainables.tasks import TASKS

DECIDING: tuple[SplitName, ...] = ("test", "validation")
"""The one whose rows have chosen nothing first."""


@dataclass(frozen=True, kw_only=True)
class ComparedSweep:
    """One of them, with its winner."""

    sweep: str
    folder: str
    status: str
    task: str
    model: str
    """The winner's base; without a winner that of the sweep."""
    method: str | None
    trial: str | None
    val_loss: float | None
    test_loss: float | None
    above: Difference | None
    """How far its loss lies above the lowest, on the split that decides; None for the lowest, and
    where losses are not compared.
    """
    trials: int
    device_hours: float | None
    worth: str | None
    """Whether fine-tuning was worth it: yes, no, within noise or unknown."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What `compare --json` prints."""

    split: SplitName | None
    """On whose rows the losses are compared: test where all winners were scored there, else
    validation; None where they share no rows.
    """
    sweeps: tuple[ComparedSweep, ...]
    """The lowest loss on that split first; where there is none, in the order of the call."""
    notes: tuple[str, ...]
    """What they have in common, and what they have not."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    name: str
    """Of its folder; all of its path where others have the same name."""
    ledger: Ledger
    config: SweepConfig
    board: Leaderboard

    def rows(self, split: str) -> str | None:
        """Fingerprint of the rows of a split."""
        if not self.ledger.has_data():
            return None
        found = self.ledger.manifest().splits.get(split)
        return None if found is None else found.raw_fingerprint or found.fingerprint

    @property
    def kind_of_loss(self) -> tuple[str | None, ...]:
        """Losses of unlike ones tell nothing of each other; those of pairs are relative to a
        base.
        """
        task = TASKS[self.config.task]
        base = self.config.model.words if task.has_pairs else None
        return (self.config.task, self.board.losses, base)

    def losses(self, split: SplitName) -> np.ndarray | None:
        """Of the winner's rows [N, 2]."""
        if self.board.winner is None:
            return None
        folder = "baselines/test/winner" if split == "test" else self.board.winner.folder
        return self.ledger.row_losses(folder)

    def units(self, split: SplitName) -> np.ndarray | None:
        """The same of units (see `sweeps.selection.statistics`)."""
        losses = self.losses(split)
        return None if losses is None else by_unit(losses, self.ledger.groups(split, len(losses)))

    def loss(self, split: SplitName) -> float | None:
        if split == "test":
            return None if self.board.test is None else self.board.scores["winner"].loss
        return None if self.board.winner is None else self.board.winner.val_loss


def compare_sweeps(folders: Sequence[str]) -> Compared:
    """Raises InputError for fewer than two, and for what is no sweep."""
    found = {ledger.store.url: (ledger, config) for ledger, config in map(open_sweep, folders)}
    if len(found) < 2:
        raise InputError(f"DIR...: must be two sweeps' folders or more, got {len(found)}")
    names = Counter(ledger.name for ledger, _ in found.values())
    opened = [
        _Opened(
            name=ledger.name if names[ledger.name] == 1 else url,
            ledger=ledger,
            config=config,
            board=leaderboard(ledger.load(), config.name, config.selection),
        )
        for url, (ledger, config) in found.items()
    ]
    shared: list[SplitName] = [split for split in DECIDING if _is_shared(opened, split)]
    split = shared[0] if shared else None
    if split is not None:
        opened.sort(key=lambda each: _order(each.loss(split)))
    lowest = opened[0].units(split) if split is not None else None
    rows = [
        _row(
            each, None if each is opened[0] or split is None else compare(lowest, each.units(split))
        )
        for each in opened
    ]
    return Compared(split=split, sweeps=tuple(rows), notes=tuple(_notes(opened, split)))


def compared_table(found: Compared) -> Table:
    """One line a sweep, the best first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("sweep", "status", "base", "winner", "val loss", "test loss")
    above = f"above the best on {found.split} (95%)" if found.split else "above the best"
    for name in (*names, above, "trials", "hours", "worth it"):
        is_number = name in ("val loss", "test loss", above, "trials", "hours")
        table.add_column(name, justify="right" if is_number else "left")
    for each in found.sweeps:
        table.add_row(
            each.sweep,
            each.status,
            each.model,
            "-" if each.trial is None else f"{each.trial} {each.method}",
            _number(each.val_loss),
            _number(each.test_loss),
            interval(each.above),
            str(each.trials),
            "-" if each.device_hours is None else f"{each.device_hours:.2g}",
            each.worth or "-",
        )
    return table


def _is_shared(opened: Sequence[_Opened], split: SplitName) -> bool:
    """Whether all winners were measured on the same rows of a split, grouped alike, by the same
    kind of loss, and on the same targets: tokenizers and cut rows may make others of the same rows.
    """
    rows = {each.rows(split) for each in opened}
    kinds = {each.kind_of_loss for each in opened}
    if len(rows) > 1 or None in rows or len(kinds) > 1:
        return False
    units = [each.units(split) for each in opened]
    first = units[0]
    return first is not None and all(
        each is not None and each.shape == first.shape and np.array_equal(each[:, 1], first[:, 1])
        for each in units
    )


def _row(opened: _Opened, above: Difference | None) -> ComparedSweep:
    board, config, winner = opened.board, opened.config, opened.board.winner
    word = "" if winner is None else base_of(winner.params)
    return ComparedSweep(
        sweep=opened.name,
        folder=board.folder,
        status=board.status,
        task=config.task,
        model=config.model.words if winner is None else config.over(word).model.name,
        method=None if winner is None else config.hyperparameters(winner.params).method,
        trial=None if winner is None else winner.trial,
        val_loss=opened.loss("validation"),
        test_loss=opened.loss("test"),
        above=above,
        trials=len(board.trials),
        device_hours=None if board.cost is None else board.cost.device_seconds / 3600,
        worth=None if board.worth is None else board.worth.verdict,
    )


def _notes(opened: Sequence[_Opened], split: SplitName | None) -> list[str]:
    found = []
    for name in ("train", "validation", "test"):
        of_rows: dict[str, list[str]] = {}
        for each in opened:
            if (rows := each.rows(name)) is not None:
                of_rows.setdefault(rows, []).append(each.name)
        found += _shared(of_rows, f"the same {name} rows", len(opened))
    bases: dict[str, list[str]] = {}
    for each in opened:
        bases.setdefault(each.config.model.words, []).append(each.name)
    found += _shared(bases, "the same base model", len(opened))
    if split is None:
        found.append(
            "Losses are not compared: not all winners were measured on the same rows of one split,"
            " grouped alike, and on the same targets there."
        )
    elif split == "validation":
        found.append(
            "Each winner was chosen on the validation rows, so the lowest loss there is a little"
            " luck too; data.test of the same rows would tell."
        )
    return found


def _shared(groups: Mapping[str, Sequence[str]], what: str, count: int) -> list[str]:
    """A sentence for each group of several."""
    return [
        f"All have {what}." if len(names) == count else f"{' and '.join(names)} have {what}."
        for names in groups.values()
        if len(names) > 1
    ]


def _order(loss: float | None) -> float:
    return float("inf") if loss is None else loss


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
