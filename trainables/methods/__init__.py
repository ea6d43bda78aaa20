"""Fine-tuning methods: one file each, one line each below; all pass tests/trainables/test_methods.py.

A method turns a base into something trainable and gives the base back exactly as it was.
"""

from pathlib import Path
from typing import Any, Protocol

from trainables.methods.full import Full
from trainables.methods.lora import Lora
from trainables.methods.partial import Partial
from trainables.methods.qlora import QLora
from trainables.model import BaseModel, Variant


class Method(Protocol):
    variant: Variant  # the kind of base that it trains over

    def attach(self, base: BaseModel, options: Any) -> Any:
        """Make `base.model` trainable with `options`; returns the module to run, with `requires_grad` set. Draws from torch's generator."""

    def detach(self, model: Any, base: BaseModel) -> None:
        """Undo `attach`. Weights that training changed are put back by the pack, which keeps a copy of them."""

    def save(self, model: Any, folder: Path) -> None:
        """Write what transformers or PEFT loads, as safetensors."""

    def load(self, model: Any, folder: Path) -> None:
        """Read what `save` wrote into an attached `model`, bit for bit."""


METHODS: dict[str, Method] = {"full": Full(), "partial": Partial(), "lora": Lora(), "qlora": QLora()}
