"""Bases of 4 and 8 bits, each row of which is computed by itself."""

from typing import TYPE_CHECKING

from trainables.models.base import BaseSpec
from trainables.models.config import Quantisation
from trainables.models.precision import computes_in_bf16

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel


def unquantised(spec: BaseSpec, config: "PreTrainedConfig") -> list[str]:
    """Names of the linear layers that a quantised base keeps as they are."""
    import transformers

    from trainables.models.structure import on_meta, outside_layers

    return outside_layers(
        on_meta(getattr(transformers, spec.auto_class), config, spec.model.trust_remote_code)
    )


def quantization(
    quantisation: Quantisation, device: "torch.device", skipped: list[str]
) -> "BitsAndBytesConfig":
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


def keep_rows_apart(model: "PreTrainedModel") -> None:
    """Make 4-bit and 8-bit layers compute every row by itself, with its gradient.

    4 bits: switches off a CPU fast path of bitsandbytes that repacks weights in eval mode and then
    drops the input's gradient. 8 bits: see `Linear8bitWeights`.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    from trainables.models.weights_8bit import Linear8bitWeights

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, Linear8bitLt):
            module.__class__ = Linear8bitWeights
