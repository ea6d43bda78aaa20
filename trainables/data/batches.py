"""Which rows a step trains on, and how they are cut into forward passes. Pure functions: resuming
needs no loader state.
"""

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=16)
def epoch_order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in an epoch: a read-only permutation of 0..n_rows-1 [n_rows], a function of
    the arguments alone.
    """
    # no named stream (trainables.streams): a trial that is resumed goes on in the order that it
    # began in
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n_rows)
    order.flags.writeable = False
    return order


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimiser steps in an epoch; the last batch may be short."""
    return math.ceil(n_rows / batch_size)


def batch_indices(n_rows: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Rows of optimiser step `step`, counted from 0 over all epochs [<= batch_size]."""
    epoch, batch = divmod(step, steps_per_epoch(n_rows, batch_size))
    return epoch_order(n_rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def cut_micro_batches(
    lengths: np.ndarray,
    max_tokens: int,
    overhead_tokens: int = 256,
    *,
    kinds: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Cut rows into forward passes of like lengths, the longest first, at the least cost.

    The cost of a pass is rows * longest row + `overhead_tokens` (what starting a pass costs, in
    tokens), and its first term is at most `max_tokens`; a row that is longer than that makes a pass
    of its own. Exact, by dynamic programming over the rows sorted by length.

    lengths: tokens of each row [N]. kinds: rows share a pass only where these are equal [N]; None:
    any do. Returns positions into `lengths`; each of 0..N-1 is in exactly one pass.
    """
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = np.asarray(lengths, dtype=np.int64)[order]
    n = len(order)
    if kinds is not None:
        order = np.lexsort((lengths, kinds))
        alike = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1) if n else []
        sizes = [max(1, max_tokens // max(int(lengths[rows[-1]]), 1)) for rows in alike]
        parts = [
            rows[i : i + size]
            for rows, size in zip(alike, sizes, strict=True)
            for i in range(0, len(rows), size)
        ]
        return sorted(parts, key=lambda rows: -int(lengths[rows[-1]]))
    positions = np.arange(n + 1)
    cost = np.zeros(n + 1, dtype=np.int64)  # cost[j]: least cost of the j shortest rows
    start = np.zeros(n + 1, dtype=np.int64)  # start[j]: where their last pass begins
    for j in range(1, n + 1):
        longest = int(sorted_lengths[j - 1])
        first = min(j - 1, max(0, j - max_tokens // max(longest, 1)))
        costs = cost[first:j] + (j - positions[first:j]) * longest
        best = int(np.argmin(costs))
        start[j] = first + best
        cost[j] = costs[best] + overhead_tokens
    passes = []
    while n > 0:
        passes.append(order[start[n] : n])
        n = int(start[n])
    return passes
