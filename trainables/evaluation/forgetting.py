"""What a language model has lost of what its base knew: its loss on general text, and how far its
predictions moved. No Ray.

Letters of shapes: T tokens, V vocabulary, N blocks of text.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.arrow import Sequences, Split, write_split
from trainables.data.records import Encoded
from trainables.errors import InputError
from trainables.evaluation.record import MeasuredForgetting
from trainables.models.output import hidden_states, output_layer
from trainables.tasks.causal_lm.task import IGNORED, token_losses, tokens_at_once, upcast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]
GENERAL = "general"  # name of the split that holds general text
BLOCK = 512  # tokens of general text that are read in one go
BLOCKS, PROMPTS = 128, 64  # measured, at most
PLACES = 128  # at which tokens are drawn in one go: of each, all logits are there


def default_text() -> str:
    """Prose that is on every machine: the reference manual of Python that comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:400_000]


def write_general(
    text: str, tokenizer: "PreTrainedTokenizerBase", context: int | None, folder: Path
) -> None:
    """Write the split of general text: at most 128 blocks of 512 tokens, or of as many as the model
    reads.
    """
    ids = np.array(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32
    )
    length = min(BLOCK, context or BLOCK)
    blocks = [block for i in range(0, len(ids), length) if len(block := ids[i : i + length]) > 1]
    if not blocks:
        raise InputError(f"selection.general_text: must be at least 2 tokens long, got {len(ids)}")
    write_split(
        folder / f"{GENERAL}.arrow",
        Encoded(input_ids=[blocks[i] for i in _spread(len(blocks), BLOCKS)]),
    )


def measure_forgetting(
    tuned: "PreTrainedModel",
    load_base: "Callable[[], PreTrainedModel]",
    general: Split,
    prompts: Split | Sequences,
    device: torch.device,
) -> tuple[MeasuredForgetting, np.ndarray]:
    """How `tuned` (in eval mode) differs from its base; and losses [2, N, 2], before and after
    fine-tuning: sums and tokens of the blocks of `general`.

    Mean loss per token of `general` in nats, `before` and `after` fine-tuning. kl: mean over the
    tokens of at most 64 rows of `prompts` that are no targets (all, where all are) of the
    Kullback-Leibler divergence of the predictions of `tuned` from those of the base, in nats.

    The base is `tuned` with its adapters switched off where PEFT can do that, else `load_base()`.
    """
    switched_off = getattr(tuned, "disable_adapter", None)
    base = _Reader(load_base()) if switched_off is None else _Reader(tuned, switched_off)
    read = _Reader(tuned)
    losses = np.zeros((2, len(general), 2))
    divergence, positions = 0.0, 0
    with torch.no_grad():
        for number, row in enumerate(general.rows(range(len(general)))):
            ids = _ids(row, device)
            losses[0, number], losses[1, number] = base.loss(ids), read.loss(ids)
        for row in prompts.rows(_spread(len(prompts), PROMPTS)):
            ids, asked = _ids(row, device), torch.from_numpy(_asked(row)).to(device)
            for before, after in zip(
                base.predictions(ids, asked), read.predictions(ids, asked), strict=True
            ):
                divergence += float((before.exp() * (before - after)).sum())
                positions += len(before)
    before_loss, after_loss = (float(each[:, 0].sum() / each[:, 1].sum()) for each in losses)
    kl = divergence / max(positions, 1)
    return MeasuredForgetting(before=before_loss, after=after_loss, kl=kl), losses


class _Reader:
    """A model that reads a text; with as few logits at a time as training has, where it lets them
    be computed apart.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        off: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """`off`: what the model is run under."""
        self._model, self._off = model, off
        self._output = output_layer(model) if hasattr(model, "get_output_embeddings") else None

    def _states(self, ids_T: Tensor) -> Tensor:
        """What goes into the output layer [T, D], or logits [T, V]; without those of virtual tokens
        before the text.
        """
        with hidden_states(self._output):
            return self._model(input_ids=ids_T[None]).logits[0, -len(ids_T) :]

    def loss(self, ids_T: Tensor) -> tuple[float, int]:
        """Summed over the text, and its tokens that are predicted."""
        with self._off():
            nll, targets = token_losses(self._states(ids_T)[None], ids_T[None], self._output)
        return float(nll), int(targets)

    def predictions(self, ids_T: Tensor, asked_T: Tensor) -> Iterator[Tensor]:
        """Log-probabilities of what comes after each of the tokens that are `asked` for, some
        tokens at a time [*, V].
        """
        with self._off():
            states = self._states(ids_T)[asked_T]
        width = states.shape[-1] if self._output is None else self._output.weight.shape[0]
        for part in states.split(tokens_at_once(width)):
            with self._off():
                logits = part if self._output is None else self._output(part)
            yield upcast(logits).log_softmax(-1)


@dataclass(frozen=True)
class Drawn:
    """Rows of prompts [N] in the place of a `Split`: their targets are tokens that the base has
    drawn after them.

    The mean loss of a model on them, less that of the base itself, is an unbiased estimate of the
    divergence of the model's predictions from the base's.
    """

    rows_N: list[Row]
    target_bytes: None = None

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self.rows_N], dtype=np.int32)

    @property
    def sequence_lengths(self) -> np.ndarray:
        return self.lengths[:, None]

    @property
    def kinds(self) -> np.ndarray:
        """As a `Split` has them."""
        return self.lengths

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        return [self.rows_N[i] for i in indices]


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What an untuned base gives: its mean loss on general text, and on the tokens that it drew
    itself.
    """

    general: float
    drawn: Drawn
    own: float


def draw_continuations(
    states: Callable[[Row], Tensor],
    prompts: Split | Sequences,
    seed: int,
    agree: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor] = lambda states: states,
) -> Drawn:
    """Let the base draw the next token at each place of at most 64 rows of `prompts` that is no
    target.

    states: of a row [T, D], of which `logits` makes [T, V]; agree: what the first worker drew, on
    every worker.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for row in prompts.rows(_spread(len(prompts), PROMPTS)):
        asked = _asked(row)[:-1]  # what comes after the last token has no place among the labels
        if not asked.any():
            continue
        parts = states(row)[:-1][torch.from_numpy(asked)].split(PLACES)
        shares = (logits(part).float().softmax(-1).cpu() for part in parts)
        drawn = torch.cat(
            [torch.multinomial(each, 1, generator=generator)[:, 0] for each in shares]
        )
        labels = np.full(len(row["input_ids"]), IGNORED, dtype=np.int32)
        labels[1:][asked] = agree(drawn).numpy()
        found.append({"input_ids": row["input_ids"], "labels": labels})
    return Drawn(found)


def _ids(row: Row, device: torch.device) -> Tensor:
    return torch.from_numpy(row["input_ids"].astype(np.int64)).to(device)


def _asked(row: Row) -> np.ndarray:
    """Which tokens of a row are the task's prompt [T]: those that are no targets, or all."""
    asked = np.asarray(row["labels"]) == IGNORED
    return asked if asked.any() else np.ones_like(asked)


def _spread(count: int, most: int) -> Sequence[int]:
    """At most `most` of `count` positions, evenly spread."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
        if count
        else []
    )
