"""Was it worth it? One paragraph from what a sweep measured. Pure: numbers in, words out."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from sweeps.reporting.metrics import disagreements, hardly_answered
from sweeps.selection.statistics import MIN_UNITS, gain_interval

Losses = Callable[[str], np.ndarray | None]
Interval = tuple[float, float]


def worth(board: Mapping[str, Any], losses: Losses) -> dict[str, Any] | None:
    """`{"verdict", "words", ...}`: whether fine-tuning beat the best way without it beyond noise,
    by how much, at what cost, and what the search added over the default configuration. The verdict
    is yes, no, within noise, or unknown where too few units were measured to tell noise. None where
    there is no winner or nothing to compare with.

    board: as `best --json` prints it, without this. `losses(folder)`: losses [N, 2] of the units of
    an evaluation or a baseline (see sweeps.selection.statistics). Differences are of validation
    loss, in nats, or of test loss where the sealed test has been scored. On validation rows the
    winner was chosen, so there the intervals allow for that.
    """
    winner, losses = (
        board["winner"],
        cache(losses),
    )  # both sentences ask for those of every checkpoint
    if winner is None:
        return None
    test = board.get("test")
    if test is not None and "winner" in test.get("scores", {}):
        split, own_folder, own = "test", "baselines/test/winner", test["scores"]["winner"]["loss"]
        others = {
            name: score
            for name, score in test["scores"].items()
            if name not in ("winner", "default")
        }
        measured = {name: score.get("loss") for name, score in others.items()}
    else:
        split, own_folder, own = "validation", winner["folder"], winner["val_loss"]
        others = board["baselines"]
        measured = {name: baseline.get("val_loss") for name, baseline in others.items()}
    measured = {name: loss for name, loss in measured.items() if loss is not None}
    if not measured or own is None:
        return None
    best = min(measured, key=lambda name: measured[name])
    rivals = [
        losses(f"baselines/{split}/{name}")
        for name in sorted(measured, key=lambda name: name != best)
    ]
    interval = _interval(own_folder, rivals, board, split, losses)
    gain = measured[best] - own
    verdict = _verdict(gain, interval)
    named = others[best].get("words", best)
    sentences = [_answer(verdict, split, own, named, measured[best], gain, interval)]
    sentences += by_metrics(board, split, verdict)
    if costs := _costs(board, named, others[best]):
        sentences.append(costs)
    if searched := _searched(board, losses):
        sentences.append(searched)
    return {
        "verdict": verdict,
        "split": split,
        "best_baseline": best,
        "gain": gain,
        "interval": list(interval) if _is_known(interval) else None,
        "words": " ".join(sentences),
    }


def by_metrics(board: Mapping[str, Any], split: str, verdict: str) -> list[str]:
    """What the task's own metrics say that the loss does not; verdict: by the loss."""
    metrics = board.get("metrics")
    hardly = hardly_answered(metrics, split)
    return [*disagreements(metrics, split, verdict), *([hardly] if hardly else [])]


def _interval(
    own: str,
    rivals: Sequence[np.ndarray | None],
    board: Mapping[str, Any],
    split: str,
    losses: Losses,
) -> Interval | None:
    """Of how far the winner lies below the lowest of `rivals`, the first of which has the lowest
    mean. None where that was not measured on the same units; without bounds where these are too
    few.
    """
    chosen, lowest = losses(own), rivals[0]
    if chosen is None or lowest is None or lowest.shape != chosen.shape:
        return None
    candidates = [chosen]
    if split == "validation":
        candidates += [
            found for folder in _candidates(board) if (found := losses(folder)) is not None
        ]
    alike = [each for each in rivals if each is not None and each.shape == chosen.shape]
    return gain_interval(chosen, [each for each in candidates if each.shape == chosen.shape], alike)


def _candidates(board: Mapping[str, Any]) -> list[str]:
    """Folders of all evaluations among which the winner was chosen."""
    return [
        evaluation["folder"]
        for trial in board["trials"]
        if trial.get("status") != "failed"
        for evaluation in trial["evaluations"]
        if evaluation["val_loss"] is not None and evaluation["excluded"] is None
    ]


def _verdict(gain: float, interval: Interval | None) -> str:
    if interval is None:
        return "yes" if gain > 0 else "no"
    if not _is_known(interval):
        return "unknown"
    return "yes" if interval[0] > 0 else "no" if interval[1] < 0 else "within noise"


def _is_known(interval: Interval | None) -> bool:
    return interval is not None and math.isfinite(interval[0])


def _bounds(interval: Interval | None, split: str) -> str:
    """An interval in words; on the rows by which the winner was chosen it is the wider for that."""
    if not _is_known(interval):
        return ""
    allowing = ", the choice among all checkpoints allowed for" if split == "validation" else ""
    return f" (95% interval {interval[0]:+.4f} to {interval[1]:+.4f}{allowing})"


def _cannot_tell(split: str) -> str:
    return f"cannot be told from noise, as {split} has fewer than {MIN_UNITS} groups of rows"


def _answer(
    verdict: str,
    split: str,
    own: float,
    named: str,
    best: float,
    gain: float,
    bounds: Interval | None,
) -> str:
    interval = _bounds(bounds, split)
    numbers = f"{split} loss {own:.4f} against {best:.4f} of the best way without it, {named}"
    if verdict == "yes":
        return f"Yes, fine-tuning was worth it: {numbers}: {gain:.4f} lower{interval}."
    if verdict == "within noise":
        return (
            f"It is not clear that fine-tuning was worth it: {numbers}, a difference of"
            f" {gain:+.4f}{interval} is within noise."
        )
    if verdict == "unknown":
        return (
            f"It is not known whether fine-tuning was worth it: {numbers}, a difference of"
            f" {gain:+.4f}, {_cannot_tell(split)}."
        )
    return f"No, fine-tuning was not worth it: {numbers}: {-gain:.4f} higher{interval}."


def _costs(board: Mapping[str, Any], named: str, baseline: Mapping[str, Any]) -> str:
    parts = []
    if cost := board.get("cost"):
        parts.append(
            f"The sweep took {_hours(cost['device_seconds'])} {cost['device']} hours for"
            f" {len(board['trials'])} trials"
        )
    own, other = board.get("tokens_per_request"), baseline.get("tokens_per_request")
    if own and other and abs(own - other) >= 1:
        parts.append(
            f"a request is {own:.0f} tokens long with the winner, {other:.0f} with {named}"
        )
    if (times := board["winner"].get("inference_cost", 1.0)) > 1.005:
        parts.append(f"it computes {times:.2f} times what the untuned model does")
    return f"{'; '.join(parts)}." if parts else ""


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _searched(board: Mapping[str, Any], losses: Losses) -> str:
    """What the search added over the configuration that one would have trained without it."""
    winner = board["winner"]
    default = next((trial for trial in board["trials"] if trial["default"]), None)
    if default is None:
        return ""
    again = [trial["id"] for trial in board["trials"] if trial.get("finalist_of") == default["id"]]
    if winner["trial"] in (default["id"], *again):
        return f"The search found nothing better than the default configuration, {default['id']}."
    may_win = [
        e for e in default["evaluations"] if e["checkpoint"] is not None and e["excluded"] is None
    ]
    if not may_win:
        return f"The default configuration, {default['id']}, gave no checkpoint that may win."
    scores = (board.get("test") or {}).get("scores", {})
    if "default" in scores:  # of the validation rows the search has made use
        split, gain = "test", scores["default"]["loss"] - scores["winner"]["loss"]
        own, other = "baselines/test/winner", "baselines/test/default"
    else:
        best = min(may_win, key=lambda e: e["val_loss"])
        split, gain = "validation", best["val_loss"] - winner["val_loss"]
        own, other = winner["folder"], best["folder"]
    interval = _interval(own, [losses(other)], board, split, losses)
    verdict, bounds = _verdict(gain, interval), _bounds(interval, split)
    if verdict == "yes":
        return (
            f"The search lowered {split} loss by {gain:.4f}{bounds} from that of the default"
            f" configuration, {default['id']}."
        )
    if verdict == "no":
        return (
            f"The search added nothing: the {split} loss of the default configuration,"
            f" {default['id']}, is {-gain:.4f} lower than the winner's{bounds}."
        )
    if verdict == "unknown":
        return (
            f"What the search added over the default configuration, {default['id']}, {gain:+.4f} of"
            f" {split} loss, {_cannot_tell(split)}."
        )
    return (
        f"What the search added over the default configuration, {default['id']}, is within noise:"
        f" {gain:+.4f} of {split} loss{bounds}."
    )
