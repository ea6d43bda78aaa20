import fnmatch

from trainables.errors import InputError
from trainables.hyperparameters import PartialOptions
from trainables.methods.full import Full
from trainables.models.base import BaseModel
from trainables.models.structure import layer_lists


class Partial:
    """Partial fine-tuning: the head, and the last layers or the parameters named by patterns; the
    rest is frozen.

    The head is the new classification head, or the output layer of a language model (with tied
    embeddings: those).
    """

    def attach(self, base: BaseModel, options: PartialOptions) -> None:
        model = base.model
        if options.layers is not None:
            lists = layer_lists(model)
            count = len(lists[0][1])
            if options.layers > count:
                raise InputError(
                    f"layers: must be at most the model's {count} layers, got {options.layers}"
                )
            chosen = [
                f"{name}.{i}." for name, _ in lists for i in range(count - options.layers, count)
            ]
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter_name.startswith(tuple(chosen)))
        else:
            names = dict(model.named_parameters())
            for pattern in options.patterns:
                if not fnmatch.filter(names, pattern):
                    raise InputError(
                        f"patterns: {pattern!r} matches no parameter of the model, whose first is"
                        f" {next(iter(names))!r}"
                    )
            for parameter_name, parameter in names.items():
                parameter.requires_grad_(
                    any(fnmatch.fnmatch(parameter_name, pattern) for pattern in options.patterns)
                )
        head = [model.get_submodule(part) for part in base.head] or [model.get_output_embeddings()]
        for module in head:
            for parameter in module.parameters():
                parameter.requires_grad_(True)

    save = Full.save
    load = Full.load
