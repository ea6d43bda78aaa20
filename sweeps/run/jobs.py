"""Post-search jobs: what the winner is compared with, the sealed test, what it has forgotten."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import UNFINISHED
from sweeps.run.lifetime import Lifetime
from sweeps.selection.curves import Curve
from sweeps.selection.results import Winner
from trainables.data.manifest import EARLIER, Manifest
from trainables.evaluation.record import (
    Baselines,
    BaselinesJob,
    EarlierJob,
    Evaluation,
    ForgettingJob,
    Job,
    JobFailed,
    JobResult,
    MeasuredEarlier,
    MeasuredForgetting,
    ScoredTest,
    TestJob,
    TrainedCheckpoint,
)
from trainables.storage.checkpoints import CHECKPOINT
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from trainables.runtime.protocol import Snapshot

JOBS = {
    "baselines": "other ways than fine-tuning",
    "test": "the winner on the sealed test split",
    "forgetting": "what the winner has forgotten",
    "earlier": "what the winner has forgotten of the earlier data",
}
ASK_S = 0.2  # between questions whether they are done


class Jobs:
    """The post-search jobs of a sweep; slots that have nothing else to do run them."""

    def __init__(
        self, config: SweepConfig, ledger: Ledger, manifest: Manifest, say: Callable[[str], None]
    ) -> None:
        self._config, self._ledger, self._manifest, self._say = config, ledger, manifest, say
        self._asked_for_baselines = False

    def left(self) -> dict[str, Job]:
        """What is still to be done when the trials have ended, by name; see
        trainables.evaluation.jobs.
        """
        found: dict[str, Job] = {"baselines": BaselinesJob()} if self._wants_baselines() else {}
        winner, _ = self._ledger.select(self._config.selection)
        if winner is None:
            return found
        of_winner = self._trained(self._ledger.curve(winner.trial), winner.point)
        if "test" in self._manifest.splits and self._ledger.test_of(winner) is None:
            default = self._ledger.default(self._config.selection)
            other = default is not None and default[0].id != winner.trial
            of_default = self._trained(*default) if default is not None and other else None
            found["test"] = TestJob(
                winner=of_winner, default=of_default, baselines=self._config.selection.baselines
            )
        return found | self._forgetting(winner, of_winner)

    def _forgetting(self, winner: Winner, trained: TrainedCheckpoint) -> dict[str, Job]:
        """What of it is still to be measured."""
        found: dict[str, Job] = {}
        continues, ledger = TASKS[self._config.task].continues_text, self._ledger
        if continues and ledger.forgetting_of(winner) is None:
            found["forgetting"] = ForgettingJob(winner=trained)
        data = ledger.data_folders()[ledger.base_of(winner)]
        if ledger.store.exists(f"{data}/{EARLIER}.arrow") and ledger.earlier_of(winner) is None:
            found["earlier"] = EarlierJob(winner=trained)
        return found

    def _trained(self, curve: Curve, point: Evaluation) -> TrainedCheckpoint:
        return TrainedCheckpoint(
            checkpoint=f"{point.folder}/{CHECKPOINT}",
            parameters=self._config.complete(curve.params),
        )

    def _wants_baselines(self) -> bool:
        wanted = self._config.selection.baselines and bool(TASKS[self._config.task].baselines)
        return wanted and not self._ledger.store.exists("baselines.json")

    def ask_for_baselines_once(self, coordinator: "ActorHandle") -> None:
        """They need no winner, and so can be had before the last trials have ended."""
        if not self._asked_for_baselines and self._wants_baselines():
            self._asked_for_baselines = True
            coordinator.job.remote("baselines", BaselinesJob())

    def run(self, coordinator: "ActorHandle", lifetime: Lifetime) -> None:
        """Have all that is left done, and write down what comes of it."""
        import ray

        left = self.left()
        if left:
            self._say(f"measuring: {', '.join(JOBS[name] for name in left)}")
        while left and lifetime.stopped not in UNFINISHED:
            # again and again: a coordinator that was restarted has not heard of it
            for name, what in left.items():
                ray.get(coordinator.job.remote(name, what))
            waiting: ObjectRef[Snapshot] = coordinator.snapshot.remote()
            (snapshot,) = ray.get([waiting])
            for name in list(left):
                result = snapshot.jobs.get(name)
                if result is not None:
                    del left[name]
                    self._write(name, result)
            time.sleep(ASK_S)

    def _write(self, name: str, result: JobResult) -> None:
        match result:
            case JobFailed(error=error):
                self._say(f"not measured: {JOBS[name]}: {error}")
            case Baselines(found=found):
                self._ledger.write_baselines(found)
                for broken in [each for each in found.values() if each.error is not None]:
                    self._say(f"not measured: {broken.words}: {broken.error}")
            case MeasuredForgetting():
                self._ledger.write_forgetting(result, self._config.selection)
            case MeasuredEarlier():
                self._ledger.write_earlier(result, self._config.selection)
            case ScoredTest():
                self._ledger.write_test(result, self._config.selection)
