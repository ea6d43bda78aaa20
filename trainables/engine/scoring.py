"""What a model makes of rows: losses, targets and outcomes, summed once and divided once.

Letters of shapes: B rows of a micro-batch, N rows of a split, M numbers that the task keeps of a
row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from trainables.data.arrow import Sequences
from trainables.data.batches import cut_micro_batches
from trainables.data.prepare import Slices, Split
from trainables.engine.distributed import World
from trainables.engine.memory import release
from trainables.engine.regularisation import smoothing
from trainables.engine.row_independence import padding_changes_losses
from trainables.evaluation.forgetting import Drawn
from trainables.hyperparameters import Hyperparameters
from trainables.models.output import hidden_states, output_layer, output_names
from trainables.tasks import Targets, Task, take_targets
from trainables.tasks.causal_lm.task import tokens_at_once
from trainables.tasks.preference.losses import pair_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Split | Sequences | Drawn
BatchLosses = tuple[Tensor, Tensor, Tensor | None]
"""Summed loss, targets and outcomes [B, M] (None for language models) of each row of a batch; sums
and targets are weighted where tokens have weights.
"""

# losses that differ by no more are the same: of a trial in a group, of a row beside padding, and
# both in half precision
SAME, SAME_ROW, SAME_HALF = 1e-3, 1e-4, 5e-2


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """What a model makes of rows: summed losses and targets [N], and outcomes as the task has them
    [N, M] (None for language models).
    """

    nll: np.ndarray
    targets: np.ndarray
    outcomes: np.ndarray | None
    in_bytes: bool = False
    """Whether targets are ln 2 times the bytes of their text, and the loss is in bits per byte."""

    @property
    def loss(self) -> float:
        """Mean over all targets."""
        return float(self.nll.sum() / self.targets.sum())

    @property
    def losses(self) -> np.ndarray:
        """Summed loss and targets of each row, float32 [N, 2]."""
        return np.stack([self.nll, self.targets], 1).astype(np.float32)

    @property
    def rows_outcomes(self) -> np.ndarray | None:
        """Outcomes as they are kept, float32 [N, M]."""
        return None if self.outcomes is None else self.outcomes.astype(np.float32)

    def of(self, rows: np.ndarray) -> "RowResults":
        """Of some rows, by position."""
        return RowResults(
            nll=self.nll[rows],
            targets=self.targets[rows],
            outcomes=None if self.outcomes is None else self.outcomes[rows],
            in_bytes=self.in_bytes,
        )

    def over(self, target_bytes: np.ndarray | None) -> "RowResults":
        """In bits per byte, where the bytes of the rows' targets are counted [N]."""
        if target_bytes is None:
            return self
        return replace(self, targets=target_bytes * math.log(2), in_bytes=True)

    def metrics(self, task: Task) -> dict[str, float]:
        """All that the task has beside the loss."""
        # which are of losses per token
        found = {} if self.in_bytes else task.loss_metrics(self.loss)
        return found if self.outcomes is None else {**found, **task.metrics(self.outcomes)}

    def by_slice(self, task: Task, slices: Slices | None) -> dict[str, dict[str, float]]:
        """Rows, loss and metrics of each slice, by its value."""
        found = {}
        for value, rows in slices or ():
            part = self.of(rows)
            found[value] = {"rows": len(rows), "loss": part.loss, **part.metrics(task)}
        return found

    def majority_share(self, task: Task) -> float | None:
        """Of the rows that got the commonest answer."""
        return None if self.outcomes is None else task.majority_share(self.outcomes)


def row_means(nll_B: Tensor, targets_B: Tensor) -> Tensor:
    """Mean loss of each row over its targets [B]; 0 where it has none."""
    return nll_B / torch.where(targets_B > 0, targets_B, 1)


def batch_losses(
    task: Task,
    logits: Tensor,
    targets: Targets,
    output: nn.Linear | None,
    names: Sequence[str],
    hps: Sequence[Hyperparameters] | None = None,
) -> BatchLosses:
    """Of one micro-batch. output, names: as `Task.row_losses` and `Task.outcomes` take them. hps:
    of each row's trial, in training; None: as losses are told of all trials alike.
    """
    if targets.reference is not None:
        nll, tokens = task.row_losses(logits, targets.labels, output)
        return pair_losses(nll, tokens, targets.reference, hps)
    shares = smoothing(hps or ())
    smoothing_B = (
        None if shares is None else torch.as_tensor(shares).to(logits.device, non_blocking=True)
    )
    nll_B, targets_B = task.row_losses(logits, targets.labels, output, targets.weights, smoothing_B)
    return nll_B, targets_B, task.outcomes(logits, targets.labels, names)


def with_reference(split: Split, measure: Callable[[Split], RowResults]) -> Split:
    """Pairs with the log-probabilities that a reference gives their answers; rows that are none as
    they are. measure: what the reference makes of rows.
    """
    found = reference(split, measure)
    return split if found is None else split.beside(reference=found)


def reference(split: Split, measure: Callable[[Split], RowResults]) -> np.ndarray | None:
    """Those log-probabilities, float64 [N, 2]; None of rows that are no pairs."""
    if split.sequence_lengths.shape[1] == 1:
        return None
    # changes from 0 are the log-probabilities themselves
    found = measure(split.beside(reference=np.zeros(split.sequence_lengths.shape)))
    assert found.outcomes is not None, "pairs have outcomes"
    return found.outcomes


def padded_lengths(split: Rows, rows: np.ndarray, virtual_tokens: int = 0) -> np.ndarray:
    """Tokens that each of `rows` takes by itself in a micro-batch [N]: of a pair both sequences, as
    long as the longer one. virtual_tokens: before each sequence.
    """
    lengths_NS = split.sequence_lengths[rows]
    return lengths_NS.shape[1] * (lengths_NS.max(1) + virtual_tokens)


def sequence_numbers(split: Rows, rows: np.ndarray) -> np.ndarray:
    """Positions of the sequences of `rows` among those of all rows, each row's side by side."""
    each = split.sequence_lengths.shape[1]
    return (rows[:, None] * each + np.arange(each)).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How rows are cut into micro-batches, and where those are computed."""

    pad_token_id: int
    max_tokens: int  # padded tokens of a micro-batch
    device: torch.device
    world: World = World()
    soft_prompt_tokens: int = 0  # put before each row by the model
    padded: bool = True  # rows of unlike lengths may share a micro-batch
    token_cost: float = math.inf  # in one without padding, see `cut_micro_batches`


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
    output, names = None, output_names(model)
    if task.is_language_model:
        output = output_layer(model)
        if output is None:  # all logits of a micro-batch are there at once
            max_tokens = min(max_tokens, tokens_at_once(model.config.get_text_config().vocab_size))

    def losses(batch: dict[str, Tensor], _: Sequence[int]) -> BatchLosses:
        targets = take_targets(batch, task, model)
        with hidden_states(output):
            logits = model(**batch).logits
        return batch_losses(task, logits, targets, output, names)

    sequences, numbers = split.sequences, sequence_numbers(split, rows)

    def of_rows(at: np.ndarray) -> Tensor:
        batch = task.collate(sequences.rows(numbers[at]), pad_token_id)
        nll_B, targets_B, _ = losses({name: x.to(device) for name, x in batch.items()}, [0])
        return row_means(nll_B, targets_B)

    limit = SAME_ROW if next(model.parameters()).dtype.itemsize >= 4 else SAME_HALF
    if padded is None:
        padded = not padding_changes_losses(of_rows, sequences.lengths[numbers], limit, max_tokens)
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
    lengths = padded_lengths(split, rows, cut.soft_prompt_tokens)
    kinds = split.kinds[rows]
    mine = np.argsort(lengths, kind="stable")[cut.world.rank :: cut.world.size]
    results = _Results(copies, len(rows))
    waiting = [
        (positions, list(range(copies)))
        for positions in cut_micro_batches(
            lengths[mine],
            cut.max_tokens // copies,
            kinds=None if cut.padded else kinds[mine],
            tokens=split.sequence_lengths[rows[mine]].sum(1),
            token_cost=cut.token_cost,
        )
    ]
    while waiting:
        positions, which = waiting.pop(0)
        at = mine[positions]
        batch = task.collate(split.rows(rows[at]), cut.pad_token_id)
        found = _attempted(losses, batch, which, cut.device, last=len(at) * len(which) == 1)
        if found is None:
            release(cut.device)
            waiting[:0] = halves(positions, which)
        else:
            results.take(which, at, found)
    results.sum(cut.world, cut.device)
    sizes = split.target_bytes
    counted = None if sizes is None else sizes[rows]
    return [found.over(counted) for found in results.of_each_copy()]


def _attempted(
    losses: Callable[[dict[str, Tensor], Sequence[int]], BatchLosses],
    batch: dict[str, Tensor],
    which: Sequence[int],
    device: torch.device,
    *,
    last: bool,
) -> BatchLosses | None:
    """None: memory does not suffice, and the batch can be halved, unless it is the `last`. Memory
    is given back by the caller: where the error is caught, its traceback still holds what was
    computed.
    """
    try:
        # not inference mode: what a model caches in it could not be trained with afterwards
        with torch.no_grad():
            return losses({name: tensor.to(device) for name, tensor in batch.items()}, which)
    except torch.OutOfMemoryError:
        if last:
            raise
        return None


def halves(positions: np.ndarray, which: list[int]) -> list[tuple[np.ndarray, list[int]]]:
    """By rows; of a single row, by copies of the model."""
    if len(positions) == 1:
        middle = len(which) // 2
        return [(positions, which[:middle]), (positions, which[middle:])]
    middle = -(-len(positions) // 2)
    return [(positions[:middle], which), (positions[middle:], which)]


class _Results:
    """Losses and targets [2, copies, N] and outcomes [M, copies, N], micro-batch by micro-batch."""

    def __init__(self, copies: int, rows: int) -> None:
        self._columns = torch.zeros(2, copies, rows, dtype=torch.float64)
        self._outcomes = torch.zeros(0, copies, rows, dtype=torch.float64)

    def take(self, which: Sequence[int], at: np.ndarray, found: BatchLosses) -> None:
        index = torch.tensor(which)[:, None], torch.from_numpy(at)[None]
        *columns, outcomes = found
        for number, column in enumerate(columns):
            self._columns[number][index] = column.double().cpu().view(len(which), len(at))
        if outcomes is None:
            return
        self._widen(outcomes.shape[1])
        for number, column in enumerate(outcomes.double().cpu().T):
            self._outcomes[number][index] = column.view(len(which), len(at))

    def _widen(self, width: int) -> None:
        if len(self._outcomes) < width:
            self._outcomes = self._columns.new_zeros(width, *self._columns.shape[1:])

    def sum(self, world: World, device: torch.device) -> None:
        """Over all workers, each of which has filled in its own rows."""
        if world.size == 1:
            return
        width = len(self._outcomes)  # of a worker without rows 0
        shared = torch.tensor([float(width), float(width > 0)], device=device)
        world.sum([shared])
        self._widen(round(float(shared[0] / max(float(shared[1]), 1.0))))
        for name in ("_columns", "_outcomes"):
            values = getattr(self, name).to(device)
            world.sum([values])
            setattr(self, name, values.cpu())

    def of_each_copy(self) -> list[RowResults]:
        nll, targets = self._columns.numpy()
        outcomes = self._outcomes.permute(1, 2, 0).contiguous().numpy()
        return [
            RowResults(
                nll=nll[copy],
                targets=targets[copy],
                outcomes=outcomes[copy] if len(self._outcomes) else None,
            )
            for copy in range(len(nll))
        ]
