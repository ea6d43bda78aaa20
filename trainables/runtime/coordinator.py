"""The actor that knows which trial is on which slot, and how far it is."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from trainables.errors import InputError
from trainables.hyperparameters import cost_class, parse, sharing_key
from trainables.runtime.capacity import MAX_GROUP_SIZE
from trainables.runtime.protocol import Assignment

TAKE_TIMEOUT_S = 10.0  # a slot without news looks again after this long

MAX_CRASHES = 3  # a trial whose slot dies this often with no evaluation in between has failed there

# trials that may fail on a slot one after another, with no evaluation in between, before it gets no
# more
MAX_FAILURES = 3


@dataclass(kw_only=True)
class TrialState:
    params: dict[str, Any]
    waiter: asyncio.Future
    sharing_key: str | None  # shares a slot with these; None: with nobody
    cost_class: str
    may_train: bool = True
    slot: str | None = None
    crashes: int = 0
    isolated: bool = False  # it has been on the slot when a step failed, until its next evaluation
    tried: set[str] = field(
        default_factory=set
    )  # slots on which it failed since its last evaluation
    failure: dict[str, Any] | None = None  # what came of it on the last of them


@dataclass(kw_only=True)
class JobState:
    what: dict[str, Any]
    slot: str | None = None
    crashes: int = 0
    result: dict[str, Any] | None = None


@dataclass(kw_only=True)
class SlotState:
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    proved: bool = False  # a trial was evaluated here
    failed: dict[str, str] = field(
        default_factory=dict
    )  # trials that failed here since one was evaluated, and how
    crashes: int = 0  # while it measured the untuned base

    @property
    def quarantined(self) -> bool:
        """Whether it gets no more trials: that so many fail one after another is its fault, not
        theirs.
        """
        return len(self.failed) >= MAX_FAILURES


class Coordinator:
    """Who waits, who is on the slot where, and what came of it. An actor; all of it can be rebuilt
    by asking again: every method does what is right of a coordinator that has just been restarted
    and knows nothing.
    """

    def __init__(
        self, sweep: str, trials_per_slot: int | Literal["auto"] = 1, slots: int = 0
    ) -> None:
        """`trials_per_slot`: trials that may share a slot; auto: as many as pays, which slots
        measure. `slots`: that will register.
        """
        self._sweep = sweep
        self._trials_per_slot = trials_per_slot
        self._planned = slots
        self._trials: dict[str, TrialState] = {}
        self._slots: dict[str, SlotState] = {}
        self._reserved: set[str] = (
            set()
        )  # slots that take nobody until the trial that waits for them fits
        self._limits: dict[str, int] = {}  # how many trials of a kind should share a slot
        self._profiling: dict[str, str] = {}  # the slot that finds out, of each kind
        self._progress: dict[str, dict[str, Any]] = {}
        self._lost: dict[str, str] = {}
        self._jobs: dict[str, JobState] = {}
        self._stop: str | None = None
        self._close = False
        self._baseline: dict[str, Any] | None = None
        self._baseline_slot: str | None = None

    def __repr__(self) -> str:
        return f"{self._sweep}:coordinator"

    # --- for trials ---

    async def advance(self, trial: str, params: dict[str, Any]) -> dict[str, Any]:
        """Wait for the next evaluation of `trial` (it assignments a slot first if it is on none)
        and return what came of it.
        """
        if self._stop is not None:
            return {"stopped": self._stop}
        state = self._trial_state(trial, params)
        state.may_train = True
        if state.waiter.done():
            state.waiter = asyncio.get_running_loop().create_future()
        if state.slot is not None:
            self._touch(state.slot)
        return await asyncio.shield(state.waiter)

    def _trial_state(self, trial: str, params: dict[str, Any]) -> TrialState:
        if trial not in self._trials:
            try:
                hp = parse(params)
            except InputError:  # the slot will say what is wrong with it
                group, sort = None, ""
            else:
                group, sort = sharing_key(hp), cost_class(hp)
            waiter = asyncio.get_running_loop().create_future()
            self._trials[trial] = TrialState(
                params=params, waiter=waiter, sharing_key=group, cost_class=sort, may_train=False
            )
            self._assign()
        return self._trials[trial]

    async def leave(self, trial: str) -> None:
        state = self._trials.pop(trial, None)
        self._progress.pop(trial, None)
        if state is not None and not state.waiter.done():
            state.waiter.set_result({"stopped": "it left"})
        if state is not None and state.slot is not None:
            self._touch(state.slot)
        self._assign()

    # --- for slots ---

    async def register(self, slot: str) -> Assignment:
        """A slot's workers have started (again): whoever was on the slot goes on from the last
        checkpoint.
        """
        place = self._slots.setdefault(slot, SlotState())
        place.version, place.changed = place.version + 1, asyncio.Event()
        for trial, state in list(self._trials.items()):
            if state.slot == slot:
                state.crashes += 1
                state.isolated = (
                    state.crashes >= MAX_CRASHES - 1
                )  # the last chance must not be spoilt by another
                if state.isolated:
                    state.slot = None
                if state.crashes >= MAX_CRASHES:
                    how = (
                        f"its worker process died {MAX_CRASHES} times with no evaluation in between"
                    )
                    self._failed(slot, trial, {"failed": how})
        for job in self._jobs.values():
            if job.slot == slot and job.result is None:
                job.slot, job.crashes = None, job.crashes + 1
                if job.crashes >= MAX_CRASHES:
                    job.result = {"error": f"its worker process died {MAX_CRASHES} times"}
        for sort in [sort for sort, by in self._profiling.items() if by == slot]:
            self._limits[sort] = 1  # it died of trying more
            del self._profiling[sort]
        if self._baseline is None and self._baseline_slot == slot:
            place.crashes += 1
            if place.crashes >= MAX_CRASHES:
                self._baseline = {"error": f"its worker process died {MAX_CRASHES} times"}
        if self._baseline is None and self._baseline_slot is None:
            self._baseline_slot = slot
        self._assign()
        return self._assignment(slot)

    async def take(self, slot: str, version: int) -> Assignment | None:
        """The assignment of `slot`, as soon as it differs from `version`. None: the slot is unknown
        here and must register.
        """
        place = self._slots.get(slot)
        if place is None:
            return None
        if place.version <= version and not self._close:
            place.changed.clear()
            try:
                await asyncio.wait_for(place.changed.wait(), TAKE_TIMEOUT_S)
            except TimeoutError:
                pass
        return (
            self._assignment(slot) if slot in self._slots else None
        )  # it may have been lost in the meantime

    async def publish(self, slot: str, trial: str, outcome: dict[str, Any]) -> Assignment | None:
        """What came of `trial`: {"evaluation": …} (it waits for the next advance), or {"failed": …}
        / {"diverged": …}; {"failed": …, "certain": True}: it would fail on every slot.
        """
        state = self._trials.get(trial)
        if state is not None and state.slot == slot:
            if "failed" in outcome and not outcome.get("certain"):
                self._failed(slot, trial, outcome)
            else:
                state.crashes, state.isolated, state.failure = 0, False, None
                state.tried.clear()
                self._answer(trial, outcome)
                if "failed" not in outcome and slot in self._slots:
                    place = self._slots[slot]
                    place.proved, place.failed = True, {}
            self._assign()
            self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    def _failed(self, slot: str, trial: str, outcome: dict[str, Any]) -> None:
        """Whose fault it was, the trial's or the slot's, shows on another slot: it tries again
        there, if there is one.

        It is the trial's where it fails on a slot that works, and where no slot is left to try.
        """
        state, place = self._trials[trial], self._slots.get(slot)
        state.tried.add(slot)
        state.failure, state.slot, state.isolated, state.crashes = outcome, None, True, 0
        if place is None:
            return
        if len(state.tried) > 1 and place.proved and not place.failed:
            for each in self._slots.values():
                each.failed.pop(trial, None)
            self._answer(trial, outcome)
            return
        place.failed[trial] = outcome["failed"]
        if place.quarantined:
            self._clear(slot)

    def _clear(self, slot: str) -> None:
        """Whoever is on the slot of `slot`, or measured there, goes elsewhere."""
        for state in self._on(slot):
            state.slot = None
        self._profiling = {sort: by for sort, by in self._profiling.items() if by != slot}
        for job in self._jobs.values():
            if job.slot == slot and job.result is None:
                job.slot = None
        if self._baseline_slot == slot and self._baseline is None:
            self._baseline_slot = min((each for each in self._open() if each != slot), default=None)
            if self._baseline_slot is not None:
                self._touch(self._baseline_slot)

    async def publish_baseline(self, slot: str, baseline: dict[str, Any]) -> Assignment | None:
        self._baseline = baseline
        self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    async def publish_job(self, slot: str, name: str, result: dict[str, Any]) -> Assignment | None:
        job = self._jobs.setdefault(name, JobState(what={}))  # who asks for it later finds it done
        if job.result is None:
            job.result = result
        self._assign()
        self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    async def publish_limit(self, slot: str, sort: str, limit: int) -> Assignment | None:
        """`limit` trials of kind `sort` should share a slot."""
        self._limits[sort] = limit
        self._profiling.pop(sort, None)
        self._assign()
        self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    async def no_room(self, slot: str, trial: str, aboard: int) -> Assignment | None:
        """`trial` cannot join the `aboard` trials on the slot: no more of its kind are tried, and
        it waits for a place.
        """
        state = self._trials.get(trial)
        if state is not None and state.slot == slot:
            state.slot = None
            self._limits[state.cost_class] = max(
                1, min(aboard, self._limits.get(state.cost_class, aboard))
            )
            self._profiling.pop(state.cost_class, None)
        self._assign()
        self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    async def isolate(self, slot: str, trials: list[str]) -> Assignment | None:
        """A step of `trials` failed for a reason that may be one trial's: each goes on alone until
        its next evaluation.
        """
        for trial in trials:
            state = self._trials.get(trial)
            if state is not None and state.slot == slot:
                state.slot, state.isolated = None, True
        self._assign()
        self._touch(slot)
        return self._assignment(slot) if slot in self._slots else None

    async def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if trial in self._trials:
            self._progress[trial] = {"samples_seen": samples_seen, "samples_per_s": samples_per_s}

    # --- for the sweep ---

    async def job(self, name: str, what: dict[str, Any]) -> None:
        """Let an empty slot do `what` (see trainables.evaluation.jobs); the snapshot has what came
        of it.
        """
        if name not in self._jobs:
            self._jobs[name] = JobState(what=what)
            self._assign()

    async def expect(self, trial: str, params: dict[str, Any]) -> None:
        """A trial that will ask to advance: a place is kept for it."""
        if self._stop is None:
            self._trial_state(trial, params)

    async def expect_slots(self, slots: int) -> None:
        """So many slots, in all, have been started."""
        self._planned = slots

    async def room(self) -> int:
        """How many more trials could train now, as far as one can say of trials that are not drawn
        yet.
        """
        starting = self._starting()
        waiting = sum(p.slot is None for p in self._trials.values()) - len(self._reserved)
        if (
            waiting > starting
        ):  # one is drawn that has no place: it may show what the next would find
            return 0
        free = starting - waiting
        for slot in self._open():
            aboard = self._on(slot)
            if slot in self._reserved:
                continue
            if not aboard:
                free += 1
            elif all(p.sharing_key is not None and not p.isolated for p in aboard):
                free += max(0, min(self._limit(p) for p in aboard) - len(aboard))
        return free

    async def skip_baseline(self) -> None:
        """The untuned base is measured: an earlier process of the sweep did, or the coordinator has
        forgotten it.
        """
        told, self._baseline_slot = self._baseline_slot, "-"
        if told is not None and told != "-":
            self._touch(told)

    async def slot_broken(self, slot: str, error: str) -> None:
        """A slot cannot start; its run ends, and the sweep learns why from `slot_lost`."""
        self._lost[slot] = error

    async def slot_lost(self, slot: str, error: str) -> None:
        """A slot is gone for good; its trials assignment another."""
        self._lost.setdefault(slot, error)
        for state in self._on(slot):
            state.crashes += 1
        self._slots.pop(slot, None)
        self._clear(slot)
        self._assign()

    async def stop_trials(self, reason: str) -> None:
        """Answer every waiting trial with {"stopped": reason}, now and from now on."""
        self._stop = reason
        for trial in list(self._trials):
            self._answer(trial, {"stopped": reason})
            await self.leave(trial)

    async def close(self) -> None:
        """Let the slots end."""
        self._close = True
        for slot in self._slots:
            self._touch(slot)

    async def snapshot(self) -> dict[str, Any]:
        """For the live table: slots that run, where each trial is and how far it got, the
        baseline.
        """
        return {
            "slots": {
                slot: [t for t, p in self._trials.items() if p.slot == slot] for slot in self._slots
            },
            "lost": dict(self._lost),
            "quarantined": {
                slot: dict(place.failed) for slot, place in self._slots.items() if place.quarantined
            },
            "progress": dict(self._progress),
            "baseline": self._baseline,
            "limits": dict(self._limits),
            "jobs": {name: job.result for name, job in self._jobs.items()},
        }

    # --- inside ---

    def _answer(self, trial: str, outcome: dict[str, Any]) -> None:
        state = self._trials[trial]
        state.may_train = False
        if not state.waiter.done():
            state.waiter.set_result(outcome)

    def _on(self, slot: str) -> list[TrialState]:
        return [p for p in self._trials.values() if p.slot == slot]

    def _open(self) -> list[str]:
        """Slots that trials may assignment."""
        return [slot for slot, place in self._slots.items() if not place.quarantined]

    def _starting(self) -> int:
        """Slots that will register."""
        return max(0, self._planned - len(self._slots) - len(self._lost))

    def _limit(self, state: TrialState) -> int:
        if self._trials_per_slot == "auto":
            return self._limits.get(state.cost_class, 1)
        return min(self._trials_per_slot, self._limits.get(state.cost_class, self._trials_per_slot))

    def _assign(self) -> None:
        """Assignment whoever waits, in the order of their coming, each on the slot with the most
        room.

        Who fits nowhere reserves the slot that will be free first; a group is as large as the kind
        of it that gains least.
        """
        kept, self._reserved, busy = self._reserved, set(), self._busy()
        if any(slot not in busy and not self._on(slot) for slot in self._open()):
            for state in self._trials.values():
                if state.slot in busy:  # nobody trains there before the job is done
                    self._touch(state.slot)
                    state.slot = None
        for trial, state in self._trials.items():
            if state.slot is not None:
                continue
            left = [slot for slot in self._open() if slot not in state.tried]
            if state.failure is not None and not left and not self._starting() and self._open():
                self._answer(trial, state.failure)
                continue
            open_slots = [slot for slot in left if slot not in self._reserved]
            fitting = [slot for slot in open_slots if self._fits(state, self._on(slot))]
            if fitting:
                state.slot = min(
                    fitting, key=lambda slot: (slot in busy, len(self._on(slot)), slot)
                )
                self._profile(state, state.slot)
                self._touch(state.slot)
                self._progress.setdefault(trial, {"samples_seen": 0, "samples_per_s": 0.0})
                continue
            alike = [
                slot
                for slot in open_slots
                if self._fits(state, self._on(slot), limit=MAX_GROUP_SIZE)
            ]
            if alike and self._profile(state, alike[0]):
                continue  # it may fit once that is known
            full = [slot for slot in open_slots if len(self._on(slot)) > 1]
            if any(self._fits(state, self._on(slot)[1:]) for slot in full):
                continue  # it fits as soon as one leaves
            if open_slots:
                # of the emptiest the one that was kept before, or two could be filled again in turn
                self._reserved.add(
                    min(open_slots, key=lambda slot: (len(self._on(slot)), slot not in kept, slot))
                )
        busy = self._busy()
        free = [slot for slot in self._open() if slot not in busy and not self._on(slot)]
        for job in self._jobs.values():
            if job.result is None and job.slot is None and free:
                job.slot = free.pop(0)
                self._touch(job.slot)

    def _busy(self) -> set[str]:
        """Slots that are on an job."""
        return {e.slot for e in self._jobs.values() if e.slot is not None and e.result is None}

    def _fits(self, state: TrialState, aboard: list[TrialState], limit: int | None = None) -> bool:
        if not aboard:
            return True
        everyone = [state, *aboard]
        if any(
            p.sharing_key is None or p.sharing_key != state.sharing_key or p.isolated
            for p in everyone
        ):
            return False
        return len(everyone) <= (limit or min(self._limit(p) for p in everyone))

    def _profile(self, state: TrialState, slot: str) -> bool:
        """Let `slot` find out how many trials of the state's kind should share, unless that is
        known.
        """
        if (
            self._trials_per_slot != "auto"
            or state.sharing_key is None
            or state.cost_class in self._limits
        ):
            return False
        if state.cost_class not in self._profiling:
            self._profiling[state.cost_class] = slot
            self._touch(slot)
        return True

    def _to_profile(self, slot: str) -> dict[str, dict[str, Any]]:
        found = {}
        for sort in [sort for sort, by in self._profiling.items() if by == slot]:
            example = next((p for p in self._trials.values() if p.cost_class == sort), None)
            if example is not None and all(
                p.sharing_key == example.sharing_key for p in self._on(slot)
            ):
                found[sort] = example.params
        return found

    def _touch(self, slot: str) -> None:
        if slot in self._slots:
            self._slots[slot].version += 1
            self._slots[slot].changed.set()

    def _assignment(self, slot: str) -> Assignment:
        trials = {t: (p.params, p.may_train) for t, p in self._trials.items() if p.slot == slot}
        return Assignment(
            version=self._slots[slot].version,
            trials=trials,
            baseline=self._baseline is None and self._baseline_slot == slot,
            profile=self._to_profile(slot),
            job=next(
                (
                    (name, e.what)
                    for name, e in self._jobs.items()
                    if e.slot == slot and e.result is None
                ),
                None,
            ),
            stop=self._close,
        )


def start_coordinator(
    sweep: str, name: str, trials_per_slot: int | Literal["auto"], slots: int
) -> Any:
    """The coordinator of a sweep, beside the driver; it comes back by itself, and is told
    everything again by who asks.
    """
    return (
        ray.remote(Coordinator)
        .options(
            name=name,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=10_000,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()},
        )
        .remote(sweep, trials_per_slot, slots)
    )
