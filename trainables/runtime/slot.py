"""A slot: one long-lived Ray Train run that holds the base model and trains the trials on it.

Who is on which slot is kept by the sweep's coordinator, a small actor. Trials (trial.py) ask it to
`advance`; slots `take` the assignment that they should have, compare it with what they have, and
`publish` what came of it. Assignments are states, not messages: a slot that restarts reads its
assignment again, lets the trials join from their last checkpoints, and nobody else need know.
"""

from typing import TYPE_CHECKING

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainables.runtime.dashboard import worker_labels
from trainables.runtime.presence import presence
from trainables.runtime.protocol import SlotConfig
from trainables.runtime.worker import slot_loop

if TYPE_CHECKING:
    from ray.train.v2.api.callback import RayTrainCallback


class SlotTrainer(TorchTrainer):
    """Without the process that hands out datasets of Ray Data: a slot reads the sweep's own."""

    def _create_default_callbacks(self) -> "list[RayTrainCallback]":
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ != "DatasetsCallback"]


def run_slot(
    config: SlotConfig, *, workers: int, resources_per_worker: dict[str, float], folder: str
) -> None:
    """Start a slot and wait for its end. Raises what ended it when Ray Train gave up restarting its
    workers.
    """
    gpu = resources_per_worker.get("GPU", 0) > 0
    SlotTrainer(
        slot_loop,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=dict(resources_per_worker)
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=config.slot,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=1000),
            callbacks=[*worker_labels(config.slot), *presence(config)],
            worker_runtime_env={
                "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
            },
        ),
    ).fit()
