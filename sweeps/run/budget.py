"""A time budget that is spent: what becomes of trials, and whether it was too short for any."""

import math
from collections.abc import Mapping

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.progress import RunningTrial
from sweeps.reporting.words import duration


def end_unfinished(ledger: Ledger, config: SweepConfig, reason: str) -> None:
    """Of a sweep that goes on with no time left: its trials keep what they have reached."""
    for trial in ledger.unfinished():
        ledger.finish(trial, "pruned", reason)
        ledger.prune(trial, config.selection)


def too_short(
    ledger: Ledger,
    config: SweepConfig,
    *,
    trained: Mapping[str, RunningTrial],
    rows: Mapping[str, int],
    ran_s: float,
    folder: str,
) -> str | None:
    """Words for a budget that ended before the first evaluation, and by how much; None where there
    was one. trained: how far trials were at last; rows: of train, for each base model.
    """
    if any(curve.points for curve in ledger.curves()):
        return None
    told = (
        f"search.time_budget: {config.search.time_budget} was too short: nothing was evaluated in"
        f" the {duration(ran_s)} that the sweep ran"
    )
    left_s = 0.0
    found = [_left(ledger, config, rows, *each) for each in trained.items()]
    if found:
        left_s, words = min(found)
        told += words
    else:
        told += "; no trial had begun to train"
    enough = math.ceil(2 * (ran_s + left_s) / 60)  # another process has to start too
    return f"{told}. Go on: python -m sweeps resume {folder} search.time_budget={enough}m"


def _left(
    ledger: Ledger,
    config: SweepConfig,
    rows: Mapping[str, int],
    trial: str,
    progress: RunningTrial,
) -> tuple[float, str]:
    """Seconds that a trial would have needed to its first evaluation, and words for them."""
    every = config.train.evaluate_every
    hp = config.hyperparameters(ledger.curve(trial).params)
    samples = rows[hp.model] if every == "epoch" else int(every)
    words = f"; {trial} had seen {progress.samples_seen} of {samples} samples to its first one"
    if not progress.samples_per_s:
        return 0.0, words
    left_s = max(0, samples - progress.samples_seen) / progress.samples_per_s
    return left_s, f"{words}, about {duration(left_s)} more"
