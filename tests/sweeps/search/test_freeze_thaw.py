"""Who trains next: the model against a reference, and what it chooses on curves whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from search_spaces import Space
from sweeps.search import freeze_thaw
from sweeps.search.freeze_thaw import (
    STARTUP,
    VARIANCES,
    Candidate,
    CurveModel,
    FreezeThaw,
    expected_improvement,
    place,
)

EPOCH = 100


def candidate(rate: float, epochs: int = 4, **given) -> Candidate:
    """A configuration whose rate lies there in its range; its rate falls linearly."""
    return Candidate(
        place={"rate": rate, "epochs": epochs / 8},
        samples=[EPOCH * k for k in range(1, epochs + 1)],
        annealed=[k / epochs for k in range(1, epochs + 1)],
        **given,
    )


def loss(rate: float, share: float) -> float:
    """The best rate is 0.7; a high one learns nothing while it is high."""
    return 1 + (rate - 0.7) ** 2 + math.exp(-3 * share) + 0.3 * rate * (1 - share)


def search(policy: FreezeThaw, all_of_them: list[Candidate], noise: float = 0.0) -> list[int]:
    """Who trained, evaluation by evaluation, until nobody has anything left."""
    rng, who = np.random.default_rng(0), []
    now = list(all_of_them)
    while (choice := policy.choose(now)) is not None:
        number = choice.number
        each = now[number]
        share = each.annealed[len(each.losses)]
        measured = loss(each.place["rate"], share) + noise * rng.standard_normal()
        now[number] = replace(each, losses=[*each.losses, measured])
        who.append(number)
    return who


def some(count: int = 12) -> list[Candidate]:
    return [candidate(rate) for rate in np.random.default_rng(1).permutation(count) / (count - 1)]


def test_its_gradient_is_that_of_its_value() -> None:
    rng = np.random.default_rng(0)
    x, y = np.c_[rng.integers(0, 5, 20), rng.random((20, 4))], rng.standard_normal(20)
    means = np.array([-0.3] * 4 + [each[0] for each in VARIANCES.values()])
    given = freeze_thaw._differences(x, x), freeze_thaw._same(x, x), y, means, np.ones(10)
    value, gradient = (
        lambda parameters, part=part: freeze_thaw._negative_log_posterior(parameters, *given)[part]
        for part in (0, 1)
    )
    at = means + 0.3 * rng.standard_normal(10)
    assert check_grad(value, gradient, at) < 1e-4 * np.linalg.norm(gradient(at))


def test_without_what_trials_have_of_their_own_it_is_an_ordinary_gaussian_process() -> None:
    rng = np.random.default_rng(0)
    seen = [replace(candidate(rate), losses=[loss(rate, 0.25)]) for rate in rng.random(8)]
    model = CurveModel()
    model.learn(seen)
    length, nothing = 0.4, -60.0
    model._parameters = np.array(
        [math.log(length)] * 4 + [math.log(0.8), nothing, nothing, nothing, nothing, math.log(0.01)]
    )
    points = [(number, 0) for number in range(8)]
    y = model._y
    model._condition(model._inputs(seen, points), y)
    new = [*seen, *(candidate(rate) for rate in rng.random(5))]
    mean, deviation = model.predict(new, [(8 + k, 0) for k in range(5)])
    reference = GaussianProcessRegressor(
        ConstantKernel(0.8) * RBF(length), alpha=0.01 + freeze_thaw.JITTER, optimizer=None
    )

    def at(candidates: list[Candidate]) -> np.ndarray:
        return np.array([[each.place["epochs"], each.place["rate"]] for each in candidates])

    expected = reference.fit(at(seen), y).predict(at(new[8:]), return_std=True)
    np.testing.assert_allclose((mean, deviation), expected, atol=1e-6)


def test_expected_improvement_is_that_of_a_normal() -> None:
    drawn = norm(1.2, 0.5).rvs(400_000, random_state=0)
    found = expected_improvement(1.0, np.array([1.2]), np.array([0.5]))
    assert found[0] == pytest.approx(np.maximum(0, 1.0 - drawn).mean(), rel=0.02)
    assert expected_improvement(1.0, np.array([0.7]), np.array([0.0]))[0] == pytest.approx(0.3)


def test_the_first_ones_are_begun_in_their_order() -> None:
    assert search(FreezeThaw(), some())[:STARTUP] == list(range(STARTUP))


def test_everybody_trains_to_the_end_if_there_is_time() -> None:
    who = search(FreezeThaw(), some(6))
    assert sorted(who) == sorted([*range(6)] * 4)


def test_the_best_ends_after_a_fraction_of_the_grid() -> None:
    candidates = some(20)
    rates = [abs(each.place["rate"] - 0.7) for each in candidates]
    who = search(FreezeThaw(), candidates, noise=0.005)
    best = {int(number) for number in np.argsort(rates)[:2]}  # which differ by less than the noise
    ends = [k for k, number in enumerate(who) if number in best and who[: k + 1].count(number) == 4]
    assert ends[0] < len(who) / 3


def test_one_bad_evaluation_abandons_nobody() -> None:
    """The best so far measures as the others do once; it goes on before they do."""
    rates = (0.1, 0.3, 0.5, 0.7, 0.9)
    seen = [candidate(rate, 8, losses=[loss(rate, k / 8) for k in range(1, 6)]) for rate in rates]
    good = seen[3]
    bad_luck = [*good.losses[:-1], good.losses[-1] + 0.05]
    now = [*seen[:3], replace(good, losses=bad_luck), seen[4]]
    policy, first = FreezeThaw(), []
    for _ in range(6):
        choice = policy.choose(now)
        assert choice is not None
        each = now[choice.number]
        share = each.annealed[len(each.losses)]
        now[choice.number] = replace(each, losses=[*each.losses, loss(each.place["rate"], share)])
        first.append(choice.number)
    assert 3 in first


def test_short_schedules_that_have_ended_do_not_hold_up_long_ones() -> None:
    """All are alike but for their horizons; the longest come to the lowest loss, from behind."""
    candidates = [candidate(0.7, epochs) for epochs in (1, 2, 1, 2, 8, 8, 1, 2)]

    def measured(each: Candidate) -> float:
        done = len(each.losses) + 1
        falling = 0.5 * (1 - done / len(each.samples))  # what the rate leaves
        return 1 + math.exp(-0.3 * done) + falling

    now, policy, spent = list(candidates), FreezeThaw(), 0
    while all(len(each.losses) < 8 for each in now):
        choice = policy.choose(now)
        assert choice is not None
        each = now[choice.number]
        now[choice.number] = replace(each, losses=[*each.losses, measured(each)])
        spent += 1
    assert spent < 20  # of 25


def test_who_trains_finished_or_ended_is_not_chosen() -> None:
    done = candidate(0.5, losses=[2.0, 1.8, 1.7, 1.6])
    running, ended = candidate(0.2, running=True), candidate(0.9, losses=[math.inf], ended=True)
    assert FreezeThaw().choose([done, running, ended]) is None
    choice = FreezeThaw().choose([done, running, ended, candidate(0.4)])
    assert choice is not None and choice.number == 3


def test_places_that_are_free_at_once_go_to_different_configurations() -> None:
    seen = [candidate(rate, losses=[loss(rate, 0.25)]) for rate in (0.0, 0.25, 0.5, 0.75, 1.0)]
    now, policy = [*seen, *(candidate(rate) for rate in (0.69, 0.7, 0.71, 0.1))], FreezeThaw()
    chosen = []
    for _ in range(4):
        choice = policy.choose(now)
        assert choice is not None
        chosen.append(choice.number)
        now[choice.number] = replace(now[choice.number], running=True)
    assert len(set(chosen)) == 4
    assert len({5, 6, 7} & set(chosen)) < 3  # what one of them shows, the others need not


def test_of_what_promises_as_much_the_cheaper_is_chosen() -> None:
    seen = [candidate(rate, losses=[loss(rate, 0.25)]) for rate in (0.0, 0.3, 0.6, 1.0)]
    new = [candidate(0.75, cost=2.0), candidate(0.75, cost=1.0)]
    done = [replace(each, ended=True) for each in seen]
    choice = FreezeThaw().choose([*done, *new])
    assert choice is not None and choice.number == 5
    assert choice.gain is not None and choice.gain > 0
    assert choice.cost == EPOCH * (choice.evaluation + 1)


def test_a_trial_that_diverged_does_not_blind_the_model() -> None:
    seen = [candidate(rate, losses=[loss(rate, 0.25)]) for rate in (0.3, 0.5, 0.6, 0.7)]
    broken = [candidate(1.0, losses=[bad], ended=True) for bad in (math.inf, 1e9)]
    done = [replace(each, ended=True) for each in seen]
    choice = FreezeThaw().choose([*done, *broken, candidate(0.99), candidate(0.69)])
    assert choice is not None and choice.number == 7


def test_it_chooses_the_same_again() -> None:
    assert search(FreezeThaw(), some(), 0.01) == search(FreezeThaw(), some(), 0.01)


def test_of_very_many_evaluations_the_last_of_each_curve_are_told(monkeypatch) -> None:
    monkeypatch.setattr(freeze_thaw, "MOST_POINTS", 8)
    seen = [
        candidate(rate, losses=[loss(rate, k / 4) for k in (1, 2, 3)])
        for rate in (0.2, 0.4, 0.6, 0.8)
    ]
    points = CurveModel()._chosen(seen)
    assert points == [(number, k) for number in range(4) for k in (1, 2)]


def test_of_very_many_curves_the_best_and_some_of_the_others_are_told(monkeypatch) -> None:
    monkeypatch.setattr(freeze_thaw, "MOST_POINTS", 8)
    seen = [candidate(number / 40, losses=[loss(number / 40, 0.25)]) for number in range(41)]
    told = {number for number, _ in CurveModel()._chosen(seen)}
    ranked = sorted(range(41), key=lambda number: seen[number].losses[0])
    assert len(told) == 8 and told >= set(ranked[:4]) and ranked[-1] in told
    choice = FreezeThaw().choose([*(replace(each, ended=True) for each in seen), candidate(0.69)])
    assert choice is not None and choice.number == 41


def test_a_place_is_a_share_of_each_range() -> None:
    space = Space.from_dict(
        {
            "method": {
                "full": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}},
                "lora": {
                    "learning_rate": {"log_uniform": [1e-4, 1e-2]},
                    "rank": {"choice": [4, 8, 16]},
                    "alpha": "2 * rank",
                },
            },
            "epochs": {"int": [1, 5]},
            "dropout": {"uniform": [0.0, 0.2]},
        }
    )
    params = {"method": "lora", "learning_rate": 1e-3, "rank": 16, "alpha": 32}
    found = place(space, {**params, "epochs": 2, "dropout": 0.05})
    expected = {"learning_rate": 0.5, "rank": 1.0, "epochs": 0.25, "dropout": 0.25}
    assert found == pytest.approx({"method=full": 0.0, "method=lora": 1.0, **expected})


def test_where_nothing_finite_is_known_the_first_that_waits_trains_on():
    lost = Candidate(place={"x": 0.5}, samples=(10, 20), annealed=(0.5, 1.0), losses=(math.nan,))
    chosen = FreezeThaw().choose([lost, lost])
    assert chosen is not None
    assert (chosen.number, chosen.gain, chosen.cost, chosen.evaluation) == (0, None, 10.0, 1)
