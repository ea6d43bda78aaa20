"""The noise that a learning curve shows."""

import math
from collections.abc import Sequence
from functools import lru_cache

from trainables.evaluation.record import Evaluation


def curve_noise(points: Sequence[Evaluation]) -> float:
    """Standard deviation of the noise in a trial's validation losses; 0 where there are
    too few to tell.

    Without noise a curve falls to its minimum and rises after it, whatever its shape. So noise is
    what is left after the best fit of a falling and then a rising curve (isotonic regression by
    pooling adjacent violators, Barlow et al. 1972).
    """
    trained = [point for point in points if not point.averaged]
    return _noise(tuple(p.val_loss for p in trained if p.val_loss is not None))


@lru_cache(maxsize=4096)
def _noise(losses: tuple[float, ...]) -> float:
    falling, rising = _falls(losses), _falls(losses[::-1])[::-1]
    squares, levels = min(
        (left + right, levels + more)
        for (left, levels), (right, more) in zip(falling, rising, strict=True)
    )
    free = len(losses) - levels
    return math.sqrt(squares / free) if free >= 2 else 0.0


def _falls(losses: Sequence[float]) -> list[tuple[float, int]]:
    """Squared residuals and levels of the best falling fit to each beginning of `losses`, the empty
    one first.
    """
    blocks: list[tuple[float, int, float]] = []  # mean, length, squared residuals
    found = [(0.0, 0)]
    for loss in losses:
        mean, length, squares = loss, 1, 0.0
        while blocks and blocks[-1][0] <= mean:
            other, more, left = blocks.pop()
            squares += left + (mean - other) ** 2 * length * more / (length + more)
            mean = (mean * length + other * more) / (length + more)
            length += more
        blocks.append((mean, length, squares))
        found.append((math.fsum(block[2] for block in blocks), len(blocks)))
    return found
