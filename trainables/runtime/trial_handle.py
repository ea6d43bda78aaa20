"""Trials of Ray Tune that have no process of their own.

Tune runs a trial as an actor, which is a process of a hundred MiB. Ours has nothing to do but to
ask the coordinator for the trial's next evaluation, and that the process of Tune can do as well.
Tune has no setting for it, so this relies on what Tune 2.60 calls, and a test runs it. Where a Ray
has other internals, every trial has its actor.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from trainables.runtime.trial import next_result
from trainables.runtime.tune_dicts import TrialConfig

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.tune.execution.tune_controller import TuneController

CONTROLLER = "TuneController"  # by which name Tune's `fit` finds its event loop


@contextmanager
def without_actors(coordinator: "ActorHandle") -> Iterator[bool]:
    """A Tuner that is fitted inside asks `coordinator` itself for what comes of its trials. Gives
    whether it does; else each of them has an actor.
    """
    controller = _controller(coordinator)
    if controller is None:
        yield False
        return
    from ray.tune import tune

    usual = getattr(tune, CONTROLLER)
    setattr(tune, CONTROLLER, controller)
    try:
        yield True
    finally:
        setattr(tune, CONTROLLER, usual)


def _controller(coordinator: "ActorHandle") -> "type[TuneController] | None":
    """Tune's event loop, with handles for actors; None where this Ray has another."""
    try:
        from ray.tune import tune
        from ray.tune.execution.tune_controller import TuneController
    except ImportError:
        return None
    if (
        getattr(tune, CONTROLLER, None) is not TuneController
        or "resource_manager_factory" not in inspect.signature(TuneController).parameters
        or not hasattr(TuneController, "_cleanup_stopping_actors")
    ):
        return None

    resources: Any = NoResources(coordinator)  # it has what Tune calls, and need not inherit it

    class Controller(TuneController):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, resource_manager_factory=lambda: resources)

        def _cleanup_stopping_actors(self, force_all: bool = False) -> None:
            """Nothing: it kills actors that do not end."""

        def cleanup(self) -> None:
            """Without the killing of actors."""
            self.end_experiment_callbacks()

    return Controller


@dataclass(frozen=True)
class Method:
    """Of an actor or of its class, as one calls it."""

    remote: Callable[..., Any]


class TrialHandle:
    """What Tune has of a trial in place of the handle of an actor of `Trial`: what it calls of it,
    each giving an ObjectRef.
    """

    def __init__(self, coordinator: "ActorHandle", config: Mapping[str, object]) -> None:
        self._coordinator = coordinator
        self._config = TrialConfig.from_tune(config)
        self.train, self.reset = Method(self._train), Method(self._reset)
        self.get_auto_filled_metrics = Method(lambda **_: ray.put({}))
        self.stop = self.__ray_ready__ = self.__ray_terminate__ = Method(lambda: ray.put(None))

    def _train(self) -> "ObjectRef[dict[str, object]]":
        return next_result(self._coordinator, self._config)

    def _reset(self, config: Mapping[str, object], storage: object) -> "ObjectRef[bool]":
        self._config = TrialConfig.from_tune(config)
        return ray.put(True)


@dataclass(frozen=True)
class NoResources:
    """What Tune gets resources from. Slots hold them, so there is never one to wait for; and as
    Tune starts on them what it gets here, it gets handles.
    """

    coordinator: "ActorHandle"

    def request_resources(self, resource_request: object) -> None: ...

    def cancel_resource_request(self, resource_request: object) -> None: ...

    def has_resources_ready(self, resource_request: object) -> bool:
        return True

    def acquire_resources(self, resource_request: object) -> "Acquired":
        return Acquired(resource_request=resource_request, coordinator=self.coordinator)

    def free_resources(self, acquired_resource: object) -> None: ...

    def get_resource_futures(self) -> "list[ObjectRef[object]]":
        return []

    def clear(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Acquired:
    """The resources of one trial."""

    resource_request: object
    coordinator: "ActorHandle"

    def annotate_remote_entities(self, entities: list[object]) -> list[Method]:
        """In place of an actor's class: what makes a handle."""
        return [Method(lambda config, storage: TrialHandle(self.coordinator, config))]
