"""Early stopping, in samples seen: batch size and epochs differ between trials, so steps and epochs
do not compare.
"""

from collections.abc import Callable, Mapping

from ray.tune import Stopper

from sweeps.config.schema import EarlyStoppingConfig
from sweeps.ledger.folder import Ledger
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.verdicts import diverged_reason, overfit_reason
from trainables.runtime.tune_dicts import TrialResult


class HopelessStopper(Stopper):
    """Stops a trial that has clearly overfit or diverged: more training would only cost. It judges
    by what the ledger holds (see sweeps.search.events).
    """

    def __init__(
        self,
        *,
        config: EarlyStoppingConfig,
        selection: SelectionConfig,
        ledger: Ledger,
        reference: Callable[[], Reference],
        trains_on: Callable[[Curve], bool],
        on_stop: Callable[[str, str], None],
    ) -> None:
        """trains_on: whether a trial has more to train, and not only an average to evaluate."""
        self._config, self._selection = config, selection
        self._ledger, self._reference = ledger, reference
        self._trains_on, self._on_stop = trains_on, on_stop

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        found = TrialResult.from_tune(result)
        if found.evaluation is None or found.id is None or found.done:
            return False
        curve = self._ledger.curve(found.id)
        if not self._trains_on(curve):
            return False
        reason = hopeless(curve, self._reference(), self._config, self._selection)
        if reason is not None:
            self._on_stop(trial_id, reason)
        return reason is not None

    def stop_all(self) -> bool:
        return False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune pickles its Tuner to restore it; a sweep goes on from its ledger instead
        return object, ()


def hopeless(
    curve: Curve, reference: Reference, config: EarlyStoppingConfig, selection: SelectionConfig
) -> str | None:
    """Why training `curve` on is hopeless, or None."""
    points, own = list(curve.points), reference.of(curve.params)
    if config.diverged and points and (reason := diverged_reason(points[-1], own, selection)):
        return f"diverged: {reason}"
    late = range(max(0, len(points) - config.overfit_patience), len(points))
    if config.overfit and len(late) == config.overfit_patience:
        reasons = [overfit_reason(points, index, selection) for index in late]
        if all(reasons):
            return f"overfit: {reasons[-1]}"
    return None
