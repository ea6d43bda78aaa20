"""The task's own metrics beside the loss: of the winner and everything that it is compared with,
and by class. Pure.

Letters of shapes: N rows of a split, C classes. Predictions are int [N, 2]: predicted and true
class of each row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal

import numpy as np

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
from trainables.evaluation.class_metrics import class_metrics, confusion_matrix, count_classes
from trainables.evaluation.record import Metrics

RESAMPLES = 500  # enough for a standard error
CELLS = 1 << 22  # resamples times rows, at most, but for 100 resamples
MOST_CLASSES = 100  # whose confusion matrix is kept
HARDLY = 1 / 3  # of the rows of a class: answered less often than that, it is hardly ever answered
LEVEL = 0.95

Predictions = Callable[[SplitName, str], np.ndarray | None]
Groups = Callable[[str], np.ndarray | None]


def metrics_of(
    board: Leaderboard, labels: Sequence[str] | None, predictions: Predictions, groups: Groups
) -> MetricsReport:
    """What a leaderboard with a winner says of metrics.

    labels: names of the classes, None without. predictions(split, name): those of an alternative,
    None where they were not kept. groups(split): the group of each row [N], None where rows are
    independent.
    """
    alternatives = _alternatives(board)
    if labels is None:
        return MetricsReport(alternatives=tuple(alternatives), classes=None, compared={})
    classes: dict[SplitName, AnswersByClass] = {}
    compared: dict[SplitName, tuple[MetricDifference, ...]] = {}
    for split in SPLITS:
        own = predictions(split, "winner") if alternatives[0].on(split) is not None else None
        if own is None:
            continue
        measured = {each.name: found for each in alternatives if (found := each.on(split))}
        answers = _answers(measured, own, board, labels, partial(predictions, split))
        measured |= _by_answers(measured, answers, len(labels))
        alternatives = [_with(each, split, measured.get(each.name)) for each in alternatives]
        classes[split] = by_class(own, labels)
        compared[split] = _compared(measured, answers, len(labels), groups(split))
    return MetricsReport(
        alternatives=tuple(alternatives), classes=classes or None, compared=compared
    )


def _by_answers(
    measured: Mapping[str, LossAndMetrics], answers: Mapping[str, np.ndarray], classes: int
) -> dict[str, LossAndMetrics]:
    """With the metrics that the answers give."""
    return {
        name: replace(
            measured[name], metrics=class_metrics(count_classes(each[:, 0], each[:, 1], classes))
        )
        for name, each in answers.items()
    }


def _answers(
    measured: Mapping[str, LossAndMetrics],
    own: np.ndarray,
    board: Leaderboard,
    labels: Sequence[str],
    predictions: Callable[[str], np.ndarray | None],
) -> dict[str, np.ndarray]:
    """Predictions of the alternatives over the rows of the winner's, by name."""
    found = {name: predictions(name) for name in measured if name != "prior"}
    if "prior" in measured:
        common = list(map(str, labels)).index(str(board.baselines["prior"].label))
        found["prior"] = np.stack([np.full(len(own), common), own[:, 1]], 1)
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
    """The default configuration and its best evaluation that may win."""
    for trial in board.trials:
        if trial.default and trial.may_win:
            return trial, lowest(trial.may_win)
    return None


def lowest(evaluations: Sequence[JudgedEvaluation]) -> JudgedEvaluation:
    """That of the lowest validation loss."""
    return min(evaluations, key=lambda e: math.inf if e.val_loss is None else e.val_loss)


# --- by class ---


def by_class(predictions: np.ndarray, labels: Sequence[str]) -> AnswersByClass:
    """What is answered to the rows of each class; no confusion matrix beyond 100 classes."""
    predicted, true = predictions.T
    counts = count_classes(predicted, true, len(labels))
    confusion = confusion_matrix(predicted, true, len(labels))
    classes, hardly = [], []
    for c, label in enumerate(labels):
        hits, answered, rows = (int(each[c]) for each in counts)
        order = np.argsort(-confusion[c], kind="stable")
        classes.append(
            ClassAnswers(
                label=str(label),
                rows=rows,
                answered=answered,
                recall=hits / rows if rows else None,
                precision=hits / answered if answered else None,
                answered_as={
                    str(labels[p]): int(confusion[c, p]) for p in order if confusion[c, p]
                },
            )
        )
        # of the difference of the two, which share the hits
        noise = 2 * math.sqrt(rows + answered - 2 * hits)
        if answered <= HARDLY * rows and rows - answered > noise:
            hardly.append(str(label))
    return AnswersByClass(
        classes=tuple(classes),
        confusion=tuple(map(tuple, confusion.tolist())) if len(labels) <= MOST_CLASSES else None,
        hardly=tuple(hardly),
    )


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
    classes: int,
    groups: np.ndarray | None,
) -> tuple[MetricDifference, ...]:
    """For each metric how far the alternatives lie above the winner: the default configuration, and
    of the other ways (`baselines`) that of the lowest loss and that of the best metric.
    """
    asked = _questions(measured, answers)
    names = {"winner", *(each.name for each in asked)}
    drawn = (
        resampled_metrics({name: answers[name] for name in names}, classes, groups) if asked else {}
    )
    found = []
    for each in asked:
        value, own = (_metric(measured[name], each.metric) for name in (each.name, "winner"))
        error = float((drawn[each.name][each.metric] - drawn["winner"][each.metric]).std())
        width = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / each.of) * error
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
            )
        )
    return tuple(found)


def _questions(
    measured: Mapping[str, LossAndMetrics], answers: Mapping[str, np.ndarray]
) -> list[_Question]:
    """Intervals are for one of `of` comparisons (Bonferroni): one a metric for the default
    configuration and for the way of the lowest loss, which was not chosen by its metric; one a
    metric and way for that of the best metric.
    """
    ways = [name for name in answers if name not in ("winner", "default")]
    metrics = list(measured["winner"].metrics)
    asked = []
    for metric in metrics:
        if "default" in answers:
            asked.append(_Question(metric=metric, among="default", name="default", of=len(metrics)))
        if not ways:
            continue
        by_loss = min(ways, key=lambda name: _loss(measured[name]))
        best = max(ways, key=lambda name: _metric(measured[name], metric))
        asked.append(_Question(metric=metric, among="baselines", name=by_loss, of=len(metrics)))
        if best != by_loss:
            of = (len(ways) - 1) * len(metrics)
            asked.append(_Question(metric=metric, among="baselines", name=best, of=of))
    return asked


def _loss(measured: LossAndMetrics) -> float:
    return math.inf if measured.loss is None else measured.loss


def _metric(measured: LossAndMetrics, name: str) -> float:
    value = measured.metrics[name]
    assert value is not None, "a metric of classes is a number"
    return value


def resampled_metrics(
    answers: Mapping[str, np.ndarray], classes: int, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Each metric of each model over resamples of the rows, the same for all models [R] (bootstrap,
    Efron 1979).

    answers: predicted and true class of the rows, the same rows for all [N, 2]; groups: the group
    of each row [N], 0 to G - 1: rows of one group are drawn together. Rows or groups are drawn by
    Poisson counts (Hanley & MacGibbon 2006).
    """
    random = np.random.Generator(np.random.PCG64(seed))
    rows = len(next(iter(answers.values())))
    units = rows if groups is None else int(groups.max()) + 1
    found: dict[str, dict[str, list[float]]] = {name: {} for name in answers}
    for _ in range(max(100, min(RESAMPLES, CELLS // rows))):
        drawn = random.poisson(1.0, units)
        weights = (drawn if groups is None else drawn[groups]).astype(float)
        if not weights.any():
            continue  # of a handful of rows a resample may have none
        for name, each in answers.items():
            for metric, value in class_metrics(
                count_classes(each[:, 0], each[:, 1], classes, weights)
            ).items():
                found[name].setdefault(metric, []).append(value)
    return {
        name: {metric: np.array(values) for metric, values in each.items()}
        for name, each in found.items()
    }


def disagreements(metrics: MetricsReport | None, split: SplitName, verdict: str) -> list[str]:
    """Sentences on where metrics of `split` say other than the loss, beyond noise. verdict: by the
    loss, `yes`, `within noise` or `no`.

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
        best = max(among, key=lambda each: (each.low > 0, each.value))
        if said := _disagreement(best, of[best.name], of["winner"], split, verdict):
            found.append(said)
    return found


def _disagreement(
    best: MetricDifference, rival: Alternative, winner: Alternative, split: SplitName, verdict: str
) -> str:
    """What one metric says other than the loss; empty where it says the same, or nothing."""
    of_rival, of_winner = rival.on(split), winner.on(split)
    assert of_rival is not None and of_winner is not None, "what is compared was measured"
    by, lower = metric_words(best.metric), _loss(of_rival) <= _loss(of_winner)
    if best.low > 0:
        if lower and _loss_says_so(best, verdict):
            return ""
        begin = f"By {by} too" if lower else f"But by {by}"
        return f"{begin} {rival.words} is better: {_numbers(best, best.value, best.winner)}."
    if best.high < 0 and split == "test" and _is_news(best, verdict):
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


def metric_words(metric: str) -> str:
    return {"macro_f1": "macro-F1"}.get(metric, metric)


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
