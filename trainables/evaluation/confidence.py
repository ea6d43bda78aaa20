"""How sure a model is of its answers, and what they are; no labels needed.

Letters of shapes: N rows, B of a micro-batch, T tokens of the longest, D width, C outputs of a
head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.data.batches import cut_micro_batches
from trainables.data.records import IGNORED
from trainables.evaluation.latency import prompt_ids
from trainables.models.output import hidden_states, output_layer
from trainables.tasks import Task, take_targets
from trainables.tasks.causal_lm.task import pad, tokens_at_once, upcast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """To rows."""

    confidence: np.ndarray
    """Probability of the likeliest answer [N]: the mean over a row's labels or words, where it has
    several; of a language model, of the first token that it would write. In a regression the
    answer itself.
    """
    classes: np.ndarray | None
    """Share of a row's answers that are each class [N, C]; None where there are no classes."""


def read_answers(
    model: "PreTrainedModel",
    task: Task,
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
) -> Answers:
    """Of `model` (in eval mode on `device`). max_tokens: padded, of a micro-batch; memory only."""
    output = output_layer(model) if task.is_language_model else None
    if task.is_language_model and output is None:  # all logits of a micro-batch are there at once
        max_tokens = min(max_tokens, tokens_at_once(model.config.get_text_config().vocab_size))
    confidence = np.zeros(len(rows))
    classes: list[tuple[np.ndarray, np.ndarray]] = []
    lengths = np.array([len(row["input_ids"]) for row in rows])
    with torch.no_grad():
        for at in cut_micro_batches(lengths, max_tokens):
            part = [rows[i] for i in at]
            if task.is_language_model:
                logits = _first_logits(model, task, part, output, pad_token_id, device)
                confidence[at] = upcast(logits).softmax(-1).amax(-1).cpu().numpy()
                continue
            batch = task.collate(part, pad_token_id)
            labels = take_targets(batch, task, model).labels
            logits = model(**_on(device, batch)).logits
            confidence[at], found = _of_head(upcast(logits).cpu(), labels, task)
            if found is not None:
                classes.append((at, found))
    return Answers(confidence=confidence, classes=_in_order(classes))


def _in_order(found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    if not found:
        return None
    order = np.argsort(np.concatenate([at for at, _ in found]))
    return np.concatenate([classes for _, classes in found])[order]


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.to(device) for name, each in batch.items()}


def _first_logits(
    model: "PreTrainedModel",
    task: Task,
    rows: list[Row],
    output: nn.Linear | None,
    pad_token_id: int,
    device: torch.device,
) -> Tensor:
    """Of the first token that the model would write to each row [B, V]."""
    if task.continues_text:
        prompts = [prompt_ids(row, task) for row in rows]
        batch = pad([{"input_ids": ids} for ids in prompts], pad_token_id)
        last = torch.tensor([len(ids) - 1 for ids in prompts])
    else:
        batch = task.collate(rows, pad_token_id)
        take_targets(batch, task, model)
        last = torch.zeros(len(rows), dtype=torch.int64)
    length = batch["decoder_input_ids" if "decoder_input_ids" in batch else "input_ids"].shape[1]
    with hidden_states(output):
        # without those of virtual tokens before the text
        states = model(**_on(device, batch)).logits[:, -length:]
    states = states[torch.arange(len(rows)), last.to(states.device)]
    return states if output is None else output(states)


def _of_head(logits: Tensor, labels: Tensor, task: Task) -> tuple[np.ndarray, np.ndarray | None]:
    """Confidence [B] and classes [B, C]."""
    if not task.loss.is_likelihood:
        return logits[:, 0].numpy(), None
    if task.problem_type is not None:  # each class by itself
        shares = logits.sigmoid()
        return torch.maximum(shares, 1 - shares).mean(1).numpy(), (shares > 0.5).double().numpy()
    most, answers = logits.softmax(-1).max(-1)
    chosen = nn.functional.one_hot(answers, logits.shape[-1]).double()
    if logits.ndim == 2:
        return most.numpy(), chosen.numpy()
    asked = (labels != IGNORED).double()
    counts = asked.sum(1).clamp(min=1)
    shares = (chosen * asked[..., None]).sum(1) / counts[:, None]
    return ((most * asked).sum(1) / counts).numpy(), shares.numpy()
