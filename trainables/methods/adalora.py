"""AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512) of trials that share a base:
branches P diag(E) Q whose least important ranks are taken away while they train.

P is called B here and Q is A, as in PEFT, whose formulas these are.

Letters of shapes: K trials, N vectors, I and O channels in and out, R rank.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.engine.kernels import GroupedLinear, GroupedScale
from trainables.engine.sites import AdapterSite, Addition, Stacked, Stepped
from trainables.hyperparameters import AdaLoraOptions
from trainables.methods.lora import LinearSite, LowRank, over_layers, target_modules
from trainables.models.base import BaseModel
from trainables.models.structure import features

A, E, B = "lora_A", "lora_E", "lora_B"
SPREAD = 0.02  # standard deviation of A and B at the start
IMPORTANCE, UNCERTAINTY = "exp_avg_ipt", "exp_avg_unc"  # PEFT's names


class Triplets(LinearSite):
    """The branches of all trials at one linear layer: y += scale * B (E * A dropout(x))."""

    state: ClassVar[tuple[str, ...]] = (IMPORTANCE, UNCERTAINTY)

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return LowRank.key(site, tensor)  # they leave as a LoRA

    def bind(
        self, tensors: Mapping[str, Stacked], options: Sequence[AdaLoraOptions | None]
    ) -> None:
        self.options, self.tensors = options, tensors
        self._scales_K = torch.tensor(
            [scale(each) if each else 0.0 for each in options],
            dtype=self.engine.dtype,
            device=self.engine.anchor.device,
        )
        ranks = torch.tensor([each.init_r if each else 0 for each in options])[:, None]
        rows_R = torch.arange(tensors[A].weight.shape[1])
        self._real_KR = (rows_R < ranks).to(self._scales_K)  # of A and B; the others are padding
        self.bind_dropout([each.dropout if each else 0.0 for each in options])

    def install(self) -> Callable[[], None]:
        return self.module.register_forward_hook(self._add).remove

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, whole = self.dropped_out(inputs[0]), self.engine.micro_batch
        x_NI = x.reshape(-1, x.shape[-1]).to(self.tensors[A].compute.dtype)
        with torch.autocast(x.device.type, enabled=False):
            h_NR = self._scaled(self._projected(x_NI, self.tensors[A]))
            lanes_B = whole.lanes_B if len(whole.segments) > 1 else whole.lanes_B[:1]
            h_BTR = h_NR.view(len(lanes_B), -1, h_NR.shape[-1])
            h_BTR = h_BTR * self._scales_K[lanes_B].to(h_NR.dtype)[:, None, None]
            y_NO = self._projected(h_BTR.view(h_NR.shape), self.tensors[B])
        return (output + y_NO.view(output.shape)).to(output.dtype)

    def _projected(self, x_NI: Tensor, weight: Stacked) -> Tensor:
        segments = self.engine.micro_batch.scaled(len(x_NI))
        return GroupedLinear.apply(x_NI, self.engine.anchor, weight.compute, weight.grad, segments)

    def _scaled(self, h_NR: Tensor) -> Tensor:
        values, everyone = self.tensors[E], [True] * len(self.options)
        segments = self.engine.micro_batch.scaled(len(h_NR))
        return GroupedScale.apply(
            h_NR, self.engine.anchor, values.weight[..., 0], values.grad[..., 0], segments, everyone
        )

    # --- beside the rows' losses ---

    @classmethod
    def penalties(cls, sites: Sequence[AdapterSite], lanes: Sequence[int]) -> Tensor:
        """`orth_reg_weight` times the mean of ||A A^T - I|| and ||B^T B - I|| over all layers."""
        own = [site for site in sites if isinstance(site, Triplets)]
        every = [_weight_of_each(own, lane) for lane in range(len(own[0].options))]
        weights_K = own[0]._scales_K.new_tensor(every)
        found_K = torch.zeros_like(weights_K)
        for site in own:
            a, b, real_KR = site.tensors[A], site.tensors[B], site._real_KR
            found_K += weights_K * _off_orthogonal(a.weight, a.grad, real_KR, weights_K)
            found_K += weights_K * _off_orthogonal(b.weight.mT, b.grad.mT, real_KR, weights_K)
        return found_K[lanes]

    @classmethod
    def after_step(cls, sites: Sequence[AdapterSite], stepped: Stepped) -> None:
        own = [site for site in sites if isinstance(site, Triplets) and site.options[stepped.lane]]
        if not own:
            return
        options = own[0].options[stepped.lane]
        assert options is not None
        begin, end = options.budgeting(stepped.total)
        if stepped.step < end:
            _score(options, stepped)
        due = begin < stepped.step and stepped.step % options.delta_t == 0
        if stepped.step >= end or due:
            left = max(0.0, 1 - (stepped.step - begin) / (end - begin))
            _allocate(own, stepped.lane, options, left)


def scale(options: AdaLoraOptions) -> float:
    return options.alpha / (options.init_r + 1e-5)


def _weight_of_each(sites: Sequence[Triplets], lane: int) -> float:
    """What one layer's A or B counts in the penalty of a trial."""
    here = [each for site in sites if (each := site.options[lane]) is not None]
    return here[0].orth_reg_weight / (2 * len(here)) if here else 0.0


def _off_orthogonal(
    weight_KRI: Tensor, grad_KRI: Tensor, real_KR: Tensor, weights_K: Tensor
) -> Tensor:
    """||M M^T - I|| of each trial's matrix M [K]; adds its gradient, times `weights_K`, to the
    trial's. real_KR: 1 for rows that are no padding.
    """
    off_KRR = weight_KRI @ weight_KRI.mT - real_KR.diag_embed()
    norm_K = torch.linalg.matrix_norm(off_KRR)
    # where nothing is off, nothing pulls
    pull_K = 2 * weights_K / norm_K.clamp(min=torch.finfo(norm_K.dtype).tiny)
    grad_KRI.add_(pull_K[:, None, None] * (off_KRR @ weight_KRI))
    return norm_K


def _score(options: AdaLoraOptions, stepped: Stepped) -> None:
    """Update how much each number matters, and how sure that is (equations 8 to 10)."""
    mean_P, deviation_P = stepped.state[IMPORTANCE], stepped.state[UNCERTAINTY]
    now_P = (stepped.weights * stepped.grads * stepped.clip).abs_()
    mean_P.lerp_(now_P, 1 - options.importance_beta1)
    deviation_P.lerp_((now_P - mean_P).abs_(), 1 - options.importance_beta2)


def _allocate(sites: Sequence[Triplets], lane: int, options: AdaLoraOptions, left: float) -> None:
    """Set E to zero of all triplets but the most important, as many as the budget has: its part
    that is to go falls with the cube of the share of the budgeting that is `left`.
    """
    before, after = (rank * len(sites) for rank in (options.init_r, options.target_r))
    budget = int((before - after) * left**3 + after)
    scores = [_importance(site, lane, options.init_r) for site in sites]
    threshold = torch.cat(scores).kthvalue(before - budget).values
    for site, score_R in zip(sites, scores, strict=True):
        e_R = site.tensors[E].weight[lane, : options.init_r, 0]
        e_R.masked_fill_(score_R <= threshold, 0.0)


def _importance(site: Triplets, lane: int, rank: int) -> Tensor:
    """Of each triplet [R] (equation 7)."""
    element = {
        name: each.state[IMPORTANCE][lane] * each.state[UNCERTAINTY][lane]
        for name, each in site.tensors.items()
    }
    vectors = element[A][:rank].mean(1) + element[B][:, :rank].mean(0)
    return element[E][:rank, 0] + vectors


class AdaLora:
    """AdaLoRA over a frozen base. What leaves is an ordinary LoRA of the ranks that are left."""

    stays_beside = False

    def plan(self, base: BaseModel, options: AdaLoraOptions) -> list[Addition]:
        """As PEFT draws them: A and B small, E zero."""

        def made(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return _as_lora(tensors, scale(options))

        additions = []
        for name in target_modules(base, options.targets):
            inputs, outputs = features(base.model.get_submodule(name))
            values = {
                A: torch.randn(options.init_r, inputs) * SPREAD,
                E: torch.zeros(options.init_r, 1),
                B: torch.randn(outputs, options.init_r) * SPREAD,
            }
            additions.append(
                Addition(kind=Triplets, site=name, values=values, options=options, made=made)
            )
        return additions

    def describe(self, base: BaseModel, options: AdaLoraOptions, folder: Path) -> None:
        from peft import LoraConfig
        from peft.utils import SAFETENSORS_WEIGHTS_NAME

        targets = target_modules(base, options.targets)
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        # PEFT takes the first pattern that the end of a layer's name fits
        names = sorted(targets, key=len, reverse=True)
        ranks = {name: len(saved[Triplets.key(name, A)]) for name in names}
        LoraConfig(
            **over_layers(base, targets),
            r=options.target_r,
            # a scale of 1, also where patterns are not read
            lora_alpha=options.target_r,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            lora_dropout=options.dropout,
        ).save_pretrained(str(folder))


def _as_lora(tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A and B of a LoRA with a scale of 1: the triplets that are left, or one that adds nothing."""
    e_R = tensors[E][:, 0]
    kept = e_R.nonzero()[:, 0]
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64, device=e_R.device)
    a_RI = tensors[A][kept] * (scale * e_R[kept, None])
    return {A: a_RI, B: tensors[B][:, kept]}
