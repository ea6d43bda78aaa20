"""What Ray Train starts around a slot's workers."""

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from trainables.runtime.slot import SlotTrainer


def callbacks(trainer: type[TorchTrainer]) -> list[str]:
    made = trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    return [type(each).__name__ for each in made._create_default_callbacks()]


def test_a_slot_leaves_out_what_hands_out_datasets_and_nothing_else() -> None:
    usual = callbacks(TorchTrainer)
    assert "DatasetsCallback" in usual
    assert callbacks(SlotTrainer) == [each for each in usual if each != "DatasetsCallback"]
