import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from trainables.errors import InputError
from trainables.hyperparameters import PartialOptions
from trainables.methods.full import Full
from trainables.models.base import BaseModel
from trainables.models.structure import layer_lists

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Partial:
    """Partial fine-tuning: the head, and the last layers or the parameters named by patterns; the
    rest is frozen.

    The head is the new classification head, or the output layer of a language model (with tied
    embeddings: those).
    """

    def attach(self, base: BaseModel, options: PartialOptions) -> None:
        model = base.model
        chosen = (
            _matching(model, options.patterns)
            if options.layers is None
            else _in_the_last_layers(model, options.layers)
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        for module in [model.get_submodule(part) for part in base.head] or [_output(model)]:
            module.requires_grad_(True)

    save = Full.save
    load = Full.load


def _output(model: "PreTrainedModel") -> nn.Module:
    output = model.get_output_embeddings()
    assert output is not None, "a model without a head of its own is a language model"
    return output


def _in_the_last_layers(model: "PreTrainedModel", layers: int) -> set[str]:
    lists = layer_lists(model)
    count = len(lists[0][1])
    if layers > count:
        raise InputError(f"layers: must be at most the model's {count} layers, got {layers}")
    last = tuple(f"{name}.{i}." for name, _ in lists for i in range(count - layers, count))
    return {name for name, _ in model.named_parameters() if name.startswith(last)}


def _matching(model: "PreTrainedModel", patterns: Sequence[str]) -> set[str]:
    names, found = [name for name, _ in model.named_parameters()], set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise InputError(
                f"patterns: {pattern!r} matches no parameter of the model, whose first is"
                f" {names[0]!r}"
            )
        found.update(matched)
    return found
