from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.engine.dropout import row_dropout
from trainables.engine.kernels import Context, Segments, accumulate, grouped_matmul
from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.errors import InputError
from trainables.hyperparameters import LoraOptions
from trainables.methods.dora import Decomposed, Magnitudes, weight_norms
from trainables.methods.experts import of_experts
from trainables.methods.initial import initial_factors
from trainables.models.base import BaseModel
from trainables.models.structure import attends, ends_with, features, linear_layers, served_by_peft

# number of the first site among the layers that drop out; the base's own come before
FIRST_LAYER = 1 << 16


def target_modules(base: BaseModel, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that `targets` means in this model, and that PEFT will adapt
    when it loads the adapter; the head is never among them.
    """
    model = base.model
    linear = linear_layers(model, base.head)
    if targets == "all-linear":
        chosen = linear
    elif isinstance(targets, str):
        chosen = attends(model, linear)
    else:
        chosen = _named(linear, targets)
    if not chosen:
        what = "linear layer" if targets == "all-linear" else "attention layer"
        raise InputError(
            f"targets: no {what} found in {type(model).__name__}; name the modules, or choose"
            " another method"
        )
    served = served_by_peft(model, chosen)
    refused = sorted({name.rsplit(".", 1)[-1] for name in set(chosen) - set(served)})
    if not served or (refused and isinstance(targets, tuple)):
        raise InputError(
            f"targets: PEFT does not load adapters of {', '.join(refused)} into"
            f" {type(model).__name__}"
        )
    return served


def _named(linear: Sequence[str], targets: Sequence[str]) -> list[str]:
    for target in targets:
        if not any(ends_with(name, [target]) for name in linear):
            endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise InputError(
                f"targets: no linear layer is called {target!r}; this model has"
                f" {', '.join(endings)}"
            )
    return [name for name in linear if ends_with(name, targets)]


class LinearSite(AdapterSite):
    """A linear layer whose input is dropped out before it is adapted."""

    def __init__(self, engine: SharedBaseEngine, name: str) -> None:
        super().__init__(engine, name)
        self._layer = FIRST_LAYER + linear_layers(engine.base.model, engine.base.head).index(name)

    def bind_dropout(self, dropouts: Sequence[float]) -> None:
        """`dropouts`: the probability of each trial."""
        self._dropouts = tuple(dropouts) if any(dropouts) else None

    def dropped_out(self, x: Tensor) -> Tensor:
        """The layer's input, in training, where some trial drops out; else `x` itself."""
        if self._dropouts is None or not self.module.training:
            return x
        rates = self.engine.dropout_rates(self._dropouts, x.dtype)
        return row_dropout(x, self.engine.keys, self._layer, rates)


class LowRank(LinearSite):
    """The low-rank branches of all trials at one linear layer: y += scale * B A dropout(x)."""

    fast: ClassVar[tuple[str, ...]] = ("lora_B",)

    @staticmethod
    def key(site: str, tensor: str) -> str:
        # PEFT's names
        if tensor == "lora_magnitude_vector":
            return f"base_model.model.{site}.{tensor}"
        return f"base_model.model.{site}.{tensor}.weight"

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[LoraOptions | None]) -> None:
        self.A_KRI, self.B_KOR = tensors["lora_A"].compute, tensors["lora_B"].compute
        self.grad_A_KRI, self.grad_B_KOR = tensors["lora_A"].grad, tensors["lora_B"].grad
        # where nobody trains A, nothing as wide as the layer's input is kept
        self.trains_A = not all(each is None or each.freeze_a for each in options)
        scales = [each.scale if each else 0.0 for each in options]
        # never in half precision, in which it would not be what a checkpoint says
        scale_K = torch.tensor(scales, dtype=tensors["lora_A"].weight.dtype)
        self._scale_K11 = scale_K[:, None, None].to(self.A_KRI.device, non_blocking=True)
        self.bind_dropout([each.dropout if each else 0.0 for each in options])
        self._magnitudes = self._with_magnitudes(tensors, options)

    def _with_magnitudes(
        self, tensors: Mapping[str, Stacked], options: Sequence[LoraOptions | None]
    ) -> Magnitudes | None:
        scales = {k: each.scale for k, each in enumerate(options) if each and each.use_dora}
        if not scales:
            return None
        a, b, vector = (tensors[n] for n in ("lora_A", "lora_B", "lora_magnitude_vector"))
        return Magnitudes(self.module, vector, a, b, scales)

    def scaled(self, weight_K: Tensor) -> Tensor:
        """Of each trial its matrix times its scale, so that no rows need be multiplied by it: of A
        on the way forward, of B on the way back.
        """
        return torch.mul(weight_K, self._scale_K11, out=weight_K.new_empty(weight_K.shape))

    def install(self) -> Callable[[], None]:
        return self.module.register_forward_hook(self._add).remove

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, whole = self.dropped_out(inputs[0]), self.engine.micro_batch
        x_NI = x.reshape(-1, x.shape[-1]).to(self.A_KRI.dtype)
        segments, anchor, of = whole.scaled(len(x_NI)), self.engine.anchor, self._magnitudes
        with torch.autocast(x.device.type, enabled=False):
            delta_NO = _LowRank.apply(x_NI, anchor, self, segments)
        if of is not None and any(lane in of.lanes for lane, _, _ in segments):
            # of the input as it is dropped out, as PEFT computes it
            y = output if x is inputs[0] else module.forward(x)
            bias = getattr(module, "bias", None)
            y = y if bias is None else y - bias
            with torch.autocast(x.device.type, enabled=False):
                y_NO = y.reshape(delta_NO.shape)
                delta_NO = Decomposed.apply(y_NO, delta_NO, anchor, of, segments)
        return (output + delta_NO.view(output.shape)).to(output.dtype)


def _of_each_layer(options: LoraOptions, names: Sequence[str]) -> dict[str, LoraOptions]:
    """The options at each of the layers `names`, which patterns may change. Raises InputError for
    one that fits none.
    """
    from peft.utils.other import get_pattern_key

    ranks, alphas = options.ranks, options.alphas
    for name, patterns in {"rank_pattern": ranks, "alpha_pattern": alphas}.items():
        for regex in patterns:
            if not any(get_pattern_key([regex], layer) == regex for layer in names):
                raise InputError(f"{name}: {regex!r} fits the name of no layer that is adapted")
    return {
        layer: replace(
            options,
            rank=ranks.get(get_pattern_key(list(ranks), layer), options.rank),
            alpha=alphas.get(get_pattern_key(list(alphas), layer), options.alpha),
        )
        for layer in names
    }


def _start(module: nn.Module, options: LoraOptions) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initial values, and what of them is not trained.

    A as PEFT draws it (Kaiming uniform), B zero. From the base's own weights: [A; A0] and [B, -B0],
    of which A0 and B0 stay as they were at the start. W + s (B A - B0 A0) then is what PEFT has as
    W - s B0 A0 + s B A, over a base that is left as it is, and it is a LoRA of twice the rank.
    """
    if options.from_base:
        a, b = initial_factors(module, options.from_base, options.rank, options.scale)
        second_R = torch.arange(2 * options.rank) >= options.rank
        values = {"lora_A": torch.cat([a, a]), "lora_B": torch.cat([b, -b], dim=1)}
        return values, {"lora_A": second_R[:, None], "lora_B": second_R}
    inputs, outputs = features(module)
    a = torch.empty(options.rank, inputs)
    torch.nn.init.kaiming_uniform_(a, a=5**0.5)
    values = {"lora_A": a, "lora_B": torch.zeros(outputs, options.rank)}
    return values, {"lora_A": torch.ones(1, 1, dtype=torch.bool)} if options.freeze_a else {}


def _magnitudes(
    base: BaseModel, site: str, values: Mapping[str, Tensor], options: LoraOptions
) -> Tensor:
    """Those at which nothing is changed yet [O]."""
    module, dtype = base.model.get_submodule(site), torch.promote_types(base.dtype, torch.float32)
    device = module.get_parameter("weight").device
    a_RI, b_OR = (values[n].to(device, dtype) for n in ("lora_A", "lora_B"))
    return weight_norms(module, a_RI[None], b_OR[None], [options.scale])[0]


class _LowRank(torch.autograd.Function):
    """B A x for the rows of each trial; the gradients of A and B are added to the matrix in
    place.
    """

    @staticmethod
    def forward(
        ctx: Context, x_NI: Tensor, anchor: Tensor, site: LowRank, segments: Segments
    ) -> Tensor:
        h_NR = grouped_matmul(x_NI, site.scaled(site.A_KRI).transpose(1, 2), segments)
        ctx.save_for_backward(x_NI if site.trains_A else h_NR, h_NR)
        ctx.rest = (site, segments)
        return grouped_matmul(h_NR, site.B_KOR.transpose(1, 2), segments)

    @staticmethod
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x_NI, h_NR), (site, segments) = ctx.saved_tensors, ctx.rest
        dy_NO = grad_outputs[0].contiguous()
        dh_NR = grouped_matmul(dy_NO, site.scaled(site.B_KOR), segments)
        accumulate(site.grad_B_KOR, dy_NO, h_NR, segments)
        if site.trains_A:
            accumulate(site.grad_A_KRI, dh_NR, x_NI, segments)
        dx_NI = grouped_matmul(dh_NR, site.A_KRI, segments) if ctx.needs_input_grad[0] else None
        return dx_NI, None, None, None


def over_layers(base: BaseModel, targets: Sequence[str]) -> dict[str, Any]:
    """What PEFT's configurations of adapters on the layers `targets` have in common."""
    from peft import TaskType
    from transformers.pytorch_utils import Conv1D

    return {
        "base_model_name_or_path": base.model.name_or_path,
        "revision": base.revision,
        "target_modules": list(targets),
        # GPT-2's layers
        "fan_in_fan_out": any(
            isinstance(base.model.get_submodule(name), Conv1D) for name in targets
        ),
        "modules_to_save": list(base.head) or None,
        "task_type": TaskType(base.peft_task),
        "inference_mode": True,
    }


def _adapted_layers(base: BaseModel, options: LoraOptions) -> list[str]:
    """None, where experts alone are adapted."""
    return target_modules(base, options.targets) if options.targets else []


class Lora:
    """LoRA over a frozen base; a new head is trained in full and saved with the adapter. What
    leaves is PEFT's format.
    """

    stays_beside = False

    def plan(self, base: BaseModel, options: LoraOptions) -> list[Addition]:
        """See `_start`, and of experts `of_experts`."""
        additions = of_experts(base, options)
        for name, own in _of_each_layer(options, _adapted_layers(base, options)).items():
            values, frozen = _start(base.model.get_submodule(name), own)
            if own.use_dora:
                values["lora_magnitude_vector"] = _magnitudes(base, name, values, own)
            additions.append(
                Addition(kind=LowRank, site=name, values=values, frozen=frozen, options=own)
            )
        return additions

    def describe(self, base: BaseModel, options: LoraOptions, folder: Path) -> None:
        from peft import LoraConfig

        # where the start is beside what is trained, as PEFT's own conversion to LoRA has it
        wider = 2 if options.from_base else 1
        more = wider**0.5 if options.rslora else wider
        LoraConfig(
            **over_layers(base, _adapted_layers(base, options)),
            target_parameters=list(options.target_parameters) or None,
            r=options.rank * wider,
            rank_pattern={regex: rank * wider for regex, rank in options.ranks.items()},
            alpha_pattern={regex: alpha * more for regex, alpha in options.alphas.items()},
            lora_alpha=options.alpha * more,  # pyright: ignore[reportArgumentType]  PEFT takes floats too
            lora_dropout=options.dropout,
            use_rslora=options.rslora,
            use_dora=options.use_dora,
        ).save_pretrained(str(folder))
