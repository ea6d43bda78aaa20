"""Post-search jobs: what the winner is compared with, the sealed test, what it has forgotten."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import UNFINISHED
from sweeps.run.answers import Answers, trained
from sweeps.run.lifetime import Lifetime
from sweeps.selection.results import Winner
from trainables.data.manifest import EARLIER, Manifest
from trainables.evaluation.record import (
    AnswersJob,
    Baselines,
    BaselinesJob,
    EarlierJob,
    ForgettingJob,
    Job,
    JobFailed,
    JobResult,
    MeasuredAnswers,
    MeasuredEarlier,
    MeasuredForgetting,
    ScoredTest,
    TestJob,
    TrainedCheckpoint,
)
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


def _words(name: str) -> str:
    return JOBS.get(name, name)


class Jobs:
    """The post-search jobs of a sweep; slots that have nothing else to do run them."""

    def __init__(
        self, config: SweepConfig, ledger: Ledger, manifest: Manifest, say: Callable[[str], None]
    ) -> None:
        self._config, self._ledger, self._manifest, self._say = config, ledger, manifest, say
        self._asked_for_baselines = False
        self.begun = False  # for which the search has ended
        self._tried: set[str] = set()  # by this process, whatever came of it
        self._answers = Answers(config, ledger)

    def left(self) -> dict[str, Job]:
        """What is still to be done when the trials have ended, by name; see
        trainables.evaluation.jobs. What the winner is chosen by comes before what is of the winner.
        """
        found: dict[str, Job] = {"baselines": BaselinesJob()} if self._wants_baselines() else {}
        first = self._untried(self._answers.of_candidates())
        winner, _ = self._ledger.select(self._config.selection)
        if first or winner is None:
            return self._untried(found) | first
        found |= self._answers.of_winner(winner) | self._of_winner(winner)
        return self._untried(found)

    def _untried(self, jobs: Mapping[str, Job]) -> dict[str, Job]:
        return {name: job for name, job in jobs.items() if name not in self._tried}

    def _of_winner(self, winner: Winner) -> dict[str, Job]:
        found: dict[str, Job] = {}
        of_winner = trained(self._config, self._ledger.curve(winner.trial), winner.point)
        tested = self._ledger.test_of(winner) is not None and self._answers.are_of("test", "winner")
        if "test" in self._manifest.splits and not tested:
            default = self._ledger.default(self._config.selection)
            other = default is not None and default[0].id != winner.trial
            of_default = trained(self._config, *default) if default and other else None
            found["test"] = TestJob(
                winner=of_winner, default=of_default, baselines=self._config.selection.baselines
            )
        return found | self._forgetting(winner, of_winner)

    def _forgetting(self, winner: Winner, checkpoint: TrainedCheckpoint) -> dict[str, Job]:
        """What of it is still to be measured."""
        found: dict[str, Job] = {}
        continues, ledger = TASKS[self._config.task].continues_text, self._ledger
        if continues and ledger.forgetting_of(winner) is None:
            found["forgetting"] = ForgettingJob(winner=checkpoint)
        data = ledger.data_folders()[ledger.base_of(winner)]
        if ledger.store.exists(f"{data}/{EARLIER}.arrow") and ledger.earlier_of(winner) is None:
            found["earlier"] = EarlierJob(winner=checkpoint)
        return found

    def _wants_baselines(self) -> bool:
        if not (self._config.selection.baselines and TASKS[self._config.task].baselines):
            return False
        if not self._ledger.store.exists("baselines.json"):
            return True
        ways = self._ledger.measured_baselines()
        measured = [name for name, each in ways.items() if each.error is None]
        return not all(self._answers.are_of("validation", name) for name in measured)

    def ask_for_baselines_once(self, coordinator: "ActorHandle") -> None:
        """They need no winner, and so can be had before the last trials have ended."""
        if not self._asked_for_baselines and self._wants_baselines():
            self._asked_for_baselines = True
            coordinator.job.remote("baselines", BaselinesJob())

    def run(self, coordinator: "ActorHandle", lifetime: Lifetime) -> None:
        """Have all that is left done, and write down what comes of it."""
        self.begun = True
        while (left := self.left()) and lifetime.stopped not in UNFINISHED:
            self._say(f"measuring: {', '.join(_words(name) for name in left)}")
            self._do(left, coordinator, lifetime)
        if share := self._answers.share_words(lifetime.elapsed_s()):
            self._say(share)

    def _do(self, left: dict[str, Job], coordinator: "ActorHandle", lifetime: Lifetime) -> None:
        import ray

        while left and lifetime.stopped not in UNFINISHED:
            # again and again: a coordinator that was restarted has not heard of it
            for name, what in left.items():
                ray.get(coordinator.job.remote(name, what))
            waiting: ObjectRef[Snapshot] = coordinator.snapshot.remote()
            (snapshot,) = ray.get([waiting])
            for name in list(left):
                result = snapshot.jobs.get(name)
                if result is not None:
                    self._tried.add(name)
                    self._write(name, left.pop(name), result)
            time.sleep(ASK_S)

    def _write(self, name: str, job: Job, result: JobResult) -> None:
        match result:
            case JobFailed(error=error):
                self._say(f"not measured: {_words(name)}: {error}")
            case MeasuredAnswers():
                assert isinstance(job, AnswersJob)
                self._say(self._answers.take(job, result))
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
