"""What answers of classes and their probabilities are worth, against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from trainables.data.manifest import SplitSummary
from trainables.evaluation.class_metrics import auroc, calibration_error, class_outcomes
from trainables.tasks import TASKS

CLASSES = TASKS["classification"]


def drawn(seed, rows, classes, ties=False):
    """Labels [N], and log-probabilities [N, C] that know something of them."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=rows)
    logits = random.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    logits = logits.round(0) if ties else logits
    return labels, (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def outcomes_of(labels, logs):
    return class_outcomes(logs.argmax(1), labels, logs)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999), st.integers(2, 60), st.integers(2, 6), st.booleans())
def test_all_are_those_of_scikit_learn(seed, rows, classes, ties):
    labels, logs = drawn(seed, rows, classes, ties)
    found = CLASSES.metrics(outcomes_of(labels, logs))
    answers, every = logs.argmax(1), list(range(classes))
    assert set(found) == set(CLASSES.metric_names)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, answers))
    for average in ("macro", "weighted"):
        wanted = sklearn_metrics.f1_score(labels, answers, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(wanted)
    occur = [c for c in every if 0 < (labels == c).sum() < rows]
    if not occur:
        assert math.isnan(found["auroc"])
    elif classes == 2:
        scores = logs[:, 1].astype(np.float64) - logs[:, 0]
        assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
    else:
        areas = [sklearn_metrics.roc_auc_score(labels == c, logs[:, c]) for c in occur]
        assert found["auroc"] == pytest.approx(np.mean(areas))


def test_of_all_classes_it_is_scikit_learns_one_against_the_rest():
    labels, logs = drawn(3, 400, 5)
    probabilities = np.exp(logs.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    wanted = sklearn_metrics.roc_auc_score(
        labels, probabilities, multi_class="ovr", average="macro"
    )
    assert auroc(labels, logs) == pytest.approx(wanted, abs=1e-9)


def test_two_classes_that_are_nearly_certain_are_told_apart():
    """As probabilities of the second all four are 1 in float32."""
    logits = np.array([20.0, 30.0, 40.0, 50.0])
    logs = np.stack([-np.logaddexp(0, logits), -np.logaddexp(0, -logits)], 1).astype(np.float32)
    assert auroc(np.array([0, 0, 1, 1]), logs) == 1
    assert auroc(np.array([1, 1, 0, 0]), logs) == 0


def by_definition(is_right, logs):
    """Guo et al. 2017, equation 3, bin by bin."""
    confidence, total = np.exp(logs.max(1).astype(np.float64)), 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            total += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean())
    return total


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 6))
def test_the_calibration_error_is_that_of_its_definition(seed, rows, classes):
    labels, logs = drawn(seed, rows, classes)
    is_right = logs.argmax(1) == labels
    assert calibration_error(is_right, logs) == pytest.approx(by_definition(is_right, logs))


def test_calibration_errors_that_are_known():
    sure = np.log(np.array([[1 - 1e-12, 1e-12]] * 4))
    assert calibration_error(np.array([True] * 4), sure) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.array([False] * 4), sure) == pytest.approx(1, abs=1e-9)
    half = np.log(np.full((4, 2), 0.5))
    assert calibration_error(np.array([True, False, True, False]), half) == pytest.approx(0)
    above = np.full((2, 2), 1e-7)  # a rounded probability above 1
    assert calibration_error(np.array([True, True]), above) == pytest.approx(0, abs=1e-6)


def test_what_earlier_versions_kept_has_no_metrics_of_probabilities():
    found = CLASSES.metrics(np.array([[0, 0], [1, 0], [1, 1]], dtype=np.float32))
    assert set(found) == {"accuracy", "macro_f1", "weighted_f1"}


def test_probabilities_of_too_many_classes_are_not_kept():
    labels, logs = drawn(0, 7, 100)
    assert outcomes_of(labels, logs).shape == (7, 102)
    labels, logs = drawn(0, 7, 101)
    assert outcomes_of(labels, logs).shape == (7, 2)


def test_what_is_not_a_number_has_none_of_them():
    labels, logs = drawn(0, 9, 3)
    logs[4, 1] = math.nan
    found = CLASSES.metrics(outcomes_of(labels, logs))
    assert math.isnan(found["auroc"]) and math.isnan(found["calibration_error"])
    assert math.isfinite(found["accuracy"])


def test_a_class_that_was_never_seen_and_one_class_alone():
    labels, logs = np.zeros(3, dtype=int), np.log([[0.6, 0.4]] * 3)
    assert math.isnan(auroc(labels, logs)) and math.isnan(auroc(labels, np.zeros((3, 1))))
    assert math.isnan(auroc(labels, np.log(np.full((3, 3), 1 / 3))))


def test_always_answering_the_shares_of_train_tells_nothing_and_is_calibrated():
    counts = {"a": 60, "b": 30, "c": 10}
    train = SplitSummary(label_counts=counts)
    labels = np.repeat([0, 1, 2], list(counts.values()))
    outcomes = outcomes_of(labels, drawn(0, 100, 3)[1])
    prior = CLASSES.prior_outcomes(outcomes, train, ("a", "b", "c"))
    assert prior.shape == outcomes.shape and prior.dtype == np.float32
    found = CLASSES.metrics(prior)
    assert found["accuracy"] == 0.6 and found["auroc"] == 0.5
    assert found["calibration_error"] == pytest.approx(0, abs=1e-6)
    loss = -prior[np.arange(100), 2 + labels].astype(np.float64).mean()
    assert loss == pytest.approx(CLASSES.prior(train, train).loss)
    assert CLASSES.prior_outcomes(outcomes[:, :2], train, ("a", "b", "c")).shape == (100, 2)
