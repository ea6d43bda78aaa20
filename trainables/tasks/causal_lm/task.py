"""The next token, and the functions on tokens that other tasks share.

Shapes: `B` rows, `T` tokens of the longest row, `V` vocabulary, `N` rows of a split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.records import IGNORED
from trainables.tasks.causal_lm.format import Documents
from trainables.tasks.declared import ByClass, LabelSummary, Loss, Prior, Words

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Linear

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore

CHUNK_LOGITS = 1 << 25  # 128 MiB in float32


class CausalLM:
    name = "causal_lm"
    what = "how a text goes on"
    format = Documents()
    auto_class = "AutoModelForCausalLM"
    problem_type: str | None = None
    loss = Loss(words="means in nats per target token", is_likelihood=True, of_tokens=True)
    is_language_model = True
    continues_text = True
    has_classes = False
    is_conversation = False
    targets_are_answers = False
    has_pairs = False
    baselines: tuple[str, ...] = ()
    metric_names: tuple[str, ...] = ("perplexity",)
    lower_is_better: frozenset[str] = frozenset({"perplexity"})

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        return ()

    def notices(self) -> Mapping[str, Words]:
        return {}

    def outputs(self, labels: Sequence[str]) -> tuple[str, ...]:
        return ()

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        return collate_tokens(rows, pad_token_id)

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return token_losses(logits, labels, output, weights, smoothing)

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        return None

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, object]],
    ) -> None:
        return None

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        return int(sum(np.count_nonzero(row[1:] != IGNORED) for row in labels))

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        return count_target_tokens(rows)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        """Perplexity: exp of the loss; infinite where that overflows."""
        try:
            return {"perplexity": math.exp(loss)}
        except OverflowError:
            return {"perplexity": math.inf}

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        return {}

    def majority_share(self, outcomes: np.ndarray) -> float | None:
        return None

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        return LabelSummary()

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        return None

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        return None

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass | None:
        return None

    def usage(self, cut: str, text: str) -> list[str]:
        return []


def pad(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and, where rows have them, token_type_ids: int64 [B, T]."""
    import torch

    ids = [row["input_ids"] for row in rows]
    input_ids, lengths = _padded(ids, pad_token_id), np.array(list(map(len, ids)))
    mask = (np.arange(input_ids.shape[1]) < lengths[:, None]).astype(np.int64)
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    if "token_type_ids" in rows[0]:
        types = _padded([row["token_type_ids"] for row in rows], 0)
        batch |= {"token_type_ids": torch.from_numpy(types)}
    return batch


def _padded(rows: list[np.ndarray], value: int, dtype: type = np.int64) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def collate_tokens(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    import torch

    labels = _padded([row["labels"] for row in rows], IGNORED)
    batch = pad(rows, pad_token_id) | {"labels": torch.from_numpy(labels)}
    if "weights" in rows[0]:
        weights = _padded([row["weights"] for row in rows], 0, np.float32)
        batch |= {"weights": torch.from_numpy(weights)}
    return batch


def upcast(logits: Tensor) -> Tensor:
    """In float32 at least: a log-softmax in half precision is good to two digits."""
    import torch

    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def token_losses(
    logits: Tensor,
    labels: Tensor,
    output: Linear | None = None,
    weights: Tensor | None = None,
    smoothing: Tensor | None = None,
    sums: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`target_losses` of the next tokens.

    logits: [B, T, V], or [B, P + T, V] where a method put P virtual tokens before the row. labels,
    weights: [B, T], not shifted; position t is predicted from t - 1, so labels[:, 0] is never a
    target.
    """
    logits = logits[:, -labels.shape[1] :]
    weights = None if weights is None else weights[:, 1:]
    return target_losses(logits[:, :-1], labels[:, 1:], output, weights, smoothing, sums)


def target_losses(
    logits: Tensor,
    labels: Tensor,
    output: Linear | None = None,
    weights: Tensor | None = None,
    smoothing: Tensor | None = None,
    sums: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of -log p(label) over a row's targets [B], and the count of targets int64 [B]; with
    `weights` [B, T] of the labels, sum of weight * -log p, and of the weights, float64 [B]; with
    `smoothing` [B], of smoothed cross-entropies (`smoothed`) instead of -log p.

    logits: [B, T, V], of the labels [B, T] at the same positions. Only logits of targets are
    upcast: the rest are most of the memory. Labels and weights may be with the host: where the
    targets are is then found without waiting for the device.

    With the model's `output` layer, `logits` are its inputs, [B, T, D]: logits are then computed of
    targets alone and, where there would be more than `CHUNK_LOGITS`, in chunks that are computed
    again for the gradient. sums: their type, where it is not that of the losses of tokens.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    is_target = labels != IGNORED
    chosen = is_target.nonzero().unbind(1)
    here = torch.stack([*chosen, labels[chosen]]).to(logits.device, non_blocking=True)
    row, at, y = here.unbind()
    x = logits[row, at]
    given = (x, y) if smoothing is None else (x, y, smoothing[row])
    size = tokens_at_once(output.weight.shape[0]) if output is not None else len(y)
    parts = zip(*(each.split(max(size, 1)) for each in given), strict=True)
    if len(y) <= size:
        nll = _nll(output, *given)
    elif torch.is_grad_enabled():
        nll = torch.cat([checkpoint(_nll, output, *part, use_reentrant=False) for part in parts])
    else:
        nll = torch.cat([_nll(output, *part) for part in parts])
    counts = is_target.sum(dim=1)
    if weights is not None:
        nll = nll * weights[chosen].to(nll.device, nll.dtype, non_blocking=True)
        counts = (weights * is_target).sum(dim=1, dtype=torch.float64)
    nll = nll.to(sums or nll.dtype)
    sums_B = nll.new_zeros(len(labels)).index_add(0, row, nll)
    return sums_B, counts.to(nll.device, non_blocking=True)


def tokens_at_once(vocabulary: int) -> int:
    """Tokens whose logits are at most `CHUNK_LOGITS` numbers."""
    return max(1, CHUNK_LOGITS // vocabulary)


def _nll(output: Linear | None, x: Tensor, y: Tensor, smoothing: Tensor | None = None) -> Tensor:
    return smoothed(x if output is None else output(x), y, smoothing)


def smoothed(logits: Tensor, labels: Tensor, smoothing: Tensor | None = None) -> Tensor:
    """-log p(label) [N]; with `smoothing` e [N], (1 - e) of it and e of the mean of -log p of all
    classes (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7).

    logits: [N, C]; labels: [N].
    """
    import torch

    logits = upcast(logits)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if smoothing is None:
        return nll
    spread = logits.logsumexp(-1) - logits.mean(-1)
    return nll + smoothing.to(nll.dtype) * (spread - nll)


def count_target_tokens(rows: list[dict[str, Any]]) -> float:
    """Targets of all rows; the sum of their weights, where rows have them."""
    return sum(_count_targets(row["labels"], row.get("weights")) for row in rows)


def _count_targets(labels_T: np.ndarray, weights_T: np.ndarray | None) -> float:
    is_target = np.asarray(labels_T)[1:] != IGNORED
    if weights_T is None:
        return int(np.count_nonzero(is_target))
    return float(np.asarray(weights_T)[1:].sum(dtype=np.float64, where=is_target))
