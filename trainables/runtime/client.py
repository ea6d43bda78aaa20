"""A worker's view of its slot's assignment: rank 0 asks the coordinator and tells the other
workers.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import ray

from trainables.engine.memory import kernel_kills
from trainables.runtime.protocol import Assignment, SlotConfig, TrialProgress

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from torch.distributed import ProcessGroup

LINK_TIMEOUT = timedelta(days=30)  # the other workers wait for the first as long as a job takes it

Value = TypeVar("Value")


class CoordinatorClient:
    """A worker's view of its slot's assignment: rank 0 asks the coordinator and tells the other
    workers.
    """

    def __init__(self, config: SlotConfig, rank: int, size: int) -> None:
        self._config = config
        self._rank, self._size = rank, size
        # only rank 0 has it
        self._coordinator: ActorHandle | None = (
            ray.get_actor(config.coordinator, namespace=config.namespace) if rank == 0 else None
        )
        self._process_group: ProcessGroup | None = None
        self._taking: ObjectRef[Assignment | None] | None = None  # the answer that is waited for
        self._telling: ObjectRef[None] | None = None  # what was last told of progress
        self._nodes: list[str] = []
        self.assignment = Assignment(version=0)
        if size > 1:
            import torch.distributed

            # assignments are objects: the CPU carries them
            made = torch.distributed.new_group(backend="gloo", timeout=LINK_TIMEOUT)
            assert not isinstance(made, int), "every worker is in the group"
            self._process_group = made

    def register(self) -> None:
        self._nodes = sorted({*self.gather(ray.get_runtime_context().get_node_id())})
        if self._rank == 0:
            self._register()
        self._share()

    def refresh(self, *, block: bool) -> None:
        """Look for a newer assignment; with `block`, wait for one (at most some seconds)."""
        if self._rank == 0:
            if self._taking is None:
                self._taking = self._call("take", self.assignment.version)
            ready, _ = ray.wait([self._taking], timeout=None if block else 0)
            if ready:
                assignment, self._taking = ray.get(self._taking), None
                self._accept(assignment)
        self._share()

    def tell(self, news: str, *values: object) -> bool:
        """Rank 0 calls the coordinator's method `news` for this slot; the other workers are not
        told of the assignment that follows from it. Returns whether the coordinator knew the slot.
        """
        assignment = None
        if self._rank == 0:
            assignment = ray.get(self._call(news, *values))
            self._accept(assignment)
        return assignment is not None

    def publish(self, news: str, *values: object) -> bool:
        """The same, and every worker is told."""
        known = self.from_rank_zero(self.tell(news, *values))
        self._share()
        return known

    def broken(self, error: str) -> None:
        if self._coordinator is not None:
            ray.get(self._coordinator.slot_broken.remote(self._config.slot, error))

    def storage(self, wrong: str | None) -> None:
        """What is wrong with storage, that this worker waits for; None: it works again."""
        if self._coordinator is not None:
            self._coordinator.storage.remote(self._config.slot, wrong)

    def gather(self, value: Value) -> list[Value]:
        """What every worker passes, on every worker."""
        if self._size == 1:
            return [value]
        import torch.distributed

        values = [value] * self._size
        torch.distributed.all_gather_object(values, value, group=self._process_group)
        return values

    def from_rank_zero(self, value: Value) -> Value:
        """The value that rank 0 passes, on every worker."""
        if self._size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._process_group)
        return box[0]

    def progress(self, told: Mapping[str, TrialProgress]) -> None:
        """Of the slot's trials. A coordinator that has not come to read what was told before is
        told nothing: of very many slots it would never come to anything else.
        """
        if self._coordinator is None:
            return
        if self._telling is None or ray.wait([self._telling], timeout=0)[0]:
            self._telling = self._coordinator.progress.remote(self._config.slot, told)

    def _call(self, method: str, *values: object) -> "ObjectRef[Assignment | None]":
        return getattr(self._coordinator, method).remote(self._config.slot, *values)

    def _register(self) -> None:
        # the process that this runs in, so that it can be ended where it hangs
        here = ray.get_runtime_context()
        killed = (here.get_node_id(), kernel_kills())
        assignment = ray.get(self._call("register", here.current_actor, self._nodes, killed))
        assert assignment is not None, "whoever registers is known"
        self.assignment = assignment

    def _accept(self, assignment: Assignment | None) -> None:
        if assignment is None:
            # the coordinator was restarted: it learns of this slot again, and trials join it again
            self._register()
        elif assignment.version > self.assignment.version or assignment.stop:
            self.assignment = assignment

    def _share(self) -> None:
        self.assignment = self.from_rank_zero(self.assignment)
