"""The search itself: Ray Tune asks the searcher for trials, and what comes of them is told."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import ALIKE
from sweeps.reporting.words import LOST, format_params
from sweeps.run.baseline import KnownBaseline
from sweeps.run.disk import Disk
from sweeps.run.lifetime import Lifetime
from sweeps.run.slots import COORDINATOR
from sweeps.run.steering import Steering
from sweeps.search.choosing import Chooser, FreezeThawScheduler
from sweeps.search.events import EvaluationEvents
from sweeps.search.failures import common_cause
from sweeps.search.points import Point
from sweeps.search.scheduler import make_scheduler
from sweeps.search.searcher import StudySearcher
from sweeps.search.stopping import HopelessStopper
from sweeps.selection.curves import Curve
from sweeps.selection.verdicts import best_point, standing_verdict
from trainables.engine.schedule import trained_samples
from trainables.evaluation.record import Evaluation
from trainables.runtime.protocol import Parameters
from trainables.runtime.trial import Trial
from trainables.runtime.trial_handle import without_actors

if TYPE_CHECKING:
    import optuna
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from sweeps.tracking.protocol import Tracker


class TrialEvents:
    """What happens to trials, told to the ledger, the tracker and who watches."""

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        *,
        coordinator: "ActorHandle",
        lifetime: Lifetime,
        baseline: KnownBaseline,
        tracker: "Tracker",
        say: Callable[[str], None],
        failures: list[str],
        disk: Disk,
    ) -> None:
        """failures: to which it adds why trials failed."""
        self._config, self._ledger = config, ledger
        self._coordinator, self._lifetime, self._baseline = coordinator, lifetime, baseline
        self._tracker, self._say, self._failures = tracker, say, failures
        self._disk = disk
        self._told: set[str] = set()  # trials of which the tracker knows that they have started
        self._succeeded = False  # whether a trial of this process was evaluated

    def started(self, trial: str, params: Parameters, resumed: bool) -> None:
        complete = self._config.complete(params)
        ray.get(self._coordinator.expect.remote(trial, complete))
        words = format_params(params)
        self._say(f"{trial} {'goes on' if resumed else 'starts'}: {words}")
        of_it = {
            "finalist_of": self._ledger.curve(trial).finalist_of,
            "by_hand": self._ledger.by_hand(trial),
        }
        told = {name: value for name, value in of_it.items() if value is not None}
        if trial not in self._told:  # it may have paused
            self._told.add(trial)
            self._tracker.trial_started(trial, complete | told)

    def evaluated(self, trial: str, evaluation: Evaluation) -> None:
        """Here an evaluation enters the ledger."""
        if not self._ledger.record(trial, evaluation):
            return
        self._succeeded = self._succeeded or evaluation.val_loss is not None
        self._ledger.prune(trial, self._config.selection)
        self._disk.keep_to_the_budget(trial)
        self._tracker.evaluation(trial, evaluation)
        self._say(f"{trial} {evaluation_words(evaluation)}")

    def paused(self, trial: str) -> None:
        """It leaves its place, and goes on another time or never."""
        ray.get(self._coordinator.leave.remote(trial))
        self._say(f"{trial} pauses: its place is expected to gain more elsewhere")

    def ended(self, trial: str) -> None:
        ray.get(self._coordinator.leave.remote(trial))
        selection = self._config.selection
        self._ledger.prune(trial, selection)
        self._disk.keep_to_the_budget(trial)
        curve = self._ledger.curve(trial)
        judged = standing_verdict(curve, self._baseline.reference, selection)
        best = best_point(curve, selection)
        self._tracker.trial_finished(
            trial,
            status=curve.status,
            verdict=judged.word,
            verdict_reason=judged.reason,
            best=best,
        )
        number = f", best val loss {best.val_loss:.4f} at epoch {best.epoch:g}" if best else ""
        why = f" ({curve.reason})" if curve.reason else ""
        self._say(f"{trial} {curve.status}{why}{number}; {judged.shown}")
        if curve.status == "failed":
            self._failures.append(curve.reason or "")
            if not self._succeeded and common_cause(self._failures) is not None:
                self._lifetime.stop(ALIKE)


def evaluation_words(evaluation: Evaluation) -> str:
    """`epoch 1: val loss 0.8523, probe loss 0.3628, accuracy 0.6935`."""
    numbers = {**evaluation.metrics, **{name: getattr(evaluation, name) for name in LOST}}
    metrics = "".join(
        f", {name} {value:.4f}" for name, value in numbers.items() if value is not None
    )
    val, probe = (
        "not finite" if loss is None else f"{loss:.4f}"
        for loss in (evaluation.val_loss, evaluation.probe_loss)
    )
    return f"epoch {evaluation.epoch:g}: val loss {val}, probe loss {probe}{metrics}"


def search(
    config: SweepConfig,
    ledger: Ledger,
    *,
    study: "optuna.Study",
    first: Sequence[Point],
    rows: Mapping[str, int],
    events: TrialEvents,
    coordinator: "ActorHandle",
    namespace: str,
    lifetime: Lifetime,
    baseline: KnownBaseline,
    folder: Path,
    say: Callable[[str], None],
    steering: Steering,
    disk: Disk,
) -> None:
    """Run trials until there are no more to run. first: points to try before others; rows: of
    train, for each base model; folder: where Tune puts what it writes; steering: by which people
    ask for others, and stop them; disk: without room on it no new trial starts.
    """

    def room() -> bool:
        waiting: ObjectRef[int] = coordinator.room.remote()
        (free,) = ray.get([waiting])
        return free > 0

    def wanted(trial: str) -> bool:
        waiting: ObjectRef[bool] = coordinator.wanted.remote(trial)
        (is_wanted,) = ray.get([waiting])
        return is_wanted

    def trains_on(curve: Curve) -> bool:
        hp = config.hyperparameters(curve.params)
        whole = trained_samples(rows[hp.model], hp)
        return curve.points[-1].samples_seen < whole

    space, chooser = config.space(), None
    if config.search.scheduler == "freeze_thaw":
        chooser = Chooser(config=config, space=space, ledger=ledger, rows=rows)
    searcher = StudySearcher(
        config=config,
        space=space,
        study=study,
        ledger=ledger,
        first=first,
        coordinator=COORDINATOR,
        namespace=namespace,
        stopped=lambda: lifetime.stopped,
        room=room,
        on_start=events.started,
        on_end=events.ended,
        say=say,
        paused=lambda: lifetime.paused,
        more=steering.expects,
        full=lambda: disk.full,
        chooser=chooser,
        on_pause=events.paused,
        wanted=wanted,
        elapsed_s=lifetime.elapsed_s,
    )
    if chooser is not None:
        scheduler: TrialScheduler = FreezeThawScheduler(searcher.goes_on)
    else:
        scheduler = make_scheduler(config, rows, ledger.curves())
    stopper = HopelessStopper(
        config=config.search.early_stopping,
        selection=config.selection,
        ledger=ledger,
        reference=lambda: baseline.reference,
        trains_on=trains_on,
        on_stop=searcher.stop_reason,
    )
    tuner = tune.Tuner(
        Trial,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=EvaluationEvents(on_evaluation=events.evaluated, stopper=stopper),
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    with without_actors(coordinator) as is_light:
        if not is_light:
            say("this Ray's Tune has other internals: each running trial is a process of 130 MiB")
        steering.attach(searcher)
        try:
            tuner.fit()
        finally:
            steering.end()
