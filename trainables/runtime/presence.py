"""Whether a slot has workers: the process of Ray Train that starts them tells the coordinator."""

from contextlib import suppress
from typing import TYPE_CHECKING

from trainables.runtime.protocol import SlotConfig

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext


def presence(config: SlotConfig) -> "list[UserCallback]":
    """Callbacks of Ray Train that tell when a slot's workers are gone, and when new ones have found
    room: Ray Train looks for it without end, and the slot's trials must not wait so long. None
    where this Ray has not the internals that it takes.
    """
    try:
        from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    except ImportError:
        return []

    class Presence(WorkerGroupCallback):
        """It runs in the controller's process."""

        def before_worker_group_start(self, worker_group_context: "WorkerGroupContext") -> None:
            self._tell("slot_down")

        def after_worker_group_start(self, worker_group: "WorkerGroup") -> None:
            self._tell("slot_up")

        def _tell(self, news: str) -> None:
            import ray
            import ray.exceptions

            # a coordinator that is gone for good has nobody to give trials to
            with suppress(ValueError, ray.exceptions.RayError):
                coordinator = ray.get_actor(config.coordinator, namespace=config.namespace)
                getattr(coordinator, news).remote(config.slot)

    # RunConfig takes Ray Train's own callbacks too
    return [Presence()]  # pyright: ignore[reportReturnType]
