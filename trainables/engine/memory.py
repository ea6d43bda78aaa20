"""How much memory trials take on a device: from shapes alone, before any weight is loaded.

Weights are counted exactly. What a micro-batch keeps for its backward is a
formula; tests/trainables/engine/test_memory.py holds it against measured ones.
"""

import copy
import gc
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters
from trainables.models.base import LANGUAGE_MODELS, BaseModel
from trainables.models.config import ModelConfig, Quantisation

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from trainables.engine.sites import Addition

GB = 10**9
GPUS = {"T4": 16, "L4/A10G": 24, "A100": 40, "A100/H100": 80, "H200": 141}  # GB, as they are sold
# of a device: the CUDA context, workspaces of kernels, and what the allocator cannot join
RESERVE = 0.1
MOMENTS = 2  # that the matrix of a trial group has of each trained parameter
FLOAT32 = (
    4  # bytes; the matrix of a trial group and the loss are in float32 whatever the base is in
)
STATE = {"adamw": 2, "muon": 1}
"""Numbers that the optimizer of a trial with a base of its own keeps of each, in their type."""
STATE_BYTES = {"lion": FLOAT32, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Those that keep them in another, in bytes."""
# of a logit: its log-probability and, at the peak of the backward pass, two gradients
LOSS_BYTES = 3 * FLOAT32
# gradients inside a layer's backward pass, as a share of what that layer kept (0.3 to 1 measured)
IN_FLIGHT = 1.0
# bits of a weight with a scale for each block of weights (Dettmers et al. 2023,
# https://arxiv.org/abs/2305.14314)
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
MASK_BYTES = 32  # of each channel while a dropout mask is drawn: four integers of 64 bits
# settings of models that change their logits after the output layer, so that the loss cannot be
# computed in chunks
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# activation functions of several steps, each of which keeps what it was given: this many tensors
# more than one kernel
STEPWISE = {"NewGELUActivation": 3, "FastGELUActivation": 3, "QuickGELUActivation": 1}


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device that holds the whole base."""

    base: int  # weights of the base
    activations: int  # one micro-batch of `max_tokens` padded tokens, forward and backward
    # weights, gradients and Adam moments of one trial, as far as they are not the base's own
    per_trial: int
    shared: bool  # whether several trials can train over one base

    def fits(self, device_bytes: int) -> bool:
        """Whether a device of that size could hold one trial's weights beside the base's, however
        small its micro-batches are.
        """
        return self.base + self.per_trial <= device_bytes

    def trials(self, device_bytes: int, most: int) -> int:
        """How many trials fit a device of that size, `most` at the most; 0 where not even one
        does.
        """
        free = device_bytes * (1 - RESERVE) - self.base - self.activations
        return max(0, min(most if self.shared else 1, int(free // self.per_trial)))


def estimate_of(
    model: ModelConfig,
    task: str,
    hp: Hyperparameters,
    *,
    precision: str,
    max_tokens: int,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """What trials like `hp` take over the base `model` with these settings of a sweep, in
    micro-batches of `max_tokens`; raises as `estimate` does.
    """
    from trainables.methods import quantisation_of
    from trainables.models.files import load_model_config
    from trainables.tasks import TASKS

    frozen = not hp.options.trains_base and precision != "float32"
    half = model.dtype in ("bfloat16", "float16") or model.dtype == "auto" and frozen
    return estimate(
        load_model_config(model),
        TASKS[task].auto_class,
        hp,
        dtype_bytes=2 if half else 4,
        compute_bytes=4 if precision == "float32" else 2,
        quantisation=quantisation_of(hp.method, hp.options),
        max_tokens=max_tokens,
        gradient_checkpointing=gradient_checkpointing,
    )


def estimate(
    model_config: "PreTrainedConfig",
    auto_class: str,
    hp: Hyperparameters,
    *,
    dtype_bytes: int,
    compute_bytes: int,
    quantisation: Quantisation,
    max_tokens: int,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """What trials like `hp` take over the model of `model_config`. Raises InputError where the
    formula does not hold.

    dtype_bytes: of one weight of the base that is not quantised. compute_bytes: of one element of
    the arithmetic, 2 under bfloat16 autocast.
    """
    import torch

    from trainables.models.structure import linear_layers

    with torch.device("meta"):
        base = _meta_base(model_config, auto_class, quantisation)
        model = base.model
        linear = {name: model.get_submodule(name) for name in linear_layers(model, base.head)}
        training = _training(base, hp, linear, dtype_bytes, compute_bytes)
    output = model.get_output_embeddings() if auto_class in LANGUAGE_MODELS else None
    return MemoryEstimate(
        base=_base_bytes(model, linear, quantisation, dtype_bytes),
        activations=_activation_bytes(
            model,
            {name: module for name, module in linear.items() if name in training.reached},
            training.fed,
            dropout=bool(getattr(hp.options, "dropout", 0)),
            decomposed=bool(getattr(hp.options, "use_dora", False)),
            vocabulary=0 if output is None else _weight(output).shape[0],
            dtype_bytes=dtype_bytes,
            compute_bytes=compute_bytes,
            casts=quantisation == "none" and compute_bytes < dtype_bytes,
            tokens=max_tokens,
            gradient_checkpointing=gradient_checkpointing,
        )
        + _expert_bytes(model, training.fed, dtype_bytes, gradient_checkpointing),
        per_trial=sum(tensor.numel() for tensor in training.tensors) * training.bytes_per_parameter,
        shared=training.shared,
    )


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What one trial trains."""

    tensors: "list[Tensor]"
    bytes_per_parameter: int  # of weights that are not the base's, gradients and moments
    fed: set[str]  # linear layers, and fused experts, whose weight or adapter is trained
    reached: Set[str]  # linear layers that the backward pass goes through
    shared: bool


def _training(
    base: BaseModel,
    hp: Hyperparameters,
    linear: Mapping[str, "nn.Module"],
    dtype_bytes: int,
    compute_bytes: int,
) -> _Training:
    from trainables.methods import ADDITIVE, REPLACING

    averages = int(hp.ema_decay > 0)
    if hp.method in REPLACING:
        REPLACING[hp.method].attach(base, hp.options)
        kept = STATE_BYTES.get(hp.optimizer) or STATE[hp.optimizer] * dtype_bytes
        per_parameter = (1 + averages) * dtype_bytes + kept
        return _of_the_base(base.model, linear, per_parameter)
    additions = ADDITIVE[hp.method].plan(base, hp.options)
    shared = hp.options.sharing_key is not None
    return _beside_the_base(base, additions, linear, compute_bytes, averages, shared)


def _of_the_base(
    model: "PreTrainedModel", linear: Mapping[str, "nn.Module"], bytes_per_parameter: int
) -> _Training:
    """Of a trial that trains weights inside a base of its own."""
    return _Training(
        tensors=[parameter for parameter in model.parameters() if parameter.requires_grad],
        bytes_per_parameter=bytes_per_parameter,
        fed={name for name, module in linear.items() if _weight(module).requires_grad},
        reached=_after_the_first_trained(model) & linear.keys(),
        shared=False,
    )


def _beside_the_base(
    base: BaseModel,
    additions: "Sequence[Addition]",
    linear: Mapping[str, "nn.Module"],
    compute_bytes: int,
    averages: int,
    shared: bool,
) -> _Training:
    """Of a trial that leaves the base as it is, and trains additions and a head."""
    heads = [parameter for name, parameter in base.model.named_parameters() if base.in_head(name)]
    kept = len({name for addition in additions for name in addition.kind.state})
    # of the matrix, for the arithmetic
    low_copy = compute_bytes if compute_bytes < FLOAT32 else 0
    return _Training(
        tensors=[tensor for each in additions for tensor in each.values.values()] + heads,
        bytes_per_parameter=(2 + MOMENTS + averages + kept) * FLOAT32 + low_copy,
        fed={addition.site for addition in additions},
        reached=linear.keys(),
        shared=shared,
    )


def _weight(module: "nn.Module") -> "nn.Parameter":
    return module.get_parameter("weight")


def too_large(found: Mapping[str, MemoryEstimate], device_bytes: int) -> str | None:
    """Why no trial can train on a device of that size; None: some can, or nothing is known.

    found: what the sweep may train, in words, with the estimate of each.
    """
    if not found or any(each.fits(device_bytes) for each in found.values()):
        return None
    least = min(found, key=lambda what: found[what].base + found[what].per_trial)
    return (
        f"model.name: does not fit a device of {gib(device_bytes)}: {least} takes"
        f" {gib(found[least].base)} for the base and {gib(found[least].per_trial)} for a trial;"
        " take a smaller model, method qlora, or a larger device"
    )


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def size_of(device: "torch.device") -> int:
    """Bytes of memory that a device has: a GPU's, or the host's."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def kernel_kills() -> int | None:
    """How many processes this host's kernel has ended since it booted as memory ran out, of the
    host or of a control group; None where it does not say.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split() for line in lines)
    return int(counts["oom_kill"]) if "oom_kill" in counts else None


def held(device: "torch.device") -> dict[str, int]:
    """Bytes that this process holds: of the host's memory, and of a GPU's that it trains on."""
    import psutil
    import torch

    found = {"cpu": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.memory_reserved(device)
    return found


def release(device: "torch.device") -> None:
    """Give back at once what nobody refers to any more. Quantised weights and their layers refer to
    each other, and would wait for Python's collector of cycles.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def gpu_table(found: MemoryEstimate, most: int) -> str:
    """How many trials fit GPUs that people have, `most` at the most."""
    return ", ".join(
        f"{name} {size} GB {found.trials(size * GB, most)}" for name, size in GPUS.items()
    )


def _meta_base(
    model_config: "PreTrainedConfig", auto_class: str, quantisation: Quantisation
) -> BaseModel:
    """The model's shapes without its weights, frozen; call it under the meta device."""
    import torch
    import transformers

    from trainables.models.structure import above_backbone

    model = getattr(transformers, auto_class).from_config(
        copy.deepcopy(model_config)
    )  # which it may change
    if model.config._attn_implementation == "eager":
        raise InputError(
            f"{type(model).__name__} has no fused attention; what its attention takes depends on"
            " the rows"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = () if auto_class in LANGUAGE_MODELS else tuple(above_backbone(model))
    return BaseModel(model=model, quantisation=quantisation, dtype=torch.float32, head=head)


def _base_bytes(
    model: "PreTrainedModel",
    linear: Mapping[str, "nn.Module"],
    quantisation: Quantisation,
    dtype_bytes: int,
) -> int:
    """Embeddings, norms, biases and heads are never quantised."""
    weights = [_weight(module) for module in linear.values()]
    count = sum(weight.numel() for weight in weights)
    rest = sum(parameter.numel() for parameter in model.parameters()) - count
    quantised = {
        "none": count * dtype_bytes,
        "nf4": int(count * NF4_BITS / 8),
        "int8": (
            count + sum(weight.shape[0] * FLOAT32 for weight in weights)
        ),  # a scale for each row
    }[quantisation]
    return quantised + rest * dtype_bytes


def _after_the_first_trained(model: "PreTrainedModel") -> set[str]:
    """Names of the modules that the backward pass reaches: in the model's order, from the first
    that is trained, or from the start of the layer that it lies in (a layer's order is not that in
    which it computes).
    """
    from trainables.models.structure import layer_lists

    names = [name for name, _ in model.named_modules()]
    first = next(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    first = first.rpartition(".")[0]
    stack = f"{layer_lists(model)[0][0]}."
    if first.startswith(stack):
        first = stack + first.removeprefix(stack).split(".")[0]
    return set(names[names.index(first) :])


def _activation_bytes(
    model: "PreTrainedModel",
    linear: Mapping[str, "nn.Module"],
    fed: Set[str],
    *,
    dropout: bool,
    decomposed: bool,
    vocabulary: int,
    dtype_bytes: int,
    compute_bytes: int,
    casts: bool,
    tokens: int,
    gradient_checkpointing: bool,
) -> int:
    """What one micro-batch takes at its peak.

    After Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198): of its 34 bytes per token,
    channel and layer, 32 are 16 tensors as wide as the model (an MLP four times as wide) in 2
    bytes, 2 are dropout masks. Here, per token and layer, from the layers' shapes:

    - the output of each linear layer, which attention (queries, keys, values), a norm (the residual
      stream, in float32)
      or an activation function keeps. No attention matrices: fused attention does not keep them.
    - the input of those linear layers whose weight or adapter is trained, `fed`, since a frozen one
      does not need it.
      Shared inputs are counted again for each; that makes up for what gates keep (within 5% for
      Llama). Adapters with
      dropout share none, and keep as much again for the mask. Those with magnitudes (DoRA) keep
      two outputs too, the base's and their own.
    - the input of a frozen one that leads back to the model's width: attention keeps what it gives,
      and a gate what it multiplies.
    - what a norm multiplies by trained weights; a fused one (LayerNorm) makes it again.

    With checkpointing: the inputs of all layers, and one layer's tensors. On top come gradients in
    flight, or the logits and their loss: the larger of both, since one is over when the other
    begins. casts: autograd keeps the weights too, each in the type of the arithmetic.
    """
    from trainables.models.structure import features
    from trainables.tasks.causal_lm.task import CHUNK_LOGITS

    layers = _linear_by_layer(model, linear)
    # bytes of each layer: of its tensors per token, of its weights
    width = model.config.get_text_config().hidden_size
    kept = [
        _kept_bytes(each, inside, fed, dropout, decomposed, width, compute_bytes)
        for each, inside in layers
    ]
    cast = [_cast_bytes(inside, compute_bytes) if casts else 0 for _, inside in layers]
    one = max(kept, default=0)
    widest = max((features(linear[name])[0] for name in fed & linear.keys()), default=0)
    in_flight = max(IN_FLIGHT * one, widest * MASK_BYTES if dropout else 0)
    if gradient_checkpointing:
        held, weights = len(kept) * width * dtype_bytes, max(cast, default=0)
        in_flight += one
    else:
        held, weights = sum(kept), sum(cast)
    scaled = any(getattr(model.config, name, None) for name in SCALED_LOGITS)
    scaled |= hasattr(model, "final_logits_bias")
    logits = tokens * vocabulary if scaled else min(tokens * vocabulary, CHUNK_LOGITS)
    at_the_end = logits * (compute_bytes + LOSS_BYTES)
    return int(tokens * held + max(tokens * in_flight, at_the_end)) + weights


def _expert_bytes(
    model: "PreTrainedModel", fed: Set[str], dtype_bytes: int, gradient_checkpointing: bool
) -> int:
    """What a pass takes for the weights of fused experts that are a trial's own: those of all
    layers, or with checkpointing of one at a time, and the gradient of one weight.
    """
    layers: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if name in fed:
            layers.setdefault(name.rpartition(".")[0], []).append(parameter.numel())
    held = [sum(sizes) for sizes in layers.values()]
    one = max((max(sizes) for sizes in layers.values()), default=0)
    kept = max(held, default=0) if gradient_checkpointing else sum(held)
    return (kept + one) * dtype_bytes


def _linear_by_layer(
    model: "PreTrainedModel", linear: Mapping[str, "nn.Module"]
) -> list[tuple["nn.Module", dict[str, "nn.Module"]]]:
    """Each layer that has any of the linear layers, with those."""
    from trainables.models.structure import layer_lists

    stack, layers = layer_lists(model)[0]
    found = []
    for number, layer in enumerate(layers):
        prefix = f"{stack}.{number}."
        inside = {name: module for name, module in linear.items() if name.startswith(prefix)}
        if inside:
            found.append((layer, inside))
    return found


def _cast_bytes(inside: Mapping[str, "nn.Module"], compute_bytes: int) -> int:
    """The weights of a layer in the type of the arithmetic."""
    return sum(_weight(module).numel() for module in inside.values()) * compute_bytes


def _kept_bytes(
    layer: "nn.Module",
    inside: Mapping[str, "nn.Module"],
    fed: Set[str],
    dropout: bool,
    decomposed: bool,
    width: int,
    compute_bytes: int,
) -> int:
    """What a layer with the linear layers `inside` keeps of a token for its backward."""
    import torch

    from trainables.models.structure import features

    shapes = {name: features(module) for name, module in inside.items()}
    elements = sum(
        out + (name in fed) * ((1 + dropout) * into + 2 * decomposed * out)
        for name, (into, out) in shapes.items()
    )
    elements += sum(
        into for name, (into, out) in shapes.items() if name not in fed and out == width
    )
    steps = max(STEPWISE.get(type(module).__name__, 0) for module in layer.modules())
    elements += steps * max(into for into, _ in shapes.values())  # as wide as the MLP is inside
    norms = [module for module in layer.modules() if "norm" in type(module).__name__.lower()]
    scales = [getattr(module, "weight", None) for module in norms]
    normed = sum(scale.numel() for scale in scales if scale is not None)
    elements += sum(
        scale.numel()
        for norm, scale in zip(norms, scales, strict=True)
        if scale is not None and scale.requires_grad and not isinstance(norm, torch.nn.LayerNorm)
    )
    return elements * compute_bytes + normed * (FLOAT32 - compute_bytes)
