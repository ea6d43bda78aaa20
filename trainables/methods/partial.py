import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainables.errors import InputError
from trainables.hyperparameters import PartialOptions
from trainables.methods.full import Full
from trainables.models.base import BaseModel
from trainables.models.structure import layer_lists

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Partial:
    """Partial fine-tuning: the head, and the last layers, or the parameters that patterns or their
    kind name; the rest is frozen.

    The head is the new classification head, or the output layer of a language model (with tied
    embeddings: those). Beside biases or norms, a language model's output layer stays frozen.
    """

    def attach(self, base: BaseModel, options: PartialOptions) -> None:
        chosen = _chosen(base, options) - base.fixed
        for name, parameter in base.model.named_parameters():
            parameter.requires_grad_(name in chosen or base.in_head(name))
        if not base.head and options.train not in KINDS:
            output = base.model.get_output_embeddings()
            assert output is not None, "a model without a head of its own is a language model"
            output.requires_grad_(True)

    save = Full.save
    load = Full.load


def _chosen(base: BaseModel, options: PartialOptions) -> set[str]:
    """Names of the parameters that are trained beside the head."""
    if options.layers is not None:
        return _in_the_last_layers(base.model, options.layers)
    if options.train in KINDS:
        return _of_kind(base, options.train)
    return _matching(base.model, options.patterns)


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


def _of_kind(base: BaseModel, kind: str) -> set[str]:
    found = {name for name in KINDS[kind](base.model) if not base.in_head(name)} - base.fixed
    if not found:
        raise InputError(
            f"train: {type(base.model).__name__} has no {kind} to train beside its head; choose"
            f" {' or '.join(other for other in ('head', *KINDS) if other != kind)}, or give layers"
        )
    return found


def _biases(model: "PreTrainedModel") -> set[str]:
    """Parameters called so, also as in `r_w_bias` (XLNet) and `down_proj_bias` (fused experts)."""
    return {name for name, _ in model.named_parameters() if name.endswith("bias")}


def _norms(model: "PreTrainedModel") -> set[str]:
    """Parameters of the modules that normalise (LayerNorm, LlamaRMSNorm, T5LayerNorm): scales, and
    shifts where there are any.
    """
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for parameter, _ in module.named_parameters(recurse=False)
    }


# what `train` may name beside the head
KINDS = {"bias": _biases, "norms": _norms}
