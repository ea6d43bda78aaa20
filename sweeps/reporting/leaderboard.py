"""The leaderboard of a sweep, made from its ledger."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from sweeps.ledger.comparing import Rows, answer_rows
from sweeps.ledger.control import ControlBox
from sweeps.ledger.folder import WINNER, Ledger
from sweeps.ledger.harness import harness_of
from sweeps.ledger.leaderboard import (
    BaselineRow,
    Cost,
    Front,
    FrontPoint,
    JudgedEvaluation,
    Leaderboard,
    MetricsReport,
    NotMeasured,
    ShownEvaluation,
    SlicePart,
    SplitName,
    TestScores,
    TrialRow,
    WinnerRow,
    WinnerSlices,
    in_order,
)
from sweeps.reporting.metrics import default_evaluation, metrics_of
from sweeps.reporting.words import loss_words
from sweeps.reporting.worth import worth
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.ranking import final_ranking, pareto
from sweeps.selection.results import Winner
from sweeps.selection.statistics import Difference, compare, slice_intervals
from sweeps.selection.verdicts import excluded_reason, standing_verdict
from trainables.data.manifest import Manifest
from trainables.evaluation.record import Evaluation, Slices
from trainables.storage.records import from_json
from trainables.tasks import TASKS


def leaderboard(
    ledger: Ledger, name: str, config: SelectionConfig, status: str | None = None
) -> Leaderboard:
    """What the sweep has found so far. status: of a sweep that is about to write it."""
    curves, reference = ledger.curves(), ledger.reference()
    manifest = ledger.manifest() if ledger.has_data() else None
    found, reason = ledger.select(config, reference)
    winner = _winner(found, curves)
    differences = {} if found is None else found.differences
    trials = tuple(
        _trial(ledger, curve, differences.get(curve.id), reference, config) for curve in curves
    )
    trials = tuple(
        replace(row.trial, rank=row.rank) for row in in_order(trials, winner, config.measure)
    )
    status = status or ledger.status()[0]
    test = ledger.test_of(found)
    board = Leaderboard(
        sweep=name,
        folder=ledger.folder,
        status=status,
        metric=config.measure.name,
        metric_mode=config.measure.mode,
        losses=loss_words(manifest),
        winner=winner,
        winner_folder=_winner_folder(ledger, winner),
        baselines=_baselines(ledger, found),
        reason=reason if winner is None else None,
        pareto=_front(curves, config),
        finalists=tuple(final_ranking(curves, config)),
        trials=trials,
        cost=_cost(ledger),
        test=test,
        forgetting=ledger.forgetting_of(found),
        earlier_forgetting=ledger.earlier_of(found),
        harness=() if found is None else harness_of(ledger, found.trial, found.point.step),
        lineage=ledger.lineage("" if found is None else ledger.base_of(found)),
        tokens_per_request=_tokens_per_request(manifest, test),
        slices=_slices(ledger, found, manifest, test),
        not_measured=_not_measured(ledger, test),
        steered=ControlBox(ledger.store).steered(),
    )
    if winner is not None:
        board = replace(board, metrics=_metrics(ledger, board, winner, manifest))
    waits = config.baselines and status == "running" and not ledger.store.exists("baselines.json")
    return board if waits else replace(board, worth=worth(board, ledger.losses))


def _numbers(point: Evaluation) -> dict[str, Any]:
    """What is shown of an evaluation."""
    return {each.name: getattr(point, each.name) for each in fields(ShownEvaluation)}


def _winner(found: Winner | None, curves: list[Curve]) -> WinnerRow | None:
    if found is None:
        return None
    return WinnerRow(
        trial=found.trial,
        **_numbers(found.point),
        params=next(curve.params for curve in curves if curve.id == found.trial),
        reason=found.reason,
        tied=found.tied,
        expected=found.expected,
    )


def _winner_folder(ledger: Ledger, winner: WinnerRow | None) -> str | None:
    held = winner is not None and ledger.holds(winner.trial, winner.step)
    return ledger.store.path(WINNER) if held else None


def _trial(
    ledger: Ledger,
    curve: Curve,
    difference: Difference | None,
    reference: Reference,
    config: SelectionConfig,
) -> TrialRow:
    judged = standing_verdict(curve, reference, config)
    return TrialRow(
        id=curve.id,
        status=curve.status,
        status_reason=curve.reason,
        verdict=judged.word,
        verdict_reason=judged.reason,
        verdict_later=judged.later,
        difference=difference,
        params=curve.params,
        default=ledger.is_default(curve.id),
        finalist_of=curve.finalist_of,
        by_hand=ledger.by_hand(curve.id),
        evaluations=tuple(
            JudgedEvaluation(
                **_numbers(point), excluded=excluded_reason(list(curve.points), index, config)
            )
            for index, point in enumerate(curve.points)
        ),
    )


def _baselines(ledger: Ledger, found: Winner | None) -> dict[str, BaselineRow]:
    """Each with how far its loss lies above the lowest of the trials."""
    lowest = None if found is None else ledger.losses(found.lowest)
    rows = {}
    for name, row in ledger.baselines().items():
        difference = compare(lowest, ledger.losses(f"baselines/validation/{name}"))
        rows[name] = replace(row, difference=difference)
    return rows


def _front(curves: list[Curve], config: SelectionConfig) -> Front | None:
    if config.pareto is None:
        return None
    points = (
        FrontPoint(trial=curve.id, **_numbers(point)) for curve, point in pareto(curves, config)
    )
    return Front(cost=config.pareto, front=tuple(points))


def _cost(ledger: Ledger) -> Cost | None:
    if not ledger.store.exists("cost.json"):
        return None
    return from_json(Cost, ledger.store.read_json("cost.json"), "cost.json")


def _tokens_per_request(manifest: Manifest | None, test: TestScores | None) -> float | None:
    """Tokens that are no targets of a row of the test split, where it was scored, or of validation,
    on average: what goes into the model for one answer.
    """
    if manifest is None:
        return None
    task = TASKS[manifest.task]
    if not task.targets_are_answers or task.has_pairs:  # whose tokens are of two answers each
        return None
    split = manifest.validation if test is None else test.summary
    answers = split.targets if task.is_language_model else 0
    return (split.tokens - answers) / split.rows


def _slices(
    ledger: Ledger, found: Winner | None, manifest: Manifest | None, test: TestScores | None
) -> WinnerSlices | None:
    """The winner's loss and metrics for each value of `data.slice`, on validation and, where it
    was scored, on test; the worst first.
    """
    if found is None or manifest is None or manifest.data.slice is None:
        return None
    validation = _parts(ledger, "validation", found.point.slices, found.point.folder, manifest)
    of_test = {} if test is None else test.winner.slices or {}
    scored = _parts(ledger, "test", of_test, "baselines/test/winner", manifest)
    if not validation and not scored:
        return None
    return WinnerSlices(column=manifest.data.slice, validation=validation, test=scored)


def _parts(
    ledger: Ledger, split: SplitName, slices: Slices, folder: str, manifest: Manifest
) -> tuple[SlicePart, ...]:
    """Each slice of a split with its interval, the worst first."""
    if not slices:
        return ()
    intervals: dict[str, tuple[float, float] | None] = {}
    losses = ledger.row_losses(folder)
    of_rows = None if losses is None else ledger.beside(split, "slices", len(losses))
    if losses is not None and of_rows is not None:
        values, groups = manifest.encoding.slices, ledger.groups(split, len(losses))
        intervals = slice_intervals(losses, of_rows, values, groups)
    parts = []
    for value, each in slices.items():
        low, high = intervals.get(value) or (None, None)
        metrics = {name: number for name, number in each.items() if name not in ("rows", "loss")}
        parts.append(
            SlicePart(
                value=value,
                rows=int(each.get("rows") or 0),
                loss=each.get("loss"),
                metrics=metrics,
                low=low,
                high=high,
            )
        )
    return tuple(sorted(parts, key=lambda part: -math.inf if part.loss is None else -part.loss))


def _not_measured(ledger: Ledger, test: TestScores | None) -> tuple[NotMeasured, ...]:
    left_out = [
        NotMeasured(split="validation", words=each.words or name, error=each.error)
        for name, each in ledger.measured_baselines().items()
        if each.error is not None
    ]
    scores = {} if test is None else test.scores
    left_out += [
        NotMeasured(split="test", words=score.words or name, error=score.error)
        for name, score in scores.items()
        if score.error is not None
    ]
    return tuple(left_out)


def _metrics(
    ledger: Ledger, board: Leaderboard, winner: WinnerRow, manifest: Manifest | None
) -> MetricsReport:
    folders = {"winner": winner.folder}
    if (default := default_evaluation(board)) is not None:
        folders["default"] = default[1].folder

    def outcomes(split: SplitName, name: str) -> np.ndarray | None:
        own = split == "validation" and name in folders
        return ledger.outcomes(folders[name] if own else f"baselines/{split}/{name}")

    def answered(split: SplitName, name: str) -> Rows | None:
        own = split == "validation" and name in folders
        folder = folders[name] if own else f"baselines/{split}/{name}"
        return answer_rows(ledger, folder, split)

    return metrics_of(board, manifest, outcomes, ledger.groups, answered)
