"""Leaderboards that tests write as the JSON of `best --json`, as what they are read into."""

import copy

from sweeps.ledger.leaderboard import CANNOT_WIN, Leaderboard
from trainables.storage.records import from_json


def board_of(written):
    """Filled in where tests leave it out: why evaluations of trials with such a verdict may not
    win, which trial had the winner's configuration first, and what stands beside the words of
    whether it was worth it.
    """
    written = copy.deepcopy(written)
    for trial in written["trials"]:
        barred = trial.get("verdict") in CANNOT_WIN
        why = (trial.get("verdict_reason") or trial["verdict"]) if barred else None
        for evaluation in trial["evaluations"]:
            evaluation.setdefault("excluded", why)
    if (written["winner"] or {}).get("expected"):
        written["winner"]["expected"].setdefault("trial", "t0001")
    if written.get("worth"):
        gained = {"verdict": "yes", "split": "validation", "best_baseline": "untuned", "gain": 0.1}
        written["worth"] = {**gained, "interval": None, **written["worth"]}
    return from_json(Leaderboard, written, "leaderboard")


def record(kind, written):
    """A part of one."""
    return from_json(kind, written, kind.__name__)
