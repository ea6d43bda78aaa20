"""Early stopping, in samples seen: batch size and epochs differ between trials, so steps and epochs do not compare."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from sweeps.config import EarlyStoppingConfig
from sweeps.ledger import Ledger
from sweeps.selection import Curve, Reference, SelectionConfig, diverged_reason, overfit_reason


class SampleAsha(AsyncHyperBandScheduler):
    """Tune's asynchronous successive halving with samples seen as time; rungs can be filled again after a restart."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.config["compared"]:  # the default and the finalists are judged by what they reach, also behind others
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def replay(self, curves: list[Curve]) -> None:
        """Fill the rungs with the evaluations of trials of an earlier process."""
        for curve in curves:
            stand_in = SimpleNamespace(trial_id=curve.id)
            for point in curve.points:
                if point.val_loss is not None:
                    self._brackets[0].on_result(stand_in, point.samples_seen, -point.val_loss)


def make_scheduler(config: EarlyStoppingConfig, rows: int, max_epochs: float, finished: list[Curve]) -> TrialScheduler:
    """ASHA over samples seen: the first rung at `grace_epochs`, the following ones `reduction_factor` times further each."""
    grace = max(1, round(config.grace_epochs * rows))
    if not config.asha or max_epochs * rows <= grace:
        return FIFOScheduler()
    asha = SampleAsha(
        time_attr="samples_seen",
        metric="val_loss",
        mode="min",
        grace_period=grace,
        max_t=max(grace, round(max_epochs * rows)),
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,  # a trial that reaches the end of its epochs ends by itself
    )
    asha.replay(finished)
    return asha


class HopelessStopper(Stopper):
    """Stops a trial that has clearly overfit or diverged: more training would only cost."""

    def __init__(
        self,
        *,
        config: EarlyStoppingConfig,
        selection: SelectionConfig,
        ledger: Ledger,
        reference: Callable[[], Reference],
        on_evaluation: Callable[[str, dict[str, Any]], None],
        on_stop: Callable[[str, str], None],
    ) -> None:
        self._config, self._selection = config, selection
        self._ledger, self._reference = ledger, reference
        self._on_evaluation, self._on_stop = on_evaluation, on_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        evaluation = result.get("evaluation")
        if evaluation is None:
            return False
        # Tune asks the stopper first of all: here every evaluation enters the ledger
        self._on_evaluation(result["id"], evaluation)
        if result["done"]:
            return False
        reason = hopeless(self._ledger.curve(result["id"]), self._reference(), self._config, self._selection)
        if reason is not None:
            self._on_stop(trial_id, reason)
        return reason is not None

    def stop_all(self) -> bool:
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()  # Tune pickles its Tuner to restore it; a sweep goes on from its ledger instead


def hopeless(curve: Curve, reference: Reference, config: EarlyStoppingConfig, selection: SelectionConfig) -> str | None:
    """Why training `curve` on is hopeless, or None."""
    points = list(curve.points)
    if config.diverged and points and (reason := diverged_reason(points[-1], reference, selection)):
        return f"diverged: {reason}"
    late = range(max(0, len(points) - config.overfit_patience), len(points))
    if config.overfit and len(late) == config.overfit_patience:
        reasons = [overfit_reason(points, index, selection) for index in late]
        if all(reasons):
            return f"overfit: {reasons[-1]}"
    return None
