"""Several sweeps on one cluster: how many slots each may hold at a moment.

A small actor of the cluster hears from every sweep what it wants and holds. Shares are those of
dominant resource fairness with weights (Ghodsi et al., 2011): a slot takes one part in so many of
the cluster as slots of its kind would fit there. Where shares are no whole slots, sweeps take
turns: the next goes to whom most is owed, so that none starves, even where there are fewer slots
than sweeps.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import ray.exceptions

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

NAME, NAMESPACE = "shares", "finetune-sweeps"
LEASE_S = 60.0  # a sweep that is not heard of for longer has ended
ASK_TIMEOUT_S = 10.0
MOST_OWED = 3  # slices that a sweep may be behind or ahead: what is older is forgiven
EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What a sweep asks for."""

    weight: float
    """Its priority: of two that want more than there is, one of twice the weight gets twice as
    much.
    """
    room: int
    """Slots of its kind that the whole cluster would hold."""
    wanted: int
    """Slots that it has work for."""
    held: int
    """Slots that it has now."""
    slice_s: float
    """For how long a slot that several take turns at stays with one, at least."""

    @property
    def part(self) -> float:
        """Of the cluster, that a slot takes."""
        return 1 / max(1, self.room)

    @property
    def demand(self) -> float:
        return min(1.0, self.wanted * self.part)


def fair_shares(asking: Mapping[str, Asking]) -> dict[str, float]:
    """The part of the cluster that is due to each: by weight, and what one has no work for to the
    others.
    """
    due: dict[str, float] = {}
    left = 1.0
    waiting = dict(asking)
    while waiting:
        level = left / sum(each.weight for each in waiting.values())
        content = [n for n, each in waiting.items() if each.demand <= level * each.weight + EPSILON]
        if not content:
            return due | {name: level * each.weight for name, each in waiting.items()}
        for name in content:
            due[name] = waiting.pop(name).demand
            left = max(0.0, left - due[name])
    return due


class Shares:
    """Who has been served how much, and who is next. An actor, that all may forget: it is told
    everything again with every question.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asking: dict[str, Asking] = {}
        self._heard: dict[str, float] = {}
        self._owed: dict[str, float] = {}  # seconds of the whole cluster
        self._granted: dict[str, int] = {}
        self._counted = clock()

    def ask(
        self, sweep: str, *, weight: float, room: int, wanted: int, held: int, slice_s: float
    ) -> tuple[int | None, Sequence[str]]:
        """How many slots `sweep` may hold now, and who else is there; None: as many as it likes."""
        self._count()
        self._asking[sweep] = Asking(
            weight=weight, room=room, wanted=wanted, held=held, slice_s=slice_s
        )
        self._heard[sweep] = self._clock()
        self._owed.setdefault(sweep, 0.0)
        others = sorted(self._asking.keys() - {sweep})
        if not others:
            self._granted = {}
            return None, others
        self._granted = self._grants()
        return self._granted[sweep], others

    def leave(self, sweep: str) -> bool:
        """Returns whether none is left."""
        self._count()
        self._forget(sweep)
        return not self._asking

    def _forget(self, sweep: str) -> None:
        for kept in (self._asking, self._heard, self._owed, self._granted):
            kept.pop(sweep, None)

    def _count(self) -> None:
        """What has been served since the last question."""
        now = self._clock()
        due = fair_shares(self._asking)
        # what nobody can have, as slots of unlike sizes leave it over, is owed to nobody: else all
        # are owed the most there is, and who needs the whole cluster for a slot never gets it
        had = sum(each.held * each.part for each in self._asking.values())
        whole = sum(due.values())
        served = had / whole if whole else 0.0
        for sweep, each in self._asking.items():
            behind = (due[sweep] * served - each.held * each.part) * (now - self._counted)
            most = MOST_OWED * each.slice_s
            self._owed[sweep] = min(most, max(-most, self._owed[sweep] + behind))
        self._counted = now
        for sweep in [name for name, heard in self._heard.items() if now - heard > LEASE_S]:
            self._forget(sweep)

    def _grants(self) -> dict[str, int]:
        """Slot after slot to whom most would be owed after the next slice, as long as one fits. A
        slot that a sweep has stays with it until another is owed more by a slice of it.
        """
        due = fair_shares(self._asking)
        slice_s = max(each.slice_s for each in self._asking.values())
        granted = dict.fromkeys(self._asking, 0)
        left = 1.0

        def owed(name: str) -> float:
            part = self._asking[name].part
            keeps = granted[name] < self._granted.get(name, 0)
            more = due[name] - (granted[name] - keeps) * part
            return self._owed[name] + slice_s * more

        def fits(name: str) -> bool:
            each = self._asking[name]
            return granted[name] < each.wanted and each.part <= left + EPSILON

        while fitting := [name for name in self._asking if fits(name)]:
            name = max(fitting, key=lambda name: (owed(name), name))
            granted[name] += 1
            left -= self._asking[name].part
        return granted


class ShareOfSweep:
    """A sweep's side of it."""

    def __init__(self, sweep: str, *, weight: float, slice_s: float) -> None:
        self._sweep, self._weight, self._slice_s = sweep, weight, slice_s
        self._actor: ActorHandle | None = None
        self.others: Sequence[str] = ()

    def ask(self, *, room: int, wanted: int, held: int) -> int | None:
        """How many slots the sweep may hold now; None: as many as it likes, as it is alone. Raises
        RayError where the cluster does not answer.
        """
        if self._actor is None:
            self._actor = _actor()
        question: ObjectRef[tuple[int | None, Sequence[str]]] = self._actor.ask.remote(
            self._sweep,
            weight=self._weight,
            room=room,
            wanted=wanted,
            held=held,
            slice_s=self._slice_s,
        )
        try:
            ((slots, self.others),) = ray.get([question], timeout=ASK_TIMEOUT_S)
        except ray.exceptions.ActorDiedError:  # the last of the others has ended it just now
            self._actor = None
            raise
        return slots

    def leave(self) -> None:
        """The sweep needs no slot any more; the last one ends the actor."""
        if self._actor is None:
            return
        with suppress(ray.exceptions.RayError):
            leaving: ObjectRef[bool] = self._actor.leave.remote(self._sweep)
            if ray.get([leaving], timeout=ASK_TIMEOUT_S)[0]:
                ray.kill(self._actor)


def _actor() -> "ActorHandle":
    actor = ray.remote(Shares).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=1,
    )
    # Ray's types have no word for the handle of a class that was not decorated
    return actor.remote()  # pyright: ignore[reportReturnType]
