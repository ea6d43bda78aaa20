"""What a model is made of, asked of the model itself, of transformers and of PEFT: its layers, what
attends, what is above the backbone, what an adapter may be put on. No list of architectures.
"""

import copy
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from trainables.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

# how classes (MptAttention, LlamaSdpaAttention, FlashAttention2) and attributes (self_attn,
# rel_attn, SelfAttention) that attend are named, in transformers and in the code that models bring
# along
ATTENDS = re.compile(r"(attention|attn)\d*$", re.IGNORECASE)


def is_linear(module: nn.Module) -> bool:
    """A product with a weight matrix, GPT-2's Conv1D and quantised ones among them."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def features(module: nn.Module) -> tuple[int, int]:
    """Channels in and out of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.get_parameter("weight").shape
    return inputs, outputs


def weight_of(module: nn.Module) -> "Tensor":
    """The weight matrix of a linear layer [O, I], dequantised where it is quantised."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    if module.get_parameter("weight").dtype is torch.int8:
        from trainables.models.weights_8bit import Linear8bitWeights

        assert isinstance(module, Linear8bitWeights), "see keep_rows_apart"
        return module.dequantised()  # PEFT's would put another weight into the module
    weight = dequantize_module_weight(module).detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def ends_with(name: str, targets: Iterable[str]) -> bool:
    """Whether a module is meant by one of `targets`, as PEFT reads its `target_modules`."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def input_embedding(model: "PreTrainedModel") -> nn.Module:
    """What embeds the text that is read: the encoder's, where there are an encoder and a decoder,
    each of which has a module of its own with the one table of both.
    """
    reader = model.get_encoder() if model.config.is_encoder_decoder else model
    return reader.get_input_embeddings()


def above_backbone(model: "PreTrainedModel") -> list[str]:
    """Names of the modules with weights that stand above the backbone: the head of a classifier, or
    a language model's output layer.
    """
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def layer_lists(model: "PreTrainedModel") -> list[tuple[str, nn.ModuleList]]:
    """The stack of layers that ends at the output, with its name: the decoder's, where there are an
    encoder and a decoder.

    Of several lists of modules the outermost that has as many as the configuration counts layers,
    else the longest. More than one where a layer's parts lie in lists side by side.
    """
    config = model.config
    if not config.is_encoder_decoder:
        return _lists_within(model, "", config.get_text_config(decoder=False))
    within = f"{_name_of(model, model.get_decoder())}."
    return _lists_within(model, within, config.get_text_config(decoder=True))


def stacks(model: "PreTrainedModel") -> list[list[tuple[str, nn.ModuleList]]]:
    """All of its stacks, each as `layer_lists` has the last: an encoder's comes before that of the
    decoder.
    """
    last, config = layer_lists(model), model.config
    if not config.is_encoder_decoder:
        return [last]
    within = f"{_name_of(model, model.get_encoder())}."
    return [_lists_within(model, within, config.get_text_config(encoder=True)), last]


def _lists_within(
    model: "PreTrainedModel", within: str, config: "PreTrainedConfig"
) -> list[tuple[str, nn.ModuleList]]:
    lists = [found for found in _module_lists(model) if f"{found[0]}.".startswith(within)]
    if not lists:
        raise InputError(
            f"layers: {type(model).__name__} has no list of layers; name parameters with patterns"
            " instead"
        )
    counted = getattr(config, "num_hidden_layers", None)
    name, chosen = next(
        (found for found in lists if len(found[1]) == counted),
        max(lists, key=lambda found: len(found[1])),
    )

    def beside(found: tuple[str, nn.ModuleList]) -> bool:
        return found[0].rpartition(".")[0] == name.rpartition(".")[0]

    return [found for found in lists if beside(found) and len(found[1]) == len(chosen)]


def _module_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    modules = model.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, nn.ModuleList)]


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next((name for name, found in model.named_modules() if found is module), "")


def in_layers(model: "PreTrainedModel") -> list[str]:
    """Names of the linear layers that lie in a list of layers: what may be quantised. Heads,
    poolers, projections of embeddings and output layers do not, whatever they are called.
    """
    lists = tuple(f"{name}." for name, _ in _module_lists(model))
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and name.startswith(lists)
    ]


def outside_layers(model: "PreTrainedModel") -> list[str]:
    """Names of the linear layers that are never quantised."""
    inside = set(in_layers(model))
    return [
        name for name, module in model.named_modules() if is_linear(module) and name not in inside
    ]


def linear_layers(model: "PreTrainedModel", head: Iterable[str] = ()) -> list[str]:
    """Full names of the linear layers of the backbone, in the model's order, without those that lie
    in `head`.
    """
    above, output = tuple(f"{name}." for name in head), model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not output and not f"{name}.".startswith(above)
    ]


def attends(model: "PreTrainedModel", names: Sequence[str]) -> list[str]:
    """Those of the modules `names` that lie inside something that attends: query, key, value and
    output projections.
    """
    return [name for name in names if _attention_of(model, name) is not None]


def _attention_of(model: "PreTrainedModel", name: str) -> str | None:
    """The outermost module that attends among those that `name` lies in."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        kind = type(model.get_submodule(path)).__name__
        if ATTENDS.search(parts[depth - 1]) or ATTENDS.search(kind):
            return path
    return None


class Sublayers(NamedTuple):
    """Where what a layer adds to its hidden states is made: names of linear layers."""

    attention: list[str]  # the last projection of each attention
    feed_forward: str  # its last projection
    feed_forward_input: str  # its first, which takes what all of it is given


def sublayers(model: "PreTrainedModel") -> list[Sublayers]:
    """Of each layer of all stacks, in their order. Raises InputError where a layer has not just one
    feed-forward beside its attention.
    """
    linear, found = linear_layers(model), []
    for (stack, layers), *others in stacks(model):
        for number in range(len(layers)):
            inside = [name for name in linear if name.startswith(f"{stack}.{number}.")]
            each = _sublayers(model, inside)
            if each is None or others:
                raise InputError(
                    f"{type(model).__name__} has layers without an attention, or without one"
                    " feed-forward beside it"
                )
            found.append(each)
    return found


def _sublayers(model: "PreTrainedModel", inside: Sequence[str]) -> Sublayers | None:
    attending = attends(model, inside)
    _, projected = _at_the_width(model, attending)
    taking, giving = _at_the_width(model, [name for name in inside if name not in attending])
    last = {_attention_of(model, name): name for name in projected}  # of each attention
    several = len(set(giving) - set(taking)) > 1
    if several or not (last and taking and giving):
        return None
    return Sublayers(list(last.values()), giving[-1], taking[0])


def _at_the_width(model: "PreTrainedModel", names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the linear layers `names` that take, and those that give, as many channels as the
    model's hidden states have.
    """
    width = model.config.get_text_config().hidden_size
    shapes = {name: features(model.get_submodule(name)) for name in names}
    taking = [name for name, (inputs, _) in shapes.items() if inputs == width]
    return taking, [name for name, (_, outputs) in shapes.items() if outputs == width]


def coverage(model: "PreTrainedModel", names: Iterable[str], head: Iterable[str] = ()) -> float:
    """Share of the backbone's weight matrices, embeddings left out, that `names` hold, of modules
    or of parameters.
    """
    above, embeddings = tuple(f"{name}." for name in head), _embeddings(model)
    weights = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in embeddings and not name.startswith(above)
    }
    held = set(names)
    covered = sum(n for name, n in weights.items() if held & {name, name.removesuffix(".weight")})
    return covered / max(1, sum(weights.values()))


def _embeddings(model: "PreTrainedModel") -> set[int]:
    """Of tokens and the like, and of the output."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    output = model.get_output_embeddings()
    return {id(each.weight) for each in (*tables, output) if each is not None}


def served_by_peft(model: "PreTrainedModel", names: Sequence[str]) -> list[str]:
    """Those of the linear layers `names` on which PEFT puts an adapter where it is told to, and
    nowhere else.

    It refuses some (what Mamba's kernels read for themselves), and takes some for experts that were
    fused, and so rewrites or drops them. PEFT itself is asked, on the model's shapes.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), tuple(names))
    if key not in _SERVED:
        _SERVED[key] = _ask_peft(on_meta(type(model), model.config), names)
    return [name for name in names if name in _SERVED[key]]


# what PEFT has answered, by model and names
_SERVED: dict[tuple[type, str, tuple[str, ...]], set[str]] = {}


def _ask_peft(shapes: "PreTrainedModel", names: Sequence[str]) -> set[str]:
    by_ending: dict[str, list[str]] = {}  # PEFT decides by the last part of a name
    for name in names:
        by_ending.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    served = set()
    for number, together in enumerate(by_ending.values()):
        if _wrapped(shapes, f"tried{number}", together) == set(together):
            served.update(together)
    return served


def _wrapped(model: "PreTrainedModel", adapter: str, names: Sequence[str]) -> set[str]:
    """Names of all modules and parameters that get an adapter when PEFT is told to put one on
    `names`.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of several adapters in one model
            inject_adapter_in_model(
                LoraConfig(r=1, target_modules=list(names)), model, adapter, low_cpu_mem_usage=True
            )
    except (ValueError, TypeError, NotImplementedError):  # it says that it does not serve them
        return set()
    return {
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def on_meta(
    model_class: type, config: "PreTrainedConfig", trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A model's shapes without its weights. `model_class`: a class of models, or an Auto class."""
    import torch
    from transformers.initialization import no_init_weights

    own = copy.deepcopy(config)  # which the model may change
    with torch.device("meta"), no_init_weights():
        if hasattr(model_class, "from_config"):
            return model_class.from_config(own, trust_remote_code=trust_remote_code)
        return model_class(own)
