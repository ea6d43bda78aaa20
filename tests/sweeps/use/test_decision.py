"""Ship or not, where the truth is known."""

import numpy as np
import pytest

from sweeps.use.decision import decide, gain_p_value, rows_needed, visible_gain

TRIALS, VALIDATION, TEST = 20, 150, 150


def losses(rows: np.ndarray) -> np.ndarray:
    """Of rows with one target each [N] as [N, 2]."""
    return np.stack([rows, np.ones(len(rows))], axis=1)


class World:
    """Classifiers of three classes whose losses on a row have much in common, as those of checkpoints
    of one sweep: no one is better than another in truth, as each adds noise of its own to the same
    evidence.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def rows(self, count: int, models: int) -> np.ndarray:
        """Cross-entropies [models, count]."""
        labels = self._random.integers(0, 3, count)
        evidence = self._random.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[labels]
        logits = evidence + self._random.normal(0, 0.7, (models, count, 3))
        logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(logits, labels[None, :, None], 2)[..., 0]


def false_ships(seeds: range, *, sealed: bool) -> float:
    """Share of sweeps that ship whose winner, the best of 20 on validation, is no better than the best
    of its three baselines; held against them on the test split, or again on validation.
    """
    shipped = 0
    for seed in seeds:
        world = World(seed)
        validation = world.rows(VALIDATION, TRIALS + 1)
        winner = int(validation[:TRIALS].mean(axis=1).argmin())
        rows = world.rows(TEST, TRIALS + 1) if sealed else validation
        worse = {f"worse by {more}": losses(rows[-1] + more) for more in (0.1, 0.5)}
        rivals = {"as good": losses(rows[-1]), **worse}
        shipped += decide(losses(rows[winner]), rivals).is_better
    return shipped / len(seeds)


def test_a_winner_that_is_no_better_ships_in_less_than_one_of_a_hundred_sweeps():
    assert false_ships(range(1000), sealed=True) < 0.01


def test_against_one_baseline_it_is_the_level_and_no_less():
    """So that the bound holds for its own sake, and not because nothing ever ships."""
    shipped = 0
    for seed in range(1500):
        own, rival = World(seed).rows(TEST, 2)
        shipped += decide(losses(own), {"rival": losses(rival)}, level=0.1).is_better
    assert 0.03 < shipped / 1500 < 0.07, "the first look has half of the level"


def test_the_rows_that_chose_it_would_ship_more_of_them():
    assert false_ships(range(300), sealed=False) > 0.02


def test_ten_winners_on_the_same_rows_ship_no_more_than_one():
    """None is better; each sweep looks at the rows that the ones before it have seen."""
    shipped = 0
    for seed in range(300):
        *winners, rival = World(seed).rows(TEST, 11)
        shipped += any(
            decide(losses(own), {"rival": losses(rival)}, looks=look).is_better
            for look, own in enumerate(winners, start=1)
        )
    assert shipped / 300 < 0.02  # 0.01, and what 300 draws may be off


@pytest.mark.parametrize("rows", [200, 1000])
def test_rare_disasters_are_not_taken_for_a_gain(rows):
    """Small gains on most rows and large losses on few, 0 on average: the plain t finds them a gain."""
    random, shipped = np.random.default_rng(0), 0
    for _ in range(1000):
        hard = random.gamma(1.0, 0.5, rows)
        own = hard + np.where(random.random(rows) < 0.03, 4.0, 0.0) - 0.12
        rival = hard + random.normal(0, 0.05, rows)
        shipped += decide(losses(own), {"rival": losses(rival)}).is_better
    assert shipped / 1000 < 0.01


def test_a_gain_is_seen_as_often_as_is_said():
    random, rows, deviation, level = np.random.default_rng(0), 250, 0.5, 0.01
    gain = visible_gain(deviation / rows**0.5, level / 2)
    assert rows_needed(deviation, gain, level / 2) in (rows, rows + 1)
    seen = 0
    for _ in range(1000):
        rival = random.gamma(1.0, 0.5, rows)
        own = rival - gain + random.normal(0, deviation, rows)
        seen += decide(losses(own), {"rival": losses(rival)}, level=level).is_better
    assert 0.76 < seen / 1000 < 0.84


def test_every_rival_must_be_beaten():
    random = np.random.default_rng(0)
    own = random.gamma(1.0, 0.5, 500)
    worse, same = own + 0.2 + random.normal(0, 0.1, 500), own + random.normal(0, 0.1, 500)
    found = decide(losses(own), {"worse": losses(worse), "same": losses(same)})
    assert [each.rival for each in found.comparisons] == ["same", "worse"]
    assert [each.is_beaten for each in found.comparisons] == [False, True]
    assert not found.is_better
    assert decide(losses(own), {"worse": losses(worse)}).is_better
    assert not decide(losses(own), {}).is_better


def test_too_few_units_ship_nothing():
    own = losses(np.zeros(9))
    found = decide(own, {"rival": own + [1.0, 0.0]})
    assert not found.is_better and found.comparisons[0].p_value is None


def test_a_gain_without_any_noise_is_one():
    own = losses(np.linspace(0, 1, 20))
    assert gain_p_value(own, own + [0.1, 0.0]) == 0.0
    assert gain_p_value(own, own) == 1.0


def test_targets_weigh():
    """A row of a hundred tokens counts a hundred times."""
    own = np.array([[0.0, 1.0]] * 30 + [[200.0, 100.0]] * 30)
    rival = own.copy()
    rival[:30, 0] += 1.0  # one nat better on thirty tokens
    rival[30:, 0] -= 10.0  # and a tenth worse on three thousand
    assert decide(own, {"rival": rival}).comparisons[0].gain < 0
