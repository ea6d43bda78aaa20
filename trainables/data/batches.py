"""Which rows a step trains on, and how they are cut into forward passes. Pure functions: resuming
needs no loader state.
"""

import math
from functools import lru_cache

import numpy as np

# what a pass without padding may have of padded tokens, times those that it computes: its hidden
# states are padded at its end
MOST_PADDING = 8


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
    tokens: np.ndarray | None = None,
    token_cost: float = math.inf,
) -> list[np.ndarray]:
    """Cut rows into forward passes of like lengths, the longest first, at the least cost.

    The cost of a padded pass is rows * longest row, of one without padding its tokens *
    `token_cost`; the lower decides which it is. To it comes `overhead_tokens` (what starting a pass
    costs, in tokens). What a pass computes (rows * longest row, or tokens) is at most `max_tokens`;
    a row that is longer than that makes a pass of its own. Exact, by dynamic programming over the
    rows sorted by length.

    lengths: tokens of each row in a padded pass [N]. kinds: rows share a pass only where these are
    equal [N]; None: any do. tokens: of each row in a pass without padding [N]; None: all passes are
    padded. Returns positions into `lengths`; each of 0..N-1 is in exactly one pass.
    """
    if kinds is not None:
        return _cut_alike(lengths, max_tokens, kinds)
    order = np.argsort(lengths, kind="stable")
    n = len(order)
    sorted_lengths = np.asarray(lengths, dtype=np.int64)[order]
    ends = None  # tokens of the j shortest rows [N + 1]
    if tokens is not None and math.isfinite(token_cost):
        ends = np.concatenate([[0], np.cumsum(tokens[order])])
    cost = np.zeros(n + 1)  # cost[j]: least cost of the j shortest rows
    start = np.zeros(n + 1, dtype=np.int64)  # start[j]: where their last pass begins
    for j in range(1, n + 1):
        longest = max(int(sorted_lengths[j - 1]), 1)
        first, costs = _padded_costs(j, longest, max_tokens)
        if ends is not None:
            first, costs = _least_costs(j, longest, max_tokens, ends, token_cost)
        costs += cost[first:j]
        best = int(np.argmin(costs))
        start[j] = first + best
        cost[j] = costs[best] + overhead_tokens
    passes = []
    while n > 0:
        passes.append(order[start[n] : n])
        n = int(start[n])
    return passes


def _cut_alike(lengths: np.ndarray, max_tokens: int, kinds: np.ndarray) -> list[np.ndarray]:
    """Passes of rows of one kind each, which are equally long."""
    order = np.lexsort((lengths, kinds))
    alike = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1) if len(order) else []
    sizes = [max(1, max_tokens // max(int(lengths[rows[-1]]), 1)) for rows in alike]
    parts = [
        rows[i : i + size]
        for rows, size in zip(alike, sizes, strict=True)
        for i in range(0, len(rows), size)
    ]
    return sorted(parts, key=lambda rows: -int(lengths[rows[-1]]))


def _padded_costs(j: int, longest: int, max_tokens: int) -> tuple[int, np.ndarray]:
    """Of the padded passes that end with the j-th shortest row, which is the longest in them: where
    the first of them begins, and what each costs that begins there or later. A row alone always
    is a pass.
    """
    first = min(j - 1, max(0, j - max_tokens // longest))
    return first, np.arange(j - first, 0, -1) * float(longest)


def _least_costs(
    j: int, longest: int, max_tokens: int, ends: np.ndarray, token_cost: float
) -> tuple[int, np.ndarray]:
    """The same of passes that have no padding where they cost less so; infinite where they do not
    fit. ends: tokens of the shortest rows [N + 1].
    """
    fits_flat = int(np.searchsorted(ends, ends[j] - max_tokens))
    within, _ = _padded_costs(j, longest, MOST_PADDING * max_tokens)
    padded_from, _ = _padded_costs(j, longest, max_tokens)
    first = min(padded_from, max(within, fits_flat))
    padded = np.arange(j - first, 0, -1) * float(longest)
    together = ends[j] - ends[first:j]
    flat = together * token_cost < padded
    costs = np.where(flat, together * token_cost, padded)
    fits = np.where(flat, together, padded) <= max_tokens
    fits[-1] = True
    costs[~fits] = math.inf
    return first, costs
