"""Limits that a checkpoint must keep to, whatever its validation loss."""

import math
from collections.abc import Mapping

from sweeps.selection.config import LimitsConfig
from trainables.evaluation.record import Evaluation, Slices


def limit_reason(point: Evaluation, limits: LimitsConfig) -> str | None:
    """Which limit the evaluation goes beyond, or None. What a limit needs and was not measured is
    beyond it.
    """
    return _lost_reason(point, limits) or _slice_reason(point, limits)


def _lost_reason(point: Evaluation, limits: LimitsConfig) -> str | None:
    """What it has lost of its base beyond a limit."""
    moved = "its predictions on the task's prompts are from the base's by a KL of"
    for what, words, value, limit in (
        ("forgetting", "its loss on general text rose by", point.forgetting, limits.forgetting),
        ("KL", moved, point.kl, limits.kl),
    ):
        if limit is None:
            continue
        if value is None:
            return f"its {what} was not measured, and has a limit of {limit:g}"
        if value > limit:
            return f"{words} {value:.4f} nats (limit {limit:g})"
    return None


def _slice_reason(point: Evaluation, limits: LimitsConfig) -> str | None:
    """Which slice is beyond a limit."""
    if not limits.of_slices:
        return None
    slices = {
        value: each
        for value, each in point.slices.items()
        if _number(each, "rows", 0.0) >= limits.slice_rows
    }
    if not slices:
        return f"no slice has the {limits.slice_rows} rows that its limit asks for"
    return _slice_loss_reason(slices, limits) or _slice_accuracy_reason(slices, limits)


def _slice_loss_reason(slices: Slices, limits: LimitsConfig) -> str | None:
    """Whether the loss on a slice, or how far two are apart, is beyond a limit."""
    by_loss = sorted((_number(each, "loss", math.inf), value) for value, each in slices.items())
    (best, easy), (worst, hard) = by_loss[0], by_loss[-1]
    if limits.slice_loss is not None and worst > limits.slice_loss:
        return f"its loss on the slice {hard!r} is {worst:.4f} (limit {limits.slice_loss:g})"
    if limits.slice_gap is not None and not worst - best <= limits.slice_gap:
        return (
            f"its losses on the slices {hard!r} and {easy!r} are {worst - best:.4f} apart,"
            f" {worst:.4f} and {best:.4f} (limit {limits.slice_gap:g})"
        )
    return None


def _slice_accuracy_reason(slices: Slices, limits: LimitsConfig) -> str | None:
    """Whether the accuracy on a slice is below what is asked."""
    accuracy, lowest = min((_number(e, "accuracy", 0.0), value) for value, e in slices.items())
    if limits.slice_accuracy is not None and accuracy < limits.slice_accuracy:
        return (
            f"its accuracy on the slice {lowest!r} is {accuracy:.4f} (at least"
            f" {limits.slice_accuracy:g} is asked)"
        )
    return None


def _number(each: Mapping[str, float | None], name: str, absent: float) -> float:
    found = each.get(name)
    return absent if found is None else found
