"""How rows go through a model: collated, on its device, in the precision of the sweep.

Letters of shapes: B rows of a micro-batch, T tokens, D channels.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.engine import masks, varlen
from trainables.engine.kernels import MicroBatch
from trainables.engine.own import OwnBaseEngine
from trainables.engine.scoring import BatchLosses, Rows, batch_losses
from trainables.engine.shared import SharedBaseEngine
from trainables.hyperparameters import Hyperparameters
from trainables.models.base import BaseModel
from trainables.models.output import hidden_states, output_names
from trainables.tasks import Task, take_targets

Engine = OwnBaseEngine | SharedBaseEngine


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    task: Task
    pad_token_id: int
    device: torch.device
    autocast: torch.dtype | None  # type of the arithmetic; None: that of the weights

    def batch(self, split: Rows, rows: np.ndarray) -> dict[str, Tensor]:
        """Inputs, labels and perhaps weights of these rows of a split. Labels of a language model
        stay with the host, which otherwise would have to wait for the device to tell how many
        targets there are.
        """
        batch = self.task.collate(split.rows(rows), self.pad_token_id)
        here = ("labels", "weights") if self.task.is_language_model else ()
        return {
            name: tensor if name in here else tensor.to(self.device, non_blocking=True)
            for name, tensor in batch.items()
        }

    def inputs(self, base: BaseModel, split: Rows, rows: np.ndarray) -> dict[str, Tensor]:
        batch = self.batch(split, rows)
        take_targets(batch, self.task, base.model)
        return batch

    def on_device(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)

    def precision(self) -> contextlib.AbstractContextManager:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def hidden(self, base: BaseModel, inputs: dict[str, Tensor]) -> Tensor:
        """What goes into the output layer of `base` [B, T, D]; its logits, where it has none that
        can be taken apart from it.
        """
        with self.precision(), hidden_states(base.output):
            return base.model(**inputs).logits

    def losses(
        self,
        base: BaseModel,
        engine: Engine | None,
        batch: dict[str, Tensor],
        lanes_B: np.ndarray,
        rows: varlen.Rows | None = None,
        hps: Sequence[Hyperparameters] | None = None,
        lengths_B: np.ndarray | None = None,
    ) -> BatchLosses:
        """Losses, targets and outcomes of one micro-batch, as `Task` has them.

        engine: of the trials whose weights are used; None: the untuned base. lanes_B: the trial of
        each of them, of pairs of each sequence. rows: where they lie in a micro-batch without
        padding. hps: of each row's trial, in training. lengths_B: tokens of each row that the
        model reads, where the host knows.
        """
        targets = take_targets(batch, self.task, base.model)
        varlen.passing(rows)
        if rows is not None:
            batch, lanes_B = rows.flatten(batch), np.repeat(lanes_B, rows.lengths)
        with self.precision():
            with hidden_states(base.output), masks.known(lengths_B):
                if engine is None:
                    logits = base.model(**batch).logits
                else:
                    logits = engine.forward(batch, MicroBatch.of(lanes_B, self.device)).logits
            if rows is not None:
                logits = rows.padded(logits)
            names = output_names(base.model)
            return batch_losses(self.task, logits, targets, base.output, names, hps)
