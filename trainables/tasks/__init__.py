"""What a model is trained to do: how rows are read and become a batch, and what the model's output
costs. Imports no torch: data are prepared by these too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainables.data.records import Format
from trainables.tasks.causal_lm.task import CausalLM
from trainables.tasks.classification.task import Classification
from trainables.tasks.instruction.task import Instruction

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear


class Task(Protocol):
    """Shapes: `B` rows, `T` tokens of the longest row, `V` vocabulary, `C` classes, `N` rows of a
    split.
    """

    name: str
    auto_class: str
    """Name of the class of transformers that loads the model."""
    has_classes: bool
    """Whether each row has one class, which the model answers with, rather than tokens."""
    is_conversation: bool
    """Whether a row is rendered by a chat template, and the assistant's tokens are its targets."""
    targets_are_answers: bool
    """Whether what stands before a row's targets is a request, and they are the answer to it."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """What fine-tuning is compared with beside the untuned model: names of
        `trainables.evaluation.bench.WORDS`, of a task without classes `few_shot` and `retrieved`
        alone.
        """
        ...

    @property
    def format(self) -> Format:
        """How its rows are checked and tokenised."""
        ...

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        """Rows of a `Split`, padded on the right: input_ids, attention_mask and perhaps
        token_type_ids int64 [B, T]; labels int64 [B] or [B, T] (-100: no loss); where rows have
        them, weights of the labels float32 [B, T].
        """
        ...

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each row, summed over its targets, in float32 or wider [B],
        and its targets int64 [B]. With `weights` of the labels: their weighted sum, and the sum of
        their weights, float64. With `smoothing` [B] of a trial's label smoothing: the loss that it
        is trained with.

        From the logits, never the model's own loss, which some methods add a penalty to. A row
        without targets has 0 of both. With a language model's `output` layer, `logits` are the
        hidden states that go into it.
        """
        ...

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """Predicted class of each row [B]; None for language models."""

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        """Targets of these rows, as `row_losses` would count them."""
        ...

    def metrics(
        self,
        nll: np.ndarray,
        targets: np.ndarray,
        predictions: np.ndarray | None,
        labels: np.ndarray | None,
    ) -> dict[str, float]:
        """Metrics of a split from its rows' losses, targets, predictions and classes, each [N]."""
        ...


def take_targets(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Labels and, where it has them, their weights out of a collated batch; what stays there are
    the model's inputs.
    """
    return batch.pop("labels"), batch.pop("weights", None)


TASKS: dict[str, Task] = {
    "classification": Classification(),
    "instruction": Instruction(),
    "causal_lm": CausalLM(),
}
