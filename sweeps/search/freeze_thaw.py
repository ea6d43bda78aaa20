"""Freeze and thaw (Swersky et al. 2014, https://arxiv.org/abs/1406.3896): which trial trains next,
of those that are paused and configurations that are new, by what a model of all curves expects of
them.

Nothing is stopped for ever: a trial trains to its next evaluation, and the question is asked anew.
No Ray, no Optuna and no torch here.

A small model of its own, for want of a library that does this offline: ifbo 0.4.1 (a network fitted
to curves beforehand) downloads its weights at first use; neural-pipeline-search 0.17.0 takes them
from there, pins gpytorch 1.13.0 and brings torchvision and tensorboard; syne-tune 0.16.0 has
successive halving, median stopping and population-based training; botorch 0.18.1 brings gpytorch
and a compiler's driver for what are some hundred points here, and no model of curves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import ndtr

from search_spaces import Choice as OneOf
from search_spaces import Domain, Int, LogUniform, Space, Uniform
from search_spaces.domains import is_number

STARTUP = 4  # trials that are begun, in their order, before the model is asked
MOST_POINTS = 600  # evaluations that the model is given: it takes the cube of their number
REFIT = 1.1  # the model is fitted anew when there are so many times as many evaluations
ITERATIONS = 25  # of a fit, which goes on from the one before

# Mean and standard deviation of the normal priors of the logarithms of the kernel's parameters, for
# inputs in [0, 1] and losses of unit variance. They say: losses are smooth, curves are alike, and
# an evaluation is good to a few hundredths.
LENGTH = math.log(0.7), 0.8  # of time, and, times the root of their number, of hyperparameters
VARIANCES = {
    "place": (math.log(0.5), 1.0),  # what a configuration is worth at any time
    "time": (math.log(0.3), 1.0),  # the curve that all have
    "both": (math.log(0.3), 1.0),  # how curves differ between configurations
    "trial": (math.log(0.02), 1.0),  # the seed's part of a trial's level
    "curve": (math.log(0.02), 1.0),  # the same of its curve
    "noise": (math.log(0.003), 1.0),  # of one evaluation
}
JITTER = 1e-6


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial that is paused, or a configuration that no trial has yet."""

    place: Mapping[str, float]
    """Where in the space it lies (`place`)."""
    samples: Sequence[int]
    """Samples seen at its evaluations, also those to come [E]."""
    annealed: Sequence[float]
    """How far its rate has come down at each, 0 to 1 [E]."""
    losses: Sequence[float] = ()
    """Of the evaluations that it has made, in nats or what else the task tells; not finite: it has
    diverged."""
    cost: float = 1.0
    """Of a sample, such as seconds."""
    running: bool = False
    """It is on its way to its next evaluation."""
    ended: bool = False
    """It goes no further, though evaluations were to come."""

    @property
    def waits(self) -> bool:
        return not self.running and not self.ended and len(self.losses) < len(self.samples)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Who trains next, to its next evaluation."""

    number: int
    """Of the candidate."""
    gain: float | None
    """By how much its best evaluation to come is expected to lie below the lowest loss so far, in
    the unit of losses; None: nothing is known yet."""
    cost: float
    """Until that evaluation."""
    evaluation: int
    """Which that is, of all of the candidate's."""


def place(space: Space, params: Mapping[str, object]) -> dict[str, float]:
    """Where in `space` a configuration lies: of each parameter its share of the range, in the
    logarithm where that is what is uniform; of a choice of words a number for each. A parameter
    that several branches have has one name in all, and its share is that of the branch's own range.
    """
    found: dict[str, float] = {}

    def suggest(key: str, domain: Domain) -> object:
        name = key.rsplit(".", 1)[-1]
        value = domain.match(params[name])
        number = cast("float", value)  # where it is one
        match domain:
            case LogUniform(low=low, high=high) | Int(low=low, high=high, log=True):
                found[name] = math.log(number / low) / math.log(high / low)
            case Uniform(low=low, high=high) | Int(low=low, high=high):
                found[name] = (number - low) / (high - low)
            case OneOf(values=values) if all(map(is_number, values)):
                below = sum(cast("float", each) < number for each in values)
                found[name] = below / max(1, len(values) - 1)
            case OneOf(values=values):
                found.update({f"{name}={each}": float(each == value) for each in values})
        return value

    space.sample(suggest)
    return found


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Parameters of the model, and of what they are those of the highest posterior density. A fit
    goes on from the one before, so who goes on with a search needs it.
    """

    names: Sequence[str]
    """Of what makes a place."""
    parameters: Sequence[float]
    """Logarithms."""
    evaluations: int
    """How many there were."""


class FreezeThaw:
    """Chooses who trains next.

    A Gaussian process tells what every evaluation to come will measure, and how sure that is, from
    all that were made: of this trial and of others, at whatever part of whatever schedule they are.
    Who trains next is the candidate of which some evaluation is expected to improve on the lowest
    loss by most for what it costs to get there (Jones et al. 1998, expected improvement, for each
    unit of cost, as Snoek et al. 2012, https://arxiv.org/abs/1206.2944). Single evaluations are
    noisy, so the lowest loss is that of the model, and one bad evaluation abandons nobody.
    """

    def __init__(self, fit: Fit | None = None) -> None:
        """fit: the last one of an earlier process."""
        self._model = CurveModel(fit)

    @property
    def fit(self) -> Fit | None:
        """The last one; None: there was none yet."""
        return self._model.fit

    def choose(self, candidates: Sequence[Candidate]) -> Choice | None:
        """Of those that wait; None: nobody does."""
        waiting = [number for number, each in enumerate(candidates) if each.waits]
        if not waiting:
            return None
        new = [number for number in waiting if not candidates[number].losses]
        if _is_measured(candidates) and (_begun(candidates) >= STARTUP or not new):
            return self._best(candidates, waiting)
        number = (new or waiting)[0]
        evaluation = len(candidates[number].losses)
        cost = _cost(candidates[number], evaluation)
        return Choice(number=number, gain=None, cost=cost, evaluation=evaluation)

    def _best(self, candidates: Sequence[Candidate], waiting: Sequence[int]) -> Choice:
        lowest = self._model.learn(candidates)
        to_come = [
            (number, k)
            for number in waiting
            for k in range(len(candidates[number].losses), len(candidates[number].samples))
        ]
        mean, deviation = self._model.predict(candidates, to_come)
        gains = expected_improvement(lowest, mean, deviation)
        costs = np.array([_cost(candidates[number], k) for number, k in to_come])
        best = int(np.argmax(gains / costs))
        number, k = to_come[best]
        return Choice(
            number=number,
            gain=float(self._model.in_loss(gains[best])),
            cost=float(costs[best]),
            evaluation=k,
        )


def _lowest(candidate: Candidate) -> float:
    return min((loss for loss in candidate.losses if math.isfinite(loss)), default=math.inf)


def _is_measured(candidates: Sequence[Candidate]) -> bool:
    return any(math.isfinite(loss) for each in candidates for loss in each.losses)


def _begun(candidates: Sequence[Candidate]) -> int:
    return sum(bool(each.losses) or each.running for each in candidates)


def _cost(candidate: Candidate, evaluation: int) -> float:
    seen = candidate.samples[len(candidate.losses) - 1] if candidate.losses else 0
    return (candidate.samples[evaluation] - seen) * candidate.cost


def expected_improvement(lowest: float, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E[max(0, lowest - y)] of normal y [N] (Jones et al. 1998)."""
    sure = np.maximum(deviation, 1e-12)
    by = (lowest - mean) / sure
    return sure * (by * ndtr(by) + np.exp(-0.5 * by**2) / math.sqrt(2 * math.pi))


class CurveModel:
    """A Gaussian process over evaluations, of place x, time t and trial:

        k = place Kx + time Kt + both Kx Kt + [same trial] (trial + curve Kt) + [same] noise

    with squared-exponential Kx over the hyperparameters and Kt over the logarithm of samples seen
    and how far the rate has come down, each with a length of its own. Its parameters are those of
    the highest posterior density. Losses are told to it in their logarithm; those far above the
    median, and of trials that diverged, as high as that goes: how bad a bad trial is tells nothing.
    """

    def __init__(self, fit: Fit | None = None) -> None:
        self._names = [] if fit is None else list(fit.names)
        self._parameters = None if fit is None else np.array(fit.parameters)
        self.fit = fit

    def learn(self, candidates: Sequence[Candidate]) -> float:
        """Take in all evaluations; returns the lowest loss so far, as the model has it and in its
        units. Trials that run are taken to come to what is expected of them, so that the next
        choice is another (a "believer", Ginsbourger et al. 2010).
        """
        names = sorted({name for each in candidates for name in each.place})
        if names != self._names:
            self._names, self._parameters = names, None
            self.fit = None
        last = max(each.samples[-1] for each in candidates)
        first = min(each.samples[0] for each in candidates)
        self._scale = math.log(first), max(math.log(last / first), 1e-9)
        points = self._chosen(candidates)
        self._fit(candidates, points, self._targets(candidates, points))
        mean, _ = self.predict(candidates, points)
        lowest = float(mean.min())
        pending = [
            (number, len(each.losses))
            for number, each in enumerate(candidates)
            if each.running and len(each.losses) < len(each.samples)
        ]
        if pending:
            believed, _ = self.predict(candidates, pending)
            targets = np.concatenate([self._y, believed])
            self._condition(self._inputs(candidates, [*points, *pending]), targets)
        return lowest

    def predict(
        self, candidates: Sequence[Candidate], points: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, in the model's units and without the noise of measuring, of
        these evaluations of these candidates [N].
        """
        at = self._inputs(candidates, points)
        covariance, variance = self._kernel(at, self._x)
        mean = covariance @ self._weights
        explained = np.einsum("ij,ji->i", covariance, cho_solve(self._factor, covariance.T))
        return mean, np.sqrt(np.maximum(variance - explained, 0.0))

    def in_loss(self, gain: float) -> float:
        """A small difference in the model's units, as one of losses about the lowest."""
        return gain * self._spread * self._lowest

    def _chosen(self, candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
        """The evaluations that the model is given; where there are very many, of each curve the
        last ones, and where there are very many curves, not of all of them.
        """
        made = [len(each.losses) for each in candidates]
        each_most = max(made)
        while each_most > 1 and sum(min(each_most, each) for each in made) > MOST_POINTS:
            each_most -= 1
        return [
            (number, k)
            for number in self._told(candidates)
            for k in range(max(0, made[number] - each_most), made[number])
        ]

    def _told(self, candidates: Sequence[Candidate]) -> list[int]:
        """Whose evaluations it is given: of very many the best, and as many again of the others,
        good and bad alike, or it would take their places for unknown.
        """
        ranked = [number for number, each in enumerate(candidates) if each.losses]
        if len(ranked) <= MOST_POINTS:
            return ranked
        ranked.sort(key=lambda number: _lowest(candidates[number]))
        half = MOST_POINTS // 2
        best, others = ranked[:half], ranked[half:]
        spread = {round(at) for at in np.linspace(0, len(others) - 1, half)}
        return sorted([*best, *(others[at] for at in spread)])

    def _targets(
        self, candidates: Sequence[Candidate], points: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        losses = np.array([candidates[number].losses[k] for number, k in points], dtype=float)
        known = losses[np.isfinite(losses)]
        # where some are not above 0, as of a density, they are told as they are
        self._logs = bool((known > 0).all())
        y = np.full(len(losses), math.inf)
        y[np.isfinite(losses)] = np.log(known) if self._logs else known
        finite = y[np.isfinite(y)]
        middle, low = float(np.median(finite)), float(finite.min())
        y = np.minimum(y, middle + max(middle - low, 1e-9))
        self._centre, self._spread = float(y.mean()), max(float(y.std()), 1e-9)
        self._lowest = float(known.min()) if self._logs else 1.0
        return (y - self._centre) / self._spread

    def _inputs(
        self, candidates: Sequence[Candidate], points: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        """[N, 1 + D + 2]: trial, place, time. What a branch does not have stands in the middle."""
        first, width = self._scale
        places = np.array(
            [[each.place.get(name, 0.5) for name in self._names] for each in candidates]
        ).reshape(len(candidates), len(self._names))
        return np.array(
            [
                [
                    number,
                    *places[number],
                    (math.log(candidates[number].samples[k]) - first) / width,
                    candidates[number].annealed[k],
                ]
                for number, k in points
            ]
        ).reshape(len(points), len(self._names) + 3)

    def _fit(
        self,
        candidates: Sequence[Candidate],
        points: Sequence[tuple[int, int]],
        y: np.ndarray,
    ) -> None:
        x = self._inputs(candidates, points)
        if self.fit is None or len(y) >= REFIT * self.fit.evaluations:
            means, deviations = self._priors()
            start = means if self._parameters is None else self._parameters
            found = minimize(
                _negative_log_posterior,
                start,
                args=(_differences(x, x), _same(x, x), y, means, deviations),
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(means - 4 * deviations, means + 4 * deviations, strict=True)),
                options={"maxiter": ITERATIONS},
            )
            self._parameters = found.x
            self.fit = Fit(names=self._names, parameters=found.x.tolist(), evaluations=len(y))
        self._condition(x, y)

    def _priors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of lengths of places and of times, and of variances."""
        count = len(self._names)
        of = [
            *[(LENGTH[0] + 0.5 * math.log(max(1, count)), LENGTH[1])] * count,
            *[LENGTH] * 2,
            *VARIANCES.values(),
        ]
        means, deviations = np.array(of).T
        return means, deviations

    def _condition(self, x: np.ndarray, y: np.ndarray) -> None:
        assert self._parameters is not None
        self._x, self._y = x, y
        covariance, _ = self._kernel(x, x)
        noise = math.exp(self._parameters[-1]) + JITTER
        self._factor = cho_factor(covariance + noise * np.eye(len(y)), lower=True)
        self._weights = cho_solve(self._factor, y)

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
        """Covariances without noise [N, M], and the variance of any one point."""
        assert self._parameters is not None
        of_place, of_time = _correlations(self._parameters, _differences(a, b))
        place, time, both, trial, curve, _ = np.exp(self._parameters[-6:])
        found = place * of_place + (time + both * of_place) * of_time
        found += _same(a, b) * (trial + curve * of_time)
        return found, place + time + both + trial + curve


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared, of places and times [D + 2, N, M]."""
    return (a.T[1:, :, None] - b.T[1:, None, :]) ** 2


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :1] == b[:, 0]


def _correlations(parameters: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of places and of times [N, M]."""
    scaled = np.exp(-2 * parameters[: len(differences)])
    of_place = np.exp(-0.5 * np.tensordot(scaled[:-2], differences[:-2], 1))
    of_time = np.exp(-0.5 * np.tensordot(scaled[-2:], differences[-2:], 1))
    return of_place, of_time


def _negative_log_posterior(
    parameters: np.ndarray,
    differences: np.ndarray,
    same: np.ndarray,
    y: np.ndarray,
    means: np.ndarray,
    deviations: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Up to a constant, and its gradient."""
    scaled = np.exp(-2 * parameters[: len(differences)])
    of_place, of_time = _correlations(parameters, differences)
    place, time, both, trial, curve, noise = np.exp(parameters[-6:])
    by_time, by_place = time + both * of_place, place + both * of_time
    covariance = place * of_place + by_time * of_time + same * (trial + curve * of_time)
    covariance[np.diag_indices_from(covariance)] += noise + JITTER
    try:
        factor = cho_factor(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e12, np.zeros_like(parameters)
    weights = cho_solve(factor, y)
    inverse = cho_solve(factor, np.eye(len(y)))
    off = (parameters - means) / deviations
    value = 0.5 * y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
    outer = 0.5 * (inverse - np.outer(weights, weights))  # the gradient by the covariance
    gradient = np.concatenate(
        [
            np.tensordot(differences[:-2], outer * by_place * of_place, 2) * scaled[:-2],
            np.tensordot(differences[-2:], outer * (by_time + same * curve) * of_time, 2)
            * scaled[-2:],
            [
                place * (outer * of_place).sum(),
                time * (outer * of_time).sum(),
                both * (outer * of_place * of_time).sum(),
                trial * outer[same].sum(),
                curve * (outer * of_time)[same].sum(),
                noise * np.trace(outer),
            ],
        ]
    )
    return float(value), gradient + off / deviations
