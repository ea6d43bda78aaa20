"""What a sweep holds of devices, counted over all its processes, and the budgets of it."""

import pytest

from cluster.connect import SlotPlan
from sweeps.config.schema import SearchConfig
from sweeps.ledger.folder import Ledger
from sweeps.run.device_time import DeviceTime
from sweeps.run.plan import _budget_lines
from trainables.errors import InputError


def plan(**resources):
    return SlotPlan(
        slots=2,
        room=2,
        workers_per_slot=2,
        resources_per_worker=resources,
        threads_per_worker=1,
        reason="",
    )


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_slots_are_counted_as_they_come_and_go_and_a_kill_loses_what_was_not_written(tmp_path):
    ledger, clock, slots = Ledger(str(tmp_path)), Clock(), [2]
    first = DeviceTime(ledger, clock)
    clock.now += 50  # before there are slots
    assert first.seconds() == 0.0
    first.save()
    assert not ledger.store.exists("cost.json")
    first.start(plan(GPU=0.5), lambda: slots[0])
    clock.now += 10
    assert first.seconds() == 10 * 2 * 2 * 0.5
    slots[0] = 1
    clock.now += 10
    first.save()
    assert ledger.store.read_json("cost.json") == {"device": "GPU", "device_seconds": 30.0}
    clock.now += 1000  # killed
    second = DeviceTime(ledger, clock)
    second.start(plan(GPU=0.5), lambda: slots[0])
    clock.now += 10
    second.stop()
    clock.now += 10
    second.save()
    assert ledger.store.read_json("cost.json")["device_seconds"] == 40.0


def test_without_an_accelerator_cores_are_counted(tmp_path):
    clock = Clock()
    counted = DeviceTime(Ledger(str(tmp_path)), clock)
    counted.start(plan(CPU=4), lambda: 1)
    clock.now += 1
    counted.save()
    written = Ledger(str(tmp_path)).store.read_json("cost.json")
    assert written == {"device": "CPU core", "device_seconds": 8.0}


@pytest.mark.parametrize(
    ("search", "hours", "words"),
    [
        ({}, None, "no budget of device hours"),
        ({"device_hours": 8}, 8, "the budget of 8 device hours"),
        ({"cost": 40, "price": 2.5}, 16, "the budget of 40 at 2.5 a device hour"),
        ({"cost": 40, "price": 2.5, "device_hours": 8}, 8, "the budget of 8 device hours"),
        ({"cost": 10, "price": 2.5, "device_hours": 8}, 4, "the budget of 10 at 2.5 a device hour"),
    ],
)
def test_the_smaller_budget_counts(search, hours, words):
    config = SearchConfig(space={}, **search)
    assert (config.device_budget_h(), config.device_budget_words()) == (hours, words)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"device_hours": 0}, "search.device_hours: must be above 0, got 0"),
        ({"cost": -1, "price": 1}, "search.cost: must be above 0, got -1"),
        ({"cost": 5, "price": 0}, "search.price: must be above 0, got 0"),
        ({"cost": 5}, "search.cost: needs search.price, that of an hour of a device"),
    ],
)
def test_a_budget_that_is_none(search, words):
    with pytest.raises(InputError) as raised:
        SearchConfig(space={}, **search)
    assert str(raised.value) == words


@pytest.mark.parametrize(
    ("hours", "device_hours", "lines"),
    [
        (
            16.0,
            32.0,
            [
                "The time budget of 8h is enough for 50% of that",
                "The budget of 10 device hours is enough for 31% of that",
            ],
        ),
        (
            4.0,
            10.0,
            ["The time budget of 8h suffices", "The budget of 10 device hours suffices"],
        ),
        (4.0, None, ["The time budget of 8h suffices"]),
    ],
)
def test_check_compares_budgets_with_the_time_that_it_estimates(hours, device_hours, lines):
    config = SearchConfig(space={}, time_budget="8h", device_hours=10)
    assert [*_budget_lines(config, hours, device_hours)] == lines
    assert not [*_budget_lines(SearchConfig(space={}), hours, device_hours)]
