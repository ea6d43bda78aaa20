"""A tag for each word of a row.

Letters of shapes: B rows, T tokens of the longest row, C tags, K classes (types of entities, or the
tags where these name no spans), N rows of a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.records import IGNORED
from trainables.tasks.causal_lm.task import collate_tokens, smoothed, upcast
from trainables.tasks.classification.task import prior_of_shares
from trainables.tasks.declared import ByClass, Counts, LabelSummary, Loss, Predicted, Prior, Words
from trainables.tasks.head import OneTargetEach
from trainables.tasks.names import names_of_train
from trainables.tasks.token_classification.format import WORDS, TaggedWords
from trainables.tasks.token_classification.spans import entities, scheme

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from trainables.data.arrow import Split
    from trainables.data.manifest import SplitSummary
    from trainables.data.splits import Splits
    from trainables.data.store import RowStore


class TokenClassification(OneTargetEach):
    """`outcomes` [N, 2 + 3K]: words that are tagged rightly, and words; then of each class how many
    of the row are right, answered, and true.
    """

    name = "token_classification"
    what = "a tag for each word"
    format = TaggedWords()
    auto_class = "AutoModelForTokenClassification"
    loss = Loss(words="means in nats per tagged word", is_likelihood=True)
    metric_names = ("f1", "precision", "recall", "macro_f1", "accuracy")

    def notices(self) -> Mapping[str, Words]:
        return WORDS

    def labels(self, store: RowStore, splits: Splits, drawn: Set[str]) -> tuple[str, ...]:
        return names_of_train(store, splits, drawn, "tags")

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
        return collate_tokens(rows, pad_token_id)

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        output: Linear | None = None,
        weights: Tensor | None = None,
        smoothing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropies of a row's words. logits: [B, T, C], or [B, P + T, C] where a method put
        P virtual tokens before the row; labels: [B, T].
        """
        logits = logits[:, -labels.shape[1] :]
        is_target = labels != IGNORED
        row = is_target.nonzero()[:, 0]
        nll = smoothed(
            logits[is_target], labels[is_target], None if smoothing is None else smoothing[row]
        )
        return nll.new_zeros(len(labels)).index_add(0, row, nll), is_target.sum(dim=1)

    def outcomes(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
        import torch

        predicted = logits[:, -labels.shape[1] :].argmax(dim=-1).cpu().numpy()
        rows = zip(predicted, labels.cpu().numpy(), strict=True)
        found = [
            _outcomes(answers[own != IGNORED], own[own != IGNORED], names) for answers, own in rows
        ]
        return torch.tensor(found, dtype=torch.float32)

    def predicted(
        self,
        logits: Tensor,
        labels: Tensor,
        names: Sequence[str],
        values: Sequence[Mapping[str, Any]],
    ) -> list[Predicted]:
        """Labels are the numbers of words, which stand at their first tokens."""
        shares, answers = upcast(logits[:, -labels.shape[1] :]).softmax(dim=-1).max(dim=-1)
        found = []
        for row, value in enumerate(values):
            tags: list[str | None] = [None] * len(value["tokens"])
            sure: list[float | None] = [None] * len(tags)
            for at in (labels[row] != IGNORED).nonzero()[:, 0].tolist():
                word = int(labels[row, at])
                tags[word], sure[word] = names[int(answers[row, at])], float(shares[row, at])
            found.append(Predicted(prediction=tags, probabilities=sure))
        return found

    def count_targets(self, labels: np.ndarray | Sequence[np.ndarray]) -> int:
        return int(sum(np.count_nonzero(row != IGNORED) for row in labels))

    def target_count(self, rows: list[dict[str, Any]]) -> float:
        return self.count_targets([row["labels"] for row in rows])

    def metrics(self, outcomes: np.ndarray) -> dict[str, float]:
        """Precision, recall and F1 over all entities, which are right where type and both ends are
        (of tags that name no spans: over all words); the mean of F1 over the classes that occur;
        and the share of words whose tag is right. Of nothing, each is 0, as in seqeval.
        """
        right, words, *_ = outcomes.sum(axis=0, dtype=np.float64)
        counts = _counts(outcomes)
        hits, answered, true = counts
        return {
            "f1": _share(2 * hits.sum(), answered.sum() + true.sum()),
            "precision": _share(hits.sum(), answered.sum()),
            "recall": _share(hits.sum(), true.sum()),
            "macro_f1": counts.macro_f1,
            "accuracy": _share(right, words),
        }

    def summarise(self, split: Split, labels: Sequence[str]) -> LabelSummary:
        values = split.values("labels")
        counts = np.bincount(values[values != IGNORED], minlength=len(labels)).tolist()
        return LabelSummary(counts=dict(zip(labels, counts, strict=True)))

    def prior(self, train: SplitSummary, split: SplitSummary) -> Prior | None:
        """Always answering with train's tag shares; its accuracy is that of train's commonest
        tag.
        """
        return prior_of_shares("tag shares", train, split)

    def prior_outcomes(
        self, outcomes: np.ndarray, train: SplitSummary, labels: Sequence[str]
    ) -> np.ndarray | None:
        return None  # how often a row has the commonest tag is not kept

    def by_class(self, outcomes: np.ndarray, labels: Sequence[str]) -> ByClass:
        return ByClass(names=_classes(labels), counts=_counts(outcomes))

    def usage(self, cut: str, text: str) -> list[str]:
        """A word's tag is that of its first token."""
        return [
            *super().usage(cut, text),
            "    tags = model(**batch).logits.argmax(-1)[0].tolist()",
            "tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[0])",
            ("print([(token, model.config.id2label[tag]) for token, tag in zip(tokens, tags)])"),
        ]


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    """Types of entities; the tags themselves where they name no spans."""
    tags = scheme(names)
    if tags is None:
        return tuple(names)
    return tuple(sorted({tag.type for tag in tags if tag.type is not None}))


def _outcomes(predicted: np.ndarray, true: np.ndarray, names: Sequence[str]) -> list[int]:
    """Of the words of one row: ids of their tags."""
    right, tags, classes = predicted == true, scheme(names), _classes(names)
    if tags is None:
        hits = Counter(names[tag] for tag in true[right])
        answered, known = (Counter(names[tag] for tag in each) for each in (predicted, true))
    else:
        found, there = (entities([tags[tag] for tag in each]) for each in (predicted, true))
        hits, answered, known = (
            Counter(entity.type for entity in each) for each in (found & there, found, there)
        )
    counts = [each[name] for each in (hits, answered, known) for name in classes]
    return [int(right.sum()), len(true), *counts]


def _counts(outcomes: np.ndarray) -> Counts:
    """Of each class, over all rows."""
    return Counts(*np.split(outcomes[:, 2:].sum(axis=0, dtype=np.float64), 3))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
