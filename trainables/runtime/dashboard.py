"""Names by which trials and slots are known in the Ray dashboard."""

from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.context import TrainRunContext


class DashboardLabel:
    """A trial's row in the dashboard's Actors page, alive while it runs: the actors of `Trial`
    carry one after another.

    It stands here and not beside `Trial` because its process then need not import Ray Tune.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def dashboard_label(trial: str, text: str) -> "ActorHandle":
    """A running actor named after `trial`; `ray.kill` ends it. It is not waited for."""
    actor = ray.remote(DashboardLabel).options(name=f"trial {trial}", num_cpus=0, max_restarts=-1)
    # Ray's types have no word for the handle of a class that was not decorated
    return actor.remote(text)  # pyright: ignore[reportReturnType]


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
