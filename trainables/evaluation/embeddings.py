"""Classes and numbers by the frozen base's embeddings: linear models and nearest neighbours.

Letters of shapes as in `trainables.evaluation.bench`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from trainables.evaluation.bench import (
    Bench,
    Degenerate,
    Row,
    classes_of,
    classified,
    in_micro_batches,
    labels_of_each,
    load_backbone,
    on_device,
    scored,
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


def nearest_rows(queries: np.ndarray | None, keys: np.ndarray, count: int) -> np.ndarray:
    """The `count` keys [M, D] of greatest cosine with each of the queries [N, D], the nearest first
    [N, count]; all of them where there are fewer.

    Without queries these are the keys, and none is its own neighbour.
    """
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=min(count, len(keys)), metric="cosine", algorithm="brute")
    return found.fit(keys).kneighbors(queries, return_distance=False)


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
    near = classes[nearest_rows(None, embedded.pool, counts[-1])]
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
    """Multinomial, by standardised embeddings, with the penalty that has the least loss on
    left-out rows.
    """
    x, rows = _standardised(embedded)
    y = classes_of(bench.train)[bench.pool]
    folds = stream("baselines: folds", bench.seed).permutation(len(y)) % min(FOLDS, len(y))
    penalty = _choose_penalty(x, y, bench.prior, folds)
    found = _fit(x, y, bench.prior, penalty)(rows)
    return classified(bench, np.log(found), bench.split.lengths)


def logistic_each(bench: Bench, embedded: Embedded) -> MeasuredBaseline:
    """The same for each label by itself: whether a row has it."""
    x, rows = _standardised(embedded)
    train, true = labels_of_each(bench.train), labels_of_each(bench.split)
    folds = stream("baselines: folds", bench.seed).permutation(len(x)) % min(FOLDS, len(x))
    found = np.zeros(true.shape)
    for label, has in enumerate(train.T):
        bench.check_time()
        share = (has.sum() + 1) / (len(has) + 2)
        y, prior = has[bench.pool].astype(np.int64), np.array([1 - share, share])
        penalty = _choose_penalty(x, y, prior, folds)
        found[:, label] = _fit(x, y, prior, penalty)(rows)[:, 1]
    losses = -np.log(np.where(true > 0, found, 1 - found)).sum(axis=1)
    outcomes = np.concatenate([found > 0.5, true], axis=1)
    return scored(bench, losses, np.ones(len(losses)), bench.split.lengths, outcomes)


def ridge(bench: Bench, embedded: Embedded) -> MeasuredBaseline:
    """Linear regression by standardised embeddings, with the penalty that has the least
    leave-one-out error.
    """
    from sklearn.linear_model import RidgeCV

    x, rows = _standardised(embedded)
    y, true = classes_of(bench.train)[bench.pool], classes_of(bench.split)
    model = RidgeCV(alphas=[penalty * len(y) for penalty in PENALTIES]).fit(x, y)
    found = model.predict(rows)
    outcomes = np.stack([found, true], axis=1)
    return scored(bench, np.square(found - true), np.ones(len(true)), bench.split.lengths, outcomes)


def _standardised(embedded: Embedded) -> tuple[np.ndarray, np.ndarray]:
    """Pool [M, D] and rows [N, D], by the pool's means and deviations, float64."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(embedded.pool.astype(np.float64))
    pool, rows = (
        np.asarray(scaler.transform(part.astype(np.float64)))
        for part in (embedded.pool, embedded.rows)
    )
    return pool, rows


def _choose_penalty(x: np.ndarray, y: np.ndarray, prior: np.ndarray, folds: np.ndarray) -> float:
    """The penalty whose loss on the left-out folds is least, from the strongest down until that
    rises.

    folds: the fold of each row [M].
    """
    best, least = PENALTIES[0], math.inf
    for penalty in PENALTIES:
        total = 0.0
        for fold in np.unique(folds):
            out = folds == fold
            found = _fit(x[~out], y[~out], prior, penalty)(x[out])
            total -= float(np.log(found[np.arange(len(found)), y[out]]).sum())
        if not total < least:
            break
        best, least = penalty, total
    return best


def _fit(
    x: np.ndarray, y: np.ndarray, prior: np.ndarray, penalty: float
) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the probabilities [N, C] of rows [N, D]: (rows of x * the regression's + class
    share in train) / (rows of x + 1), so that the loss of a class that x has no row of is finite.

    x: [M, D]; y: classes [M]; prior: share of each class [C]; penalty: times half the squared
    weights, against the mean loss of a row. The intercept is free, so a strong one leaves the
    shares of the classes.
    """
    from sklearn.linear_model import LogisticRegression

    rows, counts = len(y), np.bincount(y, minlength=len(prior))
    present = np.flatnonzero(counts)
    if len(present) < 2:  # nothing to tell apart
        return lambda others: np.tile((counts + prior) / (rows + 1), (len(others), 1))
    model = LogisticRegression(C=1 / (penalty * rows), tol=1e-7, max_iter=1000).fit(x, y)

    def probabilities(others: np.ndarray) -> np.ndarray:
        found = np.zeros((len(others), len(prior)))
        found[:, present] = model.predict_proba(others)
        return (rows * found + prior) / (rows + 1)

    return probabilities
