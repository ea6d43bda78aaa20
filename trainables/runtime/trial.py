"""The Tune Trainable that rides in a slot: it asks the coordinator for its next evaluation, and
holds no model itself.
"""

from typing import Any

import ray
from ray import tune


class Trial(tune.Trainable):
    """config: `id`, `params` (flat), `coordinator` and `namespace`. Each `step` is one evaluation
    of the trial.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One byte of memory: the slots hold the accelerators, and Tune refuses a trial that asks
        for nothing.
        """
        return tune.PlacementGroupFactory([{"memory": 1}])

    def setup(self, config: dict[str, Any]) -> None:
        self._order = config
        self._coordinator = ray.get_actor(config["coordinator"], namespace=config["namespace"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._order = new_config
        return True

    def __repr__(self) -> str:
        return f"{self._order['namespace']}: carries trials"

    def step(self) -> dict[str, Any]:
        """The evaluation as Tune, the scheduler and the searcher see it; `ended` says why a trial
        has no more to come.
        """
        outcome = ray.get(
            self._coordinator.advance.options(name=f"trial {self._order['id']}").remote(
                self._order["id"], self._order["params"]
            )
        )
        if "evaluation" not in outcome:
            kind, text = next(
                (kind, outcome[kind])
                for kind in ("failed", "diverged", "stopped")
                if kind in outcome
            )
            return {
                "id": self._order["id"],
                "ended": kind,
                "reason": text,
                "log": outcome.get("log"),
                "done": True,
            }
        evaluation = outcome["evaluation"]
        loss = evaluation.val_loss
        return {
            "id": self._order["id"],
            "val_loss": float("inf") if loss is None else loss,
            "samples_seen": evaluation.samples_seen,
            "ended": "finished" if evaluation.finished else None,
            "done": evaluation.finished,
            "evaluation": evaluation,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot has saved the trial, and a trial that assignments again finds its last
        checkpoint by its id.
        """

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, for the same reason."""
