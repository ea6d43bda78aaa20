import copy
from pathlib import Path

import torch

from trainables.hyperparameters import FullOptions
from trainables.models.base import BaseModel


class Full:
    """Full fine-tuning: every weight is trained that the model itself does not keep fixed."""

    def attach(self, base: BaseModel, options: FullOptions) -> None:
        for name, parameter in base.model.named_parameters():
            parameter.requires_grad_(name not in base.fixed)

    def save(self, base: BaseModel, folder: Path) -> None:
        """With the configuration that a user expects: what only training sets stays out of it."""
        own = base.model.config
        base.model.config = copy.deepcopy(base.config or own)  # saving writes into it
        try:
            base.model.save_pretrained(folder)
        finally:
            base.model.config = own

    def load(self, base: BaseModel, folder: Path) -> None:
        """What is trained, as a user loads it: transformers may keep weights under other names on
        disk than in the model.
        """
        from trainables.models.checkpoint import load_checkpoint

        assert base.spec is not None
        saved = dict(load_checkpoint(folder, base.spec, torch.device("cpu")).named_parameters())
        with torch.no_grad():
            for name, parameter in base.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])
