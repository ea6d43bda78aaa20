"""Was it worth it? One paragraph from what a sweep measured. Pure: numbers in, words out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sweeps.metrics import disagreements, hardly_answered
from sweeps.selection import Difference, compare

Losses = Callable[[str], np.ndarray | None]


def worth(board: Mapping[str, Any], losses: Losses) -> dict[str, Any] | None:
    """`{"verdict", "words", ...}`: whether fine-tuning beat the best way without it beyond noise, by how much, at what cost, and
    what the search added over the default configuration. None where there is no winner or nothing to compare with.

    board: as `best --json` prints it, without this. `losses(folder)`: per-example losses [N, 2] of an evaluation or a
    baseline. Differences are of validation loss, in nats, or of test loss where the sealed test has been scored.
    """
    winner = board["winner"]
    if winner is None:
        return None
    test = board.get("test")
    if test is not None and "winner" in test.get("scores", {}):
        split, own_folder, own = "test", "baselines/test/winner", test["scores"]["winner"]["loss"]
        others = {name: score for name, score in test["scores"].items() if name not in ("winner", "default")}
        measured = {name: score.get("loss") for name, score in others.items()}
    else:
        split, own_folder, own = "validation", winner["folder"], winner["val_loss"]
        others = board["baselines"]
        measured = {name: baseline.get("val_loss") for name, baseline in others.items()}
    measured = {name: loss for name, loss in measured.items() if loss is not None}
    if not measured or own is None:
        return None
    best = min(measured, key=lambda name: measured[name])
    difference = _difference(own_folder, f"baselines/{split}/{best}", losses)
    gain = measured[best] - own
    beyond = gain > 0 and (difference is None or difference.low > 0)
    verdict = "yes" if beyond else "within noise" if difference is not None and difference.high > 0 else "no"
    named = others[best].get("words", best)
    sentences = [_answer(verdict, split, own, named, measured[best], gain, difference)]
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
        "interval": None if difference is None else [difference.low, difference.high],
        "words": " ".join(sentences),
    }


def by_metrics(board: Mapping[str, Any], split: str, verdict: str) -> list[str]:
    """What the task's own metrics say that the loss does not; verdict: by the loss."""
    metrics = board.get("metrics")
    hardly = hardly_answered(metrics, split)
    return [*disagreements(metrics, split, verdict), *([hardly] if hardly else [])]


def _difference(own: str, other: str, losses: Losses) -> Difference | None:
    return compare(losses(own), losses(other))


def _answer(
    verdict: str, split: str, own: float, named: str, best: float, gain: float, difference: Difference | None
) -> str:
    interval = "" if difference is None else f" (95% interval {difference.low:+.4f} to {difference.high:+.4f})"
    numbers = f"{split} loss {own:.4f} against {best:.4f} of the best way without it, {named}"
    if verdict == "yes":
        return f"Yes, fine-tuning was worth it: {numbers}: {gain:.4f} lower{interval}."
    if verdict == "within noise":
        return f"It is not clear that fine-tuning was worth it: {numbers}, a difference of {gain:+.4f}{interval} is within noise."
    return f"No, fine-tuning was not worth it: {numbers}: {-gain:.4f} higher{interval}."


def _costs(board: Mapping[str, Any], named: str, baseline: Mapping[str, Any]) -> str:
    parts = []
    if cost := board.get("cost"):
        parts.append(
            f"The sweep took {_hours(cost['device_seconds'])} {cost['device']} hours for {len(board['trials'])} trials"
        )
    own, other = board.get("tokens_per_request"), baseline.get("tokens_per_request")
    if own and other and abs(own - other) >= 1:
        parts.append(f"a request is {own:.0f} tokens long with the winner, {other:.0f} with {named}")
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
    may_win = [e for e in default["evaluations"] if e["checkpoint"] is not None and e["excluded"] is None]
    if not may_win:
        return f"The default configuration, {default['id']}, gave no checkpoint that may win."
    scores = (board.get("test") or {}).get("scores", {})
    if "default" in scores:  # of the validation rows the search has made use
        split, gain = "test", scores["default"]["loss"] - scores["winner"]["loss"]
        difference = _difference("baselines/test/winner", "baselines/test/default", losses)
    else:
        best = min(may_win, key=lambda e: e["val_loss"])
        split, gain = "validation", best["val_loss"] - winner["val_loss"]
        difference = _difference(winner["folder"], best["folder"], losses)
    lowered = f"The search lowered {split} loss by {gain:.4f}"
    if difference is None:
        return f"{lowered} from that of the default configuration, {default['id']}."
    interval = f"95% interval {difference.low:+.4f} to {difference.high:+.4f}"
    if difference.low > 0:
        return f"{lowered} ({interval}) from that of the default configuration, {default['id']}."
    if difference.high < 0:
        return (
            f"The search added nothing: the {split} loss of the default configuration, {default['id']}, is {-gain:.4f} lower than "
            f"the winner's ({interval})."
        )
    return (
        f"What the search added over the default configuration, {default['id']}, is within noise: {gain:+.4f} of {split} "
        f"loss ({interval})."
    )
