from typing import Any

from trainables.hyperparameters import LoraOptions
from trainables.methods.lora import Lora
from trainables.model import BaseModel, Variant


class QLora:
    """LoRA over a base in 4-bit NormalFloat with double quantisation (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

    variant: Variant = "nf4"

    def attach(self, base: BaseModel, options: LoraOptions) -> Any:
        return Lora().attach(base, options)

    detach = Lora.detach
    save = Lora.save
    load = Lora.load
