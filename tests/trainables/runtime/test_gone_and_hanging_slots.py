"""What the coordinator does with the trials of slots whose workers are gone, or that are not heard of."""

import asyncio

import pytest
import ray

from tests.trainables.runtime.test_coordinator import LORA, PARAMS, ask, evaluated, on_slots, story
from trainables.runtime import coordinator as coordinating
from trainables.runtime.coordinator import Coordinator
from trainables.runtime.protocol import Failed, TrialProgress
from trainables.runtime.states import MAX_FAILURES

HUNG = "it made no progress for 0.005 minutes, 2 times"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(coordinating, "TAKE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(coordinating, "RELEASE_S", 0.05)


@pytest.fixture
def killed(monkeypatch):
    """The workers that are."""
    workers = []
    monkeypatch.setattr(ray, "kill", workers.append)
    return workers


@pytest.fixture
def strict():
    """A coordinator of slots that may be silent for 0.3 s."""
    return Coordinator("sweep", trials_per_slot=3, hang_s=0.3)


# --- without workers ---


@story
async def test_trials_of_a_slot_that_finds_no_room_board_another():
    coordinator = Coordinator("sweep", slots=2)
    await coordinator.register("a")
    await coordinator.register("b")
    waiting = await ask(coordinator, "t1")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": []}
    await coordinator.slot_down("a")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": []}, "it may be back at once"
    await asyncio.sleep(0.2)
    snapshot = await coordinator.snapshot()
    assert snapshot.slots == {"b": ["t1"]} and list(snapshot.waiting) == ["a"]
    await coordinator.publish("b", "t1", evaluated(5))
    assert await waiting == evaluated(5)
    assert await coordinator.take("a", 0) is None, "who comes back late has no trial any more"
    assert (await coordinator.register("a")).trials == {}
    assert list((await coordinator.snapshot()).waiting) == []


@pytest.mark.parametrize("back", ["slot_up", "register"])
def test_a_slot_that_finds_room_in_time_keeps_its_trials(back):
    async def tell():
        coordinator = Coordinator("sweep", slots=2)
        await coordinator.register("a")
        await coordinator.register("b")
        await ask(coordinator, "t1")
        await coordinator.slot_down("a")
        await getattr(coordinator, back)("a")
        await asyncio.sleep(0.2)
        assert await on_slots(coordinator) == {"a": ["t1"], "b": []}

    asyncio.run(asyncio.wait_for(tell(), 10))


@story
async def test_no_trial_waits_for_a_slot_that_finds_no_room():
    """One that failed on the only other slot has failed."""
    coordinator = Coordinator("sweep", slots=2)
    await coordinator.register("slot")
    await coordinator.slot_down("never")
    waiting = await ask(coordinator, "t1")
    await coordinator.publish("slot", "t1", Failed(reason="broken"))
    assert not waiting.done()
    assert await waiting == Failed(reason="broken")
    assert await coordinator.room() == 0, "and none is drawn for it"


@story
async def test_runs_of_a_slot_are_counted_until_something_comes_of_one(strict):
    assert [await strict.slot_ended("slot") for _ in range(3)] == [1, 2, 3]
    await strict.register("slot")
    await ask(strict, "t1")
    await strict.publish("slot", "t1", evaluated(5))
    assert await strict.slot_ended("slot") == 1


# --- hanging ---


@story
async def test_a_silent_slot_loses_its_workers_once_and_the_trial_that_hangs_again_has_failed(
    strict, killed
):
    await strict.register("slot", "worker")
    hanging, fine, idle = await ask(strict, "hanging", "fine", "idle", **LORA)
    await strict.publish("slot", "idle", evaluated(1))
    await asyncio.sleep(0.4)
    assert (await strict.snapshot()).hung == {"slot": ["hanging", "fine"]}
    assert (await strict.snapshot()).hung and killed == ["worker"], "once"
    await strict.register("slot", "second")
    assert (await strict.snapshot()).hung == {}
    assert await on_slots(strict) == {"slot": ["idle"]}, "each of the others goes on alone"
    await strict.leave("idle")
    assert await on_slots(strict) == {"slot": ["hanging"]}
    await asyncio.sleep(0.4)
    assert (await strict.snapshot()).hung == {"slot": ["hanging"]}
    await strict.register("slot", "third")
    assert await hanging == Failed(reason=HUNG)
    await strict.leave("hanging")
    assert await on_slots(strict) == {"slot": ["fine"]}
    await strict.publish("slot", "fine", evaluated(5))
    assert await fine == evaluated(5) and killed == ["worker", "second"]


@story
async def test_whatever_a_slot_says_shows_that_it_does_not_hang(strict, killed):
    await strict.register("slot", "worker")
    await ask(strict, "t1")
    says = {
        "take": ("slot", 0),
        "progress": ("slot", {"t1": TrialProgress(samples_seen=8, samples_per_s=1.0)}),
        "publish": ("slot", "t1", evaluated(5)),
    }
    for news, values in says.items():
        for _ in range(3):
            await asyncio.sleep(0.2)
            await getattr(strict, news)(*values)
        assert (await strict.snapshot()).hung == {}, news
    assert killed == []


@story
async def test_an_evaluation_clears_a_trial_that_hung(strict, killed):
    await strict.register("slot", "worker")
    for step in (1, 2, 3):
        waiting = await ask(strict, "t1", **PARAMS)
        await asyncio.sleep(0.4)
        assert (await strict.snapshot()).hung
        await strict.register("slot", "worker")
        await strict.publish("slot", "t1", evaluated(step))
        assert await waiting == evaluated(step)
    assert len(killed) == 3


@story
async def test_a_slot_on_which_every_trial_hangs_gets_no_more(strict, killed):
    await strict.register("slot", "worker")
    for number in range(MAX_FAILURES):
        waiting = await ask(strict, f"t{number}")
        for _ in range(2):
            await asyncio.sleep(0.4)
            assert (await strict.snapshot()).hung
            await strict.register("slot", "worker")
        assert await waiting == Failed(reason=HUNG)
        await strict.leave(f"t{number}")
    assert list((await strict.snapshot()).quarantined) == ["slot"]


# --- told to go ---


@story
async def test_trials_of_a_slot_that_is_told_to_go_are_paused_and_go_on_elsewhere():
    coordinator = Coordinator("sweep", slots=2)
    await coordinator.register("a", nodes=["n1"])
    waiting = await ask(coordinator, "t1")
    await coordinator.retire(["a", "nobody"])
    assert (await coordinator.take("a", 0)).retire and not waiting.done()
    assert await on_slots(coordinator) == {"a": ["t1"]}, "until it has paused it"
    await coordinator.register("b", nodes=["n2"])
    second = await ask(coordinator, "t2")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": ["t2"]}, "who goes gets no more"
    snapshot = await coordinator.snapshot()
    assert snapshot.nodes == {"a": ["n1"], "b": ["n2"]}
    assert (await coordinator.retired("a")).stop
    snapshot = await coordinator.snapshot()
    assert snapshot.slots == {"b": ["t2"]} and list(snapshot.retired) == ["a"]
    await coordinator.publish("b", "t2", evaluated(5))
    assert await second == evaluated(5)
    await coordinator.leave("t2")
    assert await on_slots(coordinator) == {"b": ["t1"]} and not waiting.done()
    assert await coordinator.room() == 0, "a slot that went does not come"


@story
async def test_a_coordinator_that_has_forgotten_is_told_who_went():
    coordinator = Coordinator("sweep")
    await coordinator.expect_slots(2)
    await coordinator.register("b")
    assert await coordinator.room() == 2
    await coordinator.retired("a")
    assert await coordinator.room() == 1


@story
async def test_the_untuned_base_is_evaluated_by_another_where_a_slot_goes():
    coordinator = Coordinator("sweep", slots=2)
    assert (await coordinator.register("a")).baseline
    await coordinator.register("b")
    await coordinator.retire(["a"])
    await coordinator.retired("a")
    assert (await coordinator.take("b", 0)).baseline


@pytest.mark.parametrize("pause", [False, True])
def test_trials_of_a_sweep_that_is_interrupted_are_paused(pause):
    async def stop():
        coordinator = Coordinator("sweep")
        await coordinator.register("a")
        waiting = await ask(coordinator, "t1")
        await coordinator.stop_trials("it was interrupted", pause=pause)
        assert (await waiting).reason == "it was interrupted"
        assignment = await coordinator.take("a", 0)
        assert assignment.retire is pause and not assignment.trials

    asyncio.run(asyncio.wait_for(stop(), 10))
