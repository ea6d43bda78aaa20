"""Classes by the frozen base's embeddings: logistic regression and nearest neighbours.

Letters of shapes as in `trainables.evaluation.bench`.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.evaluation.bench import (
    Bench,
    Degenerate,
    Row,
    classes_of,
    classified,
    in_micro_batches,
    load_backbone,
    on_device,
)
from trainables.evaluation.record import MeasuredBaseline
from trainables.streams import stream
from trainables.tasks.causal_lm.task import pad

NEIGHBOURS = (1, 5, 15, 50)
FOLDS = 5
# of half the squared weights, against the mean loss of a row
PENALTIES = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of the pool [M, D] and of the split [N, D], float32, and how many seconds they
    took.
    """

    pool: np.ndarray
    rows: np.ndarray
    seconds: float


def embed_texts(bench: Bench) -> Embedded:
    return embed(bench, load_backbone(bench), bench.examples, bench.rows)


def embed(bench: Bench, backbone: torch.nn.Module, pool: list[Row], rows: list[Row]) -> Embedded:
    """Means of the last hidden states over the tokens of each row."""
    began = time.perf_counter()
    every, order, means = [*pool, *rows], [], []

    def run(at: np.ndarray) -> None:
        batch = on_device(bench, pad([every[i] for i in at], bench.pad_token_id))
        real = batch["attention_mask"][..., None]
        hidden = backbone(**batch).last_hidden_state.float().masked_fill(real == 0, 0)
        means.append((hidden.sum(1) / real.sum(1)).cpu().numpy())
        order.append(at)

    in_micro_batches(bench, [len(row["input_ids"]) for row in every], run)
    found = np.concatenate(means)[np.argsort(np.concatenate(order))]
    return Embedded(
        pool=found[: len(pool)], rows=found[len(pool) :], seconds=time.perf_counter() - began
    )


def nearest_rows(
    queries: np.ndarray, keys: np.ndarray, count: int, *, same: bool = False
) -> np.ndarray:
    """The `count` keys [M, D] of greatest cosine with each of the queries [N, D], the nearest first
    [N, count].

    same: the queries are the keys, and none is its own neighbour.
    """
    queries, keys = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, keys)
    )
    found = []
    for start in range(0, len(queries), 1024):  # all cosines at once might not fit
        cosines = queries[start : start + 1024] @ keys.T
        if same:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def neighbours(bench: Bench, embedded: Embedded) -> MeasuredBaseline:
    """(votes of the k nearest + class share in train) / (k + 1), with the k that has the least
    leave-one-out loss.
    """
    classes, prior = classes_of(bench.train)[bench.pool], bench.prior
    if len(classes) < 2:
        raise Degenerate("train has a single row, which is every row's neighbour")
    counts = [
        k for k in NEIGHBOURS if k <= max(1, len(classes) // 2)
    ]  # more would be train's label shares again
    near = classes[nearest_rows(embedded.pool, embedded.pool, counts[-1], same=True)]
    every = np.arange(len(classes))
    losses = [-np.log(_votes(near[:, :k], prior)[every, classes]).mean() for k in counts]
    best = counts[int(np.argmin(losses))]
    found = _votes(classes[nearest_rows(embedded.rows, embedded.pool, best)], prior)
    return classified(bench, np.log(found), bench.split.lengths)


def _votes(near: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] from the neighbours' classes [N, k] and the classes' shares [C]."""
    votes = np.stack([(near == c).sum(1) for c in range(len(prior))], 1)
    return (votes + prior) / (near.shape[1] + 1)


def logistic(bench: Bench, embedded: Embedded) -> MeasuredBaseline:
    mean, deviation = (
        embedded.pool.mean(0, dtype=np.float64),
        embedded.pool.std(0, dtype=np.float64),
    )

    def features(embeddings: np.ndarray) -> Tensor:
        scaled = (embeddings - mean) / np.where(deviation > 0, deviation, 1)
        return torch.from_numpy(np.insert(scaled, 0, 1.0, axis=1)).to(bench.device)

    x, y = (
        features(embedded.pool),
        torch.from_numpy(classes_of(bench.train)[bench.pool]).to(bench.device),
    )
    prior = torch.from_numpy(bench.prior).log().to(bench.device)
    folds = torch.from_numpy(
        stream("baselines: folds", bench.seed).permutation(len(y)) % min(FOLDS, len(y))
    ).to(bench.device)
    weights = _fit(x, y, prior, _choose_penalty(x, y, prior, folds))
    found = (features(embedded.rows) @ weights + prior).log_softmax(1)
    return classified(bench, found.cpu().numpy(), bench.split.lengths)


def _choose_penalty(x: Tensor, y: Tensor, prior: Tensor, folds: Tensor) -> float:
    """The penalty whose loss on the left-out folds is least, from the strongest down until that
    rises.

    folds: the fold of each row [M].
    """
    best, least, starts = PENALTIES[0], math.inf, {}
    for penalty in PENALTIES:
        total = 0.0
        for fold in folds.unique().tolist():
            out = folds == fold
            starts[fold] = _fit(x[~out], y[~out], prior, penalty, starts.get(fold))
            logits = x[out] @ starts[fold] + prior
            total += float(torch.nn.functional.cross_entropy(logits, y[out], reduction="sum"))
        if not total < least:
            break
        best, least = penalty, total
    return best


def _fit(
    x: Tensor, y: Tensor, prior: Tensor, penalty: float, start: Tensor | None = None
) -> Tensor:
    """Weights [D, C] of least mean cross-entropy of `x @ weights + prior` plus penalty / 2 * their
    squares.

    x: float64 [M, D], ones in the first column; y: classes [M]; prior: log share of each class [C],
    which a strong penalty leads to, and which keeps the loss of a class that a fold has no row of
    finite.
    """
    weights = x.new_zeros(x.shape[1], len(prior)) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(x @ weights + prior, y)
            + penalty / 2 * weights.square().sum()
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()
