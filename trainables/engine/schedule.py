"""How long a trial trains, and at what rate. Pure functions: no torch, so that plan and scheduler
count as the slots do.
"""

import math
from itertools import islice

from trainables.data.batches import steps_per_epoch
from trainables.hyperparameters import Hyperparameters


def total_steps(rows: int, hp: Hyperparameters) -> int:
    """Optimiser steps of a trial over `rows` training rows: whole epochs entirely, of a part of one
    the nearest number of whole batches; at least 1.
    """
    whole, part = divmod(
        round(hp.epochs, 6), 1
    )  # 1.1 epochs of 10 steps are 11 steps, whatever binary makes of 1.1
    return max(
        1,
        int(whole) * steps_per_epoch(rows, hp.batch_size)
        + round(round(part * rows / hp.batch_size, 6)),
    )


def last_step(rows: int, hp: Hyperparameters) -> int:
    """Where a trial ends: its optimiser steps and, with `average_last`, one that takes no rows and
    sets its weights to their average.
    """
    return total_steps(rows, hp) + (hp.average_last > 0)


def is_due(rows: int, hp: Hyperparameters, step: int, every: int) -> bool:
    """Whether a trial is evaluated after `step` steps: whenever it has seen `every` rows more, when
    it has made its last optimiser step, and when it ends.
    """
    now, before = (samples_seen(rows, hp, each) for each in (step, step - 1))
    return step >= total_steps(rows, hp) or now // every > before // every


def evaluated_at(rows: int, hp: Hyperparameters, every: int) -> list[int]:
    """Samples seen at each evaluation of a trial's own weights."""
    last, found = trained_samples(rows, hp), list[int]()
    for due in range(every, last + 1, every):
        epochs, rest = divmod(due, rows)
        # the last batch of an epoch may be short
        seen = min(epochs * rows + math.ceil(rest / hp.batch_size) * hp.batch_size, last)
        seen = min(seen, (epochs + 1) * rows) if rest else seen
        if not found or seen > found[-1]:
            found.append(seen)
    return found if found and found[-1] == last else [*found, last]


def averaged_steps(rows: int, hp: Hyperparameters, every: int) -> list[int]:
    """Steps at whose evaluations the weights are those that `average_last` averages, the last
    first; fewer than that, where there are no more.
    """
    made = range(total_steps(rows, hp), 0, -1)
    return list(islice((step for step in made if is_due(rows, hp, step, every)), hp.average_last))


def samples_seen(rows: int, hp: Hyperparameters, step: int) -> int:
    """Training rows of the first `step` steps; the last batch of an epoch may be short, and the
    step of an average has none.
    """
    made = min(step, total_steps(rows, hp))
    epochs, rest = divmod(made, steps_per_epoch(rows, hp.batch_size))
    return epochs * rows + rest * hp.batch_size


def trained_samples(rows: int, hp: Hyperparameters) -> int:
    """Training rows that a trial sees from its start to its end."""
    return samples_seen(rows, hp, total_steps(rows, hp))


def learning_rate(hp: Hyperparameters, step: int, total: int) -> float:
    """Rate of optimiser step `step` (0-based) of `total`: linear warm-up, then linear or cosine
    decay to 0, or constant.
    """
    warmup = math.ceil(round(hp.warmup_ratio * total, 6))
    if step < warmup:
        return hp.learning_rate * (step + 1) / warmup
    return hp.learning_rate * (1 - _decay(hp, (step - warmup) / max(1, total - warmup)))


def annealed(hp: Hyperparameters, share: float) -> float:
    """How far the rate has come down from its peak when a trial is `share` through: 0 up to the
    peak, 1 where it is 0.
    """
    return _decay(hp, max(0.0, share - hp.warmup_ratio) / max(1e-9, 1 - hp.warmup_ratio))


def _decay(hp: Hyperparameters, done: float) -> float:
    """Share of the peak rate that is gone when the part after the warm-up is `done` (0 to 1)."""
    if hp.schedule == "linear":
        return done
    return 0.5 * (1 - math.cos(math.pi * done)) if hp.schedule == "cosine" else 0.0
