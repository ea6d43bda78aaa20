"""Whose turn it is on a cluster that several sweeps share, with a clock of our own."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster import ClusterError
from cluster.config import ClusterConfig
from cluster.shares import LEASE_S, MOST_OWED, Asking, Shares, fair_shares

SLICE_S = 600.0
EVERY_S = 20.0  # between the questions of a sweep


class Sweep:
    """One that takes what it is granted; `slow` is for how long a slot of it takes to go or to come."""

    def __init__(self, name, *, weight=1.0, room=2, wanted=math.inf, slow=0.0):
        self.name, self.weight, self.room, self.wanted = name, weight, room, wanted
        self.held, self.served, self.granted, self.slow = 0, 0.0, None, slow
        self.waits = 0.0
        self.longest_wait = 0.0


class Cluster:
    def __init__(self, *sweeps):
        self.now = 0.0
        self.shares = Shares(clock=lambda: self.now)
        self.sweeps = list(sweeps)

    def run(self, seconds):
        until = self.now + seconds
        while self.now < until:
            for sweep in self.sweeps:
                wanted = int(min(sweep.wanted, sweep.room))
                sweep.granted, _ = self.shares.ask(
                    sweep.name,
                    weight=sweep.weight,
                    room=sweep.room,
                    wanted=wanted,
                    held=sweep.held,
                    slice_s=SLICE_S,
                )
                sweep.may = wanted if sweep.granted is None else min(wanted, sweep.granted)
            for sweep in self.sweeps:  # first who must go goes
                sweep.held = min(sweep.held, sweep.may)
            for sweep in self.sweeps:
                free = 1.0 - sum(each.held / each.room for each in self.sweeps)
                more = min(sweep.may - sweep.held, int(free * sweep.room + 1e-9))
                sweep.held += max(0, more)
            assert sum(each.held / each.room for each in self.sweeps) <= 1 + 1e-9
            for sweep in self.sweeps:
                sweep.served += EVERY_S * sweep.held / sweep.room
                sweep.waits = 0.0 if sweep.held else sweep.waits + EVERY_S
                sweep.longest_wait = max(sweep.longest_wait, sweep.waits)
            self.now += EVERY_S


def parts(sweeps):
    served = sum(each.served for each in sweeps)
    return [each.served / served for each in sweeps]


@pytest.mark.parametrize(
    ("room", "weights"),
    [
        (1, [1, 1]),
        (1, [1, 1, 1]),
        (2, [1, 1]),
        (3, [1, 1]),
        (3, [2, 1]),
        (8, [1, 1, 1]),
        (8, [3, 1]),
        (1, [4, 1]),
    ],
)
def test_each_gets_its_share_of_time_whatever_the_number_of_slots(room, weights):
    sweeps = [Sweep(f"s{i}", weight=w, room=room) for i, w in enumerate(weights)]
    Cluster(*sweeps).run(40 * SLICE_S)
    due = [weight / sum(weights) for weight in weights]
    for got, expected in zip(parts(sweeps), due, strict=True):
        assert got == pytest.approx(expected, rel=0.1)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0, 5.0]), st.integers(1, 6)), min_size=2, max_size=5
    )
)
@example([(5.0, 2), (0.5, 1), (5.0, 3)])
@example([(5.0, 2), (0.5, 1), (5.0, 3), (5.0, 6), (5.0, 5)])
@settings(max_examples=10, deadline=None)
def test_none_starves_and_no_slot_idles(asked):
    """Sweeps whose slots are of unlike sizes, too: one whose slot takes the whole cluster, and which
    is due little of it, waits until the others must all go, which is when as much is owed to it as is
    remembered, at the latest.
    """
    sweeps = [Sweep(f"s{i}", weight=w, room=room) for i, (w, room) in enumerate(asked)]
    cluster = Cluster(*sweeps)
    least_due = min(each.weight for each in sweeps) / sum(each.weight for each in sweeps)
    cluster.run(MOST_OWED * SLICE_S / least_due)
    assert all(each.served > 0 for each in sweeps)
    assert any(each.held for each in sweeps)


def test_alone_it_takes_all_and_gives_half_at_once_to_who_comes():
    first, second = Sweep("a", room=4), Sweep("b", room=4)
    cluster = Cluster(first)
    cluster.run(100 * SLICE_S)
    assert (first.granted, first.held) == (None, 4)
    cluster.sweeps.append(second)
    cluster.run(2 * EVERY_S)
    assert (first.held, second.held) == (2, 2), "what one had before is not held against it"


def test_who_takes_turns_keeps_a_slot_for_a_slice():
    first, second = Sweep("a", room=1), Sweep("b", room=1)
    cluster = Cluster(first, second)
    changes, before = 0, None
    for _ in range(int(20 * SLICE_S / EVERY_S)):
        cluster.run(EVERY_S)
        now = (first.held, second.held)
        changes, before = changes + (before not in (None, now)), now
    assert 8 <= changes <= 20
    assert max(first.longest_wait, second.longest_wait) <= (MOST_OWED + 1) * SLICE_S


def test_what_one_has_no_work_for_goes_to_the_others():
    few, many = Sweep("few", room=8, wanted=1), Sweep("many", room=8)
    Cluster(few, many).run(10 * EVERY_S)
    assert (few.held, many.held) == (1, 7)


def test_who_is_not_heard_of_has_ended():
    first, second = Sweep("a", room=2), Sweep("b", room=2)
    cluster = Cluster(first, second)
    cluster.run(2 * EVERY_S)
    cluster.sweeps.remove(second)
    cluster.run(LEASE_S + 2 * EVERY_S)
    assert (first.granted, first.held) == (None, 2)
    assert cluster.shares.leave("a") and not cluster.shares._owed


def test_shares_of_unlike_slots_are_of_the_cluster():
    """Four slots of one kind fill it, or eight of the other (dominant resource fairness)."""

    def asking(room, weight=1.0, wanted=100):
        return Asking(weight=weight, room=room, wanted=wanted, held=0, slice_s=SLICE_S)

    assert fair_shares({"a": asking(4), "b": asking(8)}) == {"a": 0.5, "b": 0.5}
    assert fair_shares({"a": asking(4, weight=3.0), "b": asking(8)}) == {"a": 0.75, "b": 0.25}
    assert fair_shares({"a": asking(4, wanted=1), "b": asking(8)}) == {"a": 0.25, "b": 0.75}
    assert fair_shares({}) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"slots": 2, "max_slots": 3}, r"^cluster.max_slots: goes with slots: auto, got slots: 2"),
        ({"max_slots": 0}, r"^cluster.max_slots: must be at least 1, got 0$"),
        ({"priority": 0}, r"^cluster.priority: must be above 0, got 0$"),
        ({"slice_minutes": -1}, r"^cluster.slice_minutes: must be above 0, got -1$"),
    ],
)
def test_refused(given, words):
    with pytest.raises(ClusterError, match=words):
        ClusterConfig(**given)
