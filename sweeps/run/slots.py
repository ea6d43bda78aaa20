"""The slots of a sweep: starting them, losing them, growing with the cluster, letting them end."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.draws import first_of_each_method, of_each_base
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import NO_SLOT
from sweeps.run.estimates import smallest_estimates
from sweeps.run.lifetime import ASK_TIMEOUT_S, Lifetime
from trainables.models.files import load_tokenizer, pad_token_of

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from cluster.connect import SlotPlan
    from trainables.runtime.protocol import SlotBase, SlotConfig, Snapshot

COORDINATOR = "coordinator"  # the actor's name in the sweep's namespace
SLOT_END_TIMEOUT_S = 30.0


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
        say: Callable[[str], None],
    ) -> None:
        """folder: where Ray Train puts what it writes."""
        self._config, self._ledger, self._lifetime = config, ledger, lifetime
        self._coordinator, self._namespace = coordinator, namespace
        self._folder, self._say = folder, say
        self.threads: list[threading.Thread] = []
        self.lost: dict[str, str] = {}  # slots that are gone for good, and why
        # those that failed one trial after another, and these trials
        self.quarantined: Mapping[str, Mapping[str, str]] = {}
        self.ending = False  # a slot that ends is no news any more

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
            slot=name,
            coordinator=COORDINATOR,
            namespace=self._namespace,
            storage=self._ledger.store.url,
            bases=dict(_bases(config, on_gpu)),
            task=config.task,
            seed=config.seed,
            evaluate_every=None if train.evaluate_every == "epoch" else int(train.evaluate_every),
            max_tokens=train.max_tokens,
            precision=train.precision,
            save_dtype=train.save_dtype,
            gradient_checkpointing=train.gradient_checkpointing,
            most=min(MAX_GROUP_SIZE, math.ceil(config.search.trials / plan.slots)),
            probe_rows=train.probe_rows,
            forgetting=config.selection.limits.of_forgetting,
            baseline_minutes=config.selection.baseline_minutes,
            threads=plan.threads_per_worker,
            metrics=config.metrics,
            generation=config.generation,
        )

    def _run(self, slot: "SlotConfig", plan: "SlotPlan") -> None:
        """Hold a slot until it ends; why it did is news for the sweep, not its end."""
        from trainables.runtime.slot import run_slot

        error = "it ended before the sweep did"
        try:
            run_slot(
                slot,
                workers=plan.workers_per_slot,
                resources_per_worker=plan.resources_per_worker,
                folder=str(self._folder),
            )
        except Exception as raised:  # the border to Ray Train
            error = (str(raised).strip() or type(raised).__name__).splitlines()[0]
        if not self.ending:
            self._lose(slot.slot, error)

    def _lose(self, name: str, error: str) -> None:
        import ray.exceptions

        try:
            ray.get(self._coordinator.slot_lost.remote(name, error))
            waiting: ObjectRef[Snapshot] = self._coordinator.snapshot.remote()
            (snapshot,) = ray.get([waiting])
        # the cluster itself is gone; the main thread hears of it from Tune
        except ray.exceptions.RayError:
            return
        self.lost[name] = snapshot.lost[name]
        again = list(self.lost.values()).count(self.lost[name]) > 1
        self._say(f"{name} is lost: {'for the same reason' if again else self.lost[name]}")
        self.stop_if_none_is_left()

    def quarantine(self, found: Mapping[str, Mapping[str, str]]) -> None:
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
        if self.threads and len(unusable) == len(self.threads):
            self._lifetime.stop(NO_SLOT)

    def grow(self) -> None:
        """Start the slots that a cluster has room for since nodes have joined it, and those that
        stand in for lost ones.
        """
        import ray

        from cluster import ClusterError
        from cluster.connect import plan_slots

        cluster, trials = self._config.cluster, self._config.search.trials
        try:
            plan = plan_slots(ray.cluster_resources(), ray.nodes(), cluster, trials, can_grow=True)
        except ClusterError:  # no room for any now
            return
        more = plan.slots - (len(self.threads) - len(self.lost))
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

    def close(self) -> None:
        import ray

        self.ending = True
        deadline = time.monotonic() + SLOT_END_TIMEOUT_S
        while any(slot.is_alive() for slot in self.threads) and time.monotonic() < deadline:
            # again and again: a coordinator that was restarted has not heard of it
            ray.get(self._coordinator.close.remote())
            for slot in self.threads:
                slot.join(1.0)


def add_cost(ledger: Ledger, plan: "SlotPlan", seconds: float) -> None:
    """Add what this process held of accelerators, or else of cores, to what the sweep took."""
    on_gpu = bool(plan.resources_per_worker.get("GPU"))
    each = plan.resources_per_worker.get("GPU" if on_gpu else "CPU", 1.0)
    before = ledger.store.read_json("cost.json") if ledger.store.exists("cost.json") else {}
    ledger.store.write_json(
        "cost.json",
        {
            "device": "GPU" if on_gpu else "CPU core",
            "device_seconds": before.get("device_seconds", 0.0)
            + seconds * plan.slots * plan.workers_per_slot * each,
        },
    )


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
