"""A slot: one long-lived Ray Train run that holds the base model and trains the trials on it.

Who is on which slot is kept by the sweep's coordinator, a small actor. Trials (trial.py) ask it to
`advance`; slots `take` the assignment that they should have, compare it with what they have, and
`publish` what came of it. Assignments are states, not messages: a slot that restarts reads its
assignment again, lets the trials join from their last checkpoints, and nobody else need know.
"""

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainables.runtime.dashboard import worker_labels
from trainables.runtime.protocol import SlotConfig
from trainables.runtime.worker import slot_loop


def run_slot(
    config: SlotConfig, *, workers: int, resources_per_worker: dict[str, float], folder: str
) -> None:
    """Start a slot and wait for its end. Raises what ended it when Ray Train gave up restarting its
    workers.
    """
    gpu = resources_per_worker.get("GPU", 0) > 0
    TorchTrainer(
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
            callbacks=worker_labels(config.slot),
            worker_runtime_env={
                "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
            },
        ),
    ).fit()
