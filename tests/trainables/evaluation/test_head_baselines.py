"""What the frozen base's embeddings tell of numbers, and of several labels."""

import math
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from trainables.data.arrow import Split, write_split
from trainables.data.manifest import Manifest, write_manifest
from trainables.data.records import Encoded
from trainables.evaluation.baselines import measure_baselines
from trainables.evaluation.bench import Bench
from trainables.evaluation.embeddings import Embedded, logistic_each, ridge
from trainables.models.config import ModelConfig
from trainables.tasks import TASKS

RANDOM = np.random.default_rng(0)
POOL, ROWS = RANDOM.normal(size=(60, 5)), RANDOM.normal(size=(30, 5))
WEIGHTS = np.array([2.0, -1.0, 0.5, 0.0, 0.0])


def split(path, labels):
    ids = [np.array([1, 2, 3 + i % 5], dtype=np.int32) for i in range(len(labels))]
    write_split(path, Encoded(input_ids=ids, labels=labels))
    return Split(path)


def bench(tmp_path, task, train, rows, **more):
    given = {
        "model": ModelConfig(name="any"),
        "task": TASKS[task],
        "labels": ("a", "b"),
        "train": split(tmp_path / "train.arrow", train),
        "pool": np.arange(len(train)),
        "split": split(tmp_path / "validation.arrow", rows),
        "pad_token_id": 0,
        "max_tokens": 64,
        "seed": 0,
        "device": torch.device("cpu"),
        "minutes": 1.0,
        "deadline": time.perf_counter() + 60,
    }
    return Bench(**{**given, **more})


def embedded():
    return Embedded(pool=POOL.astype(np.float32), rows=ROWS.astype(np.float32), seconds=0.0)


def standardised():
    scaler = StandardScaler().fit(embedded().pool)
    return scaler.transform(embedded().pool), scaler.transform(embedded().rows)


def test_numbers_are_told_by_a_ridge_regression(tmp_path):
    train, true = POOL @ WEIGHTS + RANDOM.normal(size=60) / 5 + 7, ROWS @ WEIGHTS + 7
    found = ridge(bench(tmp_path, "regression", train, true), embedded())
    x, rows = standardised()
    fits = [Ridge(alpha=p * 60).fit(x, train).predict(rows) for p in (10, 1, 0.1, 0.01, 1e-3, 1e-4)]
    errors = [float(np.square(fit - true).mean()) for fit in fits]
    assert min(abs(error / found.val_loss - 1) for error in errors) < 1e-4
    assert found.val_loss < 0.05 and found.metrics["pearson"] > 0.99
    np.testing.assert_allclose(found.outcomes[:, 1], true, rtol=1e-6)
    np.testing.assert_allclose(
        found.losses[:, 0], np.square(found.outcomes[:, 0] - true), atol=1e-4
    )
    assert found.losses[:, 1].tolist() == [1] * 30 and found.metrics["rmse"] ** 2 == pytest.approx(
        found.val_loss
    )


def test_each_label_is_told_by_a_logistic_regression(tmp_path):
    """The second label is that of every row of train."""

    def labels(x):
        return [np.array([row @ WEIGHTS > 0, 1], dtype=np.float32) for row in x]

    found = logistic_each(bench(tmp_path, "multi_label", labels(POOL), labels(ROWS)), embedded())
    x, rows = standardised()
    y = np.array([own[0] for own in labels(POOL)])
    true = np.array([own[0] for own in labels(ROWS)])
    fits = [
        LogisticRegression(C=1 / (p * 60), tol=1e-7, max_iter=1000).fit(x, y).predict_proba(rows)
        for p in (10, 1, 0.1, 0.01, 1e-3, 1e-4)
    ]
    share = (y.sum() + 1) / 62
    of_first = [(60 * fit[:, 1] + share) / 61 for fit in fits]
    always = (60 + 61 / 62) / 61  # of train's rows all, and as if of two more one
    losses = [-np.log(np.where(true > 0, p, 1 - p)).mean() - math.log(always) for p in of_first]
    assert min(abs(loss - found.val_loss) for loss in losses) < 1e-4
    assert found.metrics["micro_f1"] > 0.9 and found.outcomes.shape == (30, 4)
    assert found.outcomes[:, 1].tolist() == found.outcomes[:, 3].tolist() == [1] * 30


def test_regressions_of_many_labels_end_when_there_is_no_time_left(tmp_path):
    labels = [np.array([1, 0], dtype=np.float32)] * 60
    late = bench(tmp_path, "multi_label", labels, labels[:30], deadline=time.perf_counter() - 1)
    with pytest.raises(TimeoutError, match="not done within 1 minutes"):
        logistic_each(late, embedded())


@pytest.mark.parametrize(
    ("task", "name", "labels"),
    [
        ("regression", "embeddings_ridge", np.arange(12) / 3),
        ("multi_label", "embeddings_logistic_each", [np.array([i % 2, i % 3 == 0], dtype=np.float32) for i in range(12)]),
        ("token_classification", None, [np.array([-100, i % 2, -100], dtype=np.int32) for i in range(12)]),
    ],
)  # fmt: skip
def test_a_task_has_the_baselines_that_it_names(lab, tmp_path, task, name, labels):
    for split_name in ("train", "validation"):
        split(tmp_path / f"{split_name}.arrow", labels)
    write_manifest(tmp_path, Manifest(task=task, labels=("a", "b")))
    found = measure_baselines(
        tmp_path,
        model=ModelConfig(name=str(lab.folder("bert"))),
        task=task,
        pad_token_id=0,
        max_tokens=64,
        seed=0,
        device=torch.device("cpu"),
    )
    assert list(found) == ([] if name is None else [name])
    for each in found.values():
        assert each.error is None and math.isfinite(each.val_loss)
        assert set(each.metrics) == set(TASKS[task].metric_names) and each.tokens_per_request == 3
