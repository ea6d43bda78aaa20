"""How fast a device trains: a trial's own steps, timed."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from trainables.data.batches import batch_indices
from trainables.engine.group import TrialGroup
from trainables.engine.schedule import total_steps
from trainables.hyperparameters import Hyperparameters

WARM_UP = 2  # steps in which memory is taken and kernels are chosen
FEWEST, MOST = 3, 100  # steps that are timed
LONG_ENOUGH_S, TOO_LONG_S = 5.0, 60.0  # of all steps, the second before the fewest are done
TIMED = "timed"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of the steps of a trial that has its device alone."""

    tokens: int
    """Of the rows of these steps, without padding."""
    steps: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def measure_speed(
    group: TrialGroup, hp: Hyperparameters, lengths: np.ndarray, device: torch.device
) -> Speed:
    """Train a trial like `hp` for some steps, as a slot would, and let it go.

    group: an empty one; lengths: tokens of each row of train, in their order [N]. Raises what a
    step raises: NonFinite, torch.OutOfMemoryError.
    """
    whole = total_steps(len(lengths), hp)
    if whole < WARM_UP + MOST:  # a trial that ends sooner is begun anew, as it were
        hp = replace(hp, epochs=hp.epochs * -(-(WARM_UP + MOST) // whole))
    group.join(TIMED, hp)
    try:
        for _ in range(WARM_UP):
            group.step([TIMED])
        tokens, steps, began = 0, 0, _now(device)
        while True:
            rows = batch_indices(len(lengths), hp.batch_size, hp.seed, WARM_UP + steps)
            group.step([TIMED])
            tokens, steps = tokens + int(lengths[rows].sum()), steps + 1
            seconds = _now(device) - began
            least = LONG_ENOUGH_S if steps >= FEWEST else TOO_LONG_S
            if seconds >= least or steps == MOST:
                return Speed(tokens=tokens, steps=steps, seconds=seconds)
    finally:
        if TIMED in group.trials:
            group.leave(TIMED)


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
