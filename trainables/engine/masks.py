"""Attention masks of micro-batches of which the host knows how long rows are.

transformers leaves a mask out where nothing is padded, which it reads off the device: in every
forward pass the host then waits until the device has done all that was asked of it before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# tokens of the shortest and of the longest row that now run; None: their mask tells
_extremes: tuple[int, int] | None = None


@contextmanager
def known(lengths_B: Sequence[int] | np.ndarray | None) -> Iterator[None]:
    """Inside, models whose attention is `sdpa` need not look whether rows are padded. The masks are
    the same. `lengths_B`: tokens of each row; None: they must look.
    """
    global _extremes
    _register()
    _extremes = None if lengths_B is None else (int(min(lengths_B)), int(max(lengths_B)))
    try:
        yield
    finally:
        _extremes = None


def mask(*args: Any, attention_mask: "Tensor | None" = None, **how: Any) -> "Tensor | None":
    """transformers' mask for `sdpa`. attention_mask: which tokens of the rows are not padding."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None or _extremes is None:
        return sdpa_mask(*args, attention_mask=attention_mask, **how)
    shortest, longest = _extremes
    if shortest < longest:
        how |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    # wider where a model has padded its rows itself, or a cache has room
    elif attention_mask.shape[-1] == longest == how.get("kv_length"):
        attention_mask = None
    return sdpa_mask(*args, attention_mask=attention_mask, **how)


@cache
def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", mask)
