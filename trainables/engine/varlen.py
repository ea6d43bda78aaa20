"""Rows of unlike lengths in one micro-batch without padding: their tokens one after another,
attention within each row.

For causal language models on GPUs, where torch has a kernel for it (flash attention over rows of
unlike lengths). Whether a model computes the same that way is tried on the data's own rows, and how
much a token costs is timed.

Letters of shapes: B rows, T tokens of the longest row, N tokens of all rows, H heads, D channels.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainables.engine import masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "flat_rows"  # transformers' name for how a model attends: as in sdpa where rows are padded
NOT_SERVED = ("softcap", "s_aux", "position_bias", "head_mask")  # what some models add to attention


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows of a micro-batch without padding lie."""

    lengths: tuple[int, ...]
    bounds: Tensor  # int32 [B + 1]: where each row begins, and the end
    positions_N: Tensor  # of each token in its row
    padded_N: Tensor  # of each token among B * T padded ones

    @classmethod
    def of(cls, lengths_B: Sequence[int] | np.ndarray, device: torch.device) -> "Rows":
        lengths = np.asarray(lengths_B)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions_N = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        padded_N = np.repeat(np.arange(len(lengths)) * lengths.max(), lengths) + positions_N

        def on_device(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values).to(device, non_blocking=True)

        return cls(
            lengths=tuple(lengths.tolist()),
            bounds=on_device(starts.astype(np.int32)),
            positions_N=on_device(positions_N),
            padded_N=on_device(padded_N),
        )

    def flatten(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs [1, N] of a padded batch [B, T]."""
        ids = batch["input_ids"].reshape(-1)[self.padded_N][None]
        # without a mask transformers reads off the positions that there are several rows
        mask = torch.ones_like(ids)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": self.positions_N[None],
        }

    def padded(self, x_1ND: Tensor) -> Tensor:
        """[B, T, D] of [1, N, D], with zeros where a row has ended."""
        rows, longest, width = len(self.lengths), max(self.lengths), x_1ND.shape[-1]
        x = x_1ND.new_zeros(rows * longest, width).index_copy(0, self.padded_N, x_1ND[0])
        return x.view(rows, longest, width)


_rows: Rows | None = None  # of the micro-batch that now runs; None: it is padded


def passing(rows: Rows | None) -> None:
    """From now on, backward passes included, models attend within `rows`, or as always."""
    global _rows
    _rows = rows


def prepare(model: "PreTrainedModel") -> bool:
    """Make `model` attend as `passing` says; False: it cannot be told how to attend."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **how: Any,
    ) -> tuple[Tensor, None]:
        if _rows is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
        return _within_rows(_rows, module, query, key, value, **how)[None], None

    def mask(*args: Any, **how: Any) -> Tensor | None:
        return masks.mask(*args, **how) if _rows is None else None

    if model.config._attn_implementation == NAME:
        return True
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask)
    model.set_attn_implementation(NAME)
    return True


def _within_rows(
    rows: Rows,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **how: Any,
) -> Tensor:
    """Causal attention of [1, H, N, D] within each row: [N, H, D]."""
    _check_served(module, is_causal, how)
    q_NHD, k_NHD, v_NHD = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if q_NHD.is_cuda:
        return _on_gpu(rows, q_NHD, k_NHD, v_NHD, scaling, sliding_window)
    if sliding_window is not None:
        raise NotImplementedError("no sliding window on a CPU")
    return _on_cpu(rows, q_NHD, k_NHD, v_NHD, scaling)


def _check_served(module: nn.Module, is_causal: bool | None, how: Mapping[str, object]) -> None:
    """Raise NotImplementedError where a module attends in another way than causally."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal or any(how.get(name) is not None for name in NOT_SERVED):
        raise NotImplementedError(f"{type(module).__name__} attends in a way of its own")


def _on_cpu(
    rows: Rows, q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, scaling: float | None
) -> Tensor:
    outputs = [
        nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in one), scale=scaling, is_causal=True, enable_gqa=True
        )[0].transpose(0, 1)
        for one in zip(*(x.split(rows.lengths) for x in (q_NHD, k_NHD, v_NHD)), strict=True)
    ]
    return torch.cat(outputs)


def _on_gpu(
    rows: Rows,
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHD: Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest, before = max(rows.lengths), -1 if sliding_window is None else sliding_window - 1
    found = varlen_attn(
        q_NHD,
        k_NHD,
        v_NHD,
        rows.bounds,
        rows.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=True,
    )
    return cast(Tensor, found)  # alone, where nothing else is asked for


@torch.no_grad()
def cost(hidden: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> float:
    """What a token of a micro-batch without padding costs, where one of a padded micro-batch
    (padding included) costs 1; infinite where the model does not give the same.

    hidden: hidden states of a model in eval mode; batch: padded rows of unlike lengths, the data's
    longest among them.
    """
    rows = Rows.of(batch["attention_mask"].sum(1).tolist(), batch["attention_mask"].device)

    def run_flat() -> Tensor:
        passing(rows)
        try:
            return rows.padded(hidden(rows.flatten(batch)))
        finally:
            passing(None)

    real = batch["attention_mask"][..., None].bool()
    expected = hidden(batch) * real
    try:
        found = run_flat()
    # no such kernel, or no such inputs
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return math.inf
    # half precision rounds by some thousandths; a row that sees its neighbour, or past its window,
    # differs by far more
    limit = 1e-4 if expected.dtype.itemsize >= 4 else 2e-2
    error_B = (found - expected).float().flatten(1).norm(dim=1) / expected.float().flatten(1).norm(
        dim=1
    )
    if not bool((error_B < limit).all()):
        return math.inf
    flat, padded = (
        _seconds(run_flat, expected.device),
        _seconds(lambda: hidden(batch), expected.device),
    )
    return (flat / sum(rows.lengths)) / (padded / batch["input_ids"].numel())


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
