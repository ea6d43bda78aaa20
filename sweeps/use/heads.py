"""What a model with a head answers to rows: classes, tags, numbers.

Letters of shapes: B rows of a micro-batch, N rows, T tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.asking import numbered
from trainables.data.batches import cut_micro_batches
from trainables.data.records import IGNORED, Encoded, Record
from trainables.engine.row_independence import padding_changes_losses
from trainables.engine.scoring import SAME_HALF, SAME_ROW
from trainables.evaluation.reloaded import MAX_TOKENS
from trainables.models.output import output_names
from trainables.tasks import take_targets
from trainables.tasks.declared import Predicted

if TYPE_CHECKING:
    from sweeps.use.trained import Trained


class Heads:
    """A trained model with a head, loaded."""

    def __init__(self, trained: "Trained") -> None:
        self._task, self._tokenizer = trained.task, trained.tokenizer
        self._encoding, self._pad = trained.manifest.encoding, trained.spec.pad_token_id
        self._device, self._model = trained.device, trained.load()
        self.names = output_names(self._model)
        self._padded: bool | None = None

    @torch.no_grad()
    def predict(self, records: Sequence[Record]) -> list[Predicted]:
        """Of rows as `Format.asking` reads them, in their order. Raises InputError."""
        rows = _rows(self._encoded(records))
        lengths = np.array([len(row["input_ids"]) for row in rows])
        padded = self._may_pad(rows, lengths)
        kinds = None if padded else lengths
        found: dict[int, Predicted] = {}
        for at in cut_micro_batches(lengths, MAX_TOKENS, kinds=kinds):
            logits, labels = self._outputs([rows[i] for i in at])
            values = [records[i].value for i in at]
            answers = self._task.predicted(logits, labels, self.names, values)
            assert answers is not None, "a model with a head answers"
            found |= dict(zip(at.tolist(), answers, strict=True))
        return [found[i] for i in range(len(records))]

    def _encoded(self, records: Sequence[Record]) -> Encoded:
        most = max(len(record.value.get("tags", ())) for record in records)
        encoding = numbered(self._encoding, most)
        return self._task.format.encode(list(records), self._tokenizer, encoding)

    def _outputs(self, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Logits, and the labels of the collated rows."""
        batch = self._task.collate(rows, self._pad)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        labels = take_targets(batch, self._task, self._model).labels
        return self._model(**batch).logits, labels

    def _may_pad(self, rows: list[dict[str, Any]], lengths: np.ndarray) -> bool:
        """Whether rows of unlike lengths may share a micro-batch, as `evaluate_model` asks it: what
        the first rows say holds of the model.
        """
        if self._padded is None:
            limit = SAME_ROW if next(self._model.parameters()).dtype.itemsize >= 4 else SAME_HALF

            def answers(at: np.ndarray) -> Tensor:
                return _means(*self._outputs([rows[i] for i in at]))

            self._padded = not padding_changes_losses(answers, lengths, limit, MAX_TOKENS)
        return self._padded


def _rows(encoded: Encoded) -> list[dict[str, Any]]:
    """As `Split.rows` gives them."""
    columns: dict[str, Any] = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    if encoded.token_type_ids is not None:
        columns["token_type_ids"] = encoded.token_type_ids
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _means(logits: Tensor, labels: Tensor) -> Tensor:
    """A number for each row that changes with what the row is answered with [B]."""
    strongest = logits.float().amax(dim=-1)
    if logits.ndim == 2:
        return strongest
    is_read = labels != IGNORED
    return (strongest[:, -labels.shape[1] :] * is_read).sum(1) / is_read.sum(1).clamp(min=1)
