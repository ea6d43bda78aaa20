"""Who trains next under `search.scheduler: freeze_thaw`: asked of the ledger, told in trials.

A trial that pauses is one that ends for Tune and not for the sweep: it waits as those of an
interrupted sweep do, and goes on as they do, from its last checkpoint. So all that is known stands
in the ledger, and what chooses is asked anew at any time.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ray.tune.schedulers import TrialScheduler

from search_spaces import Domain, Space, SpaceError
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.search.freeze_thaw import Candidate, Choice, Fit, FreezeThaw, place
from sweeps.search.scheduler import InOrder
from sweeps.selection.curves import Curve
from sweeps.selection.measure import metric_words
from trainables.engine.schedule import annealed, evaluated_at
from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters
from trainables.runtime.tune_dicts import TrialConfig, TrialResult

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

FIT = "freeze_thaw.json"  # in the sweep's folder: the model's last fit
POOL = 64  # configurations that are new, of which one is chosen
# of which none is new and valid before the space is gone through, or counts as exhausted
BLIND_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class GoesOn:
    """One that waits trains to its next evaluation."""

    trial: str


@dataclass(frozen=True, kw_only=True)
class Begins:
    """A new one does."""

    point: Mapping[str, object] | None
    """What `Space.encode` would give of it; None: whatever the search draws first."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """More training is not worth its time."""

    gain: float
    """By which as much training again as so far is expected to improve the best."""
    patience: float
    measure: str

    def words(self, again: str) -> str:
        """again: that training."""
        return (
            f"{again} is expected to improve the best {self.measure} by {self.gain:.2g}, and"
            f" search.patience is {self.patience:g}"
        )


Chosen = GoesOn | Begins | Over | None
"""None: nobody now; others still train."""


class Chooser:
    """Freeze and thaw over a sweep."""

    def __init__(
        self, *, config: SweepConfig, space: Space, ledger: Ledger, rows: Mapping[str, int]
    ) -> None:
        """rows: of train, for each base model."""
        self._config, self._space, self._ledger, self._rows = config, space, ledger, rows
        self._fit = self._written_fit()
        self._policy = FreezeThaw(self._fit)
        self._drawn = self._draws()
        self._pool: dict[str, tuple[Mapping[str, object], Candidate]] = {}
        self._last: tuple[object, Chosen] | None = None

    def follow(self, config: SweepConfig) -> None:
        """The sweep goes on as `config`, which has other bounds of the search."""
        self._config, self._last = config, None

    def choose(
        self, waiting: Collection[str], running: Collection[str], *, may_draw: bool
    ) -> Chosen:
        """Who takes a place that is free. waiting: trials that could go on; running: those that
        train; may_draw: whether a new one may begin.
        """
        curves = [curve for curve in self._ledger.curves() if curve.finalist_of is None]
        told = sum(len(curve.points) for curve in curves)
        asked = told, tuple(sorted(waiting)), tuple(sorted(running)), may_draw
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._choose(curves, waiting, running, may_draw)
        return self._last[1]

    def _choose(
        self,
        curves: Sequence[Curve],
        waiting: Collection[str],
        running: Collection[str],
        may_draw: bool,
    ) -> Chosen:
        known = self._known(curves, running)
        for trial in waiting:
            if self._needs_no_choice(trial, known.get(trial)):
                return GoesOn(trial=trial)
        trials, new = list(known), self._new(curves) if may_draw else []
        choice = self._policy.choose([*known.values(), *(candidate for _, candidate in new)])
        self._write_fit()
        if choice is None:
            # the search itself goes through a space of which draws find nothing new
            return Begins(point=None) if may_draw and not running else None
        if (over := self._over(choice, [*known.values()])) is not None:
            return None if running else over
        if choice.number < len(trials):
            return GoesOn(trial=trials[choice.number])
        point, _ = new[choice.number - len(trials)]
        return Begins(point=None if choice.gain is None else point)

    def _known(self, curves: Sequence[Curve], running: Collection[str]) -> dict[str, Candidate]:
        found = {curve.id: self._candidate(curve, curve.id in running) for curve in curves}
        return {trial: each for trial, each in found.items() if each is not None}

    def _needs_no_choice(self, trial: str, candidate: Candidate | None) -> bool:
        """It is judged by what it reaches, or the model says nothing of it: it has not been
        evaluated, or lies outside the space.
        """
        if candidate is None or not candidate.losses or not candidate.waits:
            return True
        return self._ledger.is_compared(trial)

    def _over(self, choice: Choice, known: Sequence[Candidate]) -> Over | None:
        """None: more training pays."""
        if choice.gain is None:
            return None
        spent = sum(each.samples[len(each.losses) - 1] * each.cost for each in known if each.losses)
        gain = choice.gain * spent / choice.cost
        patience = self._config.search.patience
        if gain >= patience:
            return None
        measure = metric_words(self._config.searching.measure.name)
        return Over(gain=gain, patience=patience, measure=measure)

    # --- candidates ---

    def _candidate(self, curve: Curve, is_running: bool) -> Candidate | None:
        """None of one that lies outside the space, or has only its average to come."""
        try:
            at = place(self._space, curve.params)
            hp = self._config.hyperparameters(curve.params)
        except (InputError, SpaceError, KeyError):
            return None
        measure = self._config.searching.measure
        values = [measure.of(point) for point in curve.trained]
        losses = [float("inf") if value is None else measure.signed(value) for value in values]
        return self._made(
            hp, at, losses=losses, running=is_running, ended=curve.status != "running"
        )

    def _made(
        self,
        hp: Hyperparameters,
        at: Mapping[str, float],
        *,
        losses: Sequence[float] = (),
        running: bool = False,
        ended: bool = False,
    ) -> Candidate:
        rows, every = self._rows[hp.model], self._config.train.evaluate_every
        samples = evaluated_at(rows, hp, every if isinstance(every, int) else rows)
        return Candidate(
            place=at,
            samples=samples,
            annealed=[annealed(hp, seen / samples[-1]) for seen in samples],
            losses=losses,
            running=running,
            ended=ended,
        )

    def _new(self, curves: Sequence[Curve]) -> list[tuple[Mapping[str, object], Candidate]]:
        """Draws of the space that no trial has: the same ones until they are taken."""
        taken = {repr(self._config.hyperparameters(curve.params)) for curve in curves}
        for key in taken & self._pool.keys():
            del self._pool[key]
        misses = 0
        while len(self._pool) < POOL and misses < BLIND_DRAWS:
            encoded, params = next(self._drawn)
            try:
                hp = self._config.hyperparameters(params)
            except InputError:
                misses += 1
                continue
            if repr(hp) in taken or repr(hp) in self._pool:
                misses += 1
                continue
            misses = 0
            self._pool[repr(hp)] = encoded, self._made(hp, place(self._space, params))
        return list(self._pool.values())

    def _draws(self) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
        """Of the whole space, each from the seed and its number: as the study has it, and as a
        trial has it.
        """
        for number in itertools.count():
            generator = random.Random(f"{self._config.seed} {number}")
            drawn: dict[str, object] = {}

            def suggest(key: str, domain: Domain) -> object:
                return drawn.setdefault(key, domain.draw(generator))  # noqa: B023 - used at once

            yield drawn, dict(self._space.sample(suggest))

    # --- the fit ---

    def _written_fit(self) -> Fit | None:
        if not self._ledger.store.exists(FIT):
            return None
        return Fit(**self._ledger.store.read_json(FIT))

    def _write_fit(self) -> None:
        fit = self._policy.fit
        if fit is not None and fit is not self._fit:
            self._ledger.store.write_json(FIT, asdict(fit))
            self._fit = fit


class FreezeThawScheduler(InOrder):
    """Tune's side of it: after an evaluation a trial goes on, or ends for Tune."""

    def __init__(self, goes_on: Callable[[str], bool]) -> None:
        """goes_on: of Tune's id of a trial that has just been evaluated."""
        super().__init__()
        self._goes_on = goes_on

    def on_trial_result(
        self, tune_controller: "TuneController", trial: "Trial", result: dict[str, object]
    ) -> str:
        # the default and the finalists are judged by what they reach
        compared = TrialConfig.from_tune(trial.config).compared
        if compared or TrialResult.from_tune(result).evaluation is None:
            return TrialScheduler.CONTINUE
        goes_on = self._goes_on(trial.trial_id)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
