"""What the coordinator keeps of trials, of jobs and of slots."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainables.evaluation.record import Job, JobResult
from trainables.runtime.protocol import Failed, Outcome, Parameters

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# trials that may fail on a slot one after another, with no evaluation in between, before it gets no
# more
MAX_FAILURES = 3


class Patience:
    """Of trials that rather wait for a slot that starts than share one: it ends."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        """then: called as it ends."""
        self._seconds, self._then = seconds, then
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def lasts(self, starting: int) -> bool:
        """starting: slots that are awaited."""
        if not starting:
            self.renew()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        return not self._over

    def renew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._over = None, False

    def _end(self) -> None:
        self._over = True
        self._then()


class Places:
    """Which trials are on which slot: asked of every slot whenever something happens to a trial,
    so that looking through all trials would take ever longer the more there are.
    """

    def __init__(self) -> None:
        self._on: defaultdict[str | None, dict[str, ScheduledTrial]] = defaultdict(dict)
        self._ordered: dict[str | None, tuple[ScheduledTrial, ...]] = {}  # until one comes or goes
        self.numbers = itertools.count()

    def on(self, slot: str | None) -> "Sequence[ScheduledTrial]":
        """Those on a slot, of None those on none, in the order of their coming."""
        if slot not in self._ordered:
            there = sorted(self._on[slot].values(), key=lambda state: state.number)
            self._ordered[slot] = tuple(there)
        return self._ordered[slot]

    def taken(self) -> set[str]:
        """Slots with trials on them."""
        return {slot for slot, there in self._on.items() if slot is not None and there}

    def add(self, state: "ScheduledTrial") -> None:
        self._on[state.slot][state.id] = state
        self._ordered.pop(state.slot, None)

    def remove(self, state: "ScheduledTrial") -> None:
        self._on[state.slot].pop(state.id, None)
        self._ordered.pop(state.slot, None)


@dataclass(kw_only=True)
class ScheduledTrial:
    """A trial that wants to train: where it does, and what went wrong with it lately."""

    id: str
    places: Places = field(repr=False, compare=False)
    parameters: Parameters
    waiter: "asyncio.Future[Outcome]"
    sharing_key: str | None
    """Trials with the same one can share a slot; None: it shares with nobody."""
    cost_class: str
    base: tuple[str, ...] = ()
    """Over which it trains: the word for the model, and how its weights are stored."""
    may_train: bool = True
    held: bool = False
    """Whether it has asked to go on since the sweep was paused."""
    crashes: int = 0
    """How often the slot's workers died under it since its last evaluation."""
    starved: int = 0
    """How often of these the kernel of its host ended processes as memory ran out."""
    hangs: int = 0
    """How often they were killed since then, as they made no progress with it."""
    isolated: bool = False
    """Whether it trains alone until its next evaluation: it was there when a step failed."""
    tried: set[str] = field(default_factory=set)
    """Slots on which it failed since its last evaluation."""
    failure: Failed | None = None
    """How it failed on the last of them."""
    number: int = field(init=False)
    """How many have come before it."""
    _slot: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.number = next(self.places.numbers)
        self.places.add(self)

    @property
    def kind(self) -> object:
        """Those of the same one fit on the same slots."""
        return self.sharing_key, self.isolated, self.cost_class, self.base, frozenset(self.tried)

    @property
    def slot(self) -> str | None:
        """Where it trains; None: it waits for a slot."""
        return self._slot

    @slot.setter
    def slot(self, slot: str | None) -> None:
        self.places.remove(self)
        self._slot = slot
        self.places.add(self)


@dataclass(kw_only=True)
class Found:
    """What a trial found that looked for a slot."""

    least: float = 0.0
    """How many trials are on the emptiest slot where it fits."""
    reservable: Iterator[str] = iter(())
    """Slots that it would take as soon as they are free, in this order."""


@dataclass(kw_only=True)
class JobState:
    """A post-search job: what is to be done, who does it, and what came of it."""

    what: Job | None = None
    """None: nobody has asked for it since the coordinator was restarted."""
    slot: str | None = None
    crashes: int = 0
    result: JobResult | None = None


@dataclass(kw_only=True)
class SlotState:
    """A slot that has registered, and whether it can be trusted."""

    version: int = 0
    """Of its assignment."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    proved: bool = False
    """Whether a trial was evaluated here."""
    failed: dict[str, str] = field(default_factory=dict)
    """Trials that failed here since one was evaluated, and how."""
    crashes: int = 0
    """While it evaluated the untuned base."""
    worker: "ActorHandle | None" = None
    """The first of its workers: with it the others end."""
    killed: tuple[str, int | None] | None = None
    """On which node its workers started, and how many processes the kernel had ended there by
    then, as memory ran out (see `kernel_kills`)."""
    heard: float = field(default_factory=time.monotonic)
    """When it was last heard of."""
    hung: bool = False
    """Whether its workers were killed, as it was not heard of for long."""
    nodes: Sequence[str] = ()
    """Ids of those that its workers are on."""
    retiring: bool = False
    """Whether it has been told to go."""
    base: tuple[str, ...] | None = None
    """The base that it was last given trials for (see `ScheduledTrial`); None: none yet."""

    @property
    def quarantined(self) -> bool:
        """Whether it gets no more trials: that so many fail one after another is its fault, not
        theirs.
        """
        return len(self.failed) >= MAX_FAILURES
