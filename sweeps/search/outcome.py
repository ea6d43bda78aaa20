"""What Optuna is told of a trial that has ended."""

from optuna.trial import TrialState

from sweeps.ledger.status import BY_HAND
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from sweeps.selection.measure import Measure
from sweeps.selection.verdicts import best_point
from trainables.runtime.failures import needs_more_memory

MEMORY = "memory"  # the constraint that a trial breaks which fits no slot
BEHIND = "behind the others"  # how the reason of a trial begins that ASHA stopped
PAUSED = "paused for good"  # the same of one that waited when the search ended


def outcome(
    curve: Curve, selection: SelectionConfig
) -> tuple[TrialState, float | None, dict[int, float]]:
    """What Optuna is told of a trial that has ended: state, value, and losses by samples seen.

    TPE takes the best tenth of the COMPLETE trials by value for good; only where there are too few
    does it turn to PRUNED ones, those that came furthest first. It ignores FAIL. So whatever has a
    loss that may win is COMPLETE with that loss, however it ended: overfit or diverged afterwards,
    or cut off by the time budget. PRUNED is a trial that was behind its like, that was paused for
    good, or that somebody stopped, which says that its configuration is worse and not what it would
    have reached; and, without a value, the worst there is: a trial of which nothing may win, or of
    which the metric that chooses tells nothing. So is one that does not fit a slot, which breaks a
    constraint too (`constraints`): TPE puts it behind all others, also behind those that diverged.

    Optuna minimises: a metric of which more is better is told with the other sign.
    """
    reason = curve.reason or ""
    if constraints(curve):
        return TrialState.PRUNED, None, {}
    if curve.status == "failed" or not (curve.points or reason.startswith("diverged")):
        return TrialState.FAIL, None, {}
    point = best_point(curve, selection)
    value = None if point is None else selection.measure.of(point)
    if value is None:
        return TrialState.PRUNED, None, {}
    best, reports = selection.measure.signed(value), _reports(curve, selection.measure)
    if curve.status == "complete" or not reason.startswith((BEHIND, BY_HAND, PAUSED)):
        return TrialState.COMPLETE, best, reports
    # Optuna takes the last reported value of a pruned trial for its value: the best goes last
    return TrialState.PRUNED, best, {**reports, curve.points[-1].samples_seen + 1: best}


def constraints(curve: Curve) -> dict[str, float]:
    """What a trial breaks that no search should come back to, as Optuna has it: above 0 is
    broken.
    """
    broken = curve.status == "failed" and needs_more_memory(curve.reason or "")
    return {MEMORY: 1.0} if broken else {}


def _reports(curve: Curve, measure: Measure) -> dict[int, float]:
    found = {p.samples_seen: measure.of(p) for p in curve.trained}
    return {seen: measure.signed(value) for seen, value in found.items() if value is not None}
