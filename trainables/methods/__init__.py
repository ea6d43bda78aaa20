"""Fine-tuning methods: one file each, one line each below; all pass
tests/trainables/methods/test_methods.py.

A method either adds something to a frozen base, and then several trials can share the base, or it
trains weights of the base itself, and then a trial has the base for itself and gives it back
exactly as it was.
"""

from pathlib import Path
from typing import Protocol, TypeVar

from trainables.engine.sites import Addition
from trainables.hyperparameters import OPTIONS, MethodOptions
from trainables.methods.adalora import AdaLora
from trainables.methods.adapter import Adapter
from trainables.methods.full import Full
from trainables.methods.ia3 import Ia3
from trainables.methods.lora import Lora
from trainables.methods.partial import Partial
from trainables.methods.prefix import Prefix
from trainables.methods.prompt import Prompt
from trainables.methods.qlora import QLora
from trainables.methods.vera import Vera
from trainables.models.base import BaseModel
from trainables.models.config import Quantisation

Options = TypeVar("Options", bound=MethodOptions, contravariant=True)


class Additive(Protocol[Options]):
    """What a trial adds to the frozen base, and at which of its modules. Heads are added by
    `LoadedBase.additions`.
    """

    stays_beside: bool
    """Whether weights that it adds are computed with beside the base's when the model is used: they
    cannot be merged.
    """

    def plan(self, base: BaseModel, options: Options) -> list[Addition]:
        """All that a trial with `options` adds, with initial values. Draws from torch's
        generator.
        """
        ...

    def describe(self, base: BaseModel, options: Options, folder: Path) -> None:
        """Write `adapter_config.json`, which tells PEFT what the tensors are that are in `folder`
        already.
        """


class Replacing(Protocol[Options]):
    """Trains weights of the base itself."""

    def attach(self, base: BaseModel, options: Options) -> None:
        """Set `requires_grad` of what is trained."""

    def save(self, base: BaseModel, folder: Path) -> None:
        """Write what transformers loads, as safetensors."""

    def load(self, base: BaseModel, folder: Path) -> None:
        """Read what `attach` lets train from what `save` wrote into the base, bit for bit."""


ADDITIVE: dict[str, Additive] = {
    "lora": Lora(),
    "qlora": QLora(),
    "ia3": Ia3(),
    "prompt": Prompt(),
    "prefix": Prefix(),
    "adapter": Adapter(),
    "vera": Vera(),
    "adalora": AdaLora(),
}
REPLACING: dict[str, Replacing] = {"full": Full(), "partial": Partial()}


def quantisation_of(method: str, options: MethodOptions | None = None) -> Quantisation:
    """How the base of a trial is stored in memory; `options` None: the method's defaults."""
    if method in REPLACING:
        return "none"
    return (options or OPTIONS[method]()).quantisation
