"""Who waits, who is on the slot where, and what came of it: the coordinator as a plain object, without Ray."""

import asyncio
import inspect
from collections import deque

import pytest

from trainables.evaluation.record import Evaluation, UntunedResults
from trainables.hyperparameters import cost_class, parse
from trainables.runtime import coordinator as coordinating
from trainables.runtime.coordinator import MAX_CRASHES, Coordinator
from trainables.runtime.protocol import (
    AssignedTrial,
    Assignment,
    Evaluated,
    Failed,
    Stopped,
    TrialProgress,
)
from trainables.runtime.states import MAX_FAILURES

PARAMS = {"method": "full", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}
LORA = {**PARAMS, "method": "lora", "rank": 8}
UNTUNED = UntunedResults(val_loss=1.0, probe_loss=1.0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(coordinating, "TAKE_TIMEOUT_S", 0.02)


@pytest.fixture
def coordinator():
    return Coordinator("sweep")


@pytest.fixture
def groups():
    """Up to two trials share a slot."""
    return Coordinator("sweep", trials_per_slot=2)


@pytest.fixture
def auto():
    """As many as pays share a slot."""
    return Coordinator("sweep", trials_per_slot="auto", slots=2)


def story(test):
    """Run a coroutine function as a test, with ten seconds to end."""

    def run(**fixtures):
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    run.__name__, run.__doc__, run.__signature__ = (
        test.__name__,
        test.__doc__,
        inspect.signature(test),
    )
    return run


async def ask(coordinator, *trials, **params):
    """Trials that now wait for their next evaluation."""
    waiting = [
        asyncio.ensure_future(coordinator.advance(trial, params or PARAMS)) for trial in trials
    ]
    await asyncio.sleep(0)
    return waiting if len(waiting) > 1 else waiting[0]


def evaluated(step):
    evaluation = Evaluation(step=step, samples_seen=step, epoch=step, val_loss=1.0, probe_loss=1.0)
    return Evaluated(evaluation=evaluation)


def parameters_of(profile):
    return [each.parameters for each in profile]


async def on_slots(coordinator):
    return (await coordinator.snapshot()).slots


# --- joining ---


@story
async def test_trials_wait_until_a_slot_has_room(coordinator):
    one, two, three = await ask(coordinator, "t1", "t2", "t3")
    assert await on_slots(coordinator) == {}
    assignment = await coordinator.register("a")
    assert assignment.trials == {"t1": AssignedTrial(parameters=PARAMS, may_train=True)}
    assert await on_slots(coordinator) == {"a": ["t1"]}
    await coordinator.register("b")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": ["t2"]}
    await coordinator.leave("t1")
    assert await on_slots(coordinator) == {"a": ["t3"], "b": ["t2"]}
    assert not two.done() and not three.done()
    assert isinstance(await one, Stopped)


@story
async def test_trials_spread_over_the_emptiest_slots(groups):
    for name in ("b", "a"):
        await groups.register(name)
    await ask(groups, "t1", "t2", "t3", "t4", "t5", **LORA)
    assert await on_slots(groups) == {"b": ["t2", "t4"], "a": ["t1", "t3"]}


@story
async def test_an_evaluation_answers_its_trial_and_the_trial_stays_on_the_slot(coordinator):
    await coordinator.register("a")
    waiting = await ask(coordinator, "t1")
    assignment = await coordinator.publish("a", "t1", evaluated(5))
    assert await waiting == evaluated(5)
    assert assignment.trials == {"t1": AssignedTrial(parameters=PARAMS, may_train=False)}, (
        "it waits until the trial asks for more"
    )
    again = await ask(coordinator, "t1")
    assert (await coordinator.take("a", 0)).trials["t1"].may_train is True
    assert not again.done()
    await coordinator.publish("a", "t1", evaluated(10))
    assert await again == evaluated(10)


@story
async def test_a_trial_that_asks_twice_gets_the_same_answer_twice(coordinator):
    await coordinator.register("a")
    first, second = await ask(coordinator, "t1", "t1")
    await coordinator.publish("a", "t1", evaluated(5))
    assert await first == await second == evaluated(5)


@story
async def test_a_cancelled_question_does_not_cancel_the_others(coordinator):
    await coordinator.register("a")
    first, second = await ask(coordinator, "t1", "t1")
    first.cancel()
    await asyncio.sleep(0)
    await coordinator.publish("a", "t1", evaluated(5))
    assert await second == evaluated(5)


@story
async def test_leaving_answers_who_still_waits(coordinator):
    await coordinator.register("a")
    waiting = await ask(coordinator, "t1")
    await coordinator.leave("t1")
    assert isinstance(await waiting, Stopped)
    await coordinator.leave("t1")
    await coordinator.leave("nobody")


@story
async def test_a_trial_that_left_may_come_again(coordinator):
    await coordinator.register("a")
    await ask(coordinator, "t1")
    await coordinator.leave("t1")
    again = await ask(coordinator, "t1")
    assert await on_slots(coordinator) == {"a": ["t1"]}
    await coordinator.publish("a", "t1", evaluated(5))
    assert await again == evaluated(5)


@story
async def test_news_from_a_slot_that_no_longer_has_the_trial_is_ignored(coordinator):
    await coordinator.register("a")
    waiting = await ask(coordinator, "t1")
    await coordinator.slot_lost("a", "its node died")
    await coordinator.register("b")
    assert await coordinator.publish("a", "t1", evaluated(99)) is None
    assert not waiting.done()
    await coordinator.publish("b", "t1", evaluated(5))
    assert await waiting == evaluated(5)
    await coordinator.leave("t1")
    assert (await coordinator.publish("b", "t1", Failed(reason="too late"))).trials == {}


# --- assignments ---


@story
async def test_take_waits_for_a_newer_assignment(coordinator):
    assignment = await coordinator.register("a")
    taking = asyncio.ensure_future(coordinator.take("a", assignment.version))
    await asyncio.sleep(0)
    assert not taking.done()
    await ask(coordinator, "t1")
    newer = await taking
    assert newer.version > assignment.version and list(newer.trials) == ["t1"]
    assert await coordinator.take("a", assignment.version) == newer, (
        "an old version is answered at once"
    )


@story
async def test_take_without_news_returns_the_same_assignment(coordinator):
    assignment = await coordinator.register("a")
    assert await coordinator.take("a", assignment.version) == assignment


@story
async def test_every_change_of_an_assignment_has_a_new_version(groups):
    coordinator = groups
    assignments = [await coordinator.register("a")]
    await ask(coordinator, "t1", **LORA)
    assignments.append(await coordinator.take("a", 0))
    assignments.append(await coordinator.publish("a", "t1", evaluated(0)))
    await ask(coordinator, "t1", **LORA)
    assignments.append(await coordinator.take("a", 0))
    await ask(coordinator, "t2", **LORA)
    assignments.append(await coordinator.take("a", 0))
    await coordinator.leave("t1")
    assignments.append(await coordinator.take("a", 0))
    assignments.append(await coordinator.register("a"))
    await coordinator.close()
    assignments.append(await coordinator.take("a", 0))
    versions = [assignment.version for assignment in assignments]
    assert versions == sorted(set(versions))
    assert [
        {t: trial.may_train for t, trial in assignment.trials.items()} for assignment in assignments
    ] == [
        {},
        {"t1": True},
        {"t1": False},
        {"t1": True},
        {"t1": True, "t2": True},
        {"t2": True},
        {"t2": True},
        {"t2": True},
    ]
    assert [assignment.stop for assignment in assignments] == [False] * 7 + [True]


@story
async def test_changes_elsewhere_leave_an_assignment_alone(coordinator):
    await coordinator.register("a")
    assignment = await coordinator.register("b")
    await ask(coordinator, "t1")
    assert await coordinator.take("b", assignment.version) == assignment


@story
async def test_close_lets_every_slot_end_now_and_later(coordinator):
    assignment = await coordinator.register("a")
    taking = asyncio.ensure_future(coordinator.take("a", assignment.version))
    await asyncio.sleep(0)
    await coordinator.close()
    assert (await taking).stop
    assert (await coordinator.take("a", 10**6)).stop
    assert (await coordinator.register("b")).stop


# --- what goes wrong ---


@story
async def test_a_trial_whose_worker_keeps_dying_is_given_up_and_those_beside_it_is_not(groups):
    await groups.register("a")
    bad, good = await ask(groups, "bad", "good", **LORA)
    assignment = await groups.register("a")
    assert {t: trial.may_train for t, trial in assignment.trials.items()} == {
        "bad": True,
        "good": True,
    }
    assignment = await groups.register("a")
    assert list(assignment.trials) == ["bad"], "its last chance it has alone"
    assignment = await groups.register("a")
    assert await bad == Failed(
        reason=f"its worker process died {MAX_CRASHES} times with no evaluation in between"
    )
    await groups.leave("bad")
    assert list((await groups.take("a", 0)).trials) == ["good"] and not good.done()
    assignment = await groups.publish("a", "good", evaluated(1))
    assert (await good).evaluation.step == 1
    await ask(groups, "good", "third", **LORA)
    assert await on_slots(groups) == {"a": ["good", "third"]}, "an evaluation starts the count anew"


@story
async def test_a_lost_slot_hands_its_trials_to_another(groups):
    await groups.register("a")
    waiting = await ask(groups, "t1", "t2", **LORA)
    await ask(groups, "t3", **LORA)
    await groups.register("b")
    assert await on_slots(groups) == {"a": ["t1", "t2"], "b": ["t3"]}
    await groups.slot_lost("a", "its node died")
    assert await on_slots(groups) == {"b": ["t1", "t3"]}
    await groups.register("c")
    assert await on_slots(groups) == {"b": ["t1", "t3"], "c": ["t2"]}
    assert not any(each.done() for each in waiting)
    await groups.publish("c", "t2", evaluated(5))
    assert await waiting[1] == evaluated(5)


@story
async def test_a_trial_that_pauses_on_a_lost_slot_goes_on_only_when_it_asks(coordinator):
    await coordinator.register("a")
    waiting = await ask(coordinator, "t1")
    await coordinator.publish("a", "t1", evaluated(5))
    await waiting
    await coordinator.slot_lost("a", "its node died")
    assert (await coordinator.register("b")).trials["t1"].may_train is False
    await ask(coordinator, "t1")
    assert (await coordinator.take("b", 0)).trials["t1"].may_train is True


# --- sharing ---


@story
async def test_who_changes_the_base_has_a_slot_alone(groups):
    await groups.register("a")
    await ask(groups, "full", **PARAMS)
    await ask(groups, "lora", **LORA)
    assert await on_slots(groups) == {"a": ["full"]}
    await groups.leave("full")
    assert await on_slots(groups) == {"a": ["lora"]}


@story
async def test_trials_over_other_bases_do_not_share(groups):
    await groups.register("a")
    await ask(groups, "lora", **LORA)
    await ask(groups, "nf4", **{**LORA, "method": "qlora"})
    await ask(groups, "int8", **{**LORA, "method": "qlora", "bits": 8})
    assert await on_slots(groups) == {"a": ["lora"]}
    await groups.register("b")
    await groups.register("c")
    assert await on_slots(groups) == {"a": ["lora"], "b": ["nf4"], "c": ["int8"]}


@story
async def test_who_waits_is_not_overtaken_for_ever(groups):
    """A trial that needs a slot for itself keeps the emptiest from being filled again; the others train on."""
    for name in ("a", "b"):
        await groups.register(name)
    await ask(groups, "t1", "t2", "t3", **LORA)
    assert await on_slots(groups) == {"a": ["t1", "t3"], "b": ["t2"]}
    await ask(groups, "full", **PARAMS)
    await ask(groups, "t4", **LORA)
    assert await on_slots(groups) == {"a": ["t1", "t3"], "b": ["t2"]}, (
        "b is kept for the trial that waits"
    )
    await groups.leave("t1")
    assert await on_slots(groups) == {"a": ["t3", "t4"], "b": ["t2"]}
    await groups.leave("t2")
    assert await on_slots(groups) == {"a": ["t3", "t4"], "b": ["full"]}


@story
async def test_invalid_parameters_travel_alone(groups):
    await groups.register("a")
    await ask(groups, "bad", method="lora", rank=-1)
    await ask(groups, "good", **LORA)
    assert await on_slots(groups) == {"a": ["bad"]}


@story
async def test_after_a_failed_step_each_goes_on_alone_until_its_next_evaluation(groups):
    await groups.register("a")
    await ask(groups, "t1", "t2", **LORA)
    assignment = await groups.isolate("a", ["t1", "t2"])
    assert list(assignment.trials) == ["t1"]
    assignment = await groups.publish("a", "t1", Failed(reason="CUDA error"))
    await groups.leave("t1")
    assert await on_slots(groups) == {"a": ["t2"]}
    await ask(groups, "t3", **LORA)
    assert await on_slots(groups) == {"a": ["t2"]}
    await groups.publish("a", "t2", evaluated(5))
    await groups.leave("nobody")
    assert await on_slots(groups) == {"a": ["t2", "t3"]}


@story
async def test_how_many_share_is_measured_first(auto):
    assignment = await auto.register("a")
    assert assignment.profile == []
    await ask(auto, "t1", "t2", "t3", "t4", **LORA)
    assignment = await auto.take("a", 0)
    assert list(assignment.trials) == ["t1"] and parameters_of(assignment.profile) == [LORA]
    (profile,) = assignment.profile
    assert (await auto.register("b")).profile == [], "one slot is enough"
    assert await on_slots(auto) == {"a": ["t1"], "b": ["t2"]}
    assignment = await auto.publish_limit("a", profile.cost_class, 2)
    assert assignment.profile == [] and list(assignment.trials) == ["t1", "t3"]
    assert await on_slots(auto) == {"a": ["t1", "t3"], "b": ["t2", "t4"]}


@story
async def test_a_group_is_as_large_as_its_worst_cost_class_allows(auto):
    big = {**LORA, "batch_size": 64}
    await auto.expect_slots(1)
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    (small,) = (await auto.take("a", 0)).profile
    await auto.publish_limit("a", small.cost_class, 8)
    await ask(auto, "t2", "t3", **LORA)
    assert await on_slots(auto) == {"a": ["t1", "t2", "t3"]}
    await ask(auto, "big", **big)
    (large,) = (await auto.take("a", 0)).profile
    await auto.publish_limit("a", large.cost_class, 1)
    assert await on_slots(auto) == {"a": ["t1", "t2", "t3"]}
    for trial in ("t1", "t2", "t3"):
        await auto.leave(trial)
    assert await on_slots(auto) == {"a": ["big"]}


@story
async def test_trials_are_spread_over_slots_that_start_one_after_another():
    shared, trials = Coordinator("sweep", trials_per_slot=8, slots=16), deque(range(32))
    for slot in range(16):
        while trials and await shared.room():
            await shared.expect(f"t{trials.popleft()}", LORA)
        await shared.register(f"slot{slot:02d}")
    while trials and await shared.room():
        await shared.expect(f"t{trials.popleft()}", LORA)
    assert {len(there) for there in (await on_slots(shared)).values()} == {2}


@story
async def test_trials_share_the_slots_there_are_where_one_does_not_start(monkeypatch):
    monkeypatch.setattr(coordinating, "RELEASE_S", 0.05)
    shared = Coordinator("sweep", trials_per_slot=8, slots=2)
    await shared.register("a")
    for trial in ("t1", "t2", "t3", "t4"):
        await shared.expect(trial, LORA)
    assert await on_slots(shared) == {"a": ["t1", "t3"]}, "the others wait for b"
    while len((await on_slots(shared))["a"]) < 4:
        await asyncio.sleep(0.01)
    await shared.expect_slots(3)
    await shared.expect("t5", LORA)
    assert len((await on_slots(shared))["a"]) == 4, "another start, another wait"


@story
async def test_a_trial_leaves_the_others_for_a_slot_with_nothing_to_do_once_it_is_evaluated():
    shared = Coordinator("sweep", trials_per_slot=4, slots=1)
    await shared.register("a")
    await ask(shared, "t1", "t2", "t3", **LORA)
    await shared.expect_slots(2)
    await shared.register("b")
    assert await on_slots(shared) == {"a": ["t1", "t2", "t3"], "b": []}, "in the middle none goes"
    evaluation = Evaluation(step=1, samples_seen=8, epoch=1, val_loss=1.0, probe_loss=1.0)
    await shared.publish("a", "t2", Evaluated(evaluation=evaluation))
    assert await on_slots(shared) == {"a": ["t1", "t2", "t3"], "b": []}, "it may be stopped"
    await ask(shared, "t2", **LORA)
    assert await on_slots(shared) == {"a": ["t1", "t3"], "b": ["t2"]}
    await shared.publish("a", "t1", Evaluated(evaluation=evaluation))
    await ask(shared, "t1", **LORA)
    assert await on_slots(shared) == {"a": ["t1", "t3"], "b": ["t2"]}, "b has something to do"
    await shared.leave("t2")
    await shared.publish("a", "t1", Evaluated(evaluation=evaluation))
    await shared.job("merge", object())
    await ask(shared, "t1", **LORA)
    assert await on_slots(shared) == {"a": ["t1", "t3"], "b": []}, "b has a job to do"


@story
async def test_a_trial_leaves_its_slot_to_one_that_needs_it_whole_and_joins_others():
    shared = Coordinator("sweep", trials_per_slot=4, slots=2)
    for slot in ("a", "b"):
        await shared.register(slot)
    await ask(shared, "t1", "t2", "t3", **LORA)
    await ask(shared, "full", **PARAMS)
    assert await on_slots(shared) == {"a": ["t1", "t3"], "b": ["t2"]}
    evaluation = Evaluation(step=1, samples_seen=8, epoch=1, val_loss=1.0, probe_loss=1.0)
    await shared.publish("b", "t2", Evaluated(evaluation=evaluation))
    await ask(shared, "t2", **LORA)
    assert await on_slots(shared) == {"a": ["t1", "t2", "t3"], "b": ["full"]}


@story
async def test_more_trials_than_slots_that_start_could_hold_share_at_once():
    shared = Coordinator("sweep", trials_per_slot=4, slots=2)
    await shared.register("a")
    for trial in range(12):
        await shared.expect(f"t{trial:02d}", LORA)
    assert len((await on_slots(shared))["a"]) == 4
    await shared.register("b")
    assert len((await on_slots(shared))["b"]) == 4


@story
async def test_a_slot_that_dies_while_it_measures_has_shown_that_it_does_not_fit(auto):
    await auto.register("a")
    await ask(auto, "t1", "t2", **LORA)
    assignment = await auto.register("a")
    assert assignment.profile == [] and list(assignment.trials) == ["t1"]


@story
async def test_a_lost_slot_hands_its_measuring_to_another(auto):
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    await auto.slot_lost("a", "its node died")
    assert parameters_of((await auto.register("b")).profile) == [LORA]


@story
async def test_room_is_what_another_trial_would_find(auto):
    assert await auto.room() == 2, "slots that start count"
    await auto.expect("t1", LORA)
    assert await auto.room() == 1
    await auto.register("a")
    assert await auto.room() == 1, "b still starts; how many share a is not known"
    (profile,) = (await auto.take("a", 0)).profile
    await auto.publish_limit("a", profile.cost_class, 4)
    assert await auto.room() == 3 + 1
    await auto.register("b")
    assert await auto.room() == 3 + 1
    await auto.expect("full", PARAMS)
    assert await auto.room() == 3 and await on_slots(auto) == {"a": ["t1"], "b": ["full"]}
    await auto.expect("other", PARAMS)
    assert await auto.room() == 0, "it waits for a or b, and one of them is kept for it"
    await auto.expect_slots(3)
    assert await auto.room() >= 1


@story
async def test_a_place_is_kept_for_an_expected_trial_until_it_asks(auto):
    await auto.register("a")
    await auto.expect("t1", LORA)
    assert (await auto.take("a", 0)).trials == {
        "t1": AssignedTrial(parameters=LORA, may_train=False)
    }
    waiting = await ask(auto, "t1", **LORA)
    assert (await auto.take("a", 0)).trials == {
        "t1": AssignedTrial(parameters=LORA, may_train=True)
    }
    await auto.publish("a", "t1", evaluated(5))
    assert await waiting == evaluated(5)


@story
async def test_the_first_reason_of_a_loss_is_kept(coordinator):
    await coordinator.slot_broken("a", "model.name: there is no such model")
    await coordinator.slot_lost("a", "worker group failed")
    await coordinator.slot_lost("b", "its node died")
    assert (await coordinator.snapshot()).lost == {
        "a": "model.name: there is no such model",
        "b": "its node died",
    }


@story
async def test_a_slot_that_is_lost_while_it_waits_learns_that_it_is_unknown(coordinator):
    assignment = await coordinator.register("a")
    taking = asyncio.ensure_future(coordinator.take("a", assignment.version))
    await asyncio.sleep(0)
    await coordinator.slot_lost("a", "no heartbeat")
    assert await taking is None


@story
async def test_stop_answers_everyone_now_and_from_now_on(coordinator):
    await coordinator.register("a")
    waiting = await ask(coordinator, "t1", "t2")
    await coordinator.stop_trials("the budget is spent")
    for each in waiting:
        assert await each == Stopped(reason="the budget is spent")
    assert await coordinator.advance("t3", PARAMS) == Stopped(reason="the budget is spent")
    assert (await coordinator.take("a", 0)).trials == {}
    assert await on_slots(coordinator) == {"a": []}
    assert not (await coordinator.take("a", 0)).stop, "slots end when they are told to"


@story
async def test_a_restarted_coordinator_is_told_everything_again(coordinator):
    """The actor came back empty; Ray repeats the calls that were under way."""
    old = await coordinator.register("a")
    await ask(coordinator, "t1")
    fresh = Coordinator("sweep")
    assert await fresh.take("a", old.version) is None
    assert await fresh.publish("a", "t1", evaluated(5)) is None
    assert await fresh.publish_baseline("a", UNTUNED) is None
    again = await ask(fresh, "t1")
    assignment = await fresh.register("a")
    assert list(assignment.trials) == ["t1"]
    assert (await fresh.take("a", 0)) == assignment
    await fresh.publish("a", "t1", evaluated(10))
    assert await again == evaluated(10)


# --- the untuned base, progress ---


@story
async def test_one_slot_measures_the_untuned_base(coordinator):
    assert (await coordinator.register("a")).baseline
    assert not (await coordinator.register("b")).baseline
    assert (await coordinator.register("a")).baseline, "its worker died before it was done"
    assignment = await coordinator.publish_baseline("a", UNTUNED)
    assert not assignment.baseline
    assert not (await coordinator.register("a")).baseline
    assert (await coordinator.snapshot()).baseline == UNTUNED


@story
async def test_the_untuned_base_is_measured_by_another_slot_when_the_first_is_lost(coordinator):
    await coordinator.register("a")
    assignment = await coordinator.register("b")
    taking = asyncio.ensure_future(coordinator.take("b", assignment.version))
    await asyncio.sleep(0)
    await coordinator.slot_lost("a", "its node died")
    assert (await taking).baseline


@story
async def test_the_untuned_base_waits_for_a_slot_when_the_only_one_is_lost(coordinator):
    await coordinator.register("a")
    await coordinator.slot_lost("a", "its node died")
    assert (await coordinator.register("b")).baseline


@story
async def test_a_known_baseline_is_not_measured_again(coordinator):
    await coordinator.skip_baseline()
    assert not (await coordinator.register("a")).baseline
    await coordinator.slot_lost("a", "its node died")
    assert not (await coordinator.register("b")).baseline


@story
async def test_progress_is_that_of_trials_on_a_slot(coordinator):
    await coordinator.register("a")
    await ask(coordinator, "t1")
    told = TrialProgress(samples_seen=40, samples_per_s=12.5)
    await coordinator.progress("a", {"t1": told, "gone": TrialProgress(samples_seen=1)})
    assert (await coordinator.snapshot()).progress == {"t1": told}
    await coordinator.leave("t1")
    assert (await coordinator.snapshot()).progress == {}


def test_boards_compare_by_what_they_say():
    assert Assignment(version=1) == Assignment(version=1) != Assignment(version=1, stop=True)
    assert repr(Coordinator("quick")) == "quick:coordinator"


# --- jobs ---


@story
async def test_a_job_waits_for_a_slot_without_trials(coordinator):
    await ask(coordinator, "t1")
    await coordinator.register("a")
    await coordinator.job("test", {"kind": "test"})
    assert (await coordinator.take("a", 0)).job is None
    await coordinator.publish("a", "t1", evaluated(1))
    await coordinator.leave("t1")
    assignment = await coordinator.take("a", 0)
    assert assignment.job == ("test", {"kind": "test"})
    await coordinator.publish_job("a", "test", {"loss": 1.0})
    assert (await coordinator.take("a", 0)).job is None
    assert (await coordinator.snapshot()).jobs == {"test": {"loss": 1.0}}


@story
async def test_two_jobs_run_side_by_side_and_one_slot_takes_one_after_another(coordinator):
    await coordinator.register("a")
    for name in ("one", "two", "three"):
        await coordinator.job(name, {"kind": name})
        await coordinator.job(name, {"kind": name})  # asked again, it is the same
    assert (await coordinator.register("b")).job == ("two", {"kind": "two"})
    assert (await coordinator.take("a", 0)).job == ("one", {"kind": "one"})
    assert (await coordinator.publish_job("a", "one", {})).job == ("three", {"kind": "three"})


@story
async def test_a_job_whose_slot_dies_is_done_again_and_given_up_in_the_end(coordinator):
    await coordinator.job("one", {"kind": "one"})
    await coordinator.register("a")
    await coordinator.slot_lost("a", "gone")
    assert (await coordinator.register("b")).job == ("one", {"kind": "one"})
    for _ in range(MAX_CRASHES - 1):
        assert (await coordinator.register("b")).job is not None
    assert (await coordinator.register("b")).job is None
    assert "died" in (await coordinator.snapshot()).jobs["one"].error


@story
async def test_a_job_asked_for_early_waits_until_a_slot_is_free(coordinator):
    await coordinator.job("one", {"kind": "one"})
    assert (await coordinator.snapshot()).jobs == {"one": None}
    await ask(coordinator, "t1")
    assignment = await coordinator.register("a")
    assert list(assignment.trials) == ["t1"] and assignment.job is None, (
        "who waits for a slot comes first"
    )
    taking = asyncio.ensure_future(coordinator.take("a", assignment.version))
    await asyncio.sleep(0)
    await coordinator.leave("t1")
    assert (await taking).job == ("one", {"kind": "one"})


@story
async def test_a_trial_joins_a_free_slot_rather_than_one_on_a_job(coordinator):
    """Though the other would be the first by name."""
    await coordinator.register("a")
    await coordinator.job("one", {"kind": "one"})
    await coordinator.register("b")
    await ask(coordinator, "t1")
    assert await on_slots(coordinator) == {"a": [], "b": ["t1"]}
    assert (await coordinator.take("a", 0)).job == ("one", {"kind": "one"})


@story
async def test_a_trial_shares_a_slot_rather_than_join_one_on_a_job(groups):
    await groups.register("a")
    await groups.job("one", {"kind": "one"})
    await groups.register("b")
    await ask(groups, "t1", "t2", **LORA)
    assert await on_slots(groups) == {"a": [], "b": ["t1", "t2"]}


@story
async def test_a_trial_joins_a_slot_on_a_job_where_there_is_no_other(coordinator):
    """It trains as soon as the job is done; the job stays."""
    await coordinator.register("a")
    await coordinator.job("one", {"kind": "one"})
    await coordinator.register("b")
    await ask(coordinator, "t1", "t2")
    assert await on_slots(coordinator) == {"a": ["t2"], "b": ["t1"]}
    assignment = await coordinator.take("a", 0)
    assert assignment.job == ("one", {"kind": "one"}) and assignment.trials == {
        "t2": AssignedTrial(parameters=PARAMS, may_train=True)
    }
    assignment = await coordinator.publish_job("a", "one", {"loss": 1.0})
    assert assignment.job is None and list(assignment.trials) == ["t2"]


@story
async def test_a_slot_whose_job_is_done_is_as_free_as_any(coordinator):
    await coordinator.register("a")
    await coordinator.job("one", {"kind": "one"})
    await coordinator.register("b")
    await coordinator.publish_job("a", "one", {})
    await ask(coordinator, "t1")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": []}


@story
async def test_a_job_is_given_to_no_slot_that_has_a_trial_or_a_job(coordinator):
    await ask(coordinator, "t1")
    await coordinator.register("a")
    await coordinator.register("b")
    for name in ("one", "two"):
        await coordinator.job(name, {"kind": name})
    assert (await coordinator.take("a", 0)).job is None
    assert (await coordinator.take("b", 0)).job == ("one", {"kind": "one"})
    await coordinator.leave("t1")
    assert (await coordinator.take("a", 0)).job == ("two", {"kind": "two"})


@story
async def test_a_trial_that_waits_for_a_job_moves_to_a_slot_that_gets_free(coordinator):
    await coordinator.register("a")
    await coordinator.job("one", {"kind": "one"})
    await coordinator.register("b")
    await ask(coordinator, "t1", "t2")
    await coordinator.leave("t1")
    assert await on_slots(coordinator) == {"a": [], "b": ["t2"]}
    assert (await coordinator.take("a", 0)).trials == {} and (
        await coordinator.take("a", 0)
    ).job is not None


# --- slots at fault ---

BROKE = Failed(reason="RuntimeError: no kernel image")


async def fail(coordinator, slot, outcome=BROKE):
    """Whoever is on a slot fails there."""
    (trial,) = (await on_slots(coordinator))[slot]
    await coordinator.publish(slot, trial, outcome)
    return trial


async def prove(coordinator, slot, trial):
    """A trial is evaluated on a slot and leaves."""
    waiting = await ask(coordinator, trial)
    assert (await on_slots(coordinator))[slot] == [trial]
    await coordinator.publish(slot, trial, evaluated(1))
    await waiting
    await coordinator.leave(trial)


@story
async def test_a_slot_that_fails_every_trial_gets_no_more_and_they_go_on_elsewhere(coordinator):
    await coordinator.register("bad")
    await coordinator.register("good")
    waiting = dict(zip("abcdef", await ask(coordinator, *"abcdef"), strict=True))
    failed = [await fail(coordinator, "bad") for _ in range(MAX_FAILURES)]
    assert (await coordinator.snapshot()).quarantined == {
        "bad": dict.fromkeys(failed, BROKE.reason)
    }
    assert (await coordinator.take("bad", 0)).trials == {}
    done = set()
    while done != set("abcdef"):
        assert (await on_slots(coordinator))["bad"] == []
        (trial,) = (await on_slots(coordinator))["good"]
        await coordinator.publish("good", trial, evaluated(5))
        assert await waiting[trial] == evaluated(5)
        await coordinator.leave(trial)
        done.add(trial)
    assert await coordinator.room() == 1
    await coordinator.job("one", {"kind": "one"})
    assert (await coordinator.take("good", 0)).job and (
        await coordinator.take("bad", 0)
    ).job is None
    assert (await coordinator.register("bad")).trials == {}, "nor after a new start"


@story
async def test_a_trial_that_fails_also_on_a_slot_that_works_has_failed(coordinator):
    """And it says nothing about the slots, not even where three such trials come one after another."""
    await coordinator.register("one")
    await prove(coordinator, "one", "before")
    await coordinator.register("two")
    for trial in ("t1", "t2", "t3", "t4"):
        waiting = await ask(coordinator, trial)
        assert await fail(coordinator, "one") == trial
        assert not waiting.done() and await on_slots(coordinator) == {"one": [], "two": [trial]}
        await fail(coordinator, "two")
        if trial == "t1":  # two has shown nothing yet either
            assert await waiting == BROKE, "there is no third slot"
            await coordinator.leave(trial)
            await ask(coordinator, "busy")
            await prove(coordinator, "two", "proof")
            await coordinator.leave("busy")
            continue
        assert await waiting == BROKE
        await coordinator.leave(trial)
    assert (await coordinator.snapshot()).quarantined == {}


@story
async def test_a_trial_fails_at_once_where_there_is_no_other_slot_and_the_third_ends_the_slot(
    coordinator,
):
    await coordinator.register("only")
    for trial in ("t1", "t2"):
        waiting = await ask(coordinator, trial)
        await fail(coordinator, "only")
        assert await waiting == BROKE
        await coordinator.leave(trial)
    third = await ask(coordinator, "t3")
    await fail(coordinator, "only")
    assert list((await coordinator.snapshot()).quarantined) == ["only"] and not third.done(), (
        "the sweep ends, and it goes on later"
    )
    await coordinator.stop_trials("no slot could run")
    assert await third == Stopped(reason="no slot could run")


@pytest.mark.parametrize("proved", [True, False])
@story
async def test_a_slot_on_which_a_trial_was_evaluated_is_not_to_blame_for_those_that_do_not_fit(
    coordinator, proved
):
    """Else nobody knows: another program may hold the device's memory."""
    large = Failed(reason="it does not fit the device of 16.0 GiB even alone: OutOfMemoryError")
    await coordinator.register("only")
    if proved:
        await prove(coordinator, "only", "before")
    for number in range(MAX_FAILURES):
        trial = f"t{number}"
        waiting = await ask(coordinator, trial)
        await coordinator.publish("only", trial, large)
        await asyncio.sleep(0)
        if proved or number < MAX_FAILURES - 1:
            assert await waiting == large
        await coordinator.leave(trial)
    assert bool((await coordinator.snapshot()).quarantined) == (not proved)


@pytest.mark.parametrize(
    ("starts", "known"),
    [
        ([("node", 7), ("node", 8), ("node", 9), ("node", 11)], True),
        ([("node", 7), ("node", 8), ("node", 8), ("node", 9)], False),  # it died once otherwise
        ([("node", 7), ("other", 9), ("other", 10), ("other", 11)], False),
        ([("node", None)] * 4, False),
        ([None] * 4, False),
    ],
)
@story
async def test_a_trial_whose_worker_the_kernel_kills_again_and_again_does_not_fit(
    coordinator, starts, known
):
    waiting = await ask(coordinator, "t1")
    for killed in starts:
        assert not waiting.done()
        await coordinator.register("only", killed=killed)
    outcome = await waiting
    assert isinstance(outcome, Failed)
    assert "its worker process died 3 times with no evaluation in between" in outcome.reason
    assert outcome.reason.startswith("it does not fit the memory of its host: ") == known
    assert ("out of memory" in outcome.reason) == known


@story
async def test_an_evaluation_starts_the_count_of_failures_anew(coordinator):
    await coordinator.register("only")
    for number in range(3 * MAX_FAILURES):
        trial = f"t{number}"
        waiting = await ask(coordinator, trial)
        outcome = BROKE if number % MAX_FAILURES else evaluated(1)
        await coordinator.publish("only", trial, outcome)
        assert await waiting == outcome
        await coordinator.leave(trial)
    assert (await coordinator.snapshot()).quarantined == {}


@story
async def test_configurations_that_fail_anywhere_say_nothing_about_the_slot(coordinator):
    await coordinator.register("a")
    await coordinator.register("b")
    refused = Failed(reason="targets: no such layer", certain=True)
    for number in range(2 * MAX_FAILURES):
        waiting = await ask(coordinator, f"t{number}")
        (slot,) = [slot for slot, trials in (await on_slots(coordinator)).items() if trials]
        await coordinator.publish(slot, f"t{number}", refused)
        assert await waiting == refused
        await coordinator.leave(f"t{number}")
    assert (await coordinator.snapshot()).quarantined == {}


@story
async def test_a_slot_whose_process_dies_under_every_trial_is_set_aside_too(coordinator):
    await coordinator.register("a")
    await coordinator.register("b")
    waiting = await ask(coordinator, "t1", "t2", "t3", "t4")
    for _ in range(MAX_CRASHES * MAX_FAILURES):
        await coordinator.register("a")
    assert list((await coordinator.snapshot()).quarantined) == ["a"]
    assert not any(each.done() for each in waiting)
    assert await on_slots(coordinator) == {"a": [], "b": ["t2"]}


@story
async def test_a_trial_waits_for_a_slot_that_starts_rather_than_fail_again_on_the_same(auto):
    await auto.register("a")
    waiting = await ask(auto, "t1", **LORA)
    await fail(auto, "a")
    assert await on_slots(auto) == {"a": []} and not waiting.done()
    await auto.register("b")
    assert await on_slots(auto) == {"a": [], "b": ["t1"]}


@story
async def test_a_trial_that_failed_and_whose_last_other_slot_is_lost_has_failed(coordinator):
    await coordinator.register("a")
    await coordinator.register("b")
    waiting, _ = await ask(coordinator, "t1", "t2")
    await fail(coordinator, "a")
    assert not waiting.done()
    await coordinator.slot_lost("b", "its node died")
    assert await waiting == BROKE


@story
async def test_another_slot_measures_the_untuned_base_when_the_first_is_set_aside_or_keeps_dying(
    coordinator,
):
    await coordinator.register("a")
    await coordinator.register("b")
    for trial in ("t1", "t2", "t3", "t4"):
        await coordinator.expect(trial, PARAMS)
    for _ in range(MAX_FAILURES):
        await fail(coordinator, "a")
    assert (
        not (await coordinator.take("a", 0)).baseline and (await coordinator.take("b", 0)).baseline
    )
    for _ in range(MAX_CRASHES):
        assignment = await coordinator.register("b")
    assert not assignment.baseline and "died" in (await coordinator.snapshot()).baseline.error


# --- who does not fit ---


@story
async def test_who_does_not_fit_beside_the_others_waits_and_joins_when_there_is_room():
    coordinator = Coordinator("sweep", trials_per_slot=4)
    await coordinator.register("a")
    *_, late = await ask(coordinator, "t1", "t2", "t3", **LORA)
    assert (await on_slots(coordinator))["a"] == ["t1", "t2", "t3"]
    assignment = await coordinator.no_room("a", "t3", 2)
    assert list(assignment.trials) == ["t1", "t2"] and not late.done()
    await coordinator.leave("t1")
    assert (await on_slots(coordinator))["a"] == ["t2", "t3"], "as many as were there before"
    await ask(coordinator, "t4", **LORA)
    assert (await on_slots(coordinator))["a"] == ["t2", "t3"]
    await coordinator.no_room("a", "t3", 1)
    await coordinator.register("b")
    assert await on_slots(coordinator) == {"a": ["t2"], "b": ["t3"]}, (
        "of a base that nobody can share"
    )
    assert (await coordinator.snapshot()).limits == {cost_class(parse(LORA)): 1}


@story
async def test_a_fixed_number_of_trials_is_not_exceeded_by_what_is_measured(groups):
    await groups.register("a")
    await groups.publish_limit("a", cost_class(parse(LORA)), 8)
    await ask(groups, "t1", "t2", "t3", **LORA)
    assert await on_slots(groups) == {"a": ["t1", "t2"]}


@story
async def test_what_is_measured_is_not_raised_by_who_does_not_fit(auto):
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    await auto.publish_limit("a", cost_class(parse(LORA)), 2)
    await ask(auto, "t2", **LORA)
    await auto.no_room("a", "t2", 5)
    assert (await auto.snapshot()).limits == {cost_class(parse(LORA)): 2}


# --- a coordinator that was restarted ---


@story
async def test_a_job_that_was_under_way_is_done_when_a_restarted_coordinator_hears_of_it(
    coordinator,
):
    assert await coordinator.publish_job("a", "test", {"loss": 1.0}) is None
    await coordinator.register("a")
    await coordinator.job("test", {"kind": "test"})
    assert (await coordinator.take("a", 0)).job is None
    assert (await coordinator.snapshot()).jobs == {"test": {"loss": 1.0}}


@story
async def test_a_job_that_is_done_twice_has_its_first_result(coordinator):
    await coordinator.register("a")
    await coordinator.job("test", {"kind": "test"})
    await coordinator.publish_job("b", "test", {"loss": 1.0})
    await coordinator.publish_job("a", "test", {"loss": 2.0})
    assert (await coordinator.snapshot()).jobs == {"test": {"loss": 1.0}}


@story
async def test_a_restarted_coordinator_is_reminded_that_the_untuned_base_is_measured(coordinator):
    assert (await coordinator.register("a")).baseline
    await coordinator.skip_baseline()
    assert not (await coordinator.take("a", 1)).baseline
    assert not (await coordinator.register("b")).baseline


CALLS = {
    "advance": ("t1", PARAMS),
    "step": ("t1", PARAMS),
    "leave": ("t1",),
    "register": ("a",),
    "take": ("a", 7),
    "publish": ("a", "t1", evaluated(5)),
    "publish_baseline": ("a", UNTUNED),
    "publish_job": ("a", "test", {}),
    "publish_limit": ("a", "kind", 2),
    "isolate": ("a", ["t1", "t2"]),
    "no_room": ("a", "t1", 2),
    "progress": ("a", {"t1": TrialProgress(samples_seen=40, samples_per_s=1.0)}),
    "job": ("test", {"kind": "test"}),
    "expect": ("t1", PARAMS),
    "expect_slots": (2,),
    "room": (),
    "wanted": ("t1",),
    "skip_baseline": (),
    "slot_broken": ("a", "why"),
    "slot_lost": ("a", "why"),
    "slot_down": ("a",),
    "slot_up": ("a",),
    "slot_ended": ("a",),
    "retire": (["a"],),
    "retired": ("a",),
    "storage": ("a", "a full disk"),
    "stop_trial": ("t9", "why"),
    "pause": (True,),
    "stop_trials": ("why",),
    "close": (),
    "snapshot": (),
}


def test_every_method_is_called_on_a_coordinator_that_knows_nothing():
    public = {
        name
        for name, value in vars(Coordinator).items()
        if not name.startswith("_") and callable(value)
    }
    assert public == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_coordinator_that_knows_nothing_takes_every_call_and_serves_a_trial_afterwards(name):
    async def tell():
        coordinator = Coordinator("sweep", trials_per_slot=2, slots=1)
        call = asyncio.ensure_future(getattr(coordinator, name)(*CALLS[name]))
        await asyncio.sleep(0)
        assignment = await coordinator.register("a")
        if name == "stop_trials":
            assert await coordinator.advance("t1", PARAMS) == Stopped(reason="why")
            return
        waiting = await ask(coordinator, "t1")
        assignment = await coordinator.take("a", 0)
        assert list(assignment.trials) == ["t1"] and assignment.stop is (name == "close")
        await coordinator.publish("a", "t1", evaluated(9))
        assert await waiting == evaluated(9)
        await call

    asyncio.run(asyncio.wait_for(tell(), 10))


# --- several base models ---


@story
async def test_a_slot_keeps_the_base_that_it_holds_where_it_can(coordinator):
    for name in ("a", "b"):
        await coordinator.register(name)
    await ask(coordinator, "t1", **PARAMS, model="small")
    await ask(coordinator, "t2", **PARAMS, model="large")
    assert await on_slots(coordinator) == {"a": ["t1"], "b": ["t2"]}
    for trial in ("t1", "t2"):
        await coordinator.leave(trial)
    await ask(coordinator, "t3", **PARAMS, model="large")
    await ask(coordinator, "t4", **PARAMS, model="small")
    assert await on_slots(coordinator) == {"a": ["t4"], "b": ["t3"]}
    await coordinator.leave("t4")
    await ask(coordinator, "t5", **PARAMS, model="large")
    assert await on_slots(coordinator) == {"a": ["t5"], "b": ["t3"]}, "better than to wait"


@story
async def test_trials_over_other_bases_share_no_slot(groups):
    await groups.register("a")
    await ask(groups, "t1", **LORA, model="small")
    await ask(groups, "t2", **LORA, model="large")
    await ask(groups, "t3", **LORA, model="small")
    assert (await on_slots(groups))["a"][0] == "t1" and "t2" not in (await on_slots(groups))["a"]
    assert cost_class(parse({**LORA, "model": "small"})) != cost_class(
        parse({**LORA, "model": "large"})
    )


# --- by hand ---


@story
async def test_one_trial_is_stopped_and_the_others_go_on(groups):
    await groups.register("a")
    first, second = await ask(groups, "t1", "t2", **LORA)
    await groups.stop_trial("t1", "stopped by hand")
    assert (await first).reason == "stopped by hand" and not second.done()
    assert [*(await groups.take("a", -1)).trials] == ["t2"]
    assert await groups.advance("t1", PARAMS) == Stopped(reason="stopped by hand")
    await groups.publish("a", "t2", evaluated(8))
    assert await second == evaluated(8)


@story
async def test_a_trial_that_does_not_ask_at_the_moment_is_stopped_when_it_does(coordinator):
    await coordinator.register("a")
    asked = await ask(coordinator, "t1")
    await coordinator.publish("a", "t1", evaluated(8))
    assert await asked == evaluated(8)
    await coordinator.stop_trial("t1", "stopped by hand")
    await coordinator.stop_trial("unknown", "stopped by hand")
    assert await coordinator.advance("t1", PARAMS) == Stopped(reason="stopped by hand")
    assert not (await coordinator.take("a", -1)).trials


@story
async def test_paused_trials_train_to_their_next_evaluation_and_then_wait(groups):
    await groups.register("a")
    await groups.skip_baseline()
    first, second = await ask(groups, "t1", "t2", **LORA)
    await groups.pause(True)

    async def training():
        return {t: each.may_train for t, each in (await groups.take("a", -1)).trials.items()}

    assert await training() == {"t1": True, "t2": True}
    await groups.publish("a", "t1", evaluated(8))
    assert await first == evaluated(8)
    first = await ask(groups, "t1", **LORA)
    assert await training() == {"t1": False, "t2": True}
    await groups.publish("a", "t2", evaluated(8))
    assert await second == evaluated(8)
    second, third = await ask(groups, "t2", "t3", **LORA)
    assert await training() == {"t1": False, "t2": False}
    assert not (await groups.take("a", -1)).asks_for_work
    await groups.pause(True)  # it is reminded
    assert await training() == {"t1": False, "t2": False}
    version = (await groups.take("a", -1)).version
    await groups.pause(False)
    assert (await groups.take("a", version)).version > version, "the slot hears of it at once"
    assert await training() == {"t1": True, "t2": True}
    assert not any(each.done() for each in (first, second, third))


@story
async def test_a_trial_that_has_no_slot_when_it_is_paused_gets_one_and_waits(coordinator):
    asked = await ask(coordinator, "t1")
    await coordinator.pause(True)
    await coordinator.register("a")
    assert not (await coordinator.take("a", -1)).trials["t1"].may_train
    await coordinator.pause(False)
    assert (await coordinator.take("a", -1)).trials["t1"].may_train and not asked.done()
