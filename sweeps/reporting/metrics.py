"""The task's own metrics beside the loss: of the winner and everything that it is compared with,
and by class. Pure.

Letters of shapes: N rows of a split, M numbers that the task keeps of a row (its outcomes).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from sweeps.ledger.comparing import Rows
from sweeps.ledger.leaderboard import (
    BASELINE_NAMES,
    SPLITS,
    Alternative,
    AnswersByClass,
    BaselineRow,
    ClassAnswers,
    JudgedEvaluation,
    Leaderboard,
    LossAndMetrics,
    MetricDifference,
    MetricsReport,
    ShownEvaluation,
    SplitName,
    TrialRow,
)
from sweeps.selection.measure import VAL_LOSS, metric_words
from sweeps.selection.resampling import half_width, resampled_metrics
from trainables.data.manifest import Manifest
from trainables.evaluation.record import Metrics
from trainables.tasks import TASKS
from trainables.tasks.declared import ByClass

MOST_CLASSES = 100  # whose confusion matrix is kept
HARDLY = 1 / 3  # of the rows of a class: answered less often than that, it is hardly ever answered
# always answering train's label shares is calibrated, and worth nothing
NOT_COMPARED = frozenset({"calibration_error"})

Outcomes = Callable[[SplitName, str], np.ndarray | None]
Groups = Callable[[str], np.ndarray | None]
AnswerRows = Callable[[SplitName, str], Rows | None]


def metrics_of(
    board: Leaderboard,
    manifest: Manifest | None,
    outcomes: Outcomes,
    groups: Groups,
    answered: AnswerRows = lambda split, name: None,
) -> MetricsReport:
    """What a leaderboard with a winner says of metrics.

    manifest: of the sweep's data. outcomes(split, name): those of an alternative [N, M], None where
    they were not kept. groups(split): the group of each row [N], None where rows are independent.
    answered(split, name): rows of what an alternative wrote, None where it was not asked.
    """
    alternatives = _alternatives(board)
    classes: dict[SplitName, AnswersByClass] = {}
    compared: dict[SplitName, tuple[MetricDifference, ...]] = {}
    if manifest is None:
        return MetricsReport(alternatives=tuple(alternatives), classes=None, compared={})
    task = TASKS[manifest.task]
    for split in SPLITS:
        measured = {each.name: found for each in alternatives if (found := each.on(split))}
        own = outcomes(split, "winner") if "winner" in measured else None
        if written := _compared_answers(measured, partial(answered, split)):
            compared[split] = written
        if own is None:
            continue
        answers = _answers(measured, own, manifest, partial(outcomes, split))
        for name, each in answers.items():
            metrics = {**measured[name].metrics, **_finite(task.metrics(each))}
            measured[name] = replace(measured[name], metrics=metrics)
        alternatives = [_with(each, split, measured.get(each.name)) for each in alternatives]
        classes |= _classes(split, own, manifest)
        names, lower = tuple(task.metrics(own)), task.lower_is_better
        rows = Rows(own, task.metrics, groups(split), None, names, lower)
        compared[split] = (*written, *_compared(measured, answers, rows))
    return MetricsReport(
        alternatives=tuple(alternatives), classes=classes or None, compared=compared
    )


def _classes(
    split: SplitName, own: np.ndarray, manifest: Manifest
) -> dict[SplitName, AnswersByClass]:
    """Of the winner, where there are classes."""
    found = TASKS[manifest.task].by_class(own, manifest.labels)
    return {} if found is None else {split: by_class(found)}


def _compared_answers(
    measured: Mapping[str, LossAndMetrics], answered: Callable[[str], Rows | None]
) -> tuple[MetricDifference, ...]:
    """By the metrics of what was written, of the alternatives that were asked the same rows."""
    own = answered("winner") if "winner" in measured else None
    if own is None:
        return ()
    found = {name: each for name in measured if (each := answered(name)) is not None}
    same = {
        name: each.outcomes
        for name, each in found.items()
        if (each.of, each.names) == (own.of, own.names)
    }
    return _compared({name: measured[name] for name in same}, same, own)


def _finite(metrics: Mapping[str, float]) -> Metrics:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _answers(
    measured: Mapping[str, LossAndMetrics],
    own: np.ndarray,
    manifest: Manifest,
    outcomes: Callable[[str], np.ndarray | None],
) -> dict[str, np.ndarray]:
    """Outcomes of the alternatives over the rows of the winner's, by name."""
    found = {name: outcomes(name) for name in measured if name != "prior"}
    if "prior" in measured:
        task = TASKS[manifest.task]
        found["prior"] = task.prior_outcomes(own, manifest.train, manifest.labels)
    return {
        name: each for name, each in found.items() if each is not None and len(each) == len(own)
    }


def _with(each: Alternative, split: SplitName, found: LossAndMetrics | None) -> Alternative:
    return replace(each, validation=found) if split == "validation" else replace(each, test=found)


def _alternatives(board: Leaderboard) -> list[Alternative]:
    """The winner, the default configuration where it is another, and the baselines."""
    winner = board.winner
    assert winner is not None, "alternatives are those of a winner"

    words = f"the winner, {winner.trial}"
    found = [_alternative(board, "winner", words, winner)]
    default = default_evaluation(board)
    if default is not None and default[0].id != winner.trial:
        words = f"{BASELINE_NAMES['default']}, {default[0].id}"
        found.append(_alternative(board, "default", words, default[1]))
    for name in dict.fromkeys([*board.baselines, *board.scores]):
        if name not in ("winner", "default"):
            row = board.baselines.get(name) or BaselineRow()
            found.append(_alternative(board, name, board.name_of(name), row))
    return [each for each in found if each.validation or each.test]


def _alternative(
    board: Leaderboard, name: str, words: str, validation: ShownEvaluation | BaselineRow
) -> Alternative:
    score = board.scores.get(name)
    return Alternative(
        name=name,
        words=words,
        validation=_loss_and_metrics(validation.val_loss, validation.metrics),
        test=None if score is None else _loss_and_metrics(score.loss, score.metrics),
    )


def _loss_and_metrics(loss: float | None, metrics: Metrics) -> LossAndMetrics | None:
    """None where there is no loss, so that nothing was measured."""
    return None if loss is None else LossAndMetrics(loss=loss, metrics=metrics)


def default_evaluation(board: Leaderboard) -> tuple[TrialRow, JudgedEvaluation] | None:
    """The default configuration and its best evaluation that may win, as the winner is chosen."""
    for trial in board.trials:
        if trial.default and trial.may_win:
            return trial, min(trial.may_win, key=board.measure.key)
    return None


def lowest(evaluations: Sequence[JudgedEvaluation]) -> JudgedEvaluation:
    """That of the lowest validation loss."""
    return min(evaluations, key=lambda e: math.inf if e.val_loss is None else e.val_loss)


# --- by class ---


def by_class(found: ByClass) -> AnswersByClass:
    """What is answered to the rows of each class; no confusion matrix beyond 100 classes."""
    classes = [_of_class(found, c) for c in range(len(found.names))]
    confusion = found.confusion if len(found.names) <= MOST_CLASSES else None
    return AnswersByClass(
        classes=tuple(classes),
        confusion=None if confusion is None else tuple(map(tuple, confusion.tolist())),
        hardly=tuple(
            each.label
            for each, hits in zip(classes, found.counts.hits, strict=True)
            if _is_hardly_answered(each.rows, each.answered, int(hits))
        ),
    )


def _of_class(found: ByClass, c: int) -> ClassAnswers:
    hits, answered, rows = (int(each[c]) for each in found.counts)
    return ClassAnswers(
        label=str(found.names[c]),
        rows=rows,
        answered=answered,
        recall=hits / rows if rows else None,
        precision=hits / answered if answered else None,
        answered_as={}
        if found.confusion is None
        else _answered_as(found.confusion[c], found.names),
    )


def _is_hardly_answered(rows: int, answered: int, hits: int) -> bool:
    # of the difference of the two, which share the hits
    noise = 2 * math.sqrt(rows + answered - 2 * hits)
    return answered <= HARDLY * rows and rows - answered > noise


def _answered_as(counts: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """The answers that the rows of a class got, the commonest first."""
    order = np.argsort(-counts, kind="stable")
    return {str(names[p]): int(counts[p]) for p in order if counts[p]}


# --- compared ---


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A metric in which an alternative is compared with the winner."""

    metric: str
    among: Literal["default", "baselines"]
    name: str
    of: int
    """Comparisons that its interval is corrected for."""


def _compared(
    measured: Mapping[str, LossAndMetrics],
    answers: Mapping[str, np.ndarray],
    own_rows: Rows,
) -> tuple[MetricDifference, ...]:
    """For each metric how far the alternatives lie above the winner: the default configuration, and
    of the other ways (`baselines`) that of the lowest loss and that of the best metric.
    """
    asked = _questions(measured, answers, own_rows)
    names = {"winner", *(each.name for each in asked)}
    chosen = {name: answers[name] for name in names}
    drawn = resampled_metrics(chosen, own_rows.metrics, own_rows.groups) if asked else {}
    found = []
    for each in asked:
        value, own = (_metric(measured[name], each.metric) for name in (each.name, "winner"))
        differences = drawn[each.name][each.metric] - drawn["winner"][each.metric]
        error = float(np.nanstd(differences))  # some resamples may not tell
        width = half_width(error, each.of)
        found.append(
            MetricDifference(
                metric=each.metric,
                among=each.among,
                name=each.name,
                value=value,
                winner=own,
                difference=value - own,
                low=value - own - width,
                high=value - own + width,
                of=each.of,
                lower_is_better=each.metric in own_rows.lower_is_better,
            )
        )
    return tuple(found)


def _questions(
    measured: Mapping[str, LossAndMetrics], answers: Mapping[str, np.ndarray], rows: Rows
) -> list[_Question]:
    """Intervals are for one of `of` comparisons (Bonferroni): one a metric for the default
    configuration and for the way of the lowest loss, which was not chosen by its metric; one a
    metric and way for that of the best metric.
    """
    asked = []
    known = [name for name in rows.names if _is_known(measured["winner"], name)]
    metrics = [name for name in known if name not in NOT_COMPARED]
    for metric in metrics:
        names = [name for name in answers if _is_known(measured[name], metric)]
        if "default" in names:
            asked.append(_Question(metric=metric, among="default", name="default", of=len(metrics)))
        ways = [name for name in names if name not in ("winner", "default")]
        if ways:
            asked += _questions_of_ways(metric, ways, measured, len(metrics), rows)
    return asked


def _questions_of_ways(
    metric: str, ways: list[str], measured: Mapping[str, LossAndMetrics], of: int, rows: Rows
) -> list[_Question]:
    by_loss = min(ways, key=lambda name: _loss(measured[name]))
    sign = -1 if metric in rows.lower_is_better else 1
    best = max(ways, key=lambda name: sign * _metric(measured[name], metric))
    asked = [_Question(metric=metric, among="baselines", name=by_loss, of=of)]
    if best != by_loss:
        of *= len(ways) - 1
        asked.append(_Question(metric=metric, among="baselines", name=best, of=of))
    return asked


def _loss(measured: LossAndMetrics) -> float:
    return math.inf if measured.loss is None else measured.loss


def _metric(measured: LossAndMetrics, name: str) -> float:
    """NaN where it could not be told, as a correlation with what is constant."""
    value = measured.metrics.get(name)
    return math.nan if value is None else value


def _is_known(measured: LossAndMetrics, metric: str) -> bool:
    return math.isfinite(_metric(measured, metric))


def disagreements(
    metrics: MetricsReport | None, split: SplitName, verdict: str, chosen_by: str = VAL_LOSS
) -> list[str]:
    """Sentences on where metrics of `split` say other than the loss, beyond noise; of the metric
    that the winner was chosen by also that it tells nothing. verdict: by the loss, `yes`, `within
    noise` or `no`.

    That the winner is better by a metric is said of the test split alone: on validation it has been
    chosen.
    """
    if metrics is None or split not in metrics.compared:
        return []
    rivals: dict[tuple[str, str], list[MetricDifference]] = {}
    for each in metrics.compared[split]:
        rivals.setdefault((each.metric, each.among), []).append(each)
    of = {each.name: each for each in metrics.alternatives}
    found = []
    for among in rivals.values():
        best = max(among, key=_how_good)
        rival = of[best.name]
        said = _disagreement(best, rival, of["winner"], split, verdict)
        if not said and best.metric == chosen_by and best.among == "baselines":
            said = _of_chosen(best, rival, split)
        if said:
            found.append(said)
    return found


def _of_chosen(best: MetricDifference, rival: Alternative, split: SplitName) -> str:
    """What the metric that the winner was chosen by says where it says no other than the loss."""
    least, most = best.gain
    by = f"By {metric_words(best.metric)}, which it was chosen by,"
    numbers = _numbers(best, best.winner, best.value, -1)
    if least <= 0 <= most:
        return f"{by} the winner cannot be told from {rival.words}: {numbers}."
    if most < 0 and split == "test":
        return f"{by} the winner is better than {rival.words} too: {numbers}."
    return ""


def _how_good(each: MetricDifference) -> tuple[bool, float]:
    return each.gain[0] > 0, -each.value if each.lower_is_better else each.value


def _disagreement(
    best: MetricDifference, rival: Alternative, winner: Alternative, split: SplitName, verdict: str
) -> str:
    """What one metric says other than the loss; empty where it says the same, or nothing."""
    of_rival, of_winner = rival.on(split), winner.on(split)
    assert of_rival is not None and of_winner is not None, "what is compared was measured"
    by, lower = metric_words(best.metric), _loss(of_rival) <= _loss(of_winner)
    least, most = best.gain
    if least > 0:
        if lower and _loss_says_so(best, verdict):
            return ""
        begin = f"By {by} too" if lower else f"But by {by}"
        return f"{begin} {rival.words} is better: {_numbers(best, best.value, best.winner)}."
    if most < 0 and split == "test" and _is_news(best, verdict):
        numbers = _numbers(best, best.winner, best.value, -1)
        return f"But by {by} the winner is better than {rival.words}: {numbers}."
    return ""


def _loss_says_so(rival: MetricDifference, verdict: str) -> bool:
    """Whether it was said of the loss already that a rival with a lower one is better."""
    return rival.among == "default" or verdict == "no"


def _is_news(rival: MetricDifference, verdict: str) -> bool:
    """Whether the winner's being better than the rival was not said of the loss."""
    return rival.among == "baselines" and verdict != "yes"


def _numbers(compared: MetricDifference, higher: float, lower: float, sign: int = 1) -> str:
    low, high = sorted((sign * compared.low, sign * compared.high))
    many = f", corrected for {compared.of} comparisons" if compared.of > 1 else ""
    return f"{higher:.3f} against {lower:.3f} (95% interval {low:+.3f} to {high:+.3f}{many})"


def hardly_answered(metrics: MetricsReport | None, split: SplitName) -> str:
    """Names the classes that the winner hardly ever answers; empty where there are none."""
    if metrics is None or split not in (metrics.classes or {}):
        return ""
    of_split = (metrics.classes or {})[split]
    found = [each for each in of_split.classes if each.label in of_split.hardly]
    found.sort(key=lambda each: (each.answered / each.rows, -each.rows))
    named = [
        f"{each.label} ({each.answered} times where {each.rows} were true)" for each in found[:3]
    ]
    if not named:
        return ""
    more = f" and {len(found) - 3} more classes" if len(found) > 3 else ""
    return f"On {split} the winner hardly ever answers {', '.join(named)}{more}."
