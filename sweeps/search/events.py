"""Where an evaluation comes in: the one event on which the sweep learns of it."""

from collections.abc import Callable, Mapping

from ray.tune import Stopper

from trainables.evaluation.record import Evaluation
from trainables.runtime.tune_dicts import TrialResult
from trainables.storage.patience import StorageLost


class EvaluationEvents(Stopper):
    """What Tune is given as its stopper, as it hands every result to that first of all: before
    scheduler, searcher and callbacks. The sweep records the evaluation, and only then is it asked
    whether the trial should stop; scheduler and searcher, which come later, find it in the ledger.

    The state of a trial stands in four places. The ledger, the sweep's folder, is the truth. The
    study repeats of it what Optuna learns from, and is brought in line when a sweep starts. The
    coordinator knows which slot the trial is on; it can forget, and is told again. Tune only
    carries questions and answers; nothing of it outlives the process.
    """

    def __init__(
        self, *, on_evaluation: Callable[[str, Evaluation], object], stopper: Stopper
    ) -> None:
        self._on_evaluation, self._stopper = on_evaluation, stopper

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        found = TrialResult.from_tune(result)
        try:
            if found.evaluation is not None and found.id is not None:
                self._on_evaluation(found.id, found.evaluation)
        except StorageLost:  # the sweep ends, and `resume` finds it as it was written
            return True
        return self._stopper(trial_id, dict(result))

    def stop_all(self) -> bool:
        return self._stopper.stop_all()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune pickles its Tuner to restore it; a sweep goes on from its ledger instead
        return object, ()
