"""The actor that knows which trial is on which slot, and how far it is."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import ray

from trainables.errors import InputError
from trainables.evaluation.record import Job, JobFailed, JobResult, Untuned, UntunedFailed
from trainables.hyperparameters import cost_class, parse, sharing_key
from trainables.runtime.capacity import MAX_GROUP_SIZE
from trainables.runtime.failures import TOO_LARGE, more_killed, needs_more_memory
from trainables.runtime.protocol import (
    AssignedTrial,
    Assignment,
    Failed,
    Outcome,
    Parameters,
    Profile,
    Snapshot,
    Stopped,
    TrialProgress,
)
from trainables.runtime.states import (
    Found,
    JobState,
    Patience,
    Places,
    ScheduledTrial,
    SlotState,
)
from trainables.runtime.tune_dicts import result_of

if TYPE_CHECKING:
    from ray.actor import ActorHandle

TAKE_TIMEOUT_S = 10.0  # a slot without news looks again after this long

MAX_CRASHES = 3  # a trial whose slot dies this often with no evaluation in between has failed there

MAX_HANGS = 2  # the same of a trial with which its slot makes no progress

# a slot that has no workers for longer gives its trials to others; no trial that could share a slot
# waits longer for one that starts
RELEASE_S = 60.0

NOBODY = "-"  # where the untuned base is known already

NODE_ID = "ray.io/node-id"  # Ray's label of every node


class Coordinator:
    """Who waits, which trial is on which slot, and what came of it. An actor; all of it can be
    rebuilt by asking again: every method does what is right of a coordinator that has just been
    restarted and knows nothing.
    """

    def __init__(
        self,
        sweep: str,
        trials_per_slot: int | Literal["auto"] = 1,
        slots: int = 0,
        hang_s: float = math.inf,
    ) -> None:
        """`trials_per_slot`: trials that may share a slot; auto: as many as pays, which slots
        find out. `slots`: that will register. `hang_s`: a slot that is not heard of for longer
        hangs.
        """
        self._hang_s = hang_s
        self._sweep = sweep
        self._trials_per_slot = trials_per_slot
        self._planned = slots
        self._patience = Patience(RELEASE_S, self._assign)
        self._trials: dict[str, ScheduledTrial] = {}
        self._places = Places()
        self._slots: dict[str, SlotState] = {}
        # slots that take nobody until the trial that waits for them fits
        self._reserved: set[str] = set()
        self._limits: dict[str, int] = {}  # how many trials of a cost class should share a slot
        self._profiling: dict[str, str] = {}  # the slot that finds that out, of each cost class
        self._progress: dict[str, TrialProgress] = {}
        self._lost: dict[str, str] = {}
        self._storage: dict[str, str] = {}  # what is wrong with it, by the slots that wait for it
        self._without_workers: dict[str, asyncio.TimerHandle] = {}  # that give up their trials soon
        self._waiting: set[str] = set()  # slots that gave them up, and wait for room
        self._retired: set[str] = set()  # slots that went as they were told to
        self._ends: dict[str, int] = {}  # runs of each slot since something came of one
        self._jobs: dict[str, JobState] = {}
        self._stop: str | None = None
        self._stopped: dict[str, str] = {}  # single trials that go no further, and why
        self._paused = False
        self._close = False
        self._baseline: Untuned | None = None
        self._baseline_slot: str | None = None

    def __repr__(self) -> str:
        return f"{self._sweep}:coordinator"

    # --- for trials ---

    async def advance(self, trial: str, parameters: Parameters) -> Outcome:
        """Wait for the next evaluation of `trial` (it joins a slot first if it is on none) and
        return what came of it.
        """
        if self._stop is not None:
            return Stopped(reason=self._stop)
        if trial in self._stopped:
            return Stopped(reason=self._stopped[trial])
        state = self._trial_state(trial, parameters)
        if not state.may_train:
            self._spread(state)
        state.may_train, state.held = True, self._paused
        if state.waiter.done():
            state.waiter = asyncio.get_running_loop().create_future()
        self._touch(state.slot)
        return await asyncio.shield(state.waiter)

    async def step(self, trial: str, parameters: Parameters) -> dict[str, object]:
        """`advance`, as Tune takes what came of it (a `TrialResult`)."""
        return result_of(trial, await self.advance(trial, parameters)).to_tune()

    async def leave(self, trial: str) -> None:
        state = self._trials.pop(trial, None)
        self._progress.pop(trial, None)
        if state is not None:
            self._places.remove(state)
            if not state.waiter.done():
                state.waiter.set_result(Stopped(reason="it left"))
            self._touch(state.slot)
        self._assign()

    def _trial_state(self, trial: str, parameters: Parameters) -> ScheduledTrial:
        if trial not in self._trials:
            try:
                hp = parse(parameters)
            except InputError:  # the slot will say what is wrong with it
                sharing, cost, base = None, "", ()
            else:
                sharing, cost = sharing_key(hp), cost_class(hp)
                base = hp.model, hp.options.quantisation
            self._trials[trial] = ScheduledTrial(
                id=trial,
                places=self._places,
                parameters=parameters,
                waiter=asyncio.get_running_loop().create_future(),
                sharing_key=sharing,
                cost_class=cost,
                base=base,
                may_train=False,
            )
            self._assign()
        return self._trials[trial]

    # --- for slots ---

    async def register(
        self,
        slot: str,
        worker: "ActorHandle | None" = None,
        nodes: Sequence[str] = (),
        killed: tuple[str, int | None] | None = None,
    ) -> Assignment:
        """A slot's workers have started (again): the trials on it go on from their last
        checkpoints. worker: the first of them; nodes: ids of those that they are on; killed: on the
        first's node, see `SlotState`.
        """
        self._has_workers(slot)
        state = self._slots.setdefault(slot, SlotState())
        state.version, state.changed = state.version + 1, asyncio.Event()
        starved, state.killed = more_killed(state.killed, killed), killed
        self._count_crash_of_trials(slot, starved=starved)
        self._count_crash_of_jobs(slot)
        for cost in self._profiled_by(slot):
            self._limits[cost] = 1  # it died of trying more
            del self._profiling[cost]
        self._count_crash_of_baseline(slot)
        state.worker, state.hung, state.heard = worker, False, time.monotonic()
        state.nodes = nodes
        self._assign()
        return self._assignment(slot)

    def _count_crash_of_trials(self, slot: str, *, starved: bool = False) -> None:
        slot_state = self._slots[slot]
        for trial, state in self._assigned(slot).items():
            if state.slot != slot:  # one before it was the last that the slot may fail
                continue
            if slot_state.hung and state.may_train:
                state.hangs += 1
            elif not slot_state.hung:
                state.crashes, state.starved = state.crashes + 1, state.starved + starved
            # the last chance must not be spoilt by another
            state.isolated = state.crashes >= MAX_CRASHES - 1 or state.hangs >= MAX_HANGS - 1
            if state.isolated:
                state.slot = None
            if state.hangs >= MAX_HANGS:
                self._hangs(slot, trial)
            elif state.crashes >= MAX_CRASHES:
                how = f"its worker process died {MAX_CRASHES} times with no evaluation in between"
                if state.starved >= MAX_CRASHES:
                    how = (
                        f"{TOO_LARGE} the memory of its host: {how}, each time as the kernel ended"
                        " processes for being out of memory"
                    )
                self._failed(slot, trial, Failed(reason=how))

    def _hangs(self, slot: str, trial: str) -> None:
        """It was tried again, and alone: so much time is not spent on it once more."""
        how = f"it made no progress for {self._hang_s / 60:g} minutes, {MAX_HANGS} times"
        self._slots[slot].failed[trial] = how
        self._answer(trial, Failed(reason=how))
        if self._slots[slot].quarantined:
            self._clear(slot)

    def _count_crash_of_jobs(self, slot: str) -> None:
        for job in self._unfinished_jobs():
            if job.slot == slot:
                job.slot, job.crashes = None, job.crashes + 1
                if job.crashes >= MAX_CRASHES:
                    job.result = JobFailed(error=f"its worker process died {MAX_CRASHES} times")

    def _count_crash_of_baseline(self, slot: str) -> None:
        """A slot that comes anew is told to evaluate the untuned base, where nobody is yet."""
        if self._baseline is None and self._baseline_slot == slot:
            self._slots[slot].crashes += 1
            if self._slots[slot].crashes >= MAX_CRASHES:
                how = f"its worker process died {MAX_CRASHES} times"
                self._baseline = UntunedFailed(error=how)
        if self._baseline is None and self._baseline_slot is None:
            self._baseline_slot = slot

    async def take(self, slot: str, version: int) -> Assignment | None:
        """The assignment of `slot`, as soon as it differs from `version`. None: the slot is unknown
        here and must register.
        """
        state = self._slots.get(slot)
        if state is None:
            return None
        if state.version <= version and not self._close:
            state.changed.clear()
            try:
                await asyncio.wait_for(state.changed.wait(), TAKE_TIMEOUT_S)
            except TimeoutError:
                pass
        return self._assignment_of_known(slot)  # it may have been lost in the meantime

    async def publish(self, slot: str, trial: str, outcome: Outcome) -> Assignment | None:
        """What came of `trial`, which waits then for its next advance."""
        state = self._trials.get(trial)
        if state is not None and state.slot == slot:
            if isinstance(outcome, Failed) and not outcome.certain:
                self._failed(slot, trial, outcome)
            else:
                state.crashes, state.hangs, state.isolated, state.failure = 0, 0, False, None
                state.starved = 0
                state.tried.clear()
                self._answer(trial, outcome)
                if not isinstance(outcome, Failed) and slot in self._slots:
                    self._slots[slot].proved, self._slots[slot].failed = True, {}
                    self._ends.pop(slot, None)
            self._assign()
            self._touch(slot)
        return self._assignment_of_known(slot)

    def _failed(self, slot: str, trial: str, failure: Failed) -> None:
        """Whose fault it was, the trial's or the slot's, shows on another slot: it tries again
        there, if there is one.

        It is the trial's where it fails on a slot that works, and where no slot is left to try.
        """
        trial_state, slot_state = self._trials[trial], self._slots.get(slot)
        trial_state.tried.add(slot)
        trial_state.failure, trial_state.slot = failure, None
        trial_state.isolated, trial_state.crashes, trial_state.starved = True, 0, 0
        if slot_state is None:
            return
        if len(trial_state.tried) > 1 and slot_state.proved and not slot_state.failed:
            for each in self._slots.values():
                each.failed.pop(trial, None)
            self._answer(trial, failure)
            return
        # a slot on which others trained is not to blame that it is too small for one
        if needs_more_memory(failure.reason) and slot_state.proved:
            return
        slot_state.failed[trial] = failure.reason
        if slot_state.quarantined:
            self._clear(slot)

    def _clear(self, slot: str) -> None:
        """The trials on `slot`, and all that it was to find out, go elsewhere."""
        for state in self._trials_on(slot):
            state.slot = None
        for cost in self._profiled_by(slot):
            del self._profiling[cost]
        for job in self._unfinished_jobs():
            if job.slot == slot:
                job.slot = None
        if self._baseline_slot == slot and self._baseline is None:
            others = [each for each in self._open() if each != slot]
            self._baseline_slot = min(others, default=None)
            self._touch(self._baseline_slot)

    async def publish_baseline(self, slot: str, baseline: Untuned) -> Assignment | None:
        self._baseline = baseline
        self._ends.pop(slot, None)
        self._touch(slot)
        return self._assignment_of_known(slot)

    async def publish_job(self, slot: str, name: str, result: JobResult) -> Assignment | None:
        job = self._jobs.setdefault(name, JobState())  # who asks for it later finds it done
        if job.result is None:
            job.result = result
        self._ends.pop(slot, None)
        self._assign()
        self._touch(slot)
        return self._assignment_of_known(slot)

    async def publish_limit(self, slot: str, cost: str, limit: int) -> Assignment | None:
        """`limit` trials of cost class `cost` should share a slot."""
        self._limits[cost] = limit
        self._profiling.pop(cost, None)
        self._assign()
        self._touch(slot)
        return self._assignment_of_known(slot)

    async def no_room(self, slot: str, trial: str, others: int) -> Assignment | None:
        """`trial` cannot join the `others` trials on the slot: no more of its cost class are tried
        together, and it waits until one leaves.
        """
        state = self._trials.get(trial)
        if state is not None and state.slot == slot:
            cost = state.cost_class
            state.slot = None
            self._limits[cost] = max(1, min(others, self._limits.get(cost, others)))
            self._profiling.pop(cost, None)
        self._assign()
        self._touch(slot)
        return self._assignment_of_known(slot)

    async def isolate(self, slot: str, trials: Sequence[str]) -> Assignment | None:
        """A step of `trials` failed for a reason that may be one trial's: each goes on alone until
        its next evaluation.
        """
        for trial in trials:
            state = self._trials.get(trial)
            if state is not None and state.slot == slot:
                state.slot, state.isolated = None, True
        self._assign()
        self._touch(slot)
        return self._assignment_of_known(slot)

    async def progress(self, slot: str, told: Mapping[str, TrialProgress]) -> None:
        self._progress |= {trial: each for trial, each in told.items() if trial in self._trials}
        if slot in self._slots:
            self._slots[slot].heard = time.monotonic()

    # --- for what starts a slot's workers ---

    async def slot_down(self, slot: str) -> None:
        """A slot's workers are gone, or not there yet. Where they find no room for long, its trials
        go elsewhere.
        """
        if slot not in self._without_workers:
            loop = asyncio.get_running_loop()
            self._without_workers[slot] = loop.call_later(RELEASE_S, self._release, slot)

    async def slot_up(self, slot: str) -> None:
        """A slot's workers have found room, and will register."""
        self._has_workers(slot)

    async def retired(self, slot: str) -> Assignment:
        """A slot has done as it was told: its trials are paused, and its workers end."""
        if slot in self._slots or slot not in self._retired:  # it is told again and again
            self._retired.add(slot)
            self._has_workers(slot)
            self._slots.pop(slot, None)
            self._clear(slot)
            self._assign()
        return Assignment(version=0, stop=True)

    async def slot_ended(self, slot: str) -> int:
        """A slot's run has ended, which may be started again. Returns how many have since the last
        of which something came.
        """
        await self.slot_down(slot)
        self._ends[slot] = self._ends.get(slot, 0) + 1
        return self._ends[slot]

    def _has_workers(self, slot: str) -> None:
        self._waiting.discard(slot)
        if (timer := self._without_workers.pop(slot, None)) is not None:
            timer.cancel()

    def _release(self, slot: str) -> None:
        self._waiting.add(slot)
        if slot in self._slots:
            self._count_crash_of_trials(slot)
            self._count_crash_of_jobs(slot)
            del self._slots[slot]
            self._clear(slot)
        self._assign()

    async def storage(self, slot: str, wrong: str | None) -> None:
        """The slot waits for storage that does not work, or goes on as it works again."""
        self._storage.pop(slot, None)
        if wrong is not None:
            self._storage[slot] = wrong

    # --- for the sweep ---

    async def job(self, name: str, what: Job) -> None:
        """Let an empty slot do `what` (see trainables.evaluation.jobs); the snapshot has what came
        of it.
        """
        if name not in self._jobs:
            self._jobs[name] = JobState(what=what)
            self._assign()

    async def expect(self, trial: str, parameters: Parameters) -> None:
        """A trial that will ask to advance: room is kept for it."""
        if self._stop is None:
            self._trial_state(trial, parameters)

    async def expect_slots(self, slots: int) -> None:
        """So many slots, in all, have been started."""
        if slots > self._planned:
            self._patience.renew()
        self._planned = slots

    async def room(self) -> int:
        """How many more trials could train now, as far as one can say of trials that are not drawn
        yet.
        """
        starting = self._starting()
        waiting = len(self._places.on(None)) - len(self._reserved)
        # one is drawn that has no slot: it may show what the next would find
        if waiting > starting:
            return 0
        free = [self._free(slot) for slot in self._open() if slot not in self._reserved]
        return starting - waiting + sum(free)

    async def wanted(self, trial: str) -> bool:
        """Whether a trial that fits nowhere waits for the slot that `trial` is on."""
        state = self._trials.get(trial)
        return state is not None and state.slot in self._reserved

    def _free(self, slot: str) -> int:
        """How many more trials like those on `slot` could join them."""
        there = self._trials_on(slot)
        if not there:
            return 1
        if len(there) >= self._limit(there[0]):  # asked of every slot, of which most are full
            return 0
        if any(state.sharing_key is None or state.isolated for state in there):
            return 0
        return max(0, min(self._limit(state) for state in there) - len(there))

    async def skip_baseline(self) -> None:
        """The untuned base is evaluated: an earlier process of the sweep did, or the coordinator
        has forgotten it.
        """
        told, self._baseline_slot = self._baseline_slot, NOBODY
        if told is not None and told != NOBODY:
            self._touch(told)

    async def slot_broken(self, slot: str, error: str) -> None:
        """A slot cannot start; its run ends, and the sweep learns why from `slot_lost`."""
        self._lost[slot] = error

    async def slot_lost(self, slot: str, error: str) -> None:
        """A slot is gone for good; its trials join another."""
        self._lost.setdefault(slot, error)
        self._has_workers(slot)
        for state in self._trials_on(slot):
            state.crashes += 1
        self._slots.pop(slot, None)
        self._clear(slot)
        self._assign()

    async def retire(self, slots: Sequence[str]) -> None:
        """Let these slots pause their trials and end; the trials go on where there is room."""
        for slot in slots:
            if slot in self._slots and not self._slots[slot].retiring:
                self._slots[slot].retiring = True
                self._touch(slot)

    async def stop_trials(self, reason: str, *, pause: bool = False) -> None:
        """Answer every trial that waits with `Stopped`, now and from now on. pause: the trials will
        go on another time, from where they stand.
        """
        self._stop = reason
        if pause:
            await self.retire([*self._slots])
        for trial in list(self._trials):
            self._answer(trial, Stopped(reason=reason))
            await self.leave(trial)

    async def stop_trial(self, trial: str, reason: str) -> None:
        """The same of one trial."""
        self._stopped[trial] = reason
        if trial in self._trials:
            self._answer(trial, Stopped(reason=reason))
            await self.leave(trial)

    async def pause(self, paused: bool) -> None:
        """Paused, every trial trains to its next evaluation and no further; the slots stay as they
        are.
        """
        if paused == self._paused:
            return
        self._paused = paused
        for state in self._trials.values():
            state.held = paused and state.slot is None
            self._touch(state.slot)

    async def close(self) -> None:
        """Let the slots end."""
        self._close = True
        for slot in self._slots:
            self._touch(slot)

    async def snapshot(self) -> Snapshot:
        self._end_those_that_hang()
        return Snapshot(
            slots={slot: list(self._assigned(slot)) for slot in self._slots},
            lost=dict(self._lost),
            nodes={slot: state.nodes for slot, state in self._slots.items()},
            waiting=sorted(self._waiting),
            retired=sorted(self._retired),
            hung={
                slot: [trial for trial, on in self._assigned(slot).items() if on.may_train]
                for slot, state in self._slots.items()
                if state.hung
            },
            quarantined={
                slot: dict(state.failed) for slot, state in self._slots.items() if state.quarantined
            },
            storage=dict(self._storage),
            progress=dict(self._progress),
            baseline=self._baseline,
            limits=dict(self._limits),
            jobs={name: job.result for name, job in self._jobs.items()},
        )

    def _end_those_that_hang(self) -> None:
        """Their workers are killed, and register anew."""
        for state in self._slots.values():
            silent_s = time.monotonic() - state.heard
            if silent_s > self._hang_s and not state.hung and state.worker is not None:
                state.hung = True
                ray.kill(state.worker)

    # --- who trains where ---

    def _assign(self) -> None:
        """Put whoever waits, in the order of their coming, each on the slot with the most room.

        Who fits nowhere reserves the slot that will be free first; a group is as large as the cost
        class in it that gains least. Slots that are about to start count as empty ones: those that
        start first would fill up, and leave nobody to the others.
        """
        kept, self._reserved = self._reserved, set()
        self._leave_slots_with_jobs()
        starting, waiting = self._starting(), 0
        starting = starting if self._patience.lasts(starting) else 0
        found: dict[object, Found] = {}
        for state in self._places.on(None):
            # so many trials may be on the slot that it joins: those that wait are spread over the
            # slots that start
            others = waiting // starting if starting else MAX_GROUP_SIZE
            before = found.get(state.kind)
            if before is None or before.least <= others:  # or it would find the same
                found[state.kind] = self._assign_trial(state, kept, others)
            if state.slot is None:
                waiting += 1
                self._reserve(found[state.kind])
        self._assign_jobs()

    def _spread(self, state: ScheduledTrial) -> None:
        """A trial that shares a slot takes one that has nothing to do, and one whose slot somebody
        waits for goes where it fits too. It loses nothing, as it has just been evaluated.
        """
        if state.slot is not None and (better := self._better(state, state.slot)):
            self._touch(state.slot)
            self._put(state.id, better)
            self._assign()

    def _better(self, state: ScheduledTrial, slot: str) -> list[str]:
        """Slots where it is better to be than on `slot`."""
        if slot in self._reserved:
            return self._fitting(state)
        if len(self._trials_on(slot)) < 2 or self._places.on(None):
            return []
        taken = self._slots_with_jobs() | self._places.taken()
        return [each for each in self._untried(state) if each not in taken]

    def _fitting(self, state: ScheduledTrial) -> list[str]:
        """Slots that it could join now."""
        slots = [slot for slot in self._untried(state) if slot not in self._reserved]
        return [slot for slot in slots if self._fits(state, self._trials_on(slot))]

    def _leave_slots_with_jobs(self) -> None:
        """Nobody trains there before the job is done; so they go where a slot has nothing to do."""
        busy = self._slots_with_jobs()
        there = [state for slot in busy for state in self._trials_on(slot)]
        if there and any(slot not in busy and not self._assigned(slot) for slot in self._open()):
            for state in there:
                self._touch(state.slot)
                state.slot = None

    def _assign_trial(self, state: ScheduledTrial, kept: set[str], others: int) -> Found:
        """kept: the slots that were reserved before; others: with how many it may share one."""
        if state.failure is not None and self._failed_everywhere(state):
            self._answer(state.id, state.failure)
            return Found()
        if not (fitting := self._fitting(state)):
            return Found(least=math.inf, reservable=iter(self._reservable(state, kept)))
        least = min(len(self._trials_on(slot)) for slot in fitting)
        if least <= others:
            self._put(state.id, fitting)
        return Found(least=least)

    def _reservable(self, state: ScheduledTrial, kept: set[str]) -> list[str]:
        """Slots that could be kept for it, in this order: of the emptiest the one that was before,
        or two could be filled again in turn.
        """
        slots = [slot for slot in self._untried(state) if slot not in self._reserved]
        if self._may_soon_fit(state, slots):
            return []
        size = {slot: len(self._trials_on(slot)) for slot in slots}
        return sorted(slots, key=lambda slot: (size[slot], slot not in kept, slot))

    def _reserve(self, found: Found) -> None:
        slot = next((slot for slot in found.reservable if slot not in self._reserved), None)
        if slot is not None:
            self._reserved.add(slot)

    def _put(self, trial: str, slots: Sequence[str]) -> None:
        """On the emptiest of `slots`, of those one that holds its base; where a job is under way
        only if there is no other.
        """
        state, busy = self._trials[trial], self._slots_with_jobs()
        size = {slot: len(self._trials_on(slot)) for slot in slots}
        other = {slot: self._slots[slot].base not in (None, state.base) for slot in slots}
        slot = min(slots, key=lambda slot: (slot in busy, size[slot], other[slot], slot))
        state.slot, self._slots[slot].base = slot, state.base
        self._profile(self._trials[trial], slot)
        self._touch(slot)
        self._progress.setdefault(trial, TrialProgress())

    def _untried(self, state: ScheduledTrial) -> list[str]:
        return [slot for slot in self._open() if slot not in state.tried]

    def _failed_everywhere(self, state: ScheduledTrial) -> bool:
        """Whether there are slots, and neither one of them nor one that starts is left to try."""
        return bool(self._open()) and not self._untried(state) and not self._starting()

    def _may_soon_fit(self, state: ScheduledTrial, slots: Sequence[str]) -> bool:
        """Whether it may fit once its cost class has been profiled, or does as soon as one trial
        leaves.
        """
        on = {slot: self._trials_on(slot) for slot in slots}
        alike = [slot for slot in slots if self._fits(state, on[slot], limit=MAX_GROUP_SIZE)]
        if alike and self._profile(state, alike[0]):
            return True
        return any(len(on[slot]) > 1 and self._fits(state, on[slot][1:]) for slot in slots)

    def _assign_jobs(self) -> None:
        waiting = [job for job in self._unfinished_jobs() if job.slot is None]
        if not waiting:
            return
        busy = self._slots_with_jobs()
        free = [slot for slot in self._open() if slot not in busy and not self._assigned(slot)]
        for job, slot in zip(waiting, free, strict=False):
            job.slot = slot
            self._touch(slot)

    def _fits(
        self, state: ScheduledTrial, others: Sequence[ScheduledTrial], limit: int | None = None
    ) -> bool:
        if not others:
            return True
        if len(others) >= (limit or self._limit(state)):  # as with `_free`
            return False
        group = [state, *others]
        keys = {None if each.isolated else each.sharing_key for each in group}
        if None in keys or len(keys) > 1:
            return False
        return len(group) <= (limit or min(self._limit(each) for each in group))

    def _limit(self, state: ScheduledTrial) -> int:
        fixed = self._trials_per_slot
        if isinstance(fixed, str):
            return self._limits.get(state.cost_class, 1)
        return min(fixed, self._limits.get(state.cost_class, fixed))

    def _profile(self, state: ScheduledTrial, slot: str) -> bool:
        """Let `slot` find out how many trials of the state's cost class should share, unless that
        is known. Returns whether it is being found out.
        """
        cost = state.cost_class
        if self._trials_per_slot != "auto" or state.sharing_key is None or cost in self._limits:
            return False
        if cost not in self._profiling:
            self._profiling[cost] = slot
            self._touch(slot)
        return True

    # --- inside ---

    def _answer(self, trial: str, outcome: Outcome) -> None:
        state = self._trials[trial]
        state.may_train = False
        if not state.waiter.done():
            state.waiter.set_result(outcome)

    def _assigned(self, slot: str) -> Mapping[str, ScheduledTrial]:
        return {state.id: state for state in self._places.on(slot)}

    def _trials_on(self, slot: str) -> Sequence[ScheduledTrial]:
        return self._places.on(slot)

    def _open(self) -> list[str]:
        """Slots that trials may join."""
        return [
            slot
            for slot, state in self._slots.items()
            if not state.quarantined and not state.retiring
        ]

    def _starting(self) -> int:
        """Slots that will register."""
        known = self._slots.keys() | self._lost.keys() | self._waiting | self._retired
        return max(0, self._planned - len(known))

    def _slots_with_jobs(self) -> set[str]:
        return {job.slot for job in self._unfinished_jobs() if job.slot is not None}

    def _unfinished_jobs(self) -> list[JobState]:
        return [job for job in self._jobs.values() if job.result is None]

    def _profiled_by(self, slot: str) -> list[str]:
        """Cost classes that `slot` finds out about."""
        return [cost for cost, by in self._profiling.items() if by == slot]

    def _to_profile(self, slot: str) -> list[Profile]:
        """What `slot` can find out now: the base that it holds must be the one."""
        found = []
        keys = {state.sharing_key for state in self._trials_on(slot)}
        for cost in self._profiled_by(slot):
            alike = [state for state in self._trials.values() if state.cost_class == cost]
            if alike and keys <= {alike[0].sharing_key}:
                found.append(Profile(cost_class=cost, parameters=alike[0].parameters))
        return found

    def _touch(self, slot: str | None) -> None:
        """The assignment of `slot` may have changed."""
        if slot is not None and slot in self._slots:
            self._slots[slot].version += 1
            self._slots[slot].changed.set()

    def _assignment(self, slot: str) -> Assignment:
        return Assignment(
            version=self._slots[slot].version,
            trials={
                trial: AssignedTrial(
                    parameters=state.parameters, may_train=state.may_train and not state.held
                )
                for trial, state in self._assigned(slot).items()
            },
            baseline=self._baseline is None and self._baseline_slot == slot,
            profile=self._to_profile(slot),
            job=self._job_of(slot),
            stop=self._close,
            retire=self._slots[slot].retiring,
        )

    def _job_of(self, slot: str) -> tuple[str, Job] | None:
        for name, job in self._jobs.items():
            if job.slot == slot and job.result is None and job.what is not None:
                return name, job.what
        return None

    def _assignment_of_known(self, slot: str) -> Assignment | None:
        """None: the slot is unknown here, or lost."""
        if slot not in self._slots:
            return None
        self._slots[slot].heard = time.monotonic()
        return self._assignment(slot)


def start_coordinator(
    sweep: str,
    name: str,
    trials_per_slot: int | Literal["auto"],
    slots: int,
    hang_s: float = math.inf,
) -> "ActorHandle":
    """The coordinator of a sweep, beside the driver; it comes back by itself, and is told
    everything again by who asks.
    """
    actor = ray.remote(Coordinator).options(
        name=name,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=10_000,
        enable_task_events=False,  # of its calls Ray's dashboard shows those that are labelled
        label_selector={NODE_ID: ray.get_runtime_context().get_node_id()},
    )
    # Ray's types have no word for the handle of a class that was not decorated
    return actor.remote(sweep, trials_per_slot, slots, hang_s)  # pyright: ignore[reportReturnType]
