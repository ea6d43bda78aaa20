"""The slots of a sweep: starting them, losing them, growing with the cluster, giving them to other
sweeps, letting them end.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.draws import first_of_each_method, of_each_base
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import INTERRUPTED, NO_SLOT
from sweeps.run.estimates import smallest_estimates
from sweeps.run.head import ClusterLost
from sweeps.run.lifetime import ASK_TIMEOUT_S, Lifetime
from trainables.models.files import load_tokenizer, pad_token_of
from trainables.storage.patience import StorageLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from cluster.connect import SlotPlan
    from cluster.shares import ShareOfSweep
    from trainables.runtime.protocol import SlotBase, SlotConfig, Snapshot

COORDINATOR = "coordinator"  # the actor's name in the sweep's namespace
SLOT_END_TIMEOUT_S = 30.0
LOST_END_TIMEOUT_S = 3.0  # the same where storage does not work
MAX_STARTS = 5  # of a slot of which nothing comes in between
MAX_STAND_INS = 8  # slots started in place of lost ones


class Slots:
    """The slots of a sweep: each is a thread here that waits for a Ray Train run."""

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        *,
        lifetime: Lifetime,
        coordinator: "ActorHandle",
        namespace: str,
        folder: Path,
        socket: Path | None,
        say: Callable[[str], None],
        give_up: Callable[[ClusterLost], None],
        share: "ShareOfSweep | None" = None,
    ) -> None:
        """folder: where Ray Train puts what it writes; socket: by which new processes join the
        sweep's own Ray; give_up: called once, where none can any more and none is left; share: of a
        cluster that other sweeps may use too.
        """
        self._config, self._ledger, self._lifetime = config, ledger, lifetime
        self._coordinator, self._namespace = coordinator, namespace
        self._folder, self._socket, self._say, self._give_up = folder, socket, say, give_up
        self._known_bases: dict[bool, Mapping[str, SlotBase]] = {}
        self.threads: list[threading.Thread] = []
        self.lost: dict[str, str] = {}  # slots that are gone for good, and why
        self._storage: Mapping[str, str] = {}  # what is wrong with it, for those that wait for it
        # those that failed one trial after another, and these trials
        self.quarantined: Mapping[str, Mapping[str, str]] = {}
        self._hung: Sequence[str] = ()
        self._share, self._allowed = share, math.inf  # slots that may be held now
        self._retiring: set[str] = set()  # slots that were told to go, whether they have or not
        self._on: Mapping[str, Sequence[str]] = {}  # trials by slots, when last looked
        self._nodes: Mapping[str, Sequence[str]] = {}  # of slots
        self._ran: set[str] = set()  # slots that have had workers since they last found no room
        self._without_nodes_since: float | None = None
        self._told_folder = False  # that Ray's is gone
        self.ending = False  # a slot that ends is no news any more

    def begin(self, plan: "SlotPlan") -> None:
        """Start those that may be held now."""
        self._ask(plan)
        for _ in range(int(min(plan.slots, self._allowed))):
            self.start(plan)

    def start(self, plan: "SlotPlan") -> None:
        # here and not in the thread: Ray's modules cannot be imported by two threads at once
        import trainables.runtime.slot  # noqa: F401

        name = f"{self._ledger.name}-slot{len(self.threads)}"
        slot = self._slot_config(name, plan)
        thread = threading.Thread(target=self._run, args=(slot, plan), name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _slot_config(self, name: str, plan: "SlotPlan") -> "SlotConfig":
        from trainables.runtime.capacity import MAX_GROUP_SIZE
        from trainables.runtime.protocol import SlotConfig

        config, train = self._config, self._config.train
        on_gpu = bool(plan.resources_per_worker.get("GPU"))
        return SlotConfig(
            sweep=self._ledger.name,
            slot=name,
            coordinator=COORDINATOR,
            namespace=self._namespace,
            storage=self._ledger.store.url,
            bases=self._bases(on_gpu),
            task=config.task,
            seed=config.seed,
            evaluate_every=None if train.evaluate_every == "epoch" else int(train.evaluate_every),
            max_tokens=train.max_tokens,
            precision=train.precision,
            save_dtype=train.save_dtype,
            gradient_checkpointing=train.gradient_checkpointing,
            storage_wait_s=self._lifetime.patience.wait_s,
            most=min(MAX_GROUP_SIZE, self._most(plan)),
            probe_rows=train.probe_rows,
            forgetting=config.selection.limits.of_forgetting,
            baseline_minutes=config.selection.baseline_minutes,
            threads=plan.threads_per_worker,
            metrics=config.metrics,
            generation=config.generation,
        )

    def _most(self, plan: "SlotPlan") -> int:
        """Trials that a slot may ever have to train at once."""
        fewest = plan.slots if self._share is None else 1
        return math.ceil(self._lifetime.search.trials / fewest)

    def _bases(self, on_gpu: bool) -> "Mapping[str, SlotBase]":
        """The same for every slot: what trials may be is drawn for it, which takes a while."""
        if on_gpu not in self._known_bases:
            self._known_bases[on_gpu] = dict(_bases(self._config, on_gpu))
        return self._known_bases[on_gpu]

    def _run(self, slot: "SlotConfig", plan: "SlotPlan") -> None:
        """Hold a slot until it ends; why it did is news for the sweep, not its end."""
        while (why := self._hold(slot, plan)) is not None and not self.ending:
            if slot.slot in self._retiring:
                break
            if slot.slot in self._storage:
                return self._lose(slot.slot, why)
            if not self._may_start_again(slot.slot):
                return self._lose(slot.slot, f"{why} ({MAX_STARTS} times, and nothing came of it)")
            self._say(f"{slot.slot} is started again: {why}")
        if slot.slot in self._retiring:
            self._coordinator.retired.remote(slot.slot)
        elif not self.ending and self._lifetime.stopped != INTERRUPTED:
            self._lose(slot.slot, "it ended before the sweep did")

    def _hold(self, slot: "SlotConfig", plan: "SlotPlan") -> str | None:
        """One run of a slot, to its end: what has cut it short. Ray Train starts a slot's workers
        again; this is of its own process, or of workers that die again and again.
        """
        import ray.exceptions

        from trainables.runtime.slot import run_slot

        try:
            run_slot(
                slot,
                workers=plan.workers_per_slot,
                resources_per_worker=plan.resources_per_worker,
                folder=str(self._folder),
            )
        except ray.exceptions.ActorDiedError:
            return "Ray Train's process of it died"
        except Exception as raised:  # the border to Ray Train
            return (str(raised).strip() or type(raised).__name__).splitlines()[0]

    def _may_start_again(self, name: str) -> bool:
        import ray
        import ray.exceptions

        try:
            ends: ObjectRef[int] = self._coordinator.slot_ended.remote(name)
            return ray.get([ends])[0] < MAX_STARTS
        # the cluster itself is gone; the main thread hears of it from Tune
        except ray.exceptions.RayError:
            return False

    def held(self) -> int:
        """Slots that there are, whatever they do."""
        return sum(thread.is_alive() for thread in self.threads)

    def _lose(self, name: str, error: str) -> None:
        import ray.exceptions

        try:
            ray.get(self._coordinator.slot_lost.remote(name, error))
            waiting: ObjectRef[Snapshot] = self._coordinator.snapshot.remote()
            (snapshot,) = ray.get([waiting])
        except ray.exceptions.RayError:
            return
        self.lost[name] = snapshot.lost[name]
        self._tell_storage(snapshot.storage)
        again = list(self.lost.values()).count(self.lost[name]) > 1
        self._say(f"{name} is lost: {'for the same reason' if again else self.lost[name]}")
        self.stop_if_none_is_left()

    def look(self, snapshot: "Snapshot") -> None:
        """What the coordinator has found out of them."""
        self._on, self._nodes = snapshot.slots, snapshot.nodes
        self._tell_storage(snapshot.storage)
        self._quarantine(snapshot.quarantined)
        for slot, trials in snapshot.hung.items():
            if slot not in self._hung:
                on = f" with {', '.join(trials)}" if trials else ""
                self._say(
                    f"{slot} made no progress for {self._config.cluster.hang_minutes:g} minutes"
                    f"{on}: its workers are killed and started again"
                )
        self._hung = [*snapshot.hung]
        for slot in snapshot.waiting:
            if slot in self._ran:
                self._say(f"{slot} is without workers; its trials go on where there is room")
        self._ran = {*self._ran, *snapshot.slots}.difference(snapshot.waiting)
        self.stop_if_none_is_left()
        self._look_for_rays_folder(snapshot)
        self._stop_without_nodes(snapshot)

    def _quarantine(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """found: slots that get no more trials, and the trials that failed there."""
        for slot, failed in found.items():
            if slot not in self.quarantined:
                last = list(failed.values())[-1]
                self._say(
                    f"{slot} gets no more trials: {len(failed)} failed on it one after another "
                    f"({', '.join(failed)}; the last: {last}); they go on elsewhere"
                )
        self.quarantined = found

    def stop_if_none_is_left(self) -> None:
        unusable = self.lost.keys() | self.quarantined.keys()
        if unusable and unusable >= self._names() - self._retiring:
            if unusable <= self._storage.keys():
                self._lifetime.patience.lose(StorageLost(next(iter(self._storage.values()))))
            else:
                self._lifetime.stop(NO_SLOT, next(reversed(self.lost.values()), ""))

    def _tell_storage(self, waiting: Mapping[str, str]) -> None:
        """waiting: slots for which storage does not work, and what is wrong with it."""
        before, self._storage = self._storage, waiting
        for slot in waiting.keys() - before.keys():
            self._say(f"{slot} waits for storage: {waiting[slot]}")
        for slot in before.keys() - waiting.keys():
            self._say(f"{slot} goes on: storage works again")

    def _look_for_rays_folder(self, snapshot: "Snapshot") -> None:
        """Processes that run go on without it, but no other can be started: a slot without workers
        would wait for them without end, as would Ray Train where it is told to end.
        """
        if self._socket is None or self._socket.exists():
            return
        folder = self._socket.parent.parent
        if not self._told_folder:
            self._told_folder = True
            self._say(
                f"Ray's temporary folder is gone, {folder}: what runs goes on, but no process can"
                " start any more"
            )
        if not {*snapshot.slots} - {*snapshot.waiting, *self.lost, *self.quarantined}:
            why = f"Ray's temporary folder was deleted while it ran ({folder}), and no slot is left"
            self._give_up(ClusterLost(why))

    def _stop_without_nodes(self, snapshot: "Snapshot") -> None:
        """Where every slot waits for room, and not because others have it now."""
        unusable = {*snapshot.waiting, *self.lost, *self.quarantined, *self._retiring}
        if self._names() - unusable or self._has_nodes():
            self._without_nodes_since = None
            return
        now, minutes = time.monotonic(), self._config.cluster.wait_minutes
        if self._without_nodes_since is None:
            self._without_nodes_since = now
            self._say(
                f"No node is left that could hold a slot; waiting {minutes:g} minutes for one"
            )
        elif now - self._without_nodes_since > minutes * 60:
            self._lifetime.stop(NO_SLOT, f"no node could hold one for {minutes:g} minutes")

    def _has_nodes(self) -> bool:
        from cluster import ClusterError
        from cluster.connect import plan_slots_now

        one = replace(self._config.cluster, slots="auto")
        try:
            plan_slots_now(one, 1)
        except ClusterError:
            return False
        return True

    def _names(self) -> set[str]:
        """Of all slots that were ever started."""
        return {thread.name for thread in self.threads}

    def leave_nodes(self) -> None:
        """Let go the slots on nodes that are to be taken away: their trials are paused before."""
        from cluster.connect import draining_nodes

        if draining := draining_nodes():
            self._retire(
                [name for name, nodes in self._nodes.items() if draining.intersection(nodes)],
                "its machine is to be taken away",
            )

    def _retire(self, names: Sequence[str], why: str) -> None:
        for name in names:
            if name not in self._retiring:
                self._retiring.add(name)
                trials = ", ".join(self._on.get(name, ()))
                paused = f"; {trials} paused, to go on elsewhere" if trials else ""
                self._say(f"{name} ends: {why}{paused}")
        self._coordinator.retire.remote(list(names))

    def _ask(self, plan: "SlotPlan") -> None:
        """How many slots the sweep may hold, where it shares the cluster."""
        import ray.exceptions

        if self._share is None:
            return
        undrawn = self._lifetime.search.trials - self._ledger.drawn()
        left = undrawn + len(self._ledger.unfinished())
        others = list(self._share.others)
        try:
            allowed = self._share.ask(
                room=plan.room, wanted=max(1, min(plan.slots, left)), held=self.held()
            )
        except ray.exceptions.RayError:  # it is asked again soon
            return
        self._allowed = math.inf if allowed is None else allowed
        if others != self._share.others:
            slots = "1 slot" if self._allowed == 1 else f"{self._allowed} slots"
            now = f", {slots} for this one now" if self._share.others else ""
            names = ", ".join(self._share.others) or "no other sweep"
            self._say(f"The cluster is shared with {names}{now}")

    def grow(self) -> None:
        """Start the slots that a cluster has room for since nodes have joined it, and those that
        stand in for lost ones; give those to others that are due to them.
        """
        import ray

        from cluster import ClusterError
        from cluster.connect import plan_slots_now

        cluster, trials = self._config.cluster, self._lifetime.search.trials
        try:
            plan = plan_slots_now(cluster, trials, can_grow=True)
        except ClusterError:  # no room for any now
            return
        self._ask(plan)
        stay = self._names() - self._retiring
        excess = len(stay) - len(self.lost) - self._allowed
        if excess > 0:
            there = sorted(stay - self.lost.keys(), key=lambda name: len(self._on.get(name, ())))
            self._retire(there[: int(excess)], "it is another sweep's turn")
            return
        stand_ins = min(len(self.lost), MAX_STAND_INS)
        more = int(min(plan.slots, self._allowed)) - (len(stay) - stand_ins)
        if more > 0 and self._lifetime.stopped is None:
            self._say(f"Starting {more} more {'slot' if more == 1 else 'slots'}: {plan.reason}")
            for _ in range(more):
                self.start(plan)
            ray.get(self._coordinator.expect_slots.remote(len(self.threads)), timeout=ASK_TIMEOUT_S)

    def remind(self) -> None:
        """Tell the coordinator of all slots again: one that was restarted knows nothing."""
        self._coordinator.expect_slots.remote(len(self.threads))
        for slot, error in list(self.lost.items()):
            self._coordinator.slot_lost.remote(slot, error)
        ended = {thread.name for thread in self.threads if not thread.is_alive()}
        for slot in self._retiring & ended:
            self._coordinator.retired.remote(slot)
        if still := sorted(self._retiring - ended):
            self._coordinator.retire.remote(still)

    def close(self) -> None:
        import ray

        self.ending = True
        if self._share is not None:
            self._share.leave()
        # their workers wait for what does not come
        at_once = self._lifetime.lost is not None or bool(self._storage)
        deadline = time.monotonic() + (LOST_END_TIMEOUT_S if at_once else SLOT_END_TIMEOUT_S)
        while any(slot.is_alive() for slot in self.threads) and time.monotonic() < deadline:
            # again and again: a coordinator that was restarted has not heard of it
            ray.get(self._coordinator.close.remote())
            for slot in self.threads:
                slot.join(1.0)


def _bases(config: SweepConfig, on_gpu: bool) -> "Iterator[tuple[str, SlotBase]]":
    from trainables.runtime.protocol import SlotBase

    for word, over, drawn, _ in of_each_base(config):
        yield (
            word,
            SlotBase(
                model=over.model.base(""),
                pad_token_id=pad_token_of(load_tokenizer(over.model)),
                baseline=first_of_each_method(drawn)[0],
                estimates=smallest_estimates(over, drawn) if on_gpu else {},
            ),
        )
