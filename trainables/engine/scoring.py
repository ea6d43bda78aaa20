"""What a model makes of rows: losses, targets and predictions, summed once and divided once.

Letters of shapes: B rows of a micro-batch, N rows of a split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from trainables.data.batches import cut_micro_batches
from trainables.data.prepare import Slices, Split
from trainables.engine.distributed import World
from trainables.engine.memory import release
from trainables.engine.row_independence import padding_changes_losses
from trainables.evaluation.forgetting import Drawn
from trainables.models.output import hidden_states, output_layer
from trainables.tasks import Task
from trainables.tasks.causal_lm.task import tokens_at_once

Rows = Split | Drawn

# losses that differ by no more are the same: of a trial in a group, of a row beside padding, and
# both in half precision
SAME, SAME_ROW, SAME_HALF = 1e-3, 1e-4, 5e-2


@dataclass(frozen=True)
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
        """Summed loss and number of targets of each row, float32 [N, 2]."""
        return np.stack([self.nll, self.targets], 1).astype(np.float32)

    @property
    def classes(self) -> np.ndarray | None:
        """Predicted and true class of each row, int32 [N, 2]; None for language models."""
        if self.predictions is None:
            return None
        return np.stack([self.predictions, self.labels], 1).astype(np.int32)

    def by_slice(self, task: Task, slices: Slices | None) -> dict[str, dict[str, float]]:
        """Rows, loss and metrics of each slice, by its value."""
        found = {}
        for value, rows in slices or ():
            part = RowResults(
                *(None if column is None else column[rows] for column in self.columns)
            )
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

    @property
    def columns(self) -> tuple:
        return self.nll, self.targets, self.predictions, self.labels


def evaluate_model(
    model: Any,
    task: Task,
    split: Split,
    rows: np.ndarray,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
    padded: bool | None = None,
) -> RowResults:
    """What a plain `model` makes of `rows` in eval mode. padded: rows of unlike lengths may share a
    pass; None: if the model does not feel it.
    """
    was_training = model.training
    model.eval()
    output = None
    if task.auto_class == "AutoModelForCausalLM":
        output = output_layer(model)
        if output is None:  # all logits of a pass are there at once
            max_tokens = min(max_tokens, tokens_at_once(model.config.get_text_config().vocab_size))

    def losses(batch: dict[str, Tensor], _: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        labels = batch.pop("labels")
        with hidden_states(output):
            logits = model(**batch).logits
        return *task.row_losses(logits, labels, output), task.predictions(logits, labels)

    def of_rows(at: np.ndarray) -> Tensor:
        batch = task.collate(split.rows(rows[at]), pad_token_id)
        nll_B, targets_B, _ = losses({name: x.to(device) for name, x in batch.items()}, [0])
        return nll_B / targets_B.clamp(min=1)

    limit = SAME_ROW if next(model.parameters()).dtype.itemsize >= 4 else SAME_HALF
    if padded is None:
        padded = not padding_changes_losses(of_rows, split.lengths[rows], limit, max_tokens)
    (found,) = evaluate_in_micro_batches(
        losses, 1, task, split, rows, pad_token_id, max_tokens, device, World(), padded=padded
    )
    model.train(was_training)
    return found


def evaluate_in_micro_batches(
    losses: Callable[[dict[str, Tensor], Sequence[int]], tuple[Tensor, Tensor, Tensor | None]],
    copies: int,
    task: Task,
    split: Rows,
    rows: np.ndarray,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
    world: World,
    more_tokens: int = 0,
    padded: bool = True,
) -> list[RowResults]:
    """`losses(batch, which)` gives losses, targets and predictions of a batch for several of the
    `copies` of a model, one copy's rows after another's. `more_tokens` stand before each row in the
    model.
    """
    lengths = split.lengths[rows]
    mine = np.argsort(lengths, kind="stable")[world.rank :: world.size]
    results = torch.zeros(4, copies, len(rows), dtype=torch.float64)
    classes = False
    passes = [
        (positions, list(range(copies)))
        for positions in cut_micro_batches(
            lengths[mine] + more_tokens, max_tokens // copies, padded=padded
        )
    ]
    while passes:
        positions, which = passes.pop(0)
        at = mine[positions]
        batch = task.collate(split.rows(rows[at]), pad_token_id)
        labels = batch["labels"]
        found = None
        try:
            # not inference mode: what a model caches in it could not be trained with afterwards
            with torch.no_grad():
                found = losses({name: tensor.to(device) for name, tensor in batch.items()}, which)
        except torch.OutOfMemoryError:
            if len(positions) * len(which) == 1:
                raise
        if found is None:  # not inside `except`: there the traceback still holds what was computed
            release(device)
            half = -(-len(positions) // 2)
            halves = [(positions[:half], which), (positions[half:], which)]
            if len(positions) == 1:
                halves = [
                    (positions, which[: len(which) // 2]),
                    (positions, which[len(which) // 2 :]),
                ]
            passes[:0] = halves
            continue
        index = np.ix_(which, at)
        for number, column in enumerate(found):
            if column is not None:
                results[number][index] = column.double().cpu().view(len(which), len(at))
        if found[2] is not None:
            classes = True
            results[3][index] = labels.double().repeat(len(which), 1)
    if world.size > 1:
        shared = results.to(device)
        world.sum([shared])
        results = shared.cpu()
        flag = torch.tensor([float(classes)], device=device)
        world.sum([flag])
        classes = bool(flag > 0)
    return [
        RowResults(
            nll=nll,
            targets=targets,
            predictions=predictions.astype(np.int64) if classes else None,
            labels=labels.astype(np.int64) if classes else None,
        )
        for nll, targets, predictions, labels in results.numpy().transpose(1, 0, 2)
    ]
