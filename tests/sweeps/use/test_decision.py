"""Ship or not, where the truth is known."""

import numpy as np
import pytest

from sweeps.ledger.comparing import Rows
from sweeps.selection.measure import Measure
from sweeps.use.decision import Decision, decide, gain_p_value, rows_needed, visible_gain
from sweeps.use.gains import Gains, loss_gains, metric_gains
from trainables.tasks import TASKS

TRIALS, VALIDATION, TEST = 20, 150, 150


def losses(rows: np.ndarray) -> np.ndarray:
    """Of rows with one target each [N] as [N, 2]."""
    return np.stack([rows, np.ones(len(rows))], axis=1)


def gains(own: np.ndarray, other: np.ndarray) -> Gains:
    return loss_gains(own, other, len(own))


def decided(
    own: np.ndarray, rivals: dict[str, np.ndarray], *, level: float = 0.01, looks: int = 1
) -> Decision:
    """By the losses of the winner and of its rivals [N, 2]."""
    found = {name: gains(own, each) for name, each in rivals.items()}
    return decide(found, level=level, looks=looks)


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
        shipped += decided(losses(rows[winner]), rivals).is_better
    return shipped / len(seeds)


def test_a_winner_that_is_no_better_ships_in_less_than_one_of_a_hundred_sweeps():
    assert false_ships(range(1000), sealed=True) < 0.01


def test_against_one_baseline_it_is_the_level_and_no_less():
    """So that the bound holds for its own sake, and not because nothing ever ships."""
    shipped = 0
    for seed in range(1500):
        own, rival = World(seed).rows(TEST, 2)
        shipped += decided(losses(own), {"rival": losses(rival)}, level=0.1).is_better
    assert 0.03 < shipped / 1500 < 0.07, "the first look has half of the level"


def test_the_rows_that_chose_it_would_ship_more_of_them():
    assert false_ships(range(300), sealed=False) > 0.02


def test_ten_winners_on_the_same_rows_ship_no_more_than_one():
    """None is better; each sweep looks at the rows that the ones before it have seen."""
    shipped = 0
    for seed in range(300):
        *winners, rival = World(seed).rows(TEST, 11)
        shipped += any(
            decided(losses(own), {"rival": losses(rival)}, looks=look).is_better
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
        shipped += decided(losses(own), {"rival": losses(rival)}).is_better
    assert shipped / 1000 < 0.01


def test_a_gain_is_seen_as_often_as_is_said():
    random, rows, deviation, level = np.random.default_rng(0), 250, 0.5, 0.01
    gain = visible_gain(deviation / rows**0.5, level / 2)
    assert rows_needed(deviation, gain, level / 2) in (rows, rows + 1)
    seen = 0
    for _ in range(1000):
        rival = random.gamma(1.0, 0.5, rows)
        own = rival - gain + random.normal(0, deviation, rows)
        seen += decided(losses(own), {"rival": losses(rival)}, level=level).is_better
    assert 0.76 < seen / 1000 < 0.84


def test_every_rival_must_be_beaten():
    random = np.random.default_rng(0)
    own = random.gamma(1.0, 0.5, 500)
    worse, same = own + 0.2 + random.normal(0, 0.1, 500), own + random.normal(0, 0.1, 500)
    found = decided(losses(own), {"worse": losses(worse), "same": losses(same)})
    assert [each.rival for each in found.comparisons] == ["same", "worse"]
    assert [each.is_beaten for each in found.comparisons] == [False, True]
    assert not found.is_better
    assert decided(losses(own), {"worse": losses(worse)}).is_better
    assert not decide({}).is_better


def test_too_few_units_ship_nothing():
    own = losses(np.zeros(9))
    found = decided(own, {"rival": own + [1.0, 0.0]})
    assert not found.is_better and found.comparisons[0].p_value is None


def test_a_gain_without_any_noise_is_one():
    own = losses(np.linspace(0, 1, 20))
    assert gain_p_value(gains(own, own + [0.1, 0.0])) == 0.0
    assert gain_p_value(gains(own, own)) == 1.0


def test_targets_weigh():
    """A row of a hundred tokens counts a hundred times."""
    own = np.array([[0.0, 1.0]] * 30 + [[200.0, 100.0]] * 30)
    rival = own.copy()
    rival[:30, 0] += 1.0  # one nat better on thirty tokens
    rival[30:, 0] -= 10.0  # and a tenth worse on three thousand
    assert decided(own, {"rival": rival}).comparisons[0].gain < 0


# --- by a metric ---

RIGHT = Measure(name="exact_match", mode="max")


def answers(values: np.ndarray, groups: np.ndarray | None = None, of: range | None = None) -> Rows:
    """Of one metric of answers [N]."""
    rows = tuple(range(len(values)) if of is None else of)
    return Rows(values[:, None], _mean, groups, rows, (RIGHT.name,), frozenset())


def _mean(outcomes: np.ndarray) -> dict[str, float]:
    return {RIGHT.name: float(np.nanmean(outcomes))}


def classes(outcomes: np.ndarray) -> Rows:
    task = TASKS["classification"]
    return Rows(outcomes, task.metrics, None, None, task.metric_names, task.lower_is_better)


def told(own: Rows, other: Rows, by: Measure = RIGHT) -> Gains:
    found = metric_gains(own, other, by)
    assert found is not None
    return found


def right_or_wrong(random: np.random.Generator, rows: int, models: int, own: float) -> np.ndarray:
    """Models that are equally often right [models, rows]: where a row is easy or hard for all, and on
    a share `own` of them each for itself.
    """
    easy = random.random(rows) < 0.6
    apart = random.random((models, rows)) < 0.6
    return np.where(random.random((models, rows)) < own, apart, easy).astype(float)


@pytest.mark.parametrize("own", [0.05, 0.3])
def test_a_winner_that_is_right_no_more_often_ships_in_less_than_one_of_a_hundred_sweeps(own):
    """The best of 20 on validation by a metric of right and wrong, whose rows are mostly the same."""
    random, shipped = np.random.default_rng(0), 0
    for _ in range(1000):
        validation = right_or_wrong(random, VALIDATION, TRIALS, own)
        rows = right_or_wrong(random, TEST, TRIALS + 1, own)
        winner, rival = rows[int(validation.mean(axis=1).argmax())], rows[-1]
        worse = np.where(random.random(TEST) < 0.2, 0, rival)
        rivals = {
            name: told(answers(winner), answers(each))
            for name, each in {"as good": rival, "worse": worse}.items()
        }
        shipped += decide(rivals).is_better
    assert shipped / 1000 < 0.01


@pytest.mark.parametrize("discordant", [0.02, 0.05, 0.1])
def test_few_rows_that_differ_do_not_break_the_level(discordant):
    """Where the transformed t alone would call a gain at 1.5 to 5 times the level."""
    random, shipped = np.random.default_rng(0), 0
    for _ in range(2000):
        u = random.random(150)
        own, rival = (u < discordant / 2).astype(float), (u > 1 - discordant / 2).astype(float)
        shipped += decide({"rival": told(answers(own), answers(rival))}).is_better
    assert shipped / 2000 <= 0.005


def test_right_and_wrong_are_held_to_mcnemar_s_exact_test():
    from scipy.stats import binom

    for better, worse in ((7, 0), (8, 0), (12, 1), (30, 10)):
        own = np.array([1.0] * better + [0.0] * worse + [1.0] * 40)
        rival = np.array([0.0] * better + [1.0] * worse + [1.0] * 40)
        exact = binom.sf(better - 1, better + worse, 0.5)
        assert gain_p_value(told(answers(own), answers(rival))) == pytest.approx(exact)
        assert gain_p_value(told(answers(rival), answers(own))) > 0.99
    assert gain_p_value(told(answers(own), answers(own))) == 1.0


def test_a_real_gain_in_a_metric_ships():
    random, shipped = np.random.default_rng(0), 0
    for _ in range(200):
        rival = (random.random(300) < 0.6).astype(float)
        own = np.where((rival == 0) & (random.random(300) < 0.3), 1.0, rival)  # 0.12 more
        shipped += decide({"rival": told(answers(own), answers(rival))}).is_better
    assert shipped / 200 > 0.95


def test_rows_of_one_group_are_one_unit():
    """Twenty rows that differ are no more than the two groups that they are of."""
    groups, own = np.repeat(np.arange(20), 10), np.zeros(200)
    own[:20] = 1.0
    alone = told(answers(own), answers(np.zeros(200)))
    grouped = told(answers(own, groups), answers(np.zeros(200), groups))
    assert alone.mean == grouped.mean == 0.1 and grouped.rows == 200
    assert decide({"rival": alone}).is_better and not decide({"rival": grouped}).is_better
    assert gain_p_value(grouped) == pytest.approx(0.25)


def test_less_is_better_of_an_error():
    by = Measure(name=RIGHT.name, mode="min")
    assert told(answers(np.zeros(20)), answers(np.ones(20)), by).mean == 1.0


def test_only_rows_that_both_have_are_compared():
    own, rival = np.array([1.0, np.nan, 1.0, 0.0]), np.array([0.0, 1.0, np.nan, 0.0])
    assert told(answers(own), answers(rival)).rows == 2
    shifted = told(answers(own), answers(rival, of=range(3, 7)))
    assert shifted.rows == 1 and shifted.mean == 0.0
    assert metric_gains(answers(own), answers(rival, of=range(9, 13)), RIGHT) is None


def test_a_metric_of_all_rows_is_told_of_by_what_each_adds():
    """Of accuracy, a mean, that is the row's own value; of an F1 the metric itself comes back."""
    random = np.random.default_rng(0)
    true = random.integers(0, 3, 120)
    pairs = [np.where(random.random(120) < 0.7, true, random.integers(0, 3, 120)) for _ in "ab"]
    own, rival = (np.stack([each, true], axis=1).astype(float) for each in pairs)
    accuracy = told(classes(own), classes(rival), Measure(name="accuracy", mode="max"))
    hits = [(each[:, 0] == each[:, 1]).astype(float) for each in (own, rival)]
    assert accuracy.units[:, 0] == pytest.approx(hits[0] - hits[1], abs=1e-9)
    f1 = told(classes(own), classes(rival), Measure(name="macro_f1", mode="max"))
    metrics = [classes(each).metrics(each)["macro_f1"] for each in (own, rival)]
    assert f1.mean == pytest.approx(metrics[0] - metrics[1])


def test_an_f1_that_is_no_higher_ships_no_more_often():
    random, shipped = np.random.default_rng(0), 0
    by = Measure(name="macro_f1", mode="max")
    for _ in range(300):
        true = random.choice(3, 60, p=[0.7, 0.2, 0.1])
        same = random.random(60) < 0.8
        first = np.where(random.random(60) < 0.75, true, random.integers(0, 3, 60))
        pair = [
            np.where(
                same, first, np.where(random.random(60) < 0.75, true, random.integers(0, 3, 60))
            )
            for _ in "ab"
        ]
        own, rival = (classes(np.stack([each, true], axis=1).astype(float)) for each in pair)
        shipped += decide({"rival": told(own, rival, by)}, level=0.1).is_better
    assert shipped / 300 < 0.07, "of a level of 0.05"
