"""What is the same for every trial of a sweep."""

from dataclasses import dataclass

import torch

from trainables.engine.budget import MICRO_BATCH_TOKENS
from trainables.models.precision import computes_in_bf16


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What is the same for every trial of a sweep."""

    evaluate_every: int | None = None  # samples between evaluations; None: once an epoch
    # padded tokens of one micro-batch; memory only, never the result
    max_tokens: int = MICRO_BATCH_TOKENS["cpu"]
    autocast: torch.dtype | None = None
    gradient_checkpointing: bool = False
    # micro-batches of language models without padding; None: on GPUs, where that is found to pay
    varlen: bool | None = None
    probe_rows: int = 512
    seed: int = 0
    # of weights that full and partial fine-tuning leave; None: the base's own
    save_dtype: torch.dtype | None = None
    # evaluate with every checkpoint of a language model what it has lost of its base
    forgetting: bool = False
    # tell with every checkpoint what its base costs, as others may have another
    several_bases: bool = False

    @classmethod
    def on(
        cls,
        device: torch.device,
        *,
        precision: str,
        save_dtype: str,
        max_tokens: int | None,
        gradient_checkpointing: bool,
        seed: int,
        evaluate_every: int | None = None,
        probe_rows: int = 512,
        forgetting: bool = False,
        several_bases: bool = False,
    ) -> "GroupSettings":
        """What a sweep file says, where it leaves something to the device."""
        bf16 = precision == "bfloat16" or (precision == "auto" and computes_in_bf16(device))
        return cls(
            evaluate_every=evaluate_every,
            max_tokens=max_tokens or MICRO_BATCH_TOKENS[device.type],
            autocast=torch.bfloat16 if bf16 else None,
            save_dtype=None if save_dtype == "auto" else getattr(torch, save_dtype),
            gradient_checkpointing=gradient_checkpointing,
            probe_rows=probe_rows,
            seed=seed,
            forgetting=forgetting,
            several_bases=several_bases,
        )
