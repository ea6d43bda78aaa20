from pathlib import Path
from typing import Any

from trainables.hyperparameters import FullOptions
from trainables.model import BaseModel


class Full:
    """Full fine-tuning: every weight is trained."""

    def attach(self, base: BaseModel, options: FullOptions) -> None:
        for parameter in base.model.parameters():
            parameter.requires_grad_(True)

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file

        weights: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):  # large models are saved in several files
            weights.update(load_file(file))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        tied = set(model.all_tied_weights_keys)
        lost = [name for name in missing if name not in tied]
        assert not unexpected and not lost, f"{folder} does not fit the model: missing {lost}, unexpected {unexpected}"
