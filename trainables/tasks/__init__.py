"""What a model is trained to do: how rows are read and become a batch, and what the model's output
costs. Imports no torch: data are prepared by these too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from trainables.data.records import Format
from trainables.models.decoder import decoder_inputs
from trainables.tasks.causal_lm.task import CausalLM
from trainables.tasks.classification.task import Classification
from trainables.tasks.declared import ByClass, LabelSummary, Loss, Predicted, Prior, Words
from trainables.tasks.instruction.task import Instruction
from trainables.tasks.multi_label.task import MultiLabel
from trainables.tasks.preference.task import Preference
from trainables.tasks.regression.task import Regression
from trainables.tasks.seq2seq.task import Seq2Seq
from trainables.tasks.token_classification.task import TokenClassification

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore


class Task(Protocol):
    """Shapes: `B` rows, `T` tokens of the longest row, `V` vocabulary, `C` outputs of the model's
    head, `N` rows of a split, `M` numbers that the task keeps of a row.
    """

    name: str
    what: str
    """What is learnt of a row, in a few words."""
    auto_class: str
    """Name of the class of transformers that loads the model."""
    problem_type: str | None
    """As transformers' configuration has it, which its pipelines read."""
    is_language_model: bool
    """Whether the model's output layer predicts tokens; else it has a head of the task's own, which
    is new where the checkpoint has none of this shape.
    """
    continues_text: bool
    """Of a language model, whether a row's targets are tokens of the row itself, so that it reads
    any text, and what it forgets of general text is measured; else its encoder reads the row, and
    its decoder writes the targets.
    """
    has_classes: bool
    """Whether each row has one class, which the model answers with."""
    is_conversation: bool
    """Whether a row is rendered by a chat template, and the assistant's tokens are its targets."""
    targets_are_answers: bool
    """Whether what stands before a row's targets is a request, and they are the answer to it."""
    has_pairs: bool
    """Whether a row is a pair of answers to one request, of which the first is preferred; its loss
    and its outcomes are then those of `trainables.tasks.preference.losses`.
    """

    @property
    def loss(self) -> Loss:
        """What is trained, and what verdicts, ties and baselines are of."""
        ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All that `metrics` and `loss_metrics` may give."""
        ...

    @property
    def lower_is_better(self) -> frozenset[str]:
        """Those of them of which that holds."""
        ...

    @property
    def baselines(self) -> tuple[str, ...]:
        """What fine-tuning is compared with beside the untuned model: names of
        `trainables.evaluation.bench.WORDS`, of a language model `few_shot` and `retrieved` alone.
        """
        ...

    def notices(self) -> Mapping[str, Words]:
        """What is said of the rows that `Encoded.noticed` counts, by kind."""
        ...

    @property
    def format(self) -> Format:
        """How its rows are checked and tokenised."""
        ...

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        """Names of the classes in the order of the model's outputs; none where there are no
        classes. drawn: the splits that are a share of train. Raises InputError where the rows have
        no labels that could be learnt.
        """
        ...

    def outputs(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of what the model's head gives, `num_labels` of them; none of a language model."""
        ...

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        """Rows of a `Split`, padded on the right: input_ids, attention_mask and perhaps
        token_type_ids int64 [B, T]; labels: classes int64 [B], numbers [B] or [B, C], or int64
        [B, T] (-100: no loss), or [B, U] of what a decoder writes; where rows have them, weights of
        the labels float32 [B, T]. Of pairs, both sequences of each, side by side, and `reference`
        float64 [pairs, 2]: what a reference gives their targets, in log-probabilities.
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
        """Loss of each row, summed over its targets, in float32 or wider [B], and its targets int64
        [B]. With `weights` of the labels: their weighted sum, and the sum of their weights,
        float64. With `smoothing` [B] of a trial's label smoothing, which only likelihoods have: the
        loss that it is trained with.

        From the logits, never the model's own loss, which some methods add a penalty to. A row
        without targets has 0 of both; a pair is two rows here. With a language model's `output`
        layer, `logits` are the hidden states that go into it; its labels and weights may be with
        the host.
        """
        ...

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor | None:
        """What metrics need of each row [B, M], such as its predicted and its true class; None of
        a language model, and of pairs, whose losses tell. names: those of the head's outputs.
        """
        ...

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, Any]],
    ) -> list[Predicted] | None:
        """What each row is answered with, from the logits that its metrics are of; None of a
        language model, which writes. labels, values: of rows as `Format.asking` reads them.
        """
        ...

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        """Targets of rows with such labels, whatever their weights."""
        ...

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        """Targets of these rows, as `row_losses` would count them."""
        ...

    def loss_metrics(self, loss: float) -> dict[str, float]:
        """Metrics that are the mean loss in other words."""
        ...

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """Metrics of rows from their outcomes [N, M]; of resampled rows, too, for intervals."""
        ...

    def majority_share(self, outcomes: np.ndarray) -> float | None:
        """Share of the rows that got the commonest answer; None where answers are not counted."""
        ...

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        """What the labels of a split are, as far as `prior` asks."""
        ...

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        """What always giving one answer, the best that train's labels tell, is worth on `split`;
        None where there is no such answer.
        """
        ...

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        """Outcomes of that answer, of rows of which a model's are known [N, M]; None where those do
        not tell.
        """
        ...

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass | None:
        """Answers by class; None where there are no classes."""
        ...

    def usage(self, cut: str, text: str) -> list[str]:
        """Python that uses `model` and `tokenizer` once on the `text`; `cut`: how that is
        tokenised.
        """
        ...


class Targets(NamedTuple):
    """What a collated batch holds beside the model's inputs."""

    labels: Tensor
    weights: Tensor | None
    reference: Tensor | None


def take_targets(batch: dict[str, Tensor], task: Task, model: PreTrainedModel) -> Targets:
    """Out of a collated batch; what stays there are the inputs of `model`: those of a decoder too,
    which has read the labels before each, after the token that the model begins with.
    """
    found = Targets(batch.pop("labels"), batch.pop("weights", None), batch.pop("reference", None))
    if task.is_language_model and not task.continues_text:
        labels = found.labels.to(batch["input_ids"].device, non_blocking=True)
        batch["decoder_input_ids"] = decoder_inputs(model, labels)
    return found


TASKS: dict[str, Task] = {
    "classification": Classification(),
    "multi_label": MultiLabel(),
    "token_classification": TokenClassification(),
    "regression": Regression(),
    "instruction": Instruction(),
    "preference": Preference(),
    "causal_lm": CausalLM(),
    "seq2seq": Seq2Seq(),
}
