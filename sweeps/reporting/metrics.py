"""The task's own metrics beside the loss: of the winner and everything that it is compared with,
and by class. Pure.

Letters of shapes: N rows of a split, C classes. Predictions are int [N, 2]: predicted and true
class of each row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from trainables.evaluation.class_metrics import class_metrics, confusion_matrix, count_classes

RESAMPLES = 500  # enough for a standard error
CELLS = 1 << 22  # resamples times rows, at most, but for 100 resamples
MOST_CLASSES = 100  # whose confusion matrix is kept
HARDLY = 1 / 3  # of the rows of a class: answered less often than that, it is hardly ever answered
LEVEL = 0.95

Predictions = Callable[[str, str], np.ndarray | None]
Groups = Callable[[str], np.ndarray | None]


def metrics_of(
    board: Mapping[str, Any], labels: Sequence[str] | None, predictions: Predictions, groups: Groups
) -> dict:
    """What a board says of metrics: `alternatives`, the winner and all that it is compared with, on
    both splits; `classes`, what the winner answers, by split (None without classes); `compared`, by
    split, how far in each metric the alternatives lie above the winner.

    board: with its winner, trials, baselines and test. labels: names of the classes, None without.
    predictions(split, name): those of an alternative, None where they were not kept. groups(split):
    the group of each row [N], None where rows are independent.
    """
    alternatives = _alternatives(board)
    found: dict[str, Any] = {"alternatives": alternatives, "classes": None, "compared": {}}
    for split in ("validation", "test"):
        measured = {each["name"]: each[split] for each in alternatives if each[split] is not None}
        own = predictions(split, "winner") if "winner" in measured and labels is not None else None
        if own is None:
            continue
        answers = {name: predictions(split, name) for name in measured if name != "prior"}
        if "prior" in measured:
            common = list(map(str, labels)).index(str(board["baselines"]["prior"]["class"]))
            answers["prior"] = np.stack([np.full(len(own), common), own[:, 1]], 1)
        answers = {
            name: each
            for name, each in answers.items()
            if each is not None and len(each) == len(own)
        }
        for name, each in answers.items():
            measured[name]["metrics"] = class_metrics(count_classes(*each.T, len(labels)))
        found["classes"] = {**(found["classes"] or {}), split: by_class(own, labels)}
        found["compared"][split] = _compared(measured, answers, len(labels), groups(split))
    return found


def _alternatives(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`name`, `words`, and `validation` and `test`: `loss` and `metrics`, None where it was not
    measured there.
    """
    winner, scores = board["winner"], (board.get("test") or {}).get("scores", {})

    def alternative(
        name: str, words: str, loss: float | None, metrics: Mapping[str, float]
    ) -> dict[str, Any]:
        validation = None if loss is None else {"loss": loss, "metrics": dict(metrics)}
        score = scores.get(name, {})
        test = (
            None
            if score.get("loss") is None
            else {"loss": score["loss"], "metrics": dict(score["metrics"])}
        )
        return {"name": name, "words": words, "validation": validation, "test": test}

    found = [
        alternative(
            "winner", f"the winner, {winner['trial']}", winner["val_loss"], winner["metrics"]
        )
    ]
    default = default_evaluation(board)
    if default is not None and default["trial"] != winner["trial"]:
        words = f"the default configuration, {default['trial']}"
        found.append(alternative("default", words, default["val_loss"], default["metrics"]))
    others = {
        **{name: scores[name] for name in scores if name not in ("winner", "default")},
        **board["baselines"],
    }
    for name in [*board["baselines"], *(name for name in others if name not in board["baselines"])]:
        measured = board["baselines"].get(name, {})
        words = others[name].get("words", name)
        words += f", always {measured['class']}" if name == "prior" and "class" in measured else ""
        found.append(
            alternative(name, words, measured.get("val_loss"), measured.get("metrics", {}))
        )
    return [each for each in found if each["validation"] or each["test"]]


def default_evaluation(board: Mapping[str, Any]) -> dict[str, Any] | None:
    """The default configuration's best evaluation that may win, with its `trial`."""
    for trial in board["trials"]:
        may_win = [
            e for e in trial["evaluations"] if e["checkpoint"] is not None and e["excluded"] is None
        ]
        if trial["default"] and may_win:
            return {"trial": trial["id"], **min(may_win, key=lambda e: e["val_loss"])}
    return None


# --- by class ---


def by_class(predictions: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """`classes`: of each its label, `rows` that are of it, how often it was `answered`, `recall`,
    `precision` (None where there is nothing to divide by) and `answered_as`, the answers that its
    rows got, the commonest first; `confusion`: rows by true and predicted class, in the order of
    `classes` (None beyond 100 classes); `hardly`: labels that are hardly ever answered.
    """
    predicted, true = predictions.T
    counts = count_classes(predicted, true, len(labels))
    confusion = confusion_matrix(predicted, true, len(labels))
    classes, hardly = [], []
    for c, label in enumerate(labels):
        hits, answered, rows = (int(each[c]) for each in counts)
        order = np.argsort(-confusion[c], kind="stable")
        classes.append(
            {
                "label": str(label),
                "rows": rows,
                "answered": answered,
                "recall": hits / rows if rows else None,
                "precision": hits / answered if answered else None,
                "answered_as": {
                    str(labels[p]): int(confusion[c, p]) for p in order if confusion[c, p]
                },
            }
        )
        noise = 2 * math.sqrt(
            rows + answered - 2 * hits
        )  # of the difference of the two, which share the hits
        if answered <= HARDLY * rows and rows - answered > noise:
            hardly.append(str(label))
    return {
        "classes": classes,
        "confusion": confusion.tolist() if len(labels) <= MOST_CLASSES else None,
        "hardly": hardly,
    }


# --- compared ---


def _compared(
    measured: Mapping[str, Any],
    answers: Mapping[str, np.ndarray],
    classes: int,
    groups: np.ndarray | None,
) -> list[dict[str, Any]]:
    """For each metric how far the alternatives lie above the winner: the default configuration, and
    of the other ways (`baselines`) that of the lowest loss and that of the best metric.

    Intervals are for one of `of` comparisons (Bonferroni): one a metric for the default
    configuration and for the way of the lowest loss, which was not chosen by its metric; one a
    metric and way for that of the best metric.
    """
    ways = [name for name in answers if name not in ("winner", "default")]
    asked: list[tuple[str, str, str, int]] = []
    metrics = list(measured["winner"]["metrics"])
    for metric in metrics:
        if "default" in answers:
            asked.append((metric, "default", "default", len(metrics)))
        if ways:
            by_loss = min(ways, key=lambda name: measured[name]["loss"])
            best = max(ways, key=lambda name: measured[name]["metrics"][metric])
            asked.append((metric, "baselines", by_loss, len(metrics)))
            asked += (
                [(metric, "baselines", best, (len(ways) - 1) * len(metrics))]
                if best != by_loss
                else []
            )
    names = {"winner", *(name for _, _, name, _ in asked)}
    drawn = (
        resampled_metrics({name: answers[name] for name in names}, classes, groups) if asked else {}
    )
    found = []
    for metric, among, name, of in asked:
        value, own = (measured[each]["metrics"][metric] for each in (name, "winner"))
        error = float((drawn[name][metric] - drawn["winner"][metric]).std())
        width = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / of) * error
        found.append(
            {
                "metric": metric,
                "among": among,
                "name": name,
                "value": value,
                "winner": own,
                "difference": value - own,
                "low": value - own - width,
                "high": value - own + width,
                "of": of,
            }
        )
    return found


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
            for metric, value in class_metrics(count_classes(*each.T, classes, weights)).items():
                found[name].setdefault(metric, []).append(value)
    return {
        name: {metric: np.array(values) for metric, values in each.items()}
        for name, each in found.items()
    }


def disagreements(metrics: Mapping[str, Any] | None, split: str, verdict: str) -> list[str]:
    """Sentences on where metrics of `split` say other than the loss, beyond noise. verdict: by the
    loss, `yes`, `within noise` or `no`.

    That the winner is better by a metric is said of the test split alone: on validation it has been
    chosen.
    """
    if metrics is None or split not in metrics["compared"]:
        return []
    of = {each["name"]: each for each in metrics["alternatives"]}
    compared, found = metrics["compared"][split], []
    for metric, among in dict.fromkeys((each["metric"], each["among"]) for each in compared):
        rivals = [each for each in compared if (each["metric"], each["among"]) == (metric, among)]
        best = max(rivals, key=lambda each: (each["low"] > 0, each["value"]))
        rival, by = of[best["name"]], metric_words(metric)
        lower = rival[split]["loss"] <= of["winner"][split]["loss"]
        if best["low"] > 0 and not (
            lower and (among == "default" or verdict == "no")
        ):  # else the loss says so too
            begin = f"By {by} too" if lower else f"But by {by}"
            found.append(
                f"{begin} {rival['words']} is better:"
                f" {_numbers(best, best['value'], best['winner'])}."
            )
        elif best["high"] < 0 and verdict != "yes" and among == "baselines" and split == "test":
            numbers = _numbers(best, best["winner"], best["value"], -1)
            found.append(f"But by {by} the winner is better than {rival['words']}: {numbers}.")
    return found


def _numbers(compared: Mapping[str, Any], higher: float, lower: float, sign: int = 1) -> str:
    low, high = sorted((sign * compared["low"], sign * compared["high"]))
    many = f", corrected for {compared['of']} comparisons" if compared["of"] > 1 else ""
    return f"{higher:.3f} against {lower:.3f} (95% interval {low:+.3f} to {high:+.3f}{many})"


def metric_words(metric: str) -> str:
    return {"macro_f1": "macro-F1"}.get(metric, metric)


def hardly_answered(metrics: Mapping[str, Any] | None, split: str) -> str:
    """Names the classes that the winner hardly ever answers; empty where there are none."""
    if metrics is None or split not in (metrics["classes"] or {}):
        return ""
    of_split = metrics["classes"][split]
    found = [each for each in of_split["classes"] if each["label"] in of_split["hardly"]]
    found.sort(key=lambda each: (each["answered"] / each["rows"], -each["rows"]))
    named = [
        f"{each['label']} ({each['answered']} times where {each['rows']} were true)"
        for each in found[:3]
    ]
    if not named:
        return ""
    more = f" and {len(found) - 3} more classes" if len(found) > 3 else ""
    return f"On {split} the winner hardly ever answers {', '.join(named)}{more}."
