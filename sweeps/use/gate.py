"""Ship or not: a sweep's winner against its baselines, the model in use, and limits, on the sealed
test split. Validation chose the winner, and so says nothing here.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard, TestScores
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard
from sweeps.selection.limits import limit_reason
from sweeps.selection.statistics import MIN_UNITS, paired_difference
from sweeps.use.against import score_in_use
from sweeps.use.decision import (
    Comparison,
    Decision,
    decide,
    gain_p_value,
    rows_needed,
    visible_gain,
)
from sweeps.use.gate_config import GateConfig
from sweeps.use.rivals import TEST, Rivals, rivals_of, row_losses
from sweeps.use.timing import timed_checks
from sweeps.use.trained import open_trained
from sweeps.use.verdict import Check, Gate
from trainables.evaluation.record import Evaluation


def gate(folder: str, config: GateConfig, against: str | None = None) -> Gate:
    """Whether the winner of the sweep in `folder` may ship. against: the folder of the sweep whose
    winner is in use. Raises InputError for what is no sweep, or cannot be compared.
    """
    ledger, sweep = open_sweep(folder)
    board = leaderboard(ledger.load(), sweep.name, sweep.selection)
    trial = None if board.winner is None else board.winner.trial
    if (why := _cannot_decide(ledger, board)) is not None:
        check = Check(name="sealed test", passed=False, words=why)
        return Gate(sweep=ledger.name, trial=trial, checks=(check,))
    assert board.winner is not None and board.test is not None, "there is what decides"
    with open_trained(folder) as trained:
        rivals = rivals_of(trained, board, config)
        if against is not None:
            rivals = rivals.beside(score_in_use(against, trained, rivals.winner))
        checks = (
            _enough_rows(rivals, config),
            *_better(rivals, board.test, config),
            *_slices(rivals, trained.manifest.encoding.slices, config),
            *_limits(board, config),
            *timed_checks(trained, board.winner, config),
        )
    return Gate(sweep=ledger.name, trial=trial, checks=checks)


def _cannot_decide(ledger: Ledger, board: Leaderboard) -> str | None:
    """Why there is nothing that could decide; None where there is."""
    if board.winner is None:
        return f"there is no winner: {board.reason or 'the sweep has not ended'}"
    if not ledger.holds(board.winner.trial, board.winner.step):
        return f"{board.winner.trial} has not been handed over; resume the sweep"
    if TEST not in ledger.manifest().splits:
        return (
            "the sweep has no test split (data.test), and its winner was chosen by the validation"
            " rows, so that they cannot judge it; run it with data.test"
        )
    if board.test is None or row_losses(ledger, "winner") is None:
        return f"the test split has not been scored for {board.winner.trial}; resume the sweep"
    return None


def _enough_rows(rivals: Rivals, config: GateConfig) -> Check:
    rows = len(rivals.winner)
    return Check(
        name="test rows",
        passed=rows >= config.test_rows,
        words=f"the test split has {rows} rows (test_rows: {config.test_rows})",
    )


# --- better than each rival ---


def _better(rivals: Rivals, test: TestScores, config: GateConfig) -> Iterator[Check]:
    looks = 1 + len(test.scored_before)
    units = {name: rivals.units(rows) for name, rows in rivals.rows.items()}
    decision = decide(rivals.units(rivals.winner), units, level=config.level, looks=looks)
    for number, each in enumerate(decision.comparisons):
        is_minor = number > 0 and each.rival != rivals.in_use  # the first is the hardest
        words = f"{_better_words(each, decision, looks)}{rivals.notes.get(each.rival, '')}"
        yield Check(
            name=f"better than {each.rival}",
            passed=each.is_beaten,
            words=words,
            is_minor=is_minor,
        )
    for name in rivals.lacking:
        words = f"{name} was not measured row by row on what the winner was"
        yield Check(name=f"better than {name}", passed=False, words=words)
    if not units and not rivals.lacking:
        words = "nothing that the winner could be held against was measured on the test split"
        yield Check(name="better than a rival", passed=False, words=words)


def _better_words(found: Comparison, decision: Decision, looks: int) -> str:
    if found.standard_error is None or found.p_value is None:
        return (
            f"its loss is {found.gain:+.4f} below that of {found.rival}, which cannot be told from"
            f" noise with fewer than {MIN_UNITS} groups of rows"
        )
    difference = f"{abs(found.gain):.4f} ± {found.standard_error:.4f}"
    if found.is_beaten:
        return f"its loss is {difference} below that of {found.rival} ({_p(found.p_value)})"
    if found.gain <= 0:
        return f"its loss is {difference} above that of {found.rival}"
    level = decision.level
    again = f", as it is winner number {looks} on these rows" if looks > 1 else ""
    deviation = found.standard_error * decision.units**0.5
    return (
        f"its loss is {difference} below that of {found.rival}, which is within noise"
        f" ({_p(found.p_value)}, asked is below {level:.2g}{again}): {decision.units} units show a"
        f" gain of {visible_gain(found.standard_error, level):.4f} in four of five cases, and"
        f" {rows_needed(deviation, found.gain, level)} would show this one"
    )


def _p(value: float) -> str:
    return "p below 0.0001" if value < 1e-4 else f"p {value:.2g}"


# --- no slice is worse ---


def _slices(rivals: Rivals, values: Sequence[str], config: GateConfig) -> Iterator[Check]:
    """Than with the model in use, or the hardest rival where there is none; every slice at its part
    of the level (Bonferroni).
    """
    of_rows = rivals.ledger.beside(TEST, "slices", len(rivals.winner))
    before = rivals.in_use or rivals.hardest
    if config.slice_level is None or of_rows is None or before is None:
        return
    if len(rivals.rows[before]) != len(rivals.winner):
        return
    sizes = {i: int((of_rows == i).sum()) for i in range(len(values))}
    asked = [i for i, rows in sizes.items() if rows >= config.limits.slice_rows]
    for i in asked:
        worse, p_value = _worse(rivals, before, of_rows == i)
        told = "" if p_value is None else f" ({_p(p_value)})"
        where = f"on the slice {values[i]!r} ({sizes[i]} rows)"
        yield Check(
            name=f"slice {values[i]}",
            passed=p_value is None or p_value >= config.slice_level / len(asked),
            words=f"{where} its loss is {_apart(worse)} that of {before}{told}",
        )


def _apart(worse: float) -> str:
    return f"{abs(worse):.4f} {'above' if worse > 0 else 'below'}"


def _worse(rivals: Rivals, before: str, inside: np.ndarray) -> tuple[float, float | None]:
    """How far the winner's loss on some rows lies above a rival's, and the chance of that where it
    is not; None of too few units to tell.
    """
    own, other = (rivals.units_of(rows, inside) for rows in (rivals.winner, rivals.rows[before]))
    worse = paired_difference(other, own)[0]
    return worse, gain_p_value(other, own) if len(own) >= MIN_UNITS else None


# --- limits ---


def _limits(board: Leaderboard, config: GateConfig) -> Iterator[Check]:
    """On slices of the test split, and on what was forgotten; what has a limit and was not measured
    is beyond it.
    """
    assert board.test is not None, "it was scored"
    found = board.forgetting
    measured = Evaluation(
        step=0,
        samples_seen=0,
        epoch=0.0,
        val_loss=None,
        probe_loss=None,
        slices=board.test.winner.slices or {},
        forgetting=None if found is None else found.after - found.before,
        kl=None if found is None else found.kl,
    )
    for name, limit in config.single_limits.items():
        reason = limit_reason(measured, limit)
        kept = f"{name} keeps to its limit of {getattr(limit, name):g}"
        yield Check(name=name, passed=reason is None, words=reason or kept)
