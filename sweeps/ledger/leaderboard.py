"""One order of a sweep's trials, for everything that shows them: terminal, page, W&B, JSON. Pure: a
board in, lines out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CANNOT_WIN = (
    "overfit",
    "diverged",
    "failed",
)  # verdicts of trials whose evaluations do not say whether they are excluded


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial's line of the leaderboard."""

    trial: dict[str, Any]
    """The trial, as on the board."""
    shown: dict[str, Any] | None
    """The evaluation that stands for it: the winner's for its trial, else the best that may win,
    else the best.
    """
    rank: int | None
    """1 is the winner, the others follow by validation loss; None where the trial may not win."""
    wins: bool
    tied: bool
    excluded: str
    """Why the trial may not win, in words; empty where it may."""


def leaderboard(board: Mapping[str, Any]) -> list[Row]:
    """The winner, the other trials by their best validation loss that may win, and then those that
    may not.
    """
    winner = board["winner"] or {}
    found = []
    for trial in board["trials"]:
        wins = trial["id"] == winner.get("trial")
        finite = sorted(
            (e for e in trial["evaluations"] if _finite(e["val_loss"])), key=lambda e: e["val_loss"]
        )
        sound = [winner] if wins else [e for e in finite if not _why_not(trial, e)]
        shown = next(iter([*sound, *finite]), None)
        excluded = "" if sound else _why_not(trial, shown) if shown else _no_loss(trial)
        found.append((trial, shown, wins, excluded))
    found.sort(
        key=lambda row: (
            not row[2],
            bool(row[3]),
            row[1]["val_loss"] if row[1] else math.inf,
            row[0]["id"],
        )
    )
    return [
        Row(
            trial=trial,
            shown=shown,
            rank=None if excluded else place,
            wins=wins,
            tied=trial["id"] in winner.get("tied", ()),
            excluded=excluded,
        )
        for place, (trial, shown, wins, excluded) in enumerate(found, start=1)
    ]


def _why_not(trial: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Why an evaluation with a finite validation loss may not win; empty where it may."""
    if trial["status"] == "failed" or "excluded" not in evaluation:
        return (
            (trial["verdict_reason"] or trial["verdict"]) if trial["verdict"] in CANNOT_WIN else ""
        )
    if evaluation["excluded"]:
        return evaluation["excluded"]
    if not _finite(evaluation["probe_loss"]):
        return "its probe loss is not finite"
    return "" if evaluation["checkpoint"] is not None else "its checkpoint is gone"


def _no_loss(trial: Mapping[str, Any]) -> str:
    if trial["status"] == "running":
        return "no evaluation yet"
    return trial["verdict_reason"] or "no evaluation with a finite validation loss"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
