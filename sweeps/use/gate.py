"""Ship or not: a sweep's winner against its baselines, the model in use, and limits, on the sealed
test split, by what the sweep chose it by. Validation chose it, and so says nothing here.
"""

from collections.abc import Iterator, Sequence

from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard, TestScores
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard
from sweeps.selection.limits import limit_reason
from sweeps.selection.measure import Measure, metric_words
from sweeps.selection.statistics import MIN_UNITS
from sweeps.use.against import measure_in_use
from sweeps.use.decision import (
    Comparison,
    Decision,
    decide,
    gain_p_value,
    rows_needed,
    visible_gain,
)
from sweeps.use.gains import Gains
from sweeps.use.gate_config import GateConfig, MetricLimit
from sweeps.use.measured import TEST, metric_rows, row_losses
from sweeps.use.rivals import Rivals, measure_of, rivals_of
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
    why = _cannot_decide(ledger, board)
    by = Measure() if why is not None else measure_of(ledger, sweep.selection, config)
    why = why or _not_measured(ledger, by)
    if why is not None:
        check = Check(name="sealed test", passed=False, words=why)
        return Gate(sweep=ledger.name, trial=trial, checks=(check,))
    assert board.winner is not None and board.test is not None, "there is what decides"
    with open_trained(folder) as trained:
        rivals = rivals_of(trained, board, config, by)
        if against is not None:
            found = measure_in_use(against, trained, rivals.winner, by)
            rivals = rivals.beside_in_use(found)
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


def _not_measured(ledger: Ledger, by: Measure) -> str | None:
    """Why the winner cannot be compared by a metric; None where it can, and for the loss."""
    if by.is_loss or metric_rows(ledger, "winner", by) is not None:
        return None
    return (
        f"{metric_words(by.name)}, by which it is compared, was not measured of the winner on the"
        " test split (by the loss: `metric: val_loss` in gate.yaml)"
    )


def _enough_rows(rivals: Rivals, config: GateConfig) -> Check:
    rows, asked = rivals.rows, f"(test_rows: {config.test_rows})"
    words = f"the test split has {rows} rows {asked}"
    if not rivals.by.is_loss:
        words = f"{metric_words(rivals.by.name)} is told of {rows} rows of the test split {asked}"
    of_answers = rivals.winner.rows is not None and rivals.winner.rows.of is not None
    if of_answers and rows < config.test_rows:
        words += "; generation.rows of the sweep is how many are answered"
    return Check(name="test rows", passed=rows >= config.test_rows, words=words)


# --- better than each rival ---


def _better(rivals: Rivals, test: TestScores, config: GateConfig) -> Iterator[Check]:
    looks = 1 + len(test.scored_before)
    decision = decide(rivals.gains, level=config.level, looks=looks)
    for number, each in enumerate(decision.comparisons):
        # the first is the hardest
        is_told = number == 0 or each.rival == rivals.in_use or each.by != rivals.by
        notes = f"{_by_words(each, rivals.by)}{rivals.notes.get(each.rival, '')}"
        yield Check(
            name=f"better than {each.rival}",
            passed=each.is_beaten,
            words=f"{_better_words(each, decision, looks)}{notes}",
            is_minor=not is_told,
        )
    for name in rivals.lacking:
        words = f"{name} was not measured row by row on what the winner was"
        yield Check(name=f"better than {name}", passed=False, words=words)
    if not decision.comparisons and not rivals.lacking:
        words = "nothing that the winner could be held against was measured on the test split"
        yield Check(name="better than a rival", passed=False, words=words)


def _by_words(found: Comparison, by: Measure) -> str:
    """Why it is not compared as others are; empty where it is."""
    return "" if found.by == by else f", as {metric_words(by.name)} is not told of that"


def _better_words(found: Comparison, decision: Decision, looks: int) -> str:
    what, better, worse = _words_of(found.by)
    if found.standard_error is None or found.p_value is None:
        return (
            f"its {what} is {found.gain:+.4f} {better} that of {found.rival}, which cannot be told"
            f" from noise with fewer than {MIN_UNITS} groups of rows"
        )
    difference = f"{abs(found.gain):.4f} ± {found.standard_error:.4f}"
    if found.is_beaten:
        return f"its {what} is {difference} {better} that of {found.rival} ({_p(found.p_value)})"
    if found.gain <= 0:
        return f"its {what} is {difference} {worse} that of {found.rival}"
    level = decision.level
    again = f", as it is winner number {looks} on these rows" if looks > 1 else ""
    deviation = found.standard_error * found.units**0.5
    needed = max(found.units + 1, rows_needed(deviation, found.gain, level))
    return (
        f"its {what} is {difference} {better} that of {found.rival}, which is within noise"
        f" ({_p(found.p_value)}, asked is below {level:.2g}{again}): {found.units} units show a"
        f" gain of {visible_gain(found.standard_error, level):.4f} in four of five cases, and"
        f" {needed} would show this one"
    )


def _words_of(by: Measure) -> tuple[str, str, str]:
    """What is compared, and where it lies of what is better and worse."""
    what = "loss" if by.is_loss else metric_words(by.name)
    return (what, "below", "above") if by.mode == "min" else (what, "above", "below")


def _p(value: float) -> str:
    return "p below 0.0001" if value < 1e-4 else f"p {value:.2g}"


# --- no slice is worse ---


def _slices(rivals: Rivals, values: Sequence[str], config: GateConfig) -> Iterator[Check]:
    """Than with the model in use, or the hardest rival where there is none; every slice at its part
    of the level (Bonferroni).
    """
    before = rivals.in_use or rivals.hardest
    if config.slice_level is None or before is None:
        return
    found = _slice_gains(rivals, before, len(values), config.limits.slice_rows)
    for i, gains in found.items():
        p_value = gain_p_value(gains.worse) if len(gains.units) >= MIN_UNITS else None
        told = "" if p_value is None else f" ({_p(p_value)})"
        what, better, worse = _words_of(gains.by)
        apart = f"{abs(gains.mean):.4f} {worse if gains.mean < 0 else better}"
        yield Check(
            name=f"slice {values[i]}",
            passed=p_value is None or p_value >= config.slice_level / len(found),
            words=f"on the slice {values[i]!r} ({gains.rows} rows) its {what} is {apart} that of"
            f" {before}{told}",
        )


def _slice_gains(rivals: Rivals, before: str, slices: int, least: int) -> dict[int, Gains]:
    """By the slice's number, of those that have so many rows at the least."""
    assert rivals.winner.losses is not None, "the winner was scored"
    of_rows = rivals.ledger.beside(TEST, "slices", len(rivals.winner.losses))
    if of_rows is None:
        return {}
    inside = {i: of_rows == i for i in range(slices) if (of_rows == i).sum() >= least}
    found = {i: rivals.gains_inside(before, rows, least) for i, rows in inside.items()}
    return {i: gains for i, gains in found.items() if gains is not None}


# --- limits ---


def _limits(board: Leaderboard, config: GateConfig) -> Iterator[Check]:
    """On slices and metrics of the test split, and on what was forgotten; what has a limit and was
    not measured is beyond it.
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
    for name, limit in config.metrics.items():
        yield _metric_limit(name, board.test.winner.metrics.get(name), limit)


def _metric_limit(name: str, value: float | None, limit: MetricLimit) -> Check:
    found = "was not measured" if value is None else f"is {value:.4f}"
    return Check(
        name=name,
        passed=value is not None and limit.holds(value),
        words=f"its {metric_words(name)} {found} on the test split ({limit.words} is asked)",
    )
