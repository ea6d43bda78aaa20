"""ASHA in samples seen: batch size and epochs differ between trials, so steps and epochs do not
compare.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.config.draws import max_epochs
from sweeps.config.schema import SweepConfig
from sweeps.selection.curves import Curve
from trainables.engine.schedule import annealed, trained_samples
from trainables.hyperparameters import Hyperparameters, parse
from trainables.runtime.tune_dicts import TrialConfig, TrialResult

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

PENDING = "PENDING"  # Tune's word for a trial that is to start
# of the peak rate: runs whose rates have come down alike but for so much are compared both ways
ALIKE = 0.1


class InOrder(FIFOScheduler):
    """Trials start in the order in which they were drawn. Tune's own looks through all that there
    ever were, each time it looks.
    """

    def choose_trial_to_run(self, tune_controller: "TuneController") -> "Trial | None":
        live = tune_controller.get_live_trials()
        pending = (trial for trial in live if trial.status == PENDING)
        return min(pending, key=_number, default=None)


def _number(trial: "Trial") -> tuple[int, str]:
    name = TrialConfig.from_tune(trial.config).id
    return len(name), name


class Rung:
    """The trials that have been at a number of samples: their validation losses there, and how far
    their rates had come down.
    """

    def __init__(self) -> None:
        self._trials: set[str] = set()
        self._losses, self._down = array("d"), array("d")

    def __contains__(self, trial: str) -> bool:
        return trial in self._trials

    def add(self, trial: str, loss: float, down: float) -> None:
        self._trials.add(trial)
        self._losses.append(loss)
        self._down.append(down)

    def peers(self, down: float) -> np.ndarray:
        """Losses of those whose rate has not come down further than `down`."""
        return np.frombuffer(self._losses)[np.frombuffer(self._down) <= down]


class SampleAsha(InOrder):
    """Asynchronous successive halving (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934) that
    compares like with like.

    A trial's first evaluation at or beyond a rung (a number of samples) is compared with those of
    other trials at the same rung, and it goes on if it is among the best 1 / `reduction_factor` of
    them, or the best. A falling rate lowers the loss by itself: a run that is a third through its
    schedule lies behind a finished short one that it is going to beat. So a trial is compared only
    with trials whose rate has, at that rung, not come down further than its own. Who is behind
    those is behind.
    """

    def __init__(
        self, rungs: Sequence[int], reduction_factor: float, rows: Mapping[str, int]
    ) -> None:
        """rows: of train, for each base model."""
        super().__init__()
        self._rungs = {rung: Rung() for rung in sorted(rungs, reverse=True)}
        self._reduction_factor, self._rows = reduction_factor, rows

    def on_trial_result(
        self, tune_controller: "TuneController", trial: "Trial", result: dict[str, object]
    ) -> str:
        goes_on = self._report(trial, result)
        # the default and the finalists are judged by what they reach, also behind others
        compared = TrialConfig.from_tune(trial.config).compared
        return TrialScheduler.CONTINUE if goes_on or compared else TrialScheduler.STOP

    def on_trial_complete(
        self, tune_controller: "TuneController", trial: "Trial", result: dict[str, object]
    ) -> None:
        self._report(trial, result)

    def _report(self, trial: "Trial", result: dict[str, object]) -> bool:
        found, config = TrialResult.from_tune(result), TrialConfig.from_tune(trial.config)
        if found.samples_seen is None or found.val_loss is None:
            return True
        return self.report(config.id, parse(config.params), found.samples_seen, found.val_loss)

    def report(self, trial: str, hp: Hyperparameters, samples_seen: int, loss: float) -> bool:
        """Take note of an evaluation; whether the trial may go on after it, as it may where only
        the average of its weights is to come.
        """
        rung = next((rung for rung in self._rungs if samples_seen >= rung), None)
        if rung is None or trial in self._rungs[rung]:
            return True
        whole = trained_samples(self._rows[hp.model], hp)
        down = annealed(hp, min(1.0, samples_seen / whole))
        peers = self._rungs[rung].peers(down + ALIKE)
        self._rungs[rung].add(trial, loss, down)
        goes_on = max(1, (len(peers) + 1) // self._reduction_factor)
        keeps_up = int(np.count_nonzero(peers < loss)) < goes_on
        return keeps_up or (hp.average_last > 0 and samples_seen >= whole)

    def replay(
        self, curves: Sequence[Curve], hyperparameters: Callable[[Curve], Hyperparameters]
    ) -> None:
        """Fill the rungs with the evaluations of trials of an earlier process. Finalists only
        repeat others.
        """
        for curve in curves:
            for point in curve.points if curve.finalist_of is None else ():
                loss = math.inf if point.val_loss is None else point.val_loss
                self.report(curve.id, hyperparameters(curve), point.samples_seen, loss)


def make_scheduler(
    config: SweepConfig, rows: Mapping[str, int], curves: Sequence[Curve]
) -> TrialScheduler:
    """ASHA over samples seen: the first rung at `grace_epochs`, the following ones
    `reduction_factor` times further each. `curves`: trials of earlier processes. rows: of train,
    for each base model, of which the first has the epochs that rungs are told in.
    """
    if config.search.scheduler != "asha":
        return InOrder()
    stopping = config.search.early_stopping
    first = next(iter(rows.values()))
    grace, longest = max(1, round(stopping.grace_epochs * first)), max_epochs(config) * first
    if longest <= grace:
        return InOrder()
    count = math.floor(math.log(longest / grace, stopping.reduction_factor) + 1e-9) + 1
    rungs = [round(grace * stopping.reduction_factor**number) for number in range(count)]
    asha = SampleAsha(rungs, stopping.reduction_factor, rows)
    asha.replay(curves, lambda curve: config.hyperparameters(curve.params))
    return asha
