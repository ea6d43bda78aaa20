"""Was it worth it? One paragraph from what a sweep measured. Pure: numbers in, words out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from sweeps.ledger.leaderboard import Leaderboard, SplitName, TrialRow, WinnerRow, Worth
from sweeps.reporting.metrics import disagreements, hardly_answered, lowest
from sweeps.selection.statistics import MIN_UNITS, gain_interval

Losses = Callable[[str], np.ndarray | None]
Interval = tuple[float, float]
Verdict = Literal["yes", "no", "within noise", "unknown"]


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """The winner and the other ways, on the split that decides."""

    split: SplitName
    folder: str
    """Of the winner's losses."""
    own: float
    others: Mapping[str, float]
    """Loss of each way, by name."""


def worth(board: Leaderboard, losses: Losses) -> Worth | None:
    """Whether fine-tuning beat the best way without it beyond noise, by how much, at what cost, and
    what the search added over the default configuration. The verdict is yes, no, within noise, or
    unknown where too few units were measured to tell noise. None where there is no winner or
    nothing to compare with.

    `losses(folder)`: losses [N, 2] of the units of an evaluation or a baseline (see
    sweeps.selection.statistics). Differences are of validation loss, or of test loss where the
    sealed test has been scored. On validation rows the winner was chosen, so there the intervals
    allow for that.
    """
    compared = None if board.winner is None else _on_deciding_split(board, board.winner)
    if board.winner is None or compared is None:
        return None
    losses, split, measured = cache(losses), compared.split, compared.others  # asked for twice
    best = min(measured, key=lambda name: measured[name])
    rivals = [
        losses(f"baselines/{split}/{name}")
        for name in sorted(measured, key=lambda name: name != best)
    ]
    interval = _interval(compared.folder, rivals, board, split, losses)
    gain = measured[best] - compared.own
    verdict = _verdict(gain, interval)
    sentences = [
        _answer(verdict, compared, board.name_of(best), measured[best], interval),
        *by_metrics(board, split, verdict),
        _costs(board, board.winner, best, split),
        _searched(board, board.winner, losses),
    ]
    return Worth(
        verdict=verdict,
        split=split,
        best_baseline=best,
        gain=gain,
        interval=_known(interval),
        words=" ".join(sentence for sentence in sentences if sentence),
    )


def _on_deciding_split(board: Leaderboard, winner: WinnerRow) -> _Compared | None:
    """On the test split where that was scored; None where there is nothing to compare."""
    if (scored := board.scores.get("winner")) is not None:
        split, folder, own = "test", "baselines/test/winner", scored.loss
        measured = {
            name: score.loss
            for name, score in board.scores.items()
            if name not in ("winner", "default")
        }
    else:
        split, folder, own = "validation", winner.folder, winner.val_loss
        measured = {name: baseline.val_loss for name, baseline in board.baselines.items()}
    others = {name: loss for name, loss in measured.items() if loss is not None}
    if not others or own is None:
        return None
    return _Compared(split=split, folder=folder, own=own, others=others)


def by_metrics(board: Leaderboard, split: SplitName, verdict: str) -> list[str]:
    """What the task's own metrics say that the loss does not; verdict: by the loss."""
    hardly = hardly_answered(board.metrics, split)
    said = disagreements(board.metrics, split, verdict, board.metric)
    return [*said, *([hardly] if hardly else [])]


def _interval(
    own: str,
    rivals: Sequence[np.ndarray | None],
    board: Leaderboard,
    split: SplitName,
    losses: Losses,
) -> Interval | None:
    """Of how far the winner lies below the lowest of `rivals`, the first of which has the lowest
    mean. None where that was not measured on the same units; without bounds where these are too
    few.
    """
    chosen, first = losses(own), rivals[0]
    if chosen is None or first is None or first.shape != chosen.shape:
        return None
    also = [losses(folder) for folder in _candidates(board)] if split == "validation" else []
    return gain_interval(chosen, _alike(chosen, [chosen, *also]), _alike(chosen, rivals))


def _alike(chosen: np.ndarray, found: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Those over the units of `chosen`."""
    return [each for each in found if each is not None and each.shape == chosen.shape]


def _candidates(board: Leaderboard) -> list[str]:
    """Folders of all evaluations among which the winner was chosen."""
    return [
        evaluation.folder
        for trial in board.trials
        if trial.status != "failed"
        for evaluation in trial.evaluations
        if evaluation.val_loss is not None and evaluation.excluded is None
    ]


def _verdict(gain: float, interval: Interval | None) -> Verdict:
    if interval is None:
        return "yes" if gain > 0 else "no"
    if _known(interval) is None:
        return "unknown"
    return "yes" if interval[0] > 0 else "no" if interval[1] < 0 else "within noise"


def _known(interval: Interval | None) -> Interval | None:
    """The interval, where it has bounds."""
    return interval if interval is not None and math.isfinite(interval[0]) else None


def _turned(interval: Interval | None) -> Interval | None:
    """Of what is told with the other sign."""
    return None if interval is None else (-interval[1], -interval[0])


def _bounds(interval: Interval | None, split: str) -> str:
    """An interval in words; on the rows by which the winner was chosen it is the wider for that."""
    if (known := _known(interval)) is None:
        return ""
    allowing = ", the choice among all checkpoints allowed for" if split == "validation" else ""
    return f" (95% interval {known[0]:+.4f} to {known[1]:+.4f}{allowing})"


def _cannot_tell(split: str) -> str:
    return f"cannot be told from noise, as {split} has fewer than {MIN_UNITS} groups of rows"


def _answer(
    verdict: Verdict, compared: _Compared, named: str, best: float, bounds: Interval | None
) -> str:
    split, own, gain = compared.split, compared.own, best - compared.own
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
    higher = f"{-gain:.4f} higher{_bounds(_turned(bounds), split)}"
    return f"No, fine-tuning was not worth it: {numbers}: {higher}."


def _costs(board: Leaderboard, winner: WinnerRow, best: str, split: SplitName) -> str:
    """What the sweep took, and what a request takes with the winner and with the best baseline."""
    parts = []
    if cost := board.cost:
        parts.append(
            f"The sweep took {_hours(cost.device_seconds)} {cost.device} hours for"
            f" {len(board.trials)} trials"
        )
    baseline = board.scores[best] if split == "test" else board.baselines[best]
    own, other = board.tokens_per_request, baseline.tokens_per_request
    if own and other and abs(own - other) >= 1:
        parts.append(
            f"a request is {own:.0f} tokens long with the winner, {other:.0f} with"
            f" {board.name_of(best)}"
        )
    if winner.inference_cost > 1.005:
        parts.append(f"it computes {winner.inference_cost:.2f} times what the untuned model does")
    return f"{'; '.join(parts)}." if parts else ""


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _searched(board: Leaderboard, winner: WinnerRow, losses: Losses) -> str:
    """What the search added over the configuration that one would have trained without it."""
    default = next((trial for trial in board.trials if trial.default), None)
    if default is None:
        return ""
    again = [trial.id for trial in board.trials if trial.finalist_of == default.id]
    if winner.trial in (default.id, *again):
        return f"The search found nothing better than the default configuration, {default.id}."
    if not default.may_win:
        return f"The default configuration, {default.id}, gave no checkpoint that may win."
    return _against_default(board, winner, default, losses)


def _against_default(
    board: Leaderboard, winner: WinnerRow, default: TrialRow, losses: Losses
) -> str:
    """On the test split where that was scored: of the validation rows the search has made use."""
    if (scored := board.scores.get("default")) is not None:
        split: SplitName = "test"
        own, other = board.scores["winner"].loss, scored.loss
        folders = "baselines/test/winner", "baselines/test/default"
    else:
        best, split = lowest(default.may_win), "validation"
        own, other, folders = winner.val_loss, best.val_loss, (winner.folder, best.folder)
    if own is None or other is None:
        return ""
    interval = _interval(folders[0], [losses(folders[1])], board, split, losses)
    return _added(default.id, other - own, split, interval)


def _added(default: str, gain: float, split: SplitName, interval: Interval | None) -> str:
    """How far the winner's loss lies below that of the default configuration, in words."""
    verdict, bounds = _verdict(gain, interval), _bounds(interval, split)
    if verdict == "yes":
        return (
            f"The search lowered {split} loss by {gain:.4f}{bounds} from that of the default"
            f" configuration, {default}."
        )
    if verdict == "no":
        lower = f"{-gain:.4f} lower than the winner's{_bounds(_turned(interval), split)}"
        return (
            f"The search added nothing: the {split} loss of the default configuration,"
            f" {default}, is {lower}."
        )
    if verdict == "unknown":
        return (
            f"What the search added over the default configuration, {default}, {gain:+.4f} of"
            f" {split} loss, {_cannot_tell(split)}."
        )
    return (
        f"What the search added over the default configuration, {default}, is within noise:"
        f" {gain:+.4f} of {split} loss{bounds}."
    )
