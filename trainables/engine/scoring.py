"""What a model makes of rows: losses, targets and predictions, summed once and divided once.

Letters of shapes: B rows of a micro-batch, N rows of a split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainables.data.batches import cut_micro_batches
from trainables.data.prepare import Slices, Split
from trainables.engine.distributed import World
from trainables.engine.memory import release
from trainables.engine.row_independence import padding_changes_losses
from trainables.evaluation.forgetting import Drawn
from trainables.models.output import hidden_states, output_layer
from trainables.tasks import Task, take_targets
from trainables.tasks.causal_lm.task import tokens_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Split | Drawn
BatchLosses = tuple[Tensor, Tensor, Tensor | None]
"""Summed loss, targets and predicted class (None for language models) of each row of a batch; sums
and targets are weighted where tokens have weights.
"""

# losses that differ by no more are the same: of a trial in a group, of a row beside padding, and
# both in half precision
SAME, SAME_ROW, SAME_HALF = 1e-3, 1e-4, 5e-2


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """What a model makes of rows [N]: summed losses, targets, predicted and true classes (None for
    language models).
    """

    nll: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray | None
    labels: np.ndarray | None

    @property
    def loss(self) -> float:
        """Mean over all targets."""
        return float(self.nll.sum() / self.targets.sum())

    @property
    def losses(self) -> np.ndarray:
        """Summed loss and targets of each row, float32 [N, 2]."""
        return np.stack([self.nll, self.targets], 1).astype(np.float32)

    @property
    def classes(self) -> np.ndarray | None:
        """Predicted and true class of each row, int32 [N, 2]; None for language models."""
        if self.predictions is None or self.labels is None:
            return None
        return np.stack([self.predictions, self.labels], 1).astype(np.int32)

    def of(self, rows: np.ndarray) -> "RowResults":
        """Of some rows, by position."""
        return RowResults(
            nll=self.nll[rows],
            targets=self.targets[rows],
            predictions=None if self.predictions is None else self.predictions[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """As `Task.metrics` takes them."""
        return self.nll, self.targets, self.predictions, self.labels

    def by_slice(self, task: Task, slices: Slices | None) -> dict[str, dict[str, float]]:
        """Rows, loss and metrics of each slice, by its value."""
        found = {}
        for value, rows in slices or ():
            part = self.of(rows)
            found[value] = {"rows": len(rows), "loss": part.loss, **task.metrics(*part.columns)}
        return found

    @property
    def majority_share(self) -> float | None:
        """Of the rows that got the commonest answer."""
        if self.predictions is None:
            return None
        return float(
            np.unique(self.predictions, return_counts=True)[1].max() / len(self.predictions)
        )


def row_means(nll_B: Tensor, targets_B: Tensor) -> Tensor:
    """Mean loss of each row over its targets [B]; 0 where it has none."""
    return nll_B / torch.where(targets_B > 0, targets_B, 1)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How rows are cut into micro-batches, and where those are computed."""

    pad_token_id: int
    max_tokens: int  # padded tokens of a micro-batch
    device: torch.device
    world: World = World()
    soft_prompt_tokens: int = 0  # put before each row by the model
    padded: bool = True  # rows of unlike lengths may share a micro-batch


def evaluate_model(
    model: "PreTrainedModel",
    task: Task,
    split: Split,
    rows: np.ndarray,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
    padded: bool | None = None,
) -> RowResults:
    """What a `model` by itself makes of `rows` in eval mode. padded: rows of unlike lengths may
    share a micro-batch; None: where padding does not change their losses.
    """
    was_training = model.training
    model.eval()
    output = None
    if task.auto_class == "AutoModelForCausalLM":
        output = output_layer(model)
        if output is None:  # all logits of a micro-batch are there at once
            max_tokens = min(max_tokens, tokens_at_once(model.config.get_text_config().vocab_size))

    def losses(batch: dict[str, Tensor], _: Sequence[int]) -> BatchLosses:
        labels, weights = take_targets(batch)
        with hidden_states(output):
            logits = model(**batch).logits
        nll_B, targets_B = task.row_losses(logits, labels, output, weights)
        return nll_B, targets_B, task.predictions(logits, labels)

    def of_rows(at: np.ndarray) -> Tensor:
        batch = task.collate(split.rows(rows[at]), pad_token_id)
        nll_B, targets_B, _ = losses({name: x.to(device) for name, x in batch.items()}, [0])
        return row_means(nll_B, targets_B)

    limit = SAME_ROW if next(model.parameters()).dtype.itemsize >= 4 else SAME_HALF
    if padded is None:
        padded = not padding_changes_losses(of_rows, split.lengths[rows], limit, max_tokens)
    cut = Cut(pad_token_id=pad_token_id, max_tokens=max_tokens, device=device, padded=padded)
    (found,) = evaluate_in_micro_batches(losses, 1, task, split, rows, cut)
    model.train(was_training)
    return found


def evaluate_in_micro_batches(
    losses: Callable[[dict[str, Tensor], Sequence[int]], BatchLosses],
    copies: int,
    task: Task,
    split: Rows,
    rows: np.ndarray,
    cut: Cut,
) -> list[RowResults]:
    """What each of the `copies` of a model makes of `rows`.

    losses: of a batch for several of the copies, one copy's rows after another's.
    """
    lengths = split.lengths[rows]
    mine = np.argsort(lengths, kind="stable")[cut.world.rank :: cut.world.size]
    results = _Results(copies, len(rows))
    waiting = [
        (positions, list(range(copies)))
        for positions in cut_micro_batches(
            lengths[mine] + cut.soft_prompt_tokens, cut.max_tokens // copies, padded=cut.padded
        )
    ]
    while waiting:
        positions, which = waiting.pop(0)
        at = mine[positions]
        batch = task.collate(split.rows(rows[at]), cut.pad_token_id)
        found = _attempted(losses, batch, which, cut.device)
        if found is None:
            release(cut.device)
            waiting[:0] = _halves(positions, which)
        else:
            results.take(which, at, found, batch["labels"])
    results.sum(cut.world, cut.device)
    return results.of_each_copy()


def _attempted(
    losses: Callable[[dict[str, Tensor], Sequence[int]], BatchLosses],
    batch: dict[str, Tensor],
    which: Sequence[int],
    device: torch.device,
) -> BatchLosses | None:
    """None: memory does not suffice, and the batch can be halved. Memory is given back by the
    caller: where the error is caught, its traceback still holds what was computed.
    """
    try:
        # not inference mode: what a model caches in it could not be trained with afterwards
        with torch.no_grad():
            return losses({name: tensor.to(device) for name, tensor in batch.items()}, which)
    except torch.OutOfMemoryError:
        if len(batch["input_ids"]) * len(which) == 1:
            raise
        return None


def _halves(positions: np.ndarray, which: list[int]) -> list[tuple[np.ndarray, list[int]]]:
    """By rows; of a single row, by copies of the model."""
    if len(positions) == 1:
        middle = len(which) // 2
        return [(positions, which[:middle]), (positions, which[middle:])]
    middle = -(-len(positions) // 2)
    return [(positions[:middle], which), (positions[middle:], which)]


class _Results:
    """Losses, targets, predicted and true classes [4, copies, N], micro-batch by micro-batch."""

    def __init__(self, copies: int, rows: int) -> None:
        self._columns = torch.zeros(4, copies, rows, dtype=torch.float64)
        self._classes = False

    def take(
        self, which: Sequence[int], at: np.ndarray, found: BatchLosses, labels: Tensor
    ) -> None:
        index = torch.tensor(which)[:, None], torch.from_numpy(at)[None]
        for number, column in enumerate(found):
            if column is not None:
                self._columns[number][index] = column.double().cpu().view(len(which), len(at))
        if found[2] is not None:
            self._classes = True
            self._columns[3][index] = labels.double().repeat(len(which), 1)

    def sum(self, world: World, device: torch.device) -> None:
        """Over all workers, each of which has filled in its own rows."""
        if world.size == 1:
            return
        shared = self._columns.to(device)
        world.sum([shared])
        self._columns = shared.cpu()
        flag = torch.tensor([float(self._classes)], device=device)
        world.sum([flag])
        self._classes = bool(flag > 0)

    def of_each_copy(self) -> list[RowResults]:
        return [
            RowResults(
                nll=nll,
                targets=targets,
                predictions=predictions.astype(np.int64) if self._classes else None,
                labels=labels.astype(np.int64) if self._classes else None,
            )
            for nll, targets, predictions, labels in self._columns.numpy().transpose(1, 0, 2)
        ]
