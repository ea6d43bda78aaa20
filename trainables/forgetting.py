"""What a language model has lost of what its base knew: its loss on general text, and how far its predictions moved. No Ray.

Letters of shapes: T tokens, V vocabulary, N blocks of text.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.store import Split
from trainables.tasks.causal_lm import IGNORED

BLOCK = 512  # tokens of general text that are read in one go
BLOCKS, PROMPTS = 128, 64  # measured, at most


def default_text() -> str:
    """Prose that is on every machine: the reference manual of Python that comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:400_000]


def measure_forgetting(
    tuned: Any, load_base: Callable[[], Any], tokenizer: Any, text: str, prompts: Split, device: torch.device
) -> dict[str, Any]:
    """How `tuned` (in eval mode) differs from its base.

    general: mean loss per token of `text` in nats, `before` and `after` fine-tuning, over at most 128 blocks of 512 tokens;
    `losses` [2, N, 2] are their sums and tokens.
    kl: mean over the tokens of at most 64 rows of `prompts` that are no targets (all, where all are) of the Kullback-Leibler
    divergence of the predictions of `tuned` from those of the base, in nats.

    The base is `tuned` with its adapters switched off where PEFT can do that, else `load_base()`.
    """
    if hasattr(tuned, "disable_adapter"):
        base, off = tuned, tuned.disable_adapter
    else:
        base, off = load_base(), contextlib.nullcontext
    context = getattr(tuned.config.get_text_config(), "max_position_embeddings", None) or BLOCK
    blocks = _blocks(tokenizer, text, min(BLOCK, context))
    losses = np.zeros((2, len(blocks), 2))
    divergence, positions = 0.0, 0
    with torch.no_grad():
        for row, ids in enumerate(blocks):
            with off():
                losses[0, row] = _loss(base, ids.to(device))
            losses[1, row] = _loss(tuned, ids.to(device))
        for row in prompts.rows(_spread(len(prompts), PROMPTS)):
            ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None].to(device)
            asked = np.asarray(row["labels"]) == IGNORED
            asked = torch.from_numpy(asked if asked.any() else np.ones_like(asked)).to(device)
            with off():
                before = base(input_ids=ids).logits[0][asked].float().log_softmax(-1)
            after = tuned(input_ids=ids).logits[0][asked].float().log_softmax(-1)
            divergence += float((before.exp() * (before - after)).sum())
            positions += len(before)
    before_loss, after_loss = (float(each[:, 0].sum() / each[:, 1].sum()) for each in losses)
    return {"before": before_loss, "after": after_loss, "losses": losses, "kl": divergence / max(positions, 1)}


def _blocks(tokenizer: Any, text: str, length: int) -> list[Tensor]:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    blocks = [block for block in ids.split(length) if len(block) > 1]
    return [blocks[i] for i in _spread(len(blocks), BLOCKS)]


def _spread(count: int, most: int) -> Sequence[int]:
    """At most `most` of `count` positions, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _loss(model: Any, ids_T: Tensor) -> tuple[float, int]:
    """Summed loss of a block, and its tokens that are predicted."""
    logits = model(input_ids=ids_T[None]).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids_T[1:], reduction="sum")), len(ids_T) - 1
