"""Trials of Ray Tune without actors: the Tune that is installed, and the coordinator, in a Ray of their own."""

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import ray
from ray import tune
from ray.tune import tune as module_of_tune
from ray.util.state import list_tasks

from cluster.config import ClusterConfig
from cluster.connect import Connection, connect
from sweeps.run.environment import ENVIRONMENT
from trainables.evaluation.record import Evaluation
from trainables.runtime import trial_handle
from trainables.runtime.coordinator import start_coordinator
from trainables.runtime.protocol import Evaluated
from trainables.runtime.trial import Trial
from trainables.runtime.trial_handle import without_actors
from trainables.runtime.tune_dicts import TrialConfig, TrialResult

NAMESPACE, MAX_FAILURES = "sweep-s", 3
LORA = {
    "method": "lora",
    "learning_rate": 1e-3,
    "batch_size": 8,
    "epochs": 1,
    "rank": 8,
    "alpha": 8,
}
TUNE = "ray.tune.execution.tune_controller"


@pytest.fixture(scope="module")
def own_ray() -> Iterator[Connection]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for name, value in {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}.items():
            patch.setenv(name, value)
        with connect(ClusterConfig(), namespace=NAMESPACE, temp_dir=Path(folder)) as found:
            yield found


class Given(tune.search.Searcher):
    """A searcher that has the trials `ids`, and keeps the last result of each; None: Tune has given it up."""

    def __init__(self, *ids: str, leave: Callable[[str], object] = lambda id: None) -> None:
        super().__init__(metric="val_loss", mode="min")
        self._left, self._leave = list(ids), leave
        self._ids: dict[str, str] = {}
        self.ended: dict[str, TrialResult | None] = {}

    def suggest(self, trial_id: str) -> dict[str, object] | str:
        if not self._left:
            return tune.search.Searcher.FINISHED
        self._ids[trial_id] = id = self._left.pop(0)
        return TrialConfig(
            id=id,
            label=f"s {id}: rank=8",
            params=LORA,
            coordinator="coordinator",
            namespace=NAMESPACE,
            compared=False,
        ).to_tune()

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Nothing."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        id = self._ids[trial_id]
        self.ended[id] = None if error else TrialResult.from_tune(result or {})
        self._leave(id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    restore = save

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune pickles its Tuner to restore it
        return object, ()


class Watcher(tune.Stopper):
    """Is told of every evaluation, and says whether the trial shall stop."""

    def __init__(self, stops: Callable[[TrialResult], bool]) -> None:
        self._stops = stops

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return self._stops(TrialResult.from_tune(result))

    def stop_all(self) -> bool:
        return False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class Slot(threading.Thread):
    """A slot that trains nothing: whoever is due is evaluated, three times in all."""

    def __init__(self, coordinator: ray.actor.ActorHandle) -> None:
        super().__init__(daemon=True)
        self.coordinator, self._done = coordinator, Counter[str]()
        self.first: Callable[[], object] = lambda: None  # what it does before all else

    def run(self) -> None:
        try:
            self.first()
        finally:
            self._serve()

    def _serve(self) -> None:
        assignment = ray.get(self.coordinator.register.remote("slot"))
        while not assignment.stop:
            due = [id for id, trial in assignment.trials.items() if trial.may_train]
            for id in due:
                self._done[id] += 1
                assignment = self._tell("publish", id, _evaluated(self._done[id]))
            if not due:
                assignment = self._tell("take", assignment.version)

    def _tell(self, news: str, *values: object):
        told = ray.get(getattr(self.coordinator, news).remote("slot", *values))
        return told or ray.get(self.coordinator.register.remote("slot"))


def _evaluated(step: int) -> Evaluated:
    return Evaluated(
        evaluation=Evaluation(
            step=step,
            samples_seen=step,
            epoch=step,
            val_loss=1.0,
            probe_loss=1.0,
            finished=step == 3,
        )
    )


def go(slot: Slot, folder: Path, searcher: Given, stops: Callable[[TrialResult], bool]) -> bool:
    """Fit a Tuner; whether that was without actors."""
    slot.start()
    with without_actors(slot.coordinator) as without:
        fit(folder, searcher, stops)
    return without


def fit(folder: Path, searcher: Given, stops: Callable[[TrialResult], bool]) -> None:
    tune.Tuner(
        Trial,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            verbose=0,
            stop=Watcher(stops),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


@pytest.fixture
def slot(own_ray: Connection) -> Iterator[Slot]:
    """A slot for two trials at a time, and its coordinator."""
    coordinator = start_coordinator("s", "coordinator", 2, 1)
    ray.get(coordinator.skip_baseline.remote())
    slot = Slot(coordinator)
    yield slot

    ray.get(coordinator.close.remote())
    slot.join()
    ray.kill(coordinator)


def trials(slot: Slot) -> Given:
    return Given("t1", "t2", "t3", leave=lambda id: ray.get(slot.coordinator.leave.remote(id)))


def carriers() -> list[str]:
    """Processes that are actors of trials."""
    found = [process.info["cmdline"] or [""] for process in of_ray()]
    return [line[0] for line in found if line[0].startswith("ray::Trial")]


def of_ray() -> list[psutil.Process]:
    inside = {process.pid for process in psutil.Process().children(recursive=True)}
    return [each for each in psutil.process_iter(["cmdline"]) if each.pid in inside]


@pytest.mark.ray
@pytest.mark.parametrize("with_actors", [False, True])
def test_trials_go_the_same_way_with_and_without_actors(
    slot: Slot, tmp_path: Path, with_actors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """t1 and t3 to their ends, t2 until it is stopped."""
    if with_actors:
        monkeypatch.setattr(trial_handle, "_controller", lambda coordinator: None)
    steps, seen = [], []

    def stops(result: TrialResult) -> bool:
        assert result.evaluation is not None
        steps.append((result.id, result.evaluation.step))
        seen.extend(carriers())
        return result.id == "t2" and result.evaluation.step == 2

    searcher = trials(slot)
    without = go(slot, tmp_path, searcher, stops)
    assert without != with_actors and bool(seen) == with_actors
    assert sorted(steps) == [
        (f"t{n}", step) for n in (1, 2, 3) for step in (1, 2, 3) if (n, step) != (2, 3)
    ]
    ended = {
        id: (result.ended, result.samples_seen) for id, result in searcher.ended.items() if result
    }
    assert ended == {"t1": ("finished", 3), "t2": (None, 2), "t3": ("finished", 3)}
    assert ray.get(slot.coordinator.snapshot.remote()).slots == {"slot": []}


@pytest.mark.ray
def test_trials_go_on_when_their_coordinator_is_killed(slot: Slot, tmp_path: Path) -> None:
    killed = threading.Event()

    def kill_once(result: TrialResult) -> bool:
        if not killed.is_set():
            killed.set()
            ray.kill(slot.coordinator, no_restart=False)
        return False

    searcher = trials(slot)
    go(slot, tmp_path, searcher, kill_once)
    assert killed.is_set()
    ended = {id: result.ended for id, result in searcher.ended.items() if result}
    assert ended == {"t1": "finished", "t2": "finished", "t3": "finished"}


@ray.remote(num_cpus=0, max_concurrency=8)
class Failing:
    """A coordinator of which nothing is had."""

    def __init__(self) -> None:
        self._asked = 0

    async def step(self, trial: str, parameters: Mapping[str, object]) -> None:
        self._asked += 1
        raise RuntimeError("no")

    async def asked(self) -> int:
        return self._asked


@pytest.mark.ray
def test_a_trial_of_which_nothing_is_had_is_tried_again_and_then_given_up(
    own_ray: Connection, tmp_path: Path
) -> None:
    coordinator, searcher = Failing.remote(), Given("t1")
    with without_actors(coordinator):
        fit(tmp_path, searcher, lambda result: False)
    assert searcher.ended == {"t1": None}
    assert ray.get(coordinator.asked.remote()) == 1 + MAX_FAILURES


@pytest.mark.ray
def test_so_is_one_whose_coordinator_is_gone_for_good(own_ray: Connection, tmp_path: Path) -> None:
    coordinator, searcher = Failing.remote(), Given("t1")
    ray.kill(coordinator)
    with without_actors(coordinator):
        fit(tmp_path, searcher, lambda result: False)
    assert searcher.ended == {"t1": None}


@pytest.mark.ray
def test_ray_shows_trials_by_their_labels_and_no_other_call_of_their_coordinator(
    own_ray: Connection, slot: Slot, tmp_path: Path
) -> None:
    shown: list[set[tuple[str, str]]] = []

    def look() -> None:
        """Until all three trials wait, which Ray tells some seconds later."""
        calls = calls_of_coordinator()
        while sum(state == "RUNNING" for _, state in calls) < 3:
            time.sleep(0.2)
            calls = calls_of_coordinator()
        shown.append(calls)

    def calls_of_coordinator() -> set[tuple[str, str]]:
        tasks = list_tasks(own_ray.dashboard_url, limit=10_000)
        own = [task for task in tasks if task.actor_id == slot.coordinator._actor_id.hex()]
        return {(task.name, task.state) for task in own}

    slot.first = look
    go(slot, tmp_path, trials(slot), lambda result: False)
    assert shown == [{(f"s t{number}: rank=8", "RUNNING") for number in (1, 2, 3)}]


def test_where_ray_has_not_what_it_takes_trials_have_actors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, TUNE, None)  # importing it raises ImportError
    with without_actors(None) as without:
        assert not without


def test_a_tune_of_another_making_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """It takes no manager of resources."""

    monkeypatch.setattr(f"{TUNE}.TuneController", Other)
    monkeypatch.setattr(module_of_tune, "TuneController", Other)
    with without_actors(None) as without:
        assert not without and module_of_tune.TuneController is Other


def test_tune_is_as_it_was_afterwards() -> None:
    usual = module_of_tune.TuneController
    with without_actors(None) as without:
        assert without and module_of_tune.TuneController is not usual
    assert module_of_tune.TuneController is usual
