"""A worker's view of its slot's assignment: rank 0 asks the coordinator and tells the other
workers.
"""

from datetime import timedelta
from typing import Any

import ray

from trainables.runtime.protocol import Assignment, SlotConfig

LINK_TIMEOUT = timedelta(days=30)  # the other workers wait for the first as long as an job takes it


class CoordinatorClient:
    """A worker's view of its slot's assignment: rank 0 asks the coordinator and tells the other
    workers.
    """

    def __init__(self, config: SlotConfig, rank: int, size: int) -> None:
        self._config = config
        self._rank, self._size = rank, size
        self._coordinator = (
            ray.get_actor(config.coordinator, namespace=config.namespace) if rank == 0 else None
        )
        self._process_group: Any = None
        self._pending: Any = None
        self.assignment = Assignment(version=0)
        if size > 1:
            import torch.distributed

            # assignments are objects: the CPU carries them
            self._group = torch.distributed.new_group(backend="gloo", timeout=LINK_TIMEOUT)

    def register(self) -> None:
        if self._rank == 0:
            self.assignment = ray.get(self._coordinator.register.remote(self._config.slot))
        self._share()

    def refresh(self, *, block: bool) -> None:
        """Look for a newer assignment; with `block`, wait for one (at most some seconds)."""
        if self._rank == 0:
            if self._pending is None:
                self._pending = self._coordinator.take.remote(
                    self._config.slot, self.assignment.version
                )
            ready, _ = ray.wait([self._pending], timeout=None if block else 0)
            if ready:
                assignment, self._pending = ray.get(self._pending), None
                self._accept(assignment)
        self._share()

    def tell(self, news: str, *values: Any) -> bool:
        """Rank 0 tells the coordinator `news` of this slot; the other workers are not told of the
        assignment that follows from it. Returns whether the coordinator knew the slot.
        """
        assignment = None
        if self._rank == 0:
            assignment = ray.get(
                getattr(self._coordinator, news).remote(self._config.slot, *values)
            )
            self._accept(assignment)
        return assignment is not None

    def publish(self, news: str, *values: Any) -> bool:
        """The same, and every worker is told."""
        known = self.from_rank_zero(self.tell(news, *values))
        self._share()
        return known

    def broken(self, error: str) -> None:
        if self._rank == 0:
            ray.get(self._coordinator.slot_broken.remote(self._config.slot, error))

    def gather(self, value: Any) -> list[Any]:
        """What every worker passes, on every worker."""
        values = [value]
        if self._size > 1:
            import torch.distributed

            values = [None] * self._size
            torch.distributed.all_gather_object(values, value, group=self._process_group)
        return values

    def from_rank_zero(self, value: Any) -> Any:
        """The value that rank 0 passes, on every worker."""
        if self._size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._process_group)
        return box[0]

    def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if self._rank == 0:
            self._coordinator.progress.remote(trial, samples_seen, samples_per_s)

    def _accept(self, assignment: Assignment | None) -> None:
        if (
            assignment is None
            # the coordinator was restarted: it learns of this slot again, and trials join it
            # again
        ):
            self.assignment = Assignment(version=0)
            self.assignment = ray.get(self._coordinator.register.remote(self._config.slot))
        elif assignment.version > self.assignment.version or assignment.stop:
            self.assignment = assignment

    def _share(self) -> None:
        self.assignment = self.from_rank_zero(self.assignment)
