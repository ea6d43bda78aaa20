import fnmatch

from torch import nn

from trainables.errors import InputError
from trainables.hyperparameters import PartialOptions
from trainables.methods.full import Full
from trainables.model import BaseModel


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's stack of layers: its longest ModuleList (encoder.layer, model.layers, transformer.h, …)."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"layers: {type(model).__name__} has no list of layers; name parameters with patterns instead")
    return max(lists, key=lambda item: len(item[1]))


class Partial:
    """Partial fine-tuning: the head, and the last layers or the parameters named by patterns; the rest is frozen.

    The head is the new classification head, or the output layer of a language model (with tied embeddings: those).
    """

    def attach(self, base: BaseModel, options: PartialOptions) -> None:
        model = base.model
        if options.layers is not None:
            name, layers = layer_list(model)
            if options.layers > len(layers):
                raise InputError(f"layers: the model has {len(layers)} layers, got {options.layers}")
            chosen = [f"{name}.{i}." for i in range(len(layers) - options.layers, len(layers))]
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter_name.startswith(tuple(chosen)))
        else:
            names = dict(model.named_parameters())
            for pattern in options.patterns:
                if not fnmatch.filter(names, pattern):
                    raise InputError(
                        f"patterns: {pattern!r} matches no parameter of the model, whose first is {next(iter(names))!r}"
                    )
            for parameter_name, parameter in names.items():
                parameter.requires_grad_(any(fnmatch.fnmatch(parameter_name, pattern) for pattern in options.patterns))
        head = [model.get_submodule(part) for part in base.head] or [model.get_output_embeddings()]
        for module in head:
            for parameter in module.parameters():
                parameter.requires_grad_(True)

    save = Full.save
    load = Full.load
