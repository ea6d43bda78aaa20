"""Bases of 4 and 8 bits, each row of which is computed by itself."""

from functools import cache
from typing import Any

from trainables.models.base import BaseSpec
from trainables.models.config import Quantisation
from trainables.models.precision import computes_in_bf16


def unquantised(spec: BaseSpec, config: Any) -> list[str]:
    """Names of the linear layers that a quantised base keeps as they are."""
    import transformers

    from trainables.models.structure import on_meta, outside_layers

    return outside_layers(
        on_meta(getattr(transformers, spec.auto_class), config, spec.model.trust_remote_code)
    )


def quantization(quantisation: Quantisation, device: Any, skipped: list[str]) -> Any:
    """What transformers needs to load a base as `quantisation`. `skipped`: names of the modules
    that stay as they are.

    Without bfloat16, 4-bit weights are multiplied in float32: in float16, activations of some
    models overflow, and small gradients vanish where no loss is scaled.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if computes_in_bf16(device) else torch.float32,
        llm_int8_skip_modules=skipped,
    )


def keep_rows_apart(model: Any) -> None:
    """Make 4-bit and 8-bit layers compute every row by itself, with its gradient.

    4 bits: switches off a CPU fast path of bitsandbytes that repacks weights in eval mode and then
    drops the input's gradient. 8 bits: LLM.int8 looks for outliers over all rows of a pass and
    rounds activations, so that a row's result would depend on its company; here weights are
    dequantised and activations left as they are.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.__class__ = _weight_only()


@cache
def _weight_only() -> Any:
    import bitsandbytes
    import torch

    def weights(codes: Any, scales: Any, dtype: Any) -> Any:
        return (codes * (scales / 127)[:, None]).to(dtype)

    class Product(torch.autograd.Function):
        """x W^T + b. The weights are dequantised again for the gradient: kept, they would be the
        whole base.
        """

        @staticmethod
        def forward(ctx: Any, x: Any, codes: Any, scales: Any, bias: Any) -> Any:
            ctx.codes, ctx.scales = codes, scales
            return torch.nn.functional.linear(x, weights(codes, scales, x.dtype), bias)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            return dy @ weights(ctx.codes, ctx.scales, dy.dtype), None, None, None

    class Linear8bitWeights(bitsandbytes.nn.Linear8bitLt):
        def forward(self, x: Any) -> Any:
            if self.weight.CB is not None:
                self.init_8bit_state()
            dtype = (
                torch.get_autocast_dtype(x.device.type)
                if torch.is_autocast_enabled(x.device.type)
                else x.dtype
            )
            bias = None if self.bias is None else self.bias.to(dtype)
            return Product.apply(x.to(dtype), self.state.CB, self.state.SCB, bias)

    return Linear8bitWeights
