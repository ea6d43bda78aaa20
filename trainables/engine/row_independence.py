"""Whether trials can share a base: its modules must see rows apart, or a trial would act on the
rows of another.

Most modules are given [B, T, D] or [B * T, D]. Some have no rows (DeBERTa projects its table of
relative positions), some have them elsewhere (XLNet's first dimension is time): the model itself is
asked, with rows of which one changes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

ROWS = 3  # of a trial forward; the one in the middle changes
# share of the largest element; rounding is less
CHANGED = {torch.float32: 1e-4, torch.float64: 1e-8}
CHANGED_HALF = 3e-2  # the same in half precision
PADDED = 5  # rows, from the shortest to the longest, that are tried with padding behind them


@torch.no_grad()
def mixing_rows(
    model: nn.Module,
    watched: Sequence[str],
    run: Callable[[Tensor], object],
    ids_T: Tensor,
    changed_T: Tensor,
) -> dict[str, tuple[bool, ...]]:
    """Those of the modules `watched` whose input is not always one vector after another of the
    first row, then of the next; of each, at which of its calls in a forward it is.

    run: a forward over ids [3, T] without padding. ids_T, changed_T: a row, and one that differs
    from it.
    """
    before = _inputs(model, watched, run, torch.stack([ids_T, ids_T, ids_T]))
    after = _inputs(model, watched, run, torch.stack([ids_T, changed_T, ids_T]))
    found = {}
    for name in before:
        told = tuple(map(_middle_third, before[name], after[name]))
        if len(before[name]) != len(after[name]):
            told = (False,)
        if not all(told):
            found[name] = told
    return found


@torch.no_grad()
def padding_changes_losses(
    losses: Callable[[np.ndarray], Tensor], lengths: np.ndarray, limit: float, max_tokens: int
) -> bool:
    """Whether what a model makes of a row depends on how much padding stands behind it: some leak
    it through convolutions or landmarks, some read the answer at the last position whatever is
    there.

    losses: of the rows at these positions [B], in one micro-batch; lengths: of all rows; limit:
    what rounding explains, relative; max_tokens: of a micro-batch, which two rows must fit into to
    pad one another.
    """
    order = np.argsort(lengths, kind="stable")
    order = order[2 * lengths[order].astype(np.int64) <= max_tokens]
    if not len(order):
        return False
    long = order[-1]
    for short in order[
        np.unique(np.linspace(0, len(order) - 1, PADDED).astype(int))
    ]:  # what leaks may not show in one
        if lengths[short] == lengths[long]:
            continue
        alone, padded = losses(np.array([short])), losses(np.array([short, long]))[:1]
        if not torch.allclose(alone, padded, rtol=limit, atol=limit, equal_nan=True):
            return True
    return False


def _inputs(
    model: nn.Module, watched: Sequence[str], run: Callable[[Tensor], object], ids_3T: Tensor
) -> dict[str, list[Tensor]]:
    """What each module is given at each of its calls, as vectors."""
    found: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
            given = [
                x
                for x in (*args, *kwargs.values())
                if isinstance(x, Tensor) and x.is_floating_point()
            ]
            for x in given[:1]:
                found.setdefault(name, []).append(x.detach().reshape(-1, x.shape[-1]).clone())

        return record

    hooks = [
        model.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in watched
    ]
    try:
        run(ids_3T)
    finally:
        for each in hooks:
            each.remove()
    return found


def _middle_third(before_ND: Tensor, after_ND: Tensor) -> bool:
    """Whether there is a change, and all of it in the middle third of the vectors."""
    if before_ND.shape != after_ND.shape or len(before_ND) % ROWS:
        return False
    moved = (after_ND - before_ND).abs().amax(1).view(ROWS, -1).amax(1)
    limit = CHANGED.get(before_ND.dtype, CHANGED_HALF) * before_ND.abs().max()
    # what the others do must be rounding, also beside the change itself
    return bool(moved[1] > 0 and max(moved[0], moved[2]) <= min(limit, moved[1] / 10))
