"""Who waits, who is on board where, and what came of it: the mailbox as a plain object, without Ray."""

import asyncio
import inspect

import pytest

from trainables import slot
from trainables.hyperparameters import kind, parse
from trainables.slot import MAX_CRASHES, MAX_FAILURES, Board, Mailbox

PARAMS = {"method": "full", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}
LORA = {**PARAMS, "method": "lora", "rank": 8}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(slot, "TAKE_TIMEOUT_S", 0.02)


@pytest.fixture
def mailbox():
    return Mailbox("sweep")


@pytest.fixture
def packs():
    """Up to two trials share a slot."""
    return Mailbox("sweep", pack=2)


@pytest.fixture
def auto():
    """As many as pays share a slot."""
    return Mailbox("sweep", pack="auto", slots=2)


def story(test):
    """Run a coroutine function as a test, with ten seconds to end."""

    def run(**fixtures):
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    run.__name__, run.__doc__, run.__signature__ = test.__name__, test.__doc__, inspect.signature(test)
    return run


async def ask(mailbox, *trials, **params):
    """Trials that now wait for their next evaluation."""
    waiting = [asyncio.ensure_future(mailbox.advance(trial, params or PARAMS)) for trial in trials]
    await asyncio.sleep(0)
    return waiting if len(waiting) > 1 else waiting[0]


async def aboard(mailbox):
    return (await mailbox.snapshot())["slots"]


# --- boarding ---


@story
async def test_trials_wait_until_a_slot_has_room(mailbox):
    one, two, three = await ask(mailbox, "t1", "t2", "t3")
    assert await aboard(mailbox) == {}
    board = await mailbox.register("a")
    assert board.trials == {"t1": (PARAMS, True)}
    assert await aboard(mailbox) == {"a": ["t1"]}
    await mailbox.register("b")
    assert await aboard(mailbox) == {"a": ["t1"], "b": ["t2"]}
    await mailbox.leave("t1")
    assert await aboard(mailbox) == {"a": ["t3"], "b": ["t2"]}
    assert not two.done() and not three.done()
    assert "stopped" in await one


@story
async def test_trials_spread_over_the_emptiest_slots(packs):
    for name in ("b", "a"):
        await packs.register(name)
    await ask(packs, "t1", "t2", "t3", "t4", "t5", **LORA)
    assert await aboard(packs) == {"b": ["t2", "t4"], "a": ["t1", "t3"]}


@story
async def test_an_evaluation_answers_its_trial_and_the_trial_stays_on_board(mailbox):
    await mailbox.register("a")
    waiting = await ask(mailbox, "t1")
    board = await mailbox.publish("a", "t1", {"evaluation": {"step": 5}})
    assert await waiting == {"evaluation": {"step": 5}}
    assert board.trials == {"t1": (PARAMS, False)}, "it waits until the trial asks for more"
    again = await ask(mailbox, "t1")
    assert (await mailbox.take("a", 0)).trials["t1"][1] is True
    assert not again.done()
    await mailbox.publish("a", "t1", {"evaluation": {"step": 10}})
    assert await again == {"evaluation": {"step": 10}}


@story
async def test_a_trial_that_asks_twice_gets_the_same_answer_twice(mailbox):
    await mailbox.register("a")
    first, second = await ask(mailbox, "t1", "t1")
    await mailbox.publish("a", "t1", {"evaluation": {"step": 5}})
    assert await first == await second == {"evaluation": {"step": 5}}


@story
async def test_a_cancelled_question_does_not_cancel_the_others(mailbox):
    await mailbox.register("a")
    first, second = await ask(mailbox, "t1", "t1")
    first.cancel()
    await asyncio.sleep(0)
    await mailbox.publish("a", "t1", {"evaluation": {"step": 5}})
    assert await second == {"evaluation": {"step": 5}}


@story
async def test_leaving_answers_who_still_waits(mailbox):
    await mailbox.register("a")
    waiting = await ask(mailbox, "t1")
    await mailbox.leave("t1")
    assert list(await waiting) == ["stopped"]
    await mailbox.leave("t1")
    await mailbox.leave("nobody")


@story
async def test_a_trial_that_left_may_come_again(mailbox):
    await mailbox.register("a")
    await ask(mailbox, "t1")
    await mailbox.leave("t1")
    again = await ask(mailbox, "t1")
    assert await aboard(mailbox) == {"a": ["t1"]}
    await mailbox.publish("a", "t1", {"evaluation": {"step": 5}})
    assert await again == {"evaluation": {"step": 5}}


@story
async def test_news_from_a_slot_that_no_longer_has_the_trial_is_ignored(mailbox):
    await mailbox.register("a")
    waiting = await ask(mailbox, "t1")
    await mailbox.slot_lost("a", "its node died")
    await mailbox.register("b")
    assert await mailbox.publish("a", "t1", {"evaluation": {"step": 99}}) is None
    assert not waiting.done()
    await mailbox.publish("b", "t1", {"evaluation": {"step": 5}})
    assert await waiting == {"evaluation": {"step": 5}}
    await mailbox.leave("t1")
    assert (await mailbox.publish("b", "t1", {"failed": "too late"})).trials == {}


# --- boards ---


@story
async def test_take_waits_for_a_newer_board(mailbox):
    board = await mailbox.register("a")
    taking = asyncio.ensure_future(mailbox.take("a", board.version))
    await asyncio.sleep(0)
    assert not taking.done()
    await ask(mailbox, "t1")
    newer = await taking
    assert newer.version > board.version and list(newer.trials) == ["t1"]
    assert await mailbox.take("a", board.version) == newer, "an old version is answered at once"


@story
async def test_take_without_news_returns_the_same_board(mailbox):
    board = await mailbox.register("a")
    assert await mailbox.take("a", board.version) == board


@story
async def test_every_change_of_a_board_has_a_new_version(packs):
    mailbox = packs
    boards = [await mailbox.register("a")]
    await ask(mailbox, "t1", **LORA)
    boards.append(await mailbox.take("a", 0))
    boards.append(await mailbox.publish("a", "t1", {"evaluation": {}}))
    await ask(mailbox, "t1", **LORA)
    boards.append(await mailbox.take("a", 0))
    await ask(mailbox, "t2", **LORA)
    boards.append(await mailbox.take("a", 0))
    await mailbox.leave("t1")
    boards.append(await mailbox.take("a", 0))
    boards.append(await mailbox.register("a"))
    await mailbox.close()
    boards.append(await mailbox.take("a", 0))
    versions = [board.version for board in boards]
    assert versions == sorted(set(versions))
    assert [{t: go for t, (_, go) in board.trials.items()} for board in boards] == [
        {},
        {"t1": True},
        {"t1": False},
        {"t1": True},
        {"t1": True, "t2": True},
        {"t2": True},
        {"t2": True},
        {"t2": True},
    ]
    assert [board.stop for board in boards] == [False] * 7 + [True]


@story
async def test_changes_elsewhere_leave_a_board_alone(mailbox):
    await mailbox.register("a")
    board = await mailbox.register("b")
    await ask(mailbox, "t1")
    assert await mailbox.take("b", board.version) == board


@story
async def test_close_lets_every_slot_end_now_and_later(mailbox):
    board = await mailbox.register("a")
    taking = asyncio.ensure_future(mailbox.take("a", board.version))
    await asyncio.sleep(0)
    await mailbox.close()
    assert (await taking).stop
    assert (await mailbox.take("a", 10**6)).stop
    assert (await mailbox.register("b")).stop


# --- what goes wrong ---


@story
async def test_a_trial_whose_worker_keeps_dying_is_given_up_and_its_company_is_not(packs):
    await packs.register("a")
    bad, good = await ask(packs, "bad", "good", **LORA)
    board = await packs.register("a")
    assert {t: go for t, (_, go) in board.trials.items()} == {"bad": True, "good": True}
    board = await packs.register("a")
    assert list(board.trials) == ["bad"], "its last chance it has alone"
    board = await packs.register("a")
    assert await bad == {"failed": f"its worker process died {MAX_CRASHES} times with no evaluation in between"}
    await packs.leave("bad")
    assert list((await packs.take("a", 0)).trials) == ["good"] and not good.done()
    board = await packs.publish("a", "good", {"evaluation": {"step": 1}})
    assert (await good)["evaluation"]["step"] == 1
    await ask(packs, "good", "third", **LORA)
    assert await aboard(packs) == {"a": ["good", "third"]}, "an evaluation starts the count anew"


@story
async def test_a_lost_slot_hands_its_trials_to_another(packs):
    await packs.register("a")
    waiting = await ask(packs, "t1", "t2", **LORA)
    await ask(packs, "t3", **LORA)
    await packs.register("b")
    assert await aboard(packs) == {"a": ["t1", "t2"], "b": ["t3"]}
    await packs.slot_lost("a", "its node died")
    assert await aboard(packs) == {"b": ["t1", "t3"]}
    await packs.register("c")
    assert await aboard(packs) == {"b": ["t1", "t3"], "c": ["t2"]}
    assert not any(each.done() for each in waiting)
    await packs.publish("c", "t2", {"evaluation": {"step": 5}})
    assert await waiting[1] == {"evaluation": {"step": 5}}


@story
async def test_a_trial_that_pauses_on_a_lost_slot_goes_on_only_when_it_asks(mailbox):
    await mailbox.register("a")
    waiting = await ask(mailbox, "t1")
    await mailbox.publish("a", "t1", {"evaluation": {"step": 5}})
    await waiting
    await mailbox.slot_lost("a", "its node died")
    assert (await mailbox.register("b")).trials["t1"][1] is False
    await ask(mailbox, "t1")
    assert (await mailbox.take("b", 0)).trials["t1"][1] is True


# --- sharing ---


@story
async def test_who_changes_the_base_has_a_slot_alone(packs):
    await packs.register("a")
    await ask(packs, "full", **PARAMS)
    await ask(packs, "lora", **LORA)
    assert await aboard(packs) == {"a": ["full"]}
    await packs.leave("full")
    assert await aboard(packs) == {"a": ["lora"]}


@story
async def test_trials_over_other_bases_do_not_share(packs):
    await packs.register("a")
    await ask(packs, "lora", **LORA)
    await ask(packs, "nf4", **{**LORA, "method": "qlora"})
    await ask(packs, "int8", **{**LORA, "method": "qlora", "bits": 8})
    assert await aboard(packs) == {"a": ["lora"]}
    await packs.register("b")
    await packs.register("c")
    assert await aboard(packs) == {"a": ["lora"], "b": ["nf4"], "c": ["int8"]}


@story
async def test_who_waits_is_not_overtaken_for_ever(packs):
    """A trial that needs a slot for itself keeps the emptiest from being filled again; the others go on."""
    for name in ("a", "b"):
        await packs.register(name)
    await ask(packs, "t1", "t2", "t3", **LORA)
    assert await aboard(packs) == {"a": ["t1", "t3"], "b": ["t2"]}
    await ask(packs, "full", **PARAMS)
    await ask(packs, "t4", **LORA)
    assert await aboard(packs) == {"a": ["t1", "t3"], "b": ["t2"]}, "b is kept for the trial that waits"
    await packs.leave("t1")
    assert await aboard(packs) == {"a": ["t3", "t4"], "b": ["t2"]}
    await packs.leave("t2")
    assert await aboard(packs) == {"a": ["t3", "t4"], "b": ["full"]}


@story
async def test_invalid_parameters_travel_alone(packs):
    await packs.register("a")
    await ask(packs, "bad", method="lora", rank=-1)
    await ask(packs, "good", **LORA)
    assert await aboard(packs) == {"a": ["bad"]}


@story
async def test_after_a_failed_step_each_goes_on_alone_until_its_next_evaluation(packs):
    await packs.register("a")
    await ask(packs, "t1", "t2", **LORA)
    board = await packs.part("a", ["t1", "t2"])
    assert list(board.trials) == ["t1"]
    board = await packs.publish("a", "t1", {"failed": "CUDA error"})
    await packs.leave("t1")
    assert await aboard(packs) == {"a": ["t2"]}
    await ask(packs, "t3", **LORA)
    assert await aboard(packs) == {"a": ["t2"]}
    await packs.publish("a", "t2", {"evaluation": {"step": 5}})
    await packs.leave("nobody")
    assert await aboard(packs) == {"a": ["t2", "t3"]}


@story
async def test_how_many_share_is_measured_first(auto):
    board = await auto.register("a")
    assert board.measure == {}
    await ask(auto, "t1", "t2", "t3", "t4", **LORA)
    board = await auto.take("a", 0)
    assert list(board.trials) == ["t1"] and list(board.measure.values()) == [LORA]
    (sort,) = board.measure
    assert (await auto.register("b")).measure == {}, "one slot is enough"
    assert await aboard(auto) == {"a": ["t1"], "b": ["t2"]}
    board = await auto.publish_limit("a", sort, 2)
    assert board.measure == {} and list(board.trials) == ["t1", "t3"]
    assert await aboard(auto) == {"a": ["t1", "t3"], "b": ["t2", "t4"]}


@story
async def test_a_pack_is_as_large_as_its_worst_kind_allows(auto):
    big = {**LORA, "batch_size": 64}
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    (small_kind,) = (await auto.take("a", 0)).measure
    await auto.publish_limit("a", small_kind, 8)
    await ask(auto, "t2", "t3", **LORA)
    assert await aboard(auto) == {"a": ["t1", "t2", "t3"]}
    await ask(auto, "big", **big)
    (big_kind,) = (await auto.take("a", 0)).measure
    await auto.publish_limit("a", big_kind, 1)
    assert await aboard(auto) == {"a": ["t1", "t2", "t3"]}
    for trial in ("t1", "t2", "t3"):
        await auto.leave(trial)
    assert await aboard(auto) == {"a": ["big"]}


@story
async def test_a_slot_that_dies_while_it_measures_has_shown_that_it_does_not_fit(auto):
    await auto.register("a")
    await ask(auto, "t1", "t2", **LORA)
    board = await auto.register("a")
    assert board.measure == {} and list(board.trials) == ["t1"]


@story
async def test_a_lost_slot_hands_its_measuring_to_another(auto):
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    await auto.slot_lost("a", "its node died")
    assert list((await auto.register("b")).measure.values()) == [LORA]


@story
async def test_room_is_what_another_trial_would_find(auto):
    assert await auto.room() == 2, "slots that start count"
    await auto.expect("t1", LORA)
    assert await auto.room() == 1
    await auto.register("a")
    assert await auto.room() == 1, "b still starts; how many share a is not known"
    (sort,) = (await auto.take("a", 0)).measure
    await auto.publish_limit("a", sort, 4)
    assert await auto.room() == 3 + 1
    await auto.register("b")
    assert await auto.room() == 3 + 1
    await auto.expect("full", PARAMS)
    assert await auto.room() == 3 and await aboard(auto) == {"a": ["t1"], "b": ["full"]}
    await auto.expect("other", PARAMS)
    assert await auto.room() == 0, "it waits for a or b, and one of them is kept for it"
    await auto.expect_slots(3)
    assert await auto.room() >= 1


@story
async def test_a_place_is_kept_for_an_expected_trial_until_it_asks(auto):
    await auto.register("a")
    await auto.expect("t1", LORA)
    assert (await auto.take("a", 0)).trials == {"t1": (LORA, False)}
    waiting = await ask(auto, "t1", **LORA)
    assert (await auto.take("a", 0)).trials == {"t1": (LORA, True)}
    await auto.publish("a", "t1", {"evaluation": {"step": 5}})
    assert await waiting == {"evaluation": {"step": 5}}


@story
async def test_the_first_reason_of_a_loss_is_kept(mailbox):
    await mailbox.slot_broken("a", "model.name: there is no such model")
    await mailbox.slot_lost("a", "worker group failed")
    await mailbox.slot_lost("b", "its node died")
    assert (await mailbox.snapshot())["lost"] == {"a": "model.name: there is no such model", "b": "its node died"}


@story
async def test_a_slot_that_is_lost_while_it_waits_learns_that_it_is_unknown(mailbox):
    board = await mailbox.register("a")
    taking = asyncio.ensure_future(mailbox.take("a", board.version))
    await asyncio.sleep(0)
    await mailbox.slot_lost("a", "no heartbeat")
    assert await taking is None


@story
async def test_stop_answers_everyone_now_and_from_now_on(mailbox):
    await mailbox.register("a")
    waiting = await ask(mailbox, "t1", "t2")
    await mailbox.stop_trials("the budget is spent")
    for each in waiting:
        assert await each == {"stopped": "the budget is spent"}
    assert await mailbox.advance("t3", PARAMS) == {"stopped": "the budget is spent"}
    assert (await mailbox.take("a", 0)).trials == {}
    assert await aboard(mailbox) == {"a": []}
    assert not (await mailbox.take("a", 0)).stop, "slots end when they are told to"


@story
async def test_a_restarted_mailbox_is_told_everything_again(mailbox):
    """The actor came back empty; Ray repeats the calls that were under way."""
    old = await mailbox.register("a")
    await ask(mailbox, "t1")
    fresh = Mailbox("sweep")
    assert await fresh.take("a", old.version) is None
    assert await fresh.publish("a", "t1", {"evaluation": {"step": 5}}) is None
    assert await fresh.publish_baseline("a", {"val_loss": 1.0}) is None
    again = await ask(fresh, "t1")
    board = await fresh.register("a")
    assert list(board.trials) == ["t1"]
    assert (await fresh.take("a", 0)) == board
    await fresh.publish("a", "t1", {"evaluation": {"step": 10}})
    assert await again == {"evaluation": {"step": 10}}


# --- the untuned base, progress ---


@story
async def test_one_slot_measures_the_untuned_base(mailbox):
    assert (await mailbox.register("a")).baseline
    assert not (await mailbox.register("b")).baseline
    assert (await mailbox.register("a")).baseline, "its worker died before it was done"
    board = await mailbox.publish_baseline("a", {"val_loss": 1.0})
    assert not board.baseline
    assert not (await mailbox.register("a")).baseline
    assert (await mailbox.snapshot())["baseline"] == {"val_loss": 1.0}


@story
async def test_the_untuned_base_is_measured_by_another_slot_when_the_first_is_lost(mailbox):
    await mailbox.register("a")
    board = await mailbox.register("b")
    taking = asyncio.ensure_future(mailbox.take("b", board.version))
    await asyncio.sleep(0)
    await mailbox.slot_lost("a", "its node died")
    assert (await taking).baseline


@story
async def test_the_untuned_base_waits_for_a_slot_when_the_only_one_is_lost(mailbox):
    await mailbox.register("a")
    await mailbox.slot_lost("a", "its node died")
    assert (await mailbox.register("b")).baseline


@story
async def test_a_known_baseline_is_not_measured_again(mailbox):
    await mailbox.skip_baseline()
    assert not (await mailbox.register("a")).baseline
    await mailbox.slot_lost("a", "its node died")
    assert not (await mailbox.register("b")).baseline


@story
async def test_progress_is_that_of_trials_on_board(mailbox):
    await mailbox.register("a")
    await ask(mailbox, "t1")
    await mailbox.progress("t1", 40, 12.5)
    await mailbox.progress("gone", 1, 1.0)
    assert (await mailbox.snapshot())["progress"] == {"t1": {"samples_seen": 40, "samples_per_s": 12.5}}
    await mailbox.leave("t1")
    assert (await mailbox.snapshot())["progress"] == {}


def test_boards_compare_by_what_they_say():
    assert Board(version=1) == Board(version=1) != Board(version=1, stop=True)
    assert repr(Mailbox("quick")) == "quick:mailbox"


# --- errands ---


@story
async def test_an_errand_waits_for_a_slot_without_trials(mailbox):
    await ask(mailbox, "t1")
    await mailbox.register("a")
    await mailbox.errand("test", {"kind": "test"})
    assert (await mailbox.take("a", 0)).errand is None
    await mailbox.publish("a", "t1", {"evaluation": {"step": 1}})
    await mailbox.leave("t1")
    board = await mailbox.take("a", 0)
    assert board.errand == ("test", {"kind": "test"})
    await mailbox.publish_errand("a", "test", {"loss": 1.0})
    assert (await mailbox.take("a", 0)).errand is None
    assert (await mailbox.snapshot())["errands"] == {"test": {"loss": 1.0}}


@story
async def test_two_errands_run_side_by_side_and_one_slot_takes_one_after_another(mailbox):
    await mailbox.register("a")
    for name in ("one", "two", "three"):
        await mailbox.errand(name, {"kind": name})
        await mailbox.errand(name, {"kind": name})  # asked again, it is the same
    assert (await mailbox.register("b")).errand == ("two", {"kind": "two"})
    assert (await mailbox.take("a", 0)).errand == ("one", {"kind": "one"})
    assert (await mailbox.publish_errand("a", "one", {})).errand == ("three", {"kind": "three"})


@story
async def test_an_errand_whose_slot_dies_is_done_again_and_given_up_in_the_end(mailbox):
    await mailbox.errand("one", {"kind": "one"})
    await mailbox.register("a")
    await mailbox.slot_lost("a", "gone")
    assert (await mailbox.register("b")).errand == ("one", {"kind": "one"})
    for _ in range(MAX_CRASHES - 1):
        assert (await mailbox.register("b")).errand is not None
    assert (await mailbox.register("b")).errand is None
    assert "died" in (await mailbox.snapshot())["errands"]["one"]["error"]


@story
async def test_an_errand_asked_for_early_waits_until_a_slot_is_free(mailbox):
    await mailbox.errand("one", {"kind": "one"})
    assert (await mailbox.snapshot())["errands"] == {"one": None}
    await ask(mailbox, "t1")
    board = await mailbox.register("a")
    assert list(board.trials) == ["t1"] and board.errand is None, "who waits for a slot comes first"
    taking = asyncio.ensure_future(mailbox.take("a", board.version))
    await asyncio.sleep(0)
    await mailbox.leave("t1")
    assert (await taking).errand == ("one", {"kind": "one"})


@story
async def test_a_trial_boards_a_free_slot_rather_than_one_on_an_errand(mailbox):
    """Though the other would be the first by name."""
    await mailbox.register("a")
    await mailbox.errand("one", {"kind": "one"})
    await mailbox.register("b")
    await ask(mailbox, "t1")
    assert await aboard(mailbox) == {"a": [], "b": ["t1"]}
    assert (await mailbox.take("a", 0)).errand == ("one", {"kind": "one"})


@story
async def test_a_trial_shares_a_slot_rather_than_board_one_on_an_errand(packs):
    await packs.register("a")
    await packs.errand("one", {"kind": "one"})
    await packs.register("b")
    await ask(packs, "t1", "t2", **LORA)
    assert await aboard(packs) == {"a": [], "b": ["t1", "t2"]}


@story
async def test_a_trial_boards_a_slot_on_an_errand_where_there_is_no_other(mailbox):
    """It trains as soon as the errand is done; the errand stays."""
    await mailbox.register("a")
    await mailbox.errand("one", {"kind": "one"})
    await mailbox.register("b")
    await ask(mailbox, "t1", "t2")
    assert await aboard(mailbox) == {"a": ["t2"], "b": ["t1"]}
    board = await mailbox.take("a", 0)
    assert board.errand == ("one", {"kind": "one"}) and board.trials == {"t2": (PARAMS, True)}
    board = await mailbox.publish_errand("a", "one", {"loss": 1.0})
    assert board.errand is None and list(board.trials) == ["t2"]


@story
async def test_a_slot_whose_errand_is_done_is_as_free_as_any(mailbox):
    await mailbox.register("a")
    await mailbox.errand("one", {"kind": "one"})
    await mailbox.register("b")
    await mailbox.publish_errand("a", "one", {})
    await ask(mailbox, "t1")
    assert await aboard(mailbox) == {"a": ["t1"], "b": []}


@story
async def test_an_errand_is_given_to_no_slot_that_has_a_trial_or_an_errand(mailbox):
    await ask(mailbox, "t1")
    await mailbox.register("a")
    await mailbox.register("b")
    for name in ("one", "two"):
        await mailbox.errand(name, {"kind": name})
    assert (await mailbox.take("a", 0)).errand is None
    assert (await mailbox.take("b", 0)).errand == ("one", {"kind": "one"})
    await mailbox.leave("t1")
    assert (await mailbox.take("a", 0)).errand == ("two", {"kind": "two"})


@story
async def test_a_trial_that_waits_for_an_errand_moves_to_a_slot_that_gets_free(mailbox):
    await mailbox.register("a")
    await mailbox.errand("one", {"kind": "one"})
    await mailbox.register("b")
    await ask(mailbox, "t1", "t2")
    await mailbox.leave("t1")
    assert await aboard(mailbox) == {"a": [], "b": ["t2"]}
    assert (await mailbox.take("a", 0)).trials == {} and (await mailbox.take("a", 0)).errand is not None


# --- slots at fault ---

BROKE = {"failed": "RuntimeError: no kernel image"}


async def fail(mailbox, slot, outcome=BROKE):
    """Whoever is on board of a slot fails there."""
    (trial,) = (await aboard(mailbox))[slot]
    await mailbox.publish(slot, trial, dict(outcome))
    return trial


async def prove(mailbox, slot, trial):
    """A trial is evaluated on a slot and leaves."""
    waiting = await ask(mailbox, trial)
    assert (await aboard(mailbox))[slot] == [trial]
    await mailbox.publish(slot, trial, {"evaluation": {"step": 1}})
    await waiting
    await mailbox.leave(trial)


@story
async def test_a_slot_that_fails_every_trial_gets_no_more_and_they_go_on_elsewhere(mailbox):
    await mailbox.register("bad")
    await mailbox.register("good")
    waiting = dict(zip("abcdef", await ask(mailbox, *"abcdef"), strict=True))
    failed = [await fail(mailbox, "bad") for _ in range(MAX_FAILURES)]
    assert (await mailbox.snapshot())["aside"] == {"bad": dict.fromkeys(failed, BROKE["failed"])}
    assert (await mailbox.take("bad", 0)).trials == {}
    done = set()
    while done != set("abcdef"):
        assert (await aboard(mailbox))["bad"] == []
        (trial,) = (await aboard(mailbox))["good"]
        await mailbox.publish("good", trial, {"evaluation": {"step": 5}})
        assert await waiting[trial] == {"evaluation": {"step": 5}}
        await mailbox.leave(trial)
        done.add(trial)
    assert await mailbox.room() == 1
    await mailbox.errand("one", {"kind": "one"})
    assert (await mailbox.take("good", 0)).errand and (await mailbox.take("bad", 0)).errand is None
    assert (await mailbox.register("bad")).trials == {}, "nor after a new start"


@story
async def test_a_trial_that_fails_also_on_a_slot_that_works_has_failed(mailbox):
    """And it says nothing about the slots, not even where three such trials come one after another."""
    await mailbox.register("one")
    await prove(mailbox, "one", "before")
    await mailbox.register("two")
    for trial in ("t1", "t2", "t3", "t4"):
        waiting = await ask(mailbox, trial)
        assert await fail(mailbox, "one") == trial
        assert not waiting.done() and await aboard(mailbox) == {"one": [], "two": [trial]}
        await fail(mailbox, "two")
        if trial == "t1":  # two has shown nothing yet either
            assert await waiting == BROKE, "there is no third slot"
            await mailbox.leave(trial)
            await ask(mailbox, "busy")
            await prove(mailbox, "two", "proof")
            await mailbox.leave("busy")
            continue
        assert await waiting == BROKE
        await mailbox.leave(trial)
    assert (await mailbox.snapshot())["aside"] == {}


@story
async def test_a_trial_fails_at_once_where_there_is_no_other_slot_and_the_third_ends_the_slot(mailbox):
    await mailbox.register("only")
    for trial in ("t1", "t2"):
        waiting = await ask(mailbox, trial)
        await fail(mailbox, "only")
        assert await waiting == BROKE
        await mailbox.leave(trial)
    third = await ask(mailbox, "t3")
    await fail(mailbox, "only")
    assert list((await mailbox.snapshot())["aside"]) == ["only"] and not third.done(), (
        "the sweep ends, and it goes on later"
    )
    await mailbox.stop_trials("no slot could run")
    assert await third == {"stopped": "no slot could run"}


@story
async def test_an_evaluation_starts_the_count_of_failures_anew(mailbox):
    await mailbox.register("only")
    for number in range(3 * MAX_FAILURES):
        trial = f"t{number}"
        waiting = await ask(mailbox, trial)
        outcome = BROKE if number % MAX_FAILURES else {"evaluation": {"step": 1}}
        await mailbox.publish("only", trial, dict(outcome))
        assert await waiting == outcome
        await mailbox.leave(trial)
    assert (await mailbox.snapshot())["aside"] == {}


@story
async def test_configurations_that_fail_anywhere_say_nothing_about_the_slot(mailbox):
    await mailbox.register("a")
    await mailbox.register("b")
    refused = {"failed": "targets: no such layer", "certain": True}
    for number in range(2 * MAX_FAILURES):
        waiting = await ask(mailbox, f"t{number}")
        (slot,) = [slot for slot, trials in (await aboard(mailbox)).items() if trials]
        await mailbox.publish(slot, f"t{number}", dict(refused))
        assert await waiting == refused
        await mailbox.leave(f"t{number}")
    assert (await mailbox.snapshot())["aside"] == {}


@story
async def test_a_slot_whose_process_dies_under_every_trial_is_set_aside_too(mailbox):
    await mailbox.register("a")
    await mailbox.register("b")
    waiting = await ask(mailbox, "t1", "t2", "t3", "t4")
    for _ in range(MAX_CRASHES * MAX_FAILURES):
        await mailbox.register("a")
    assert list((await mailbox.snapshot())["aside"]) == ["a"]
    assert not any(each.done() for each in waiting)
    assert await aboard(mailbox) == {"a": [], "b": ["t2"]}


@story
async def test_a_trial_waits_for_a_slot_that_starts_rather_than_fail_again_on_the_same(auto):
    await auto.register("a")
    waiting = await ask(auto, "t1", **LORA)
    await fail(auto, "a")
    assert await aboard(auto) == {"a": []} and not waiting.done()
    await auto.register("b")
    assert await aboard(auto) == {"a": [], "b": ["t1"]}


@story
async def test_a_trial_that_failed_and_whose_last_other_slot_is_lost_has_failed(mailbox):
    await mailbox.register("a")
    await mailbox.register("b")
    waiting, _ = await ask(mailbox, "t1", "t2")
    await fail(mailbox, "a")
    assert not waiting.done()
    await mailbox.slot_lost("b", "its node died")
    assert await waiting == BROKE


@story
async def test_another_slot_measures_the_untuned_base_when_the_first_is_set_aside_or_keeps_dying(mailbox):
    await mailbox.register("a")
    await mailbox.register("b")
    for trial in ("t1", "t2", "t3", "t4"):
        await mailbox.expect(trial, PARAMS)
    for _ in range(MAX_FAILURES):
        await fail(mailbox, "a")
    assert not (await mailbox.take("a", 0)).baseline and (await mailbox.take("b", 0)).baseline
    for _ in range(MAX_CRASHES):
        board = await mailbox.register("b")
    assert not board.baseline and "died" in (await mailbox.snapshot())["baseline"]["error"]


# --- who does not fit ---


@story
async def test_who_does_not_fit_beside_the_others_waits_and_boards_when_there_is_room():
    mailbox = Mailbox("sweep", pack=4)
    await mailbox.register("a")
    *_, late = await ask(mailbox, "t1", "t2", "t3", **LORA)
    assert (await aboard(mailbox))["a"] == ["t1", "t2", "t3"]
    board = await mailbox.no_room("a", "t3", 2)
    assert list(board.trials) == ["t1", "t2"] and not late.done()
    await mailbox.leave("t1")
    assert (await aboard(mailbox))["a"] == ["t2", "t3"], "as many as were there before"
    await ask(mailbox, "t4", **LORA)
    assert (await aboard(mailbox))["a"] == ["t2", "t3"]
    await mailbox.no_room("a", "t3", 1)
    await mailbox.register("b")
    assert await aboard(mailbox) == {"a": ["t2"], "b": ["t3"]}, "of a base that nobody can share"
    assert (await mailbox.snapshot())["limits"] == {kind(parse(LORA)): 1}


@story
async def test_a_fixed_number_of_trials_is_not_exceeded_by_what_is_measured(packs):
    await packs.register("a")
    await packs.publish_limit("a", kind(parse(LORA)), 8)
    await ask(packs, "t1", "t2", "t3", **LORA)
    assert await aboard(packs) == {"a": ["t1", "t2"]}


@story
async def test_what_is_measured_is_not_raised_by_who_does_not_fit(auto):
    await auto.register("a")
    await ask(auto, "t1", **LORA)
    await auto.publish_limit("a", kind(parse(LORA)), 2)
    await ask(auto, "t2", **LORA)
    await auto.no_room("a", "t2", 5)
    assert (await auto.snapshot())["limits"] == {kind(parse(LORA)): 2}


# --- a mailbox that was restarted ---


@story
async def test_an_errand_that_was_under_way_is_done_when_a_restarted_mailbox_hears_of_it(mailbox):
    assert await mailbox.publish_errand("a", "test", {"loss": 1.0}) is None
    await mailbox.register("a")
    await mailbox.errand("test", {"kind": "test"})
    assert (await mailbox.take("a", 0)).errand is None
    assert (await mailbox.snapshot())["errands"] == {"test": {"loss": 1.0}}


@story
async def test_an_errand_that_is_done_twice_has_its_first_result(mailbox):
    await mailbox.register("a")
    await mailbox.errand("test", {"kind": "test"})
    await mailbox.publish_errand("b", "test", {"loss": 1.0})
    await mailbox.publish_errand("a", "test", {"loss": 2.0})
    assert (await mailbox.snapshot())["errands"] == {"test": {"loss": 1.0}}


@story
async def test_a_restarted_mailbox_is_reminded_that_the_untuned_base_is_measured(mailbox):
    assert (await mailbox.register("a")).baseline
    await mailbox.skip_baseline()
    assert not (await mailbox.take("a", 1)).baseline
    assert not (await mailbox.register("b")).baseline


CALLS = {
    "advance": ("t1", PARAMS),
    "leave": ("t1",),
    "register": ("a",),
    "take": ("a", 7),
    "publish": ("a", "t1", {"evaluation": {"step": 5}}),
    "publish_baseline": ("a", {"val_loss": 1.0}),
    "publish_errand": ("a", "test", {}),
    "publish_limit": ("a", "kind", 2),
    "part": ("a", ["t1", "t2"]),
    "no_room": ("a", "t1", 2),
    "progress": ("t1", 40, 1.0),
    "errand": ("test", {"kind": "test"}),
    "expect": ("t1", PARAMS),
    "expect_slots": (2,),
    "room": (),
    "skip_baseline": (),
    "slot_broken": ("a", "why"),
    "slot_lost": ("a", "why"),
    "stop_trials": ("why",),
    "close": (),
    "snapshot": (),
}


def test_every_method_is_called_on_a_mailbox_that_knows_nothing():
    public = {name for name, value in vars(Mailbox).items() if not name.startswith("_") and callable(value)}
    assert public == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_mailbox_that_knows_nothing_takes_every_call_and_serves_a_trial_afterwards(name):
    async def tell():
        mailbox = Mailbox("sweep", pack=2, slots=1)
        call = asyncio.ensure_future(getattr(mailbox, name)(*CALLS[name]))
        await asyncio.sleep(0)
        board = await mailbox.register("a")
        if name == "stop_trials":
            assert await mailbox.advance("t1", PARAMS) == {"stopped": "why"}
            return
        waiting = await ask(mailbox, "t1")
        board = await mailbox.take("a", 0)
        assert list(board.trials) == ["t1"] and board.stop is (name == "close")
        await mailbox.publish("a", "t1", {"evaluation": {"step": 9}})
        assert await waiting == {"evaluation": {"step": 9}}
        await call

    asyncio.run(asyncio.wait_for(tell(), 10))
