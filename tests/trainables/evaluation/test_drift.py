"""Alarms where nothing has changed, and where something has."""

import numpy as np
import pytest

from trainables.evaluation.drift import (
    classifier_two_sample,
    higher_loss,
    kolmogorov_smirnov,
    shares,
    unit_means,
)

LEVEL = 0.05


def embeddings(random: np.random.Generator, rows: int, shift: float = 0.0) -> np.ndarray:
    """Far from normal: two clusters, heavy tails, correlated columns [rows, 24]."""
    mixing = np.random.default_rng(9).normal(size=(24, 24))
    clusters = random.integers(0, 2, (rows, 1)) * 2.0
    return (random.standard_t(4, (rows, 24)) + clusters + shift) @ mixing


def classes(random: np.random.Generator, rows: int, first: float = 0.5) -> np.ndarray:
    share = [first, *[(1 - first) / 3] * 3]
    return np.eye(4)[random.choice(4, rows, p=share)]


def losses(random: np.random.Generator, rows: int, more: float = 0.0) -> np.ndarray:
    targets = random.integers(1, 20, rows)
    return np.stack([targets * (random.gamma(1.0, 0.5, rows) + more), targets], axis=1)


TESTS = {
    "embeddings": (lambda r, n, s: embeddings(r, n, 0.8 * s), classifier_two_sample, (0, "x")),
    "confidence": (lambda r, n, s: r.beta(8, 2 + 2 * s, n), kolmogorov_smirnov, ("x",)),
    "answers": (lambda r, n, s: classes(r, n, 0.5 + 0.2 * s), shares, ("abcd", "x")),
    "loss": (lambda r, n, s: losses(r, n, 0.2 * s), higher_loss, ("x",)),
}


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("new_rows", [60, 300])
def test_rows_of_the_same_distribution_seldom_alarm(name, new_rows):
    """At most the level of them, and what 300 draws may be off (two standard deviations)."""
    draw, test, more = TESTS[name]
    random, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        found = test(draw(random, 200, 0), draw(random, new_rows, 0), *more)
        alarms += found.p_value < LEVEL
    assert alarms / 300 <= LEVEL + 2 * (LEVEL * (1 - LEVEL) / 300) ** 0.5


@pytest.mark.parametrize("name", TESTS)
def test_rows_of_another_distribution_alarm(name):
    draw, test, more = TESTS[name]
    random, alarms = np.random.default_rng(0), 0
    for _ in range(30):
        found = test(draw(random, 300, 0), draw(random, 300, 1), *more)
        alarms += found.p_value < 0.01
    assert alarms >= 24


def test_a_lower_loss_is_no_alarm():
    random = np.random.default_rng(0)
    found = higher_loss(losses(random, 300, 0.5), losses(random, 300), "loss")
    assert found.effect < 0 and found.p_value > 0.5


def test_rows_that_belong_together_count_once():
    """Twenty authors of fifty rows each, alike but for themselves: rows by themselves would alarm."""
    random, of_rows, of_units = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(20), 50)
    for _ in range(40):
        old, new = (
            np.repeat(random.normal(0, 1, 20), 50) + random.normal(0, 0.3, 1000) for _ in range(2)
        )
        of_rows += kolmogorov_smirnov(old, new, "x").p_value < LEVEL
        units = (unit_means(each, groups) for each in (old, new))
        of_units += kolmogorov_smirnov(*units, "x").p_value < LEVEL
    assert of_rows > 30 and of_units <= 5


def test_means_of_units():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    assert unit_means(values, np.array([7, 7, 2])).tolist() == [[10, 20], [2, 3]]
    assert unit_means(values, None) is values
