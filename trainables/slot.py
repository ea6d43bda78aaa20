"""A slot: one long-lived Ray Train run that holds the base model and trains the trials that board it.

Who is on board is kept by the sweep's mailbox, a small actor. Trials (trial.py) ask it to `advance`; slots `take` the
board that they should have, compare it with the one they have, and `publish` what came of it. Boards are states, not
messages: a slot that restarts reads its board again, boards the trials from their last checkpoints, and nobody else
need know.
"""

import asyncio
import math
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import ray

from trainables.errors import InputError
from trainables.hyperparameters import company, kind, parse
from trainables.memory import MemoryEstimate, too_large
from trainables.model import ModelConfig

TAKE_TIMEOUT_S = 10.0  # a slot without news looks again after this long
MAX_CRASHES = 3  # a trial whose slot dies this often with no evaluation in between has failed there
MAX_FAILURES = (
    3  # trials that may fail on a slot one after another, with no evaluation in between, before it gets no more
)
MAX_PACK = 16  # trials that `auto` lets share a base
LINK_TIMEOUT = timedelta(days=30)  # the other workers wait for the first as long as an errand takes it
# errors after which a process gets no more out of its device, as torch words those that it has no class for
BROKEN = re.compile(
    r"\b(CUDA|HIP|cuDNN|cuBLAS|cuSOLVER|cuSPARSE|cuFFT|MIOpen|NCCL|RCCL)( driver| internal)? error\b"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|MIOPEN)_STATUS_|Triton Error|device-side assert",
    re.IGNORECASE,
)
PAYS = 1.05  # twice the trials must take less per trial by this factor for `auto` to let them share


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """All that a worker of a slot needs to know; the same for every slot of a sweep, but for its name."""

    slot: str
    mailbox: str  # name of the actor
    namespace: str
    storage: str  # URL or folder of the sweep
    model: ModelConfig
    task: str
    baseline: dict[str, Any]  # parameters of a trial: the base that it would train over is measured untuned
    seed: int
    pad_token_id: int
    evaluate_every: int | None
    max_tokens: int | None
    precision: str
    save_dtype: str
    gradient_checkpointing: bool
    most: int  # trials that `auto` tries to let share the slot
    probe_rows: int
    forgetting: bool  # measure with every evaluation what a trial has lost of its base
    baseline_minutes: float
    threads: int
    estimates: dict[str, MemoryEstimate] = field(default_factory=dict)  # on a GPU, of the smallest trials of the sweep


@dataclass(frozen=True, kw_only=True)
class Board:
    """The trials that should be on a slot: parameters of each, and whether it may train on towards its next evaluation."""

    version: int
    trials: dict[str, tuple[dict[str, Any], bool]] = field(default_factory=dict)
    baseline: bool = False  # measure the untuned base first
    measure: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # find out how many trials of these kinds should share
    errand: tuple[str, dict[str, Any]] | None = None  # something to do with an empty slot: its name, and what
    stop: bool = False


@dataclass(kw_only=True)
class _Passenger:
    params: dict[str, Any]
    waiter: asyncio.Future
    company: str | None  # shares a slot with these; None: with nobody
    kind: str
    go: bool = True
    slot: str | None = None
    crashes: int = 0
    alone: bool = False  # it has been on board when a step failed, until its next evaluation
    tried: set[str] = field(default_factory=set)  # slots on which it failed since its last evaluation
    failure: dict[str, Any] | None = None  # what came of it on the last of them


@dataclass(kw_only=True)
class _Errand:
    what: dict[str, Any]
    slot: str | None = None
    crashes: int = 0
    result: dict[str, Any] | None = None


@dataclass(kw_only=True)
class _Place:
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    proved: bool = False  # a trial was evaluated here
    failed: dict[str, str] = field(default_factory=dict)  # trials that failed here since one was evaluated, and how
    crashes: int = 0  # while it measured the untuned base

    @property
    def aside(self) -> bool:
        """Whether it gets no more trials: that so many fail one after another is its fault, not theirs."""
        return len(self.failed) >= MAX_FAILURES


class Mailbox:
    """Who waits, who is on board where, and what came of it. An actor; all of it can be rebuilt by asking again: every
    method does what is right of a mailbox that has just been restarted and knows nothing.
    """

    def __init__(self, sweep: str, pack: int | Literal["auto"] = 1, slots: int = 0) -> None:
        """`pack`: trials that may share a slot; auto: as many as pays, which slots measure. `slots`: that will register."""
        self._sweep = sweep
        self._pack = pack
        self._planned = slots
        self._passengers: dict[str, _Passenger] = {}
        self._slots: dict[str, _Place] = {}
        self._reserved: set[str] = set()  # slots that take nobody until the trial that waits for them fits
        self._limits: dict[str, int] = {}  # how many trials of a kind should share a slot
        self._measuring: dict[str, str] = {}  # the slot that finds out, of each kind
        self._progress: dict[str, dict[str, Any]] = {}
        self._lost: dict[str, str] = {}
        self._errands: dict[str, _Errand] = {}
        self._stop: str | None = None
        self._close = False
        self._baseline: dict[str, Any] | None = None
        self._baseline_slot: str | None = None

    def __repr__(self) -> str:
        return f"{self._sweep}:mailbox"

    # --- for trials ---

    async def advance(self, trial: str, params: dict[str, Any]) -> dict[str, Any]:
        """Wait for the next evaluation of `trial` (it boards a slot first if it is on none) and return what came of it."""
        if self._stop is not None:
            return {"stopped": self._stop}
        passenger = self._passenger(trial, params)
        passenger.go = True
        if passenger.waiter.done():
            passenger.waiter = asyncio.get_running_loop().create_future()
        if passenger.slot is not None:
            self._touch(passenger.slot)
        return await asyncio.shield(passenger.waiter)

    def _passenger(self, trial: str, params: dict[str, Any]) -> _Passenger:
        if trial not in self._passengers:
            try:
                hp = parse(params)
            except InputError:  # the slot will say what is wrong with it
                group, sort = None, ""
            else:
                group, sort = company(hp), kind(hp)
            waiter = asyncio.get_running_loop().create_future()
            self._passengers[trial] = _Passenger(params=params, waiter=waiter, company=group, kind=sort, go=False)
            self._assign()
        return self._passengers[trial]

    async def leave(self, trial: str) -> None:
        passenger = self._passengers.pop(trial, None)
        self._progress.pop(trial, None)
        if passenger is not None and not passenger.waiter.done():
            passenger.waiter.set_result({"stopped": "it left"})
        if passenger is not None and passenger.slot is not None:
            self._touch(passenger.slot)
        self._assign()

    # --- for slots ---

    async def register(self, slot: str) -> Board:
        """A slot's workers have started (again): whoever was on board goes on from the last checkpoint."""
        place = self._slots.setdefault(slot, _Place())
        place.version, place.changed = place.version + 1, asyncio.Event()
        for trial, passenger in list(self._passengers.items()):
            if passenger.slot == slot:
                passenger.crashes += 1
                passenger.alone = passenger.crashes >= MAX_CRASHES - 1  # the last chance must not be spoilt by another
                if passenger.alone:
                    passenger.slot = None
                if passenger.crashes >= MAX_CRASHES:
                    how = f"its worker process died {MAX_CRASHES} times with no evaluation in between"
                    self._failed(slot, trial, {"failed": how})
        for errand in self._errands.values():
            if errand.slot == slot and errand.result is None:
                errand.slot, errand.crashes = None, errand.crashes + 1
                if errand.crashes >= MAX_CRASHES:
                    errand.result = {"error": f"its worker process died {MAX_CRASHES} times"}
        for sort in [sort for sort, by in self._measuring.items() if by == slot]:
            self._limits[sort] = 1  # it died of trying more
            del self._measuring[sort]
        if self._baseline is None and self._baseline_slot == slot:
            place.crashes += 1
            if place.crashes >= MAX_CRASHES:
                self._baseline = {"error": f"its worker process died {MAX_CRASHES} times"}
        if self._baseline is None and self._baseline_slot is None:
            self._baseline_slot = slot
        self._assign()
        return self._board(slot)

    async def take(self, slot: str, version: int) -> Board | None:
        """The board of `slot`, as soon as it differs from `version`. None: the slot is unknown here and must register."""
        place = self._slots.get(slot)
        if place is None:
            return None
        if place.version <= version and not self._close:
            place.changed.clear()
            try:
                await asyncio.wait_for(place.changed.wait(), TAKE_TIMEOUT_S)
            except TimeoutError:
                pass
        return self._board(slot) if slot in self._slots else None  # it may have been lost in the meantime

    async def publish(self, slot: str, trial: str, outcome: dict[str, Any]) -> Board | None:
        """What came of `trial`: {"evaluation": …} (it waits for the next advance), or {"failed": …} / {"diverged": …};
        {"failed": …, "certain": True}: it would fail on every slot.
        """
        passenger = self._passengers.get(trial)
        if passenger is not None and passenger.slot == slot:
            if "failed" in outcome and not outcome.get("certain"):
                self._failed(slot, trial, outcome)
            else:
                passenger.crashes, passenger.alone, passenger.failure = 0, False, None
                passenger.tried.clear()
                self._answer(trial, outcome)
                if "failed" not in outcome and slot in self._slots:
                    place = self._slots[slot]
                    place.proved, place.failed = True, {}
            self._assign()
            self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    def _failed(self, slot: str, trial: str, outcome: dict[str, Any]) -> None:
        """Whose fault it was, the trial's or the slot's, shows on another slot: it tries again there, if there is one.

        It is the trial's where it fails on a slot that works, and where no slot is left to try.
        """
        passenger, place = self._passengers[trial], self._slots.get(slot)
        passenger.tried.add(slot)
        passenger.failure, passenger.slot, passenger.alone, passenger.crashes = outcome, None, True, 0
        if place is None:
            return
        if len(passenger.tried) > 1 and place.proved and not place.failed:
            for each in self._slots.values():
                each.failed.pop(trial, None)
            self._answer(trial, outcome)
            return
        place.failed[trial] = outcome["failed"]
        if place.aside:
            self._clear(slot)

    def _clear(self, slot: str) -> None:
        """Whoever is on board of `slot`, or measured there, goes elsewhere."""
        for passenger in self._aboard(slot):
            passenger.slot = None
        self._measuring = {sort: by for sort, by in self._measuring.items() if by != slot}
        for errand in self._errands.values():
            if errand.slot == slot and errand.result is None:
                errand.slot = None
        if self._baseline_slot == slot and self._baseline is None:
            self._baseline_slot = min((each for each in self._open() if each != slot), default=None)
            if self._baseline_slot is not None:
                self._touch(self._baseline_slot)

    async def publish_baseline(self, slot: str, baseline: dict[str, Any]) -> Board | None:
        self._baseline = baseline
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def publish_errand(self, slot: str, name: str, result: dict[str, Any]) -> Board | None:
        errand = self._errands.setdefault(name, _Errand(what={}))  # who asks for it later finds it done
        if errand.result is None:
            errand.result = result
        self._assign()
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def publish_limit(self, slot: str, sort: str, limit: int) -> Board | None:
        """`limit` trials of kind `sort` should share a slot."""
        self._limits[sort] = limit
        self._measuring.pop(sort, None)
        self._assign()
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def no_room(self, slot: str, trial: str, aboard: int) -> Board | None:
        """`trial` cannot join the `aboard` trials on the slot: no more of its kind are tried, and it waits for a place."""
        passenger = self._passengers.get(trial)
        if passenger is not None and passenger.slot == slot:
            passenger.slot = None
            self._limits[passenger.kind] = max(1, min(aboard, self._limits.get(passenger.kind, aboard)))
            self._measuring.pop(passenger.kind, None)
        self._assign()
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def part(self, slot: str, trials: list[str]) -> Board | None:
        """A step of `trials` failed for a reason that may be one trial's: each goes on alone until its next evaluation."""
        for trial in trials:
            passenger = self._passengers.get(trial)
            if passenger is not None and passenger.slot == slot:
                passenger.slot, passenger.alone = None, True
        self._assign()
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if trial in self._passengers:
            self._progress[trial] = {"samples_seen": samples_seen, "samples_per_s": samples_per_s}

    # --- for the sweep ---

    async def errand(self, name: str, what: dict[str, Any]) -> None:
        """Let an empty slot do `what` (see trainables.errands); the snapshot has what came of it."""
        if name not in self._errands:
            self._errands[name] = _Errand(what=what)
            self._assign()

    async def expect(self, trial: str, params: dict[str, Any]) -> None:
        """A trial that will ask to advance: a place is kept for it."""
        if self._stop is None:
            self._passenger(trial, params)

    async def expect_slots(self, slots: int) -> None:
        """So many slots, in all, have been started."""
        self._planned = slots

    async def room(self) -> int:
        """How many more trials could train now, as far as one can say of trials that are not drawn yet."""
        starting = self._starting()
        waiting = sum(p.slot is None for p in self._passengers.values()) - len(self._reserved)
        if waiting > starting:  # one is drawn that has no place: it may show what the next would find
            return 0
        free = starting - waiting
        for slot in self._open():
            aboard = self._aboard(slot)
            if slot in self._reserved:
                continue
            if not aboard:
                free += 1
            elif all(p.company is not None and not p.alone for p in aboard):
                free += max(0, min(self._limit(p) for p in aboard) - len(aboard))
        return free

    async def skip_baseline(self) -> None:
        """The untuned base is measured: an earlier process of the sweep did, or the mailbox has forgotten it."""
        told, self._baseline_slot = self._baseline_slot, "-"
        if told is not None and told != "-":
            self._touch(told)

    async def slot_broken(self, slot: str, error: str) -> None:
        """A slot cannot start; its run ends, and the sweep learns why from `slot_lost`."""
        self._lost[slot] = error

    async def slot_lost(self, slot: str, error: str) -> None:
        """A slot is gone for good; its trials board another."""
        self._lost.setdefault(slot, error)
        for passenger in self._aboard(slot):
            passenger.crashes += 1
        self._slots.pop(slot, None)
        self._clear(slot)
        self._assign()

    async def stop_trials(self, reason: str) -> None:
        """Answer every waiting trial with {"stopped": reason}, now and from now on."""
        self._stop = reason
        for trial in list(self._passengers):
            self._answer(trial, {"stopped": reason})
            await self.leave(trial)

    async def close(self) -> None:
        """Let the slots end."""
        self._close = True
        for slot in self._slots:
            self._touch(slot)

    async def snapshot(self) -> dict[str, Any]:
        """For the live table: slots that run, where each trial is and how far it got, the baseline."""
        return {
            "slots": {slot: [t for t, p in self._passengers.items() if p.slot == slot] for slot in self._slots},
            "lost": dict(self._lost),
            "aside": {slot: dict(place.failed) for slot, place in self._slots.items() if place.aside},
            "progress": dict(self._progress),
            "baseline": self._baseline,
            "limits": dict(self._limits),
            "errands": {name: errand.result for name, errand in self._errands.items()},
        }

    # --- inside ---

    def _answer(self, trial: str, outcome: dict[str, Any]) -> None:
        passenger = self._passengers[trial]
        passenger.go = False
        if not passenger.waiter.done():
            passenger.waiter.set_result(outcome)

    def _aboard(self, slot: str) -> list[_Passenger]:
        return [p for p in self._passengers.values() if p.slot == slot]

    def _open(self) -> list[str]:
        """Slots that trials may board."""
        return [slot for slot, place in self._slots.items() if not place.aside]

    def _starting(self) -> int:
        """Slots that will register."""
        return max(0, self._planned - len(self._slots) - len(self._lost))

    def _limit(self, passenger: _Passenger) -> int:
        if self._pack == "auto":
            return self._limits.get(passenger.kind, 1)
        return min(self._pack, self._limits.get(passenger.kind, self._pack))

    def _assign(self) -> None:
        """Board whoever waits, in the order of their coming, each on the slot with the most room.

        Who fits nowhere reserves the slot that will be free first; a pack is as large as the kind of it that gains least.
        """
        kept, self._reserved, busy = self._reserved, set(), self._busy()
        if any(slot not in busy and not self._aboard(slot) for slot in self._open()):
            for passenger in self._passengers.values():
                if passenger.slot in busy:  # nobody trains there before the errand is done
                    self._touch(passenger.slot)
                    passenger.slot = None
        for trial, passenger in self._passengers.items():
            if passenger.slot is not None:
                continue
            left = [slot for slot in self._open() if slot not in passenger.tried]
            if passenger.failure is not None and not left and not self._starting() and self._open():
                self._answer(trial, passenger.failure)
                continue
            open_slots = [slot for slot in left if slot not in self._reserved]
            fitting = [slot for slot in open_slots if self._fits(passenger, self._aboard(slot))]
            if fitting:
                passenger.slot = min(fitting, key=lambda slot: (slot in busy, len(self._aboard(slot)), slot))
                self._measure(passenger, passenger.slot)
                self._touch(passenger.slot)
                self._progress.setdefault(trial, {"samples_seen": 0, "samples_per_s": 0.0})
                continue
            alike = [slot for slot in open_slots if self._fits(passenger, self._aboard(slot), limit=MAX_PACK)]
            if alike and self._measure(passenger, alike[0]):
                continue  # it may fit once that is known
            full = [slot for slot in open_slots if len(self._aboard(slot)) > 1]
            if any(self._fits(passenger, self._aboard(slot)[1:]) for slot in full):
                continue  # it fits as soon as one leaves
            if open_slots:
                # of the emptiest the one that was kept before, or two could be filled again in turn
                self._reserved.add(min(open_slots, key=lambda slot: (len(self._aboard(slot)), slot not in kept, slot)))
        busy = self._busy()
        free = [slot for slot in self._open() if slot not in busy and not self._aboard(slot)]
        for errand in self._errands.values():
            if errand.result is None and errand.slot is None and free:
                errand.slot = free.pop(0)
                self._touch(errand.slot)

    def _busy(self) -> set[str]:
        """Slots that are on an errand."""
        return {e.slot for e in self._errands.values() if e.slot is not None and e.result is None}

    def _fits(self, passenger: _Passenger, aboard: list[_Passenger], limit: int | None = None) -> bool:
        if not aboard:
            return True
        everyone = [passenger, *aboard]
        if any(p.company is None or p.company != passenger.company or p.alone for p in everyone):
            return False
        return len(everyone) <= (limit or min(self._limit(p) for p in everyone))

    def _measure(self, passenger: _Passenger, slot: str) -> bool:
        """Let `slot` find out how many trials of the passenger's kind should share, unless that is known."""
        if self._pack != "auto" or passenger.company is None or passenger.kind in self._limits:
            return False
        if passenger.kind not in self._measuring:
            self._measuring[passenger.kind] = slot
            self._touch(slot)
        return True

    def _to_measure(self, slot: str) -> dict[str, dict[str, Any]]:
        found = {}
        for sort in [sort for sort, by in self._measuring.items() if by == slot]:
            example = next((p for p in self._passengers.values() if p.kind == sort), None)
            if example is not None and all(p.company == example.company for p in self._aboard(slot)):
                found[sort] = example.params
        return found

    def _touch(self, slot: str) -> None:
        if slot in self._slots:
            self._slots[slot].version += 1
            self._slots[slot].changed.set()

    def _board(self, slot: str) -> Board:
        trials = {t: (p.params, p.go) for t, p in self._passengers.items() if p.slot == slot}
        return Board(
            version=self._slots[slot].version,
            trials=trials,
            baseline=self._baseline is None and self._baseline_slot == slot,
            measure=self._to_measure(slot),
            errand=next(
                ((name, e.what) for name, e in self._errands.items() if e.slot == slot and e.result is None), None
            ),
            stop=self._close,
        )


def start_mailbox(sweep: str, name: str, pack: int | Literal["auto"], slots: int) -> Any:
    """The mailbox of a sweep, beside the driver; it comes back by itself, and is told everything again by who asks."""
    return (
        ray.remote(Mailbox)
        .options(
            name=name,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=10_000,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()},
        )
        .remote(sweep, pack, slots)
    )


class NamePlate:
    """A trial's row in the dashboard's Actors page, alive while it runs: the actors of `Trial` carry one after another.

    It stands here and not beside `Trial` because its process then need not import Ray Tune.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def name_plate(trial: str, text: str) -> Any:
    """A running actor named after `trial`; `ray.kill` ends it. It is not waited for."""
    return ray.remote(NamePlate).options(name=f"trial {trial}", num_cpus=0, max_restarts=-1).remote(text)


class _Link:
    """A worker's view of its slot's board: rank 0 asks the mailbox and tells the other workers."""

    def __init__(self, config: SlotConfig, rank: int, size: int) -> None:
        self._config = config
        self._rank, self._size = rank, size
        self._mailbox = ray.get_actor(config.mailbox, namespace=config.namespace) if rank == 0 else None
        self._group: Any = None
        self._pending: Any = None
        self.board = Board(version=0)
        if size > 1:
            import torch.distributed

            # boards are objects: the CPU carries them
            self._group = torch.distributed.new_group(backend="gloo", timeout=LINK_TIMEOUT)

    def register(self) -> None:
        if self._rank == 0:
            self.board = ray.get(self._mailbox.register.remote(self._config.slot))
        self._share()

    def refresh(self, *, block: bool) -> None:
        """Look for a newer board; with `block`, wait for one (at most some seconds)."""
        if self._rank == 0:
            if self._pending is None:
                self._pending = self._mailbox.take.remote(self._config.slot, self.board.version)
            ready, _ = ray.wait([self._pending], timeout=None if block else 0)
            if ready:
                board, self._pending = ray.get(self._pending), None
                self._accept(board)
        self._share()

    def tell(self, news: str, *values: Any) -> bool:
        """Rank 0 tells the mailbox `news` of this slot; the other workers are not told of the board that follows from it.
        Returns whether the mailbox knew the slot.
        """
        board = None
        if self._rank == 0:
            board = ray.get(getattr(self._mailbox, news).remote(self._config.slot, *values))
            self._accept(board)
        return board is not None

    def publish(self, news: str, *values: Any) -> bool:
        """The same, and every worker is told."""
        known = self.from_rank_zero(self.tell(news, *values))
        self._share()
        return known

    def broken(self, error: str) -> None:
        if self._rank == 0:
            ray.get(self._mailbox.slot_broken.remote(self._config.slot, error))

    def gather(self, value: Any) -> list[Any]:
        """What every worker passes, on every worker."""
        values = [value]
        if self._size > 1:
            import torch.distributed

            values = [None] * self._size
            torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def from_rank_zero(self, value: Any) -> Any:
        """The value that rank 0 passes, on every worker."""
        if self._size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if self._rank == 0:
            self._mailbox.progress.remote(trial, samples_seen, samples_per_s)

    def _accept(self, board: Board | None) -> None:
        if board is None:  # the mailbox was restarted: it learns of this slot again, and the trials board it again
            self.board = Board(version=0)
            self.board = ray.get(self._mailbox.register.remote(self._config.slot))
        elif board.version > self.board.version or board.stop:
            self.board = board

    def _share(self) -> None:
        self.board = self.from_rank_zero(self.board)


def slot_loop(loop_config: dict[str, SlotConfig]) -> None:
    """What every worker of a slot runs: read the board, let trials leave and join, step, evaluate, save, publish."""
    import ray.train

    config = loop_config["config"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    link = _Link(config, rank, size)
    wrong: str | None = None
    try:
        store, pack = _prepare(config, rank, size)
    except Exception as error:  # a slot that cannot start would fail again: it ends and says why, and is not restarted
        traceback.print_exc()
        wrong = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    if wrong := next((each for each in link.gather(wrong) if each is not None), None):
        link.broken(wrong)
        return
    link.register()
    crew = _Crew(config=config, link=link, pack=pack, store=store, rank=rank, size=size)
    while True:
        board = link.board
        waiting = any(go for _, go in board.trials.values()) or board.baseline or board.measure or board.errand
        link.refresh(block=not waiting)
        board = link.board
        if board.stop:
            return
        for trial in [t for t in pack.trials if t not in board.trials]:
            pack.leave(trial)
        if board.baseline and not pack.trials:
            link.publish("publish_baseline", crew.measure_baseline(config.baseline))
        if board.errand is not None and not pack.trials:
            name, what = board.errand
            pack.forget_base()
            link.publish("publish_errand", name, link.from_rank_zero(crew.errand(what) if rank == 0 else None))
        for sort, params in board.measure.items():
            link.publish("publish_limit", sort, _how_many(pack, params, config.most, link))
        for trial, (_, go) in board.trials.items():
            if go and trial in crew.unheard:
                crew.tell(trial, crew.unheard.pop(trial))
        board = link.board
        for trial, (params, go) in board.trials.items():
            if go and trial not in pack.trials:
                crew.guard([trial], lambda t=trial, p=params: crew.join(t, p))
        training = [t for t in pack.trials if link.board.trials.get(t, (None, False))[1]]
        if training:
            crew.guard(training, lambda trials=training: crew.step(trials))


def _prepare(config: SlotConfig, rank: int, size: int) -> tuple[Any, Any]:
    """Everything that is paid once per slot: imports, data, tokenizer; the base is loaded when a trial first needs it."""
    import ray.train.torch
    import torch

    from trainables.model import check_files, computes_in_bf16, quiet
    from trainables.pack import PASS_TOKENS, PackSettings, World, open_pack
    from trainables.store import Store

    quiet()
    torch.set_num_threads(max(1, config.threads))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        why = too_large(config.estimates, torch.cuda.get_device_properties(device).total_memory)
        if why is not None:
            raise InputError(why)
    store = Store(config.storage)
    check_files(config.model)
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and computes_in_bf16(device))
    settings = PackSettings(
        evaluate_every=config.evaluate_every,
        max_tokens=config.max_tokens or PASS_TOKENS[device.type],
        autocast=torch.bfloat16 if bf16 else None,
        save_dtype=None if config.save_dtype == "auto" else getattr(torch, config.save_dtype),
        gradient_checkpointing=config.gradient_checkpointing,
        probe_rows=config.probe_rows,
        seed=config.seed,
        forgetting=config.forgetting,
    )
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        # a pack maps the files of an object store's copy into memory, and they then need no name: whenever and however
        # a worker ends, it leaves none behind
        pack = open_pack(
            store.fetch("data", Path(scratch)),
            model=config.model,
            task=config.task,
            pad_token_id=config.pad_token_id,
            settings=settings,
            device=device,
            world=World(rank=rank, size=size),
        )
    return store, pack


def _how_many(pack: Any, params: dict[str, Any], most: int, link: _Link) -> int:
    """How many trials like this one should share the slot: twice as many, as long as that pays and fits."""

    def seconds(copies: int) -> float:
        try:
            return pack.time_step(parse(params), copies)
        except Exception as error:  # too little memory, or a trial that cannot train: then its own join will say so
            if ends_worker(error):
                raise
            return math.inf

    per_trial: dict[int, float] = {}
    copies = 1
    while copies <= most:
        per_trial[copies] = max(link.gather(seconds(copies))) / copies
        if math.isinf(per_trial[copies]) or per_trial[copies] > min(per_trial.values()) * PAYS:
            break
        copies *= 2
    # the fewest that are nearly as good as the best
    return min(copies for copies, each in per_trial.items() if each <= min(per_trial.values()) * PAYS)


def ends_worker(error: BaseException | None) -> bool:
    """Whether a process can get nothing more out of its accelerator, or of the other workers, after `error`: it is no
    trial's end but the worker's, which Ray Train starts anew.
    """
    import torch

    from trainables.stack import Wrecked

    if error is None or isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | torch.distributed.DistError | Wrecked):
        return True
    return isinstance(error, RuntimeError) and bool(BROKEN.search(str(error))) or ends_worker(error.__cause__)


class _Crew:
    """What a worker does with the trials on board."""

    def __init__(self, *, config: SlotConfig, link: _Link, pack: Any, store: Any, rank: int, size: int) -> None:
        self._config = config
        self._link, self._pack, self._store = link, pack, store
        self._rank, self._size = rank, size
        self._attempts: dict[str, int] = {}
        self._began: dict[
            str, tuple[float, int]
        ] = {}  # when a trial last began to train towards an evaluation, and where
        self._told = 0.0
        self.unheard: dict[str, dict[str, Any]] = {}  # what came of trials when the mailbox had just been restarted

    def join(self, trial: str, params: dict[str, Any]) -> None:
        """Board a trial: a new attempt, going on from the newest evaluation that can be resumed, if there is one."""
        from trainables.checkpoints import EVALUATION, begin_attempt

        pack, link, store = self._pack, self._link, self._store
        self._attempts[trial], origin = link.from_rank_zero(begin_attempt(store, trial) if self._rank == 0 else None)
        if origin is None:
            boarded = self._board(trial, params, None)
        else:
            record = store.read_json(f"{origin}/{EVALUATION}")
            if record["finished"]:  # all was done before the cut; only the news of it was lost
                self.tell(trial, {"evaluation": record})
                return
            with tempfile.TemporaryDirectory() as scratch:
                boarded = self._board(trial, params, store.fetch(origin, Path(scratch)))
        if boarded:
            self._began[trial] = (time.monotonic(), pack.progress(trial))

    def _board(self, trial: str, params: dict[str, Any], checkpoint: Path | None) -> bool:
        """Whether there was room beside those on board; a trial that does not fit even alone has failed."""
        import torch

        from trainables.pack import NotShared

        pack, hp, company = self._pack, parse(params), len(self._pack.trials)
        if not company:
            pack.join(trial, hp, checkpoint)
            return True
        room = True
        try:
            pack.join(trial, hp, checkpoint)
        except (torch.OutOfMemoryError, NotShared):
            room = False
        if all(self._link.gather(room)):
            return True
        if trial in pack.trials:
            pack.leave(trial)
        self._link.publish("no_room", trial, company)
        return False

    def tell(self, trial: str, outcome: dict[str, Any]) -> None:
        """Publish what came of a trial; a mailbox that has forgotten it is told again when the trial boards again."""
        if not self._link.publish("publish", trial, outcome):
            self.unheard[trial] = outcome

    def step(self, trials: list[str]) -> None:
        """One step for `trials`; whoever's evaluation is due then is evaluated, saved and published."""
        from trainables.pack import NonFinite

        pack = self._pack
        try:
            due = pack.step(trials)
        except NonFinite as error:
            for trial, reason in error.reasons.items():
                pack.leave(trial)
                self.tell(trial, {"diverged": reason})
            due = pack.due(trial for trial in trials if trial not in error.reasons)
        if due:
            for trial, evaluation in pack.evaluate(due).items():
                self.guard([trial], lambda t=trial, e=evaluation: self._publish(t, e))
        elif time.monotonic() - self._told > 1.0:
            self._told = time.monotonic()
            for trial in trials:
                if trial in pack.trials:
                    self._tell_progress(trial)

    def _publish(self, trial: str, evaluation: Any) -> None:
        from trainables.checkpoints import write_evaluation

        record = None
        if self._rank == 0:
            attempt = self._attempts[trial]
            record = write_evaluation(
                self._store, trial, attempt, evaluation, lambda folder: self._pack.save(trial, folder)
            )
            self._tell_progress(trial)
        self.tell(trial, {"evaluation": record})
        self._began[trial] = (time.monotonic(), self._pack.progress(trial))

    def _tell_progress(self, trial: str) -> None:
        began, seen = self._began[trial]
        now = self._pack.progress(trial)
        self._link.progress(trial, now, (now - seen) / max(time.monotonic() - began, 1e-9))

    def measure_baseline(self, params: dict[str, Any]) -> dict[str, Any]:
        """The untuned base's numbers, or {"error": …}: a sweep is possible without them."""
        from trainables.checkpoints import finite_or_none, write_rows

        try:
            hp = parse(params)
            measured, probed = self._pack.measure_base(hp.method, hp.options)
            metrics = self._pack.metrics(measured)
            if self._rank == 0:
                write_rows(self._store, "baselines/validation/untuned", measured.losses, measured.classes)
        except Exception as error:  # the trials will meet the same fault, each at its own border
            traceback.print_exc()
            if ends_worker(error):
                raise
            return {"error": f"{type(error).__name__}: {error}"}
        return finite_or_none({"val_loss": measured.loss, "probe_loss": probed.loss, "metrics": metrics})

    def errand(self, what: dict[str, Any]) -> dict[str, Any]:
        """What came of an errand, or {"error": …}: a sweep is possible without."""
        from trainables.errands import run

        try:
            return run(self._store, self._config, what)
        except Exception as error:  # the border between an errand and its slot
            traceback.print_exc()
            if ends_worker(error):
                raise
            return {"error": _first_line(error)}

    def guard(self, trials: list[str], action: Callable[[], None]) -> None:
        """Run `action`; what goes wrong there is the end of a trial, not of the slot. Whose end it is, with several on
        board, shows when each has gone on alone.
        """
        import torch

        pack, link, apart = self._pack, self._link, len(trials) > 1
        try:
            action()
            return
        except InputError as error:
            outcome = {"failed": str(error), "certain": True}
        except Exception as error:  # the border between a trial and its slot: whatever it was, the slot goes on
            outcome = {"failed": _first_line(error)}
            if isinstance(error, torch.OutOfMemoryError):
                apart = len({*pack.trials, *trials}) > 1  # also those that wait take memory
                outcome["failed"] = f"it does not fit the device even alone: {outcome['failed']}"[:500]
            log = f"trials/{trials[0]}/error.txt"
            self._store.write_bytes(log, traceback.format_exc().encode())
            outcome["log"] = self._store.path(log)
            if ends_worker(error):
                raise
            if self._size > 1:  # the other workers stand in the middle of a collective call: only a restart frees them
                if apart:
                    link.tell("part", trials)
                else:
                    link.tell("publish", trials[0], outcome)
                raise
        for trial in trials:
            if trial in pack.trials:
                pack.leave(trial)
        if apart:
            link.publish("part", trials)
        else:
            self.tell(trials[0], outcome)


def _first_line(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}"[:500]


def run_slot(config: SlotConfig, *, workers: int, resources_per_worker: dict[str, float], folder: str) -> None:
    """Start a slot and wait for its end. Raises what ended it when Ray Train gave up restarting its workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    class NameWorkers(ControllerCallback):
        """Ray Train's workers all look alike in the dashboard: here they show the slot that they work for."""

        def after_controller_start(self, *_: Any) -> None:  # in the controller's process, which is this slot's alone
            name = config.slot
            WorkerGroup._worker_cls = type("Slot", (RayTrainWorker,), {"__repr__": lambda self: name})

    gpu = resources_per_worker.get("GPU", 0) > 0
    TorchTrainer(
        slot_loop,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=dict(resources_per_worker)),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=config.slot,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=1000),
            callbacks=[NameWorkers()],
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}},
        ),
    ).fit()
