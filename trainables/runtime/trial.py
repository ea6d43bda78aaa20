"""The Tune Trainable that stands for a trial on a slot: it asks the coordinator for the trial's
next evaluation, and holds no model itself.
"""

from typing import TYPE_CHECKING

import ray
from ray import tune

from trainables.runtime.tune_dicts import TrialConfig

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle


def next_result(coordinator: "ActorHandle", config: TrialConfig) -> "ObjectRef[dict[str, object]]":
    """The trial's next outcome as a `TrialResult`. Ray's dashboard shows the call, and with it the
    trial, for as long as it waits.
    """
    step = coordinator.step.options(name=config.label, enable_task_events=True)
    return step.remote(config.id, config.params)


class Trial(tune.Trainable):
    """Its config is a `TrialConfig`. Each `step` is one evaluation of the trial."""

    @classmethod
    def default_resource_request(cls, config: dict[str, object]) -> tune.PlacementGroupFactory:
        """One byte of memory: the slots hold the accelerators, and Tune refuses a trial that asks
        for nothing.
        """
        return tune.PlacementGroupFactory([{"memory": 1}])

    def setup(self, config: dict[str, object]) -> None:
        self._config = TrialConfig.from_tune(config)
        self._coordinator = ray.get_actor(
            self._config.coordinator, namespace=self._config.namespace
        )

    def reset_config(self, new_config: dict[str, object]) -> bool:
        self._config = TrialConfig.from_tune(new_config)
        return True

    def __repr__(self) -> str:
        return f"{self._config.namespace}: carries trials"

    def step(self) -> dict[str, object]:
        return ray.get(next_result(self._coordinator, self._config))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot has saved the trial, and a trial that joins a slot again finds its last
        checkpoint by its id.
        """

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing, for the same reason."""
