"""The tokens of a target text, which a decoder writes for the source text that an encoder has read.

Shapes: `B` rows, `U` tokens of the longest target, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.records import IGNORED
from trainables.tasks.causal_lm.task import CausalLM, target_losses
from trainables.tasks.declared import Words
from trainables.tasks.seq2seq.format import WORDS, Pairs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear


class Seq2Seq(CausalLM):
    name = "seq2seq"
    what = "a text for a text, by an encoder-decoder"
    format = Pairs()
    auto_class = "AutoModelForSeq2SeqLM"
    continues_text = False
    targets_are_answers = True

    def notices(self) -> Mapping[str, Words]:
        return WORDS

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """logits: [B, U, V], of what comes after the tokens before each of the labels [B, U]: all
        of them are targets, the first too.
        """
        return target_losses(logits, labels, output, weights, smoothing)

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        return int(sum(np.count_nonzero(row != IGNORED) for row in labels))

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        return self.count_targets([row["labels"] for row in rows])

    def usage(self, cut: str, text: str) -> list[str]:
        return [
            f"batch = tokenizer([{text!r}], {cut})",
            "with torch.no_grad():",
            "    written = model.generate(**batch, max_new_tokens=128)",
            "print(tokenizer.batch_decode(written, skip_special_tokens=True))",
        ]
