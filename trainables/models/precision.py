"""In which type weights are held and arithmetic is done."""

from typing import TYPE_CHECKING

from trainables.hyperparameters import OPTIONS
from trainables.models.config import ModelConfig

if TYPE_CHECKING:
    import torch


def computes_in_bf16(device: "torch.device") -> bool:
    """Whether `device` is a GPU that multiplies in bfloat16 itself. Older ones (T4, V100) emulate
    it, slower than float32.
    """
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def base_dtype(
    config: ModelConfig, method: str, device: "torch.device", precision: str = "auto"
) -> "torch.dtype":
    """Type of the base weights for `method` on `device`. precision: of the arithmetic,
    `train.precision`; without autocast that is the type of the weights, so who asks for float32
    gets them so.

    auto: bfloat16 for frozen bases on GPUs that have it, since what trials add to them, heads too,
    is kept in float32 (trainables.engine.shared); float32 on CPUs and where weights of the base are
    trained (full and partial fine-tuning: bfloat16 weights lose small updates).
    """
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    frozen = not OPTIONS[method].trains_base and precision != "float32"
    return torch.bfloat16 if frozen and computes_in_bf16(device) else torch.float32
