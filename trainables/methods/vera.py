"""VeRA (Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454): low-rank branches of random
matrices that all layers share, of which only scales are trained.

Letters of shapes: K trials, N vectors, I and O channels in and out, R rank.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.engine.kernels import GroupedLinear, GroupedScale
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.hyperparameters import VeraOptions
from trainables.methods.lora import LinearSite, over_layers, target_modules
from trainables.models.base import BaseModel
from trainables.models.structure import features

KEY = 0  # of the generator that draws A and B: PEFT's default


class Projections(AdapterSite):
    """A and B of all trials, as large as their largest layer. The site is the whole model."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.{tensor}"

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[VeraOptions | None]) -> None:
        self.A_KRI, self.B_KOR = tensors["vera_A"].compute, tensors["vera_B"].compute

    def install(self) -> Callable[[], None]:
        return lambda: None


class Scales(LinearSite):
    """The branches of all trials at one linear layer: y += b * B (d * A dropout(x)), with the
    first columns of A and the first rows of B.
    """

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return f"base_model.model.{site}.{tensor}"

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[VeraOptions | None]) -> None:
        self._d, self._b = tensors["vera_lambda_d"], tensors["vera_lambda_b"]
        self.bind_dropout([each.dropout if each else 0.0 for each in options])

    def install(self) -> Callable[[], None]:
        return self.module.register_forward_hook(self._add).remove

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        of, ranks = self.engine.site(Projections, ""), self._d.weight.shape[1]
        x = self.dropped_out(inputs[0])
        x_NI = x.reshape(-1, x.shape[-1]).to(of.A_KRI.dtype)
        with torch.autocast(x.device.type, enabled=False):
            h_NR = self._projected(x_NI, of.A_KRI[:, :ranks, : x.shape[-1]])
            h_NR = self._scaled(h_NR, self._d)
            y_NO = self._projected(h_NR, of.B_KOR[:, : output.shape[-1], :ranks])
            y_NO = self._scaled(y_NO, self._b)
        return (output + y_NO.view(output.shape)).to(output.dtype)

    def _projected(self, x_NI: Tensor, weight_KOI: Tensor) -> Tensor:
        segments = self.engine.micro_batch.scaled(len(x_NI))
        return GroupedLinear.apply(x_NI, self.engine.anchor, weight_KOI, None, segments)

    def _scaled(self, x_NC: Tensor, scale: Stacked) -> Tensor:
        # a trial that has nothing here has zeros for d and for b, so that neither has a gradient
        everyone = [True] * len(scale.weight)
        segments = self.engine.micro_batch.scaled(len(x_NC))
        return GroupedScale.apply(
            x_NC, self.engine.anchor, scale.weight, scale.grad, segments, everyone
        )


class Vera:
    """VeRA over a frozen base. What leaves is PEFT's format, with A and B in it."""

    stays_beside = False

    def plan(self, base: BaseModel, options: VeraOptions) -> list[Addition]:
        """A and B as PEFT draws them, the same for all trials of a rank; d constant, b zero."""
        names = target_modules(base, options.targets)
        sizes = {name: features(base.model.get_submodule(name)) for name in names}
        inputs, outputs = (max(side) for side in zip(*sizes.values(), strict=True))
        generator = torch.Generator("cpu").manual_seed(KEY)
        shapes = {"vera_A": (options.rank, inputs), "vera_B": (outputs, options.rank)}
        drawn = {name: torch.empty(shape, device="cpu") for name, shape in shapes.items()}
        for matrix in drawn.values():
            nn.init.kaiming_uniform_(matrix, generator=generator)
        frozen = dict.fromkeys(drawn, torch.ones(1, 1, dtype=torch.bool))
        shared = Addition(kind=Projections, site="", values=drawn, frozen=frozen, options=options)
        return [shared, *(_scales(name, out, options) for name, (_, out) in sizes.items())]

    def describe(self, base: BaseModel, options: VeraOptions, folder: Path) -> None:
        from peft import VeraConfig

        VeraConfig(
            **over_layers(base, target_modules(base, options.targets)),
            r=options.rank,
            d_initial=options.d_initial,
            vera_dropout=options.dropout,
            projection_prng_key=KEY,
            save_projection=True,
        ).save_pretrained(str(folder))


def _scales(name: str, outputs: int, options: VeraOptions) -> Addition:
    values = {
        "vera_lambda_d": torch.full((options.rank,), options.d_initial),
        "vera_lambda_b": torch.zeros(outputs),
    }
    return Addition(kind=Scales, site=name, values=values, options=options)
