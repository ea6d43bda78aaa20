"""The names of slots in Ray's dashboard."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.context import TrainRunContext


def worker_labels(slot: str) -> "list[UserCallback]":
    """Callbacks of Ray Train by which the dashboard shows workers under the name of their slot;
    without them they all look alike. None where this Ray has not the internals that it takes.
    """
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
        from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
    except ImportError:
        return []
    if not hasattr(WorkerGroup, "_worker_cls"):
        return []

    class WorkerLabels(ControllerCallback):
        """Names the workers of one slot; it runs in the controller's process, which is the slot's
        alone.
        """

        def after_controller_start(self, train_run_context: "TrainRunContext") -> None:
            WorkerGroup._worker_cls = type(
                "Slot", (RayTrainWorker,), {"__repr__": lambda self: slot}
            )

    # RunConfig takes Ray Train's own callbacks too
    return [WorkerLabels()]  # pyright: ignore[reportReturnType]
