"""A Tune Searcher over Optuna's ask and tell, with persistent storage.

Ray's own OptunaSearch tells the last value of a trial, tells stopped trials COMPLETE, and leaves trials RUNNING after a NaN
or a restore. Here a trial is told the best validation loss of its evaluations that may win, see `outcome`.
"""

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search_spaces import Choice, Domain, Int, LogUniform, Space, SpaceError, Uniform
from sweeps.config import ConfigError, SearchConfig, SweepConfig
from sweeps.ledger import UNFINISHED, Ledger
from sweeps.selection import Curve, SelectionConfig, best_point, finalists
from trainables.errors import InputError

STUDY = "study.journal"  # the study's file in the sweep's folder
BEHIND = "behind the others"  # how the reason of a trial begins that ASHA stopped
MAX_REDRAWS = 20  # suggestions in a row that are known or invalid before one is drawn blindly
BLIND_DRAWS = 1000  # of which none is new and valid before the space is gone through, or counts as exhausted
MAX_SIZE = 100_000  # of a space that is gone through


def open_study(path: Path, name: str, config: SearchConfig, seed: int, *, read_only: bool = False) -> optuna.Study:
    """The study in the journal at `path`; made if it is not there. A journal file is safe on network file systems too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not read_only:
        # a killed sweep can leave its lock; only one sweep writes here
        for left in path.parent.glob(f"{path.name}*.lock*"):
            left.unlink()
    storage = JournalStorage(JournalFileBackend(str(path)))
    # the folder may have been renamed since; the last is that of the space as it is now
    name = next(reversed(optuna.get_all_study_names(storage)), name)
    if read_only:
        return optuna.load_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
    # a sampler with the same seed would repeat its first suggestions after a restart
    study.sampler = make_sampler(config, seed + len(study.trials))
    return study


def make_sampler(config: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "grid":
        with warnings.catch_warnings():  # "BruteForceSampler is experimental"
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _Grid(seed=seed)
    with warnings.catch_warnings():  # "group is experimental": it models each branch of the space by itself
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.random_trials(), group=True)


class _Grid(optuna.samplers.BruteForceSampler):
    """Leaves the end of the search to the searcher: the original calls `study.stop()`, which only `study.optimize` allows."""

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        pass


def plain(value: Any) -> Any:
    """A choice as Optuna stores it: lists become JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case LogUniform(low=low, high=high):
            return FloatDistribution(low, high, log=True)
        case Uniform(low=low, high=high):
            return FloatDistribution(low, high)
        case Int(low=low, high=high, log=log, step=step):
            return IntDistribution(low, high, log=log, step=step)
        case Choice(values=values):
            return CategoricalDistribution([plain(value) for value in values])


def suggest_with(trial: optuna.Trial) -> Callable[[str, Domain], Any]:
    """How a search space asks this Optuna trial for a value."""

    def suggest(name: str, domain: Domain) -> Any:
        match domain:
            case LogUniform(low=low, high=high):
                return trial.suggest_float(name, low, high, log=True)
            case Uniform(low=low, high=high):
                return trial.suggest_float(name, low, high)
            case Int(low=low, high=high, log=log, step=step):
                return trial.suggest_int(name, low, high, log=log, step=step)
            case Choice(values=values):
                by_text = {plain(value): value for value in values}
                return by_text[trial.suggest_categorical(name, list(by_text))]

    return suggest


# --- a space that has changed ---


def follow_space(study: optuna.Study, config: SweepConfig, ledger: Ledger, say: Callable[[str], None]) -> optuna.Study:
    """`study`, or where the space has changed since, a new one in its journal that knows the trials which fit the new space.

    Optuna refuses other choices for a parameter, and models no parameter whose ranges differ between trials.
    """
    space, places, outside = config.space(), {}, []
    now = {key: distribution(domain) for key, domain in space.domains.items()}
    curves = {curve.id: curve for curve in ledger.curves() if curve.finalist_of is None}
    for trial, curve in curves.items():
        try:
            places[trial] = _place(config, space, curve)
        except (SpaceError, InputError) as error:
            outside.append(f"{trial} ({error})")
    trials = study.get_trials(deepcopy=False)
    own = {t.user_attrs["trial"]: t for t in trials if "trial" in t.user_attrs and "duplicate_of" not in t.user_attrs}
    known = {trial: set(of.params) for trial, of in own.items() if trial in curves}
    fits = all(now.get(key) == of for trial in trials for key, of in trial.distributions.items())
    if fits and known == {trial: set(place) for trial, place in places.items()}:
        return study
    for trial in trials:
        if trial.state == TrialState.RUNNING:  # its place is in the new study
            study.tell(trial.number, state=TrialState.FAIL)
    names = optuna.get_all_study_names(study._storage)
    fresh = optuna.create_study(
        study_name=f"{names[0]}-{len(names) + 1}", storage=study._storage, direction="minimize", sampler=study.sampler
    )
    for trial, place in places.items():
        fresh.add_trial(_frozen(curves[trial], place, {key: now[key] for key in place}, config.selection))
    more = ", ..." if len(outside) > 5 else ""
    say(
        f"The search space has changed: {len(places)} of {len(curves)} trials fit it and stay known to the search"
        f"{'; outside it: ' if outside else ''}{', '.join(outside[:5])}{more}"
    )
    return fresh


def _place(config: SweepConfig, space: Space, curve: Curve) -> dict[str, Any]:
    """Where in `space` the configuration of a trial lies, as Optuna stores it; SpaceError or InputError where it does not."""
    hp = config.hyperparameters(curve.params)
    values = {**vars(hp), **vars(hp.options), **config.complete(curve.params)}  # the last as they were written
    encoded: dict[str, Any] = {}

    def suggest(key: str, domain: Domain) -> Any:
        name = key.rsplit(".", 1)[-1]
        value = values.get(name)
        if isinstance(domain, Int) and isinstance(value, float) and value.is_integer():
            value = int(value)  # a default that is a whole number
        try:
            found = domain.match(value)
        except SpaceError as error:
            raise SpaceError(f"{name}: {error}") from None
        encoded[key] = plain(found)
        return found

    there = config.hyperparameters(space.sample(suggest))
    for name, value in {**vars(there), **vars(there.options)}.items():
        if name != "options" and value != {**vars(hp), **vars(hp.options)}[name]:
            raise SpaceError(f"{name}: got {values.get(name)!r}, and there it is {value!r}")
    return encoded


def _frozen(
    curve: Curve, params: dict[str, Any], distributions: dict[str, BaseDistribution], selection: SelectionConfig
) -> FrozenTrial:
    """A trial of the ledger as Optuna keeps it."""
    attributes = {"trial": curve.id} | ({"reason": curve.reason} if curve.reason else {})
    if curve.status == "running":
        state, value, reports = TrialState.RUNNING, None, {}
    else:
        state, value, reports = outcome(curve, selection)
    return optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=reports,
    )


# --- what became of a trial ---


def outcome(curve: Curve, selection: SelectionConfig) -> tuple[TrialState, float | None, dict[int, float]]:
    """What Optuna is told of a trial that has ended: state, value, and losses by samples seen.

    TPE takes the best tenth of the COMPLETE trials by value for good; only where there are too few does it turn to PRUNED ones,
    those that came furthest first. It ignores FAIL. So whatever has a loss that may win is COMPLETE with that loss,
    however it ended: overfit or diverged afterwards, or cut off by the time budget. PRUNED is a trial that was behind
    its like, which says that its configuration is worse and not what it would have reached; and, without a value, the
    worst there is: a trial of which nothing may win.
    """
    if curve.status == "failed" or not (curve.points or (curve.reason or "").startswith("diverged")):
        return TrialState.FAIL, None, {}
    point = best_point(curve, selection)
    if point is None:
        return TrialState.PRUNED, None, {}
    reports = {p.samples_seen: p.val_loss for p in curve.points if p.val_loss is not None}
    if curve.status == "complete" or not (curve.reason or "").startswith(BEHIND):
        return TrialState.COMPLETE, point.val_loss, reports
    # Optuna takes the last reported value of a pruned trial for its value: the best goes last
    return TrialState.PRUNED, point.val_loss, {**reports, curve.points[-1].samples_seen + 1: point.val_loss}


class StudySearcher(Searcher):
    """Asks Optuna for trials and tells it what became of them. The ledger is the truth; the study can lag behind it by a kill."""

    def __init__(
        self,
        *,
        config: SweepConfig,
        space: Space,
        study: optuna.Study,
        ledger: Ledger,
        order: Mapping[str, Any],
        stopped: Callable[[], str | None],
        room: Callable[[], bool],
        on_start: Callable[[str, dict[str, Any], bool], None],
        on_end: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """`order` is what every trial's config carries beside `id` and `params`; `stopped` tells why no trial may start any more,
        `room` whether another could train at once: until then none is drawn, so that it is drawn knowing more.
        """
        super().__init__(metric="val_loss", mode="min")
        self._config = config
        self._space = space
        self._study = study
        self._ledger = ledger
        self._order = dict(order)
        self._stopped = stopped
        self._room = room
        self._on_start, self._on_end, self._say = on_start, on_end, say
        self._ids: dict[str, str] = {}  # Tune's trial id -> ours
        self._numbers: dict[str, int] = {}  # our id -> number in the study
        self._reasons: dict[str, str] = {}  # why the platform stopped a trial early
        self._known: dict[str, str] = {}  # hyperparameters -> our id
        self._invalid = ""  # why the last configuration that cannot be trained cannot be
        self._exhausted = False
        self._waiting = self._reconcile()

    def _reconcile(self) -> list[str]:
        """Bring study and ledger together after a start or a kill; returns the trials that have to go on."""
        for frozen in self._study.get_trials(deepcopy=False):
            trial = frozen.user_attrs.get("trial")
            if trial is not None and "duplicate_of" not in frozen.user_attrs:
                self._numbers[trial] = frozen.number
        for curve in self._ledger.curves():
            self._known[repr(self._config.hyperparameters(curve.params))] = curve.id
            if curve.status != "running":
                self._tell(curve.id)
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get("trial") not in {curve.id for curve in self._ledger.curves()}:
                self._study.tell(
                    frozen.number, state=TrialState.FAIL
                )  # killed between being asked and being written down
        # the first trial is what one would train without a search
        middle = [] if self._ledger.curves() else [self._space.middle()]
        for initial in self._config.search.initial or middle:
            encoded = {name: plain(value) for name, value in self._space.encode(initial).items()}
            self._study.enqueue_trial(encoded, skip_if_exists=True)
        return [trial for trial in self._ledger.unfinished() if not self._drop(trial)]

    def _drop(self, trial: str) -> bool:
        """End an unfinished trial that has shown nothing yet and lies outside the space, which has changed since it was drawn."""
        curve = self._ledger.curve(trial)
        if trial in self._numbers or curve.points or curve.finalist_of is not None:
            return False
        self._ledger.finish(trial, "pruned", "the search space has changed, and it lies outside")
        return True

    # --- Tune's interface ---

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._stopped() is not None:
            return Searcher.FINISHED
        if not self._room():
            return None
        resumed = bool(self._waiting)
        if resumed:
            trial = self._waiting.pop(0)
        elif (drawn := self._draw_unless_done()) is not None:
            trial = drawn
        elif self._config.selection.finalists.top and any(
            self._ledger.curve(running).finalist_of is None for running in self._ids.values()
        ):
            return None  # who the finalists are shows when the last trial of the search has ended
        elif (final := self._next_finalist()) is not None:
            trial = final
        else:
            return Searcher.FINISHED
        self._ids[trial_id] = trial
        curve = self._ledger.curve(trial)
        self._on_start(trial, dict(curve.params), resumed)
        params = self._config.complete(curve.params)
        return {**self._order, "id": trial, "params": params, "compared": self._ledger.is_compared(trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: intermediate values are told with the end of the trial, from the ledger."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._ids.pop(trial_id, None)
        if trial is None or self._ledger.curve(trial).status != "running":
            return
        result = result or {}
        ended, reason = result.get("ended"), result.get("reason")
        if (ended == "stopped" and reason in UNFINISHED) or (
            not error and not result and self._stopped() in UNFINISHED
        ):
            return  # `resume` goes on with it
        if error:
            self._ledger.finish(trial, "failed", "its Tune actor died again and again")
        elif ended == "finished":
            self._ledger.finish(trial, "complete", None)
        elif ended == "failed":
            log = result.get("log")
            self._ledger.finish(trial, "failed", f"{reason} (log: {log})" if log else reason)
        elif ended == "diverged":
            self._ledger.finish(trial, "pruned", f"diverged: {reason}")
        elif ended == "stopped":
            self._ledger.finish(trial, "pruned", reason)
        else:
            self._ledger.finish(
                trial,
                "pruned",
                self._reasons.get(trial, f"{BEHIND} at {result.get('samples_seen')} samples (ASHA)"),
            )
        self._tell(trial)
        self._on_end(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: study and ledger are on disk after every call."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()  # Tune pickles its Tuner to restore it; a sweep goes on from its ledger instead

    # --- inside ---

    def stop_reason(self, trial_id: str, reason: str) -> None:
        """Remember why the platform stops the Tune trial `trial_id`."""
        self._reasons[self._ids[trial_id]] = reason

    def _next_finalist(self) -> str | None:
        """A configuration of the best with a seed that it was not trained with; None when all have been."""
        curves = self._ledger.curves()
        for first in finalists(curves, self._config.selection):
            params = dict(self._ledger.curve(first).params)
            seed = self._config.complete(params)["seed"]
            known = {self._config.complete(c.params)["seed"] for c in curves if first in (c.id, c.finalist_of)}
            for number in range(1, self._config.selection.finalists.seeds + 1):
                new = (seed + number) % 2**32
                if new not in known:
                    trial = f"t{len(curves) + 1:04d}"
                    self._ledger.begin(trial, {**params, "seed": new}, finalist_of=first)
                    return trial
        return None

    def _draw_unless_done(self) -> str | None:
        left = self._ledger.drawn() < self._config.search.trials and not self._exhausted
        return self._draw() if left else None

    def _draw(self) -> str | None:
        """The trial of a new configuration that is valid and was not tried before; None when the space has no more."""
        # the grid repeats itself only when nothing is left that it could tell apart
        for _ in range(1 if self._config.search.sampler == "grid" else MAX_REDRAWS):
            if trial := self._begin(self._study.ask()):
                return trial
        if untried := self._untried():
            self._study.enqueue_trial({key: plain(value) for key, value in untried.items()})
            trial = self._begin(self._study.ask())
            assert trial is not None, "it was checked before"
            return trial
        if self._invalid and not self._ledger.curves():
            raise ConfigError(
                f"search.space: no valid configuration was found, the last is not because: {self._invalid}"
            )
        self._exhausted = True
        size = self._space.size()
        gone_through = size is not None and size <= MAX_SIZE
        words = (
            "Every configuration that can be trained has been tried"
            if gone_through
            else "No new configuration is found"
        )
        self._say(f"{words}: the sweep ends with {len(self._ledger.curves())} trials.")
        return None

    def _begin(self, asked: optuna.Trial) -> str | None:
        """The trial of what Optuna suggests; None, and Optuna is told, where that is invalid or was tried before."""
        try:
            params = self._space.sample(suggest_with(asked))
            hyperparameters = repr(self._config.hyperparameters(params))
        except (InputError, SpaceError) as error:
            self._invalid = str(error)
            asked.set_user_attr("invalid", self._invalid)
            self._study.tell(asked, state=TrialState.FAIL)
            return None
        if hyperparameters in self._known:
            self._tell_duplicate(asked, self._known[hyperparameters])
            return None
        trial = f"t{len(self._ledger.curves()) + 1:04d}"
        asked.set_user_attr("trial", trial)
        self._known[hyperparameters] = trial
        self._numbers[trial] = asked.number
        frozen = self._study.get_trials(deepcopy=False)[asked.number]
        first = not self._ledger.curves() and "fixed_params" in frozen.system_attrs
        self._ledger.begin(trial, params, default=first)
        return trial

    def _untried(self) -> dict[str, Any] | None:
        """Some configuration that is valid and was not tried, as `Space.encode` gives it; None where none is found."""
        generator = random.Random(f"{self._config.seed} {len(self._study.get_trials(deepcopy=False))}")
        for _ in range(BLIND_DRAWS):
            drawn: dict[str, Any] = {}
            if self._is_new(lambda key, domain, drawn=drawn: drawn.setdefault(key, domain.draw(generator))):
                return drawn
        size = self._space.size()
        if size is None or size > MAX_SIZE:
            return None
        left = [each for each in self._space.configurations() if self._is_new(lambda key, _, each=each: each[key])]
        return generator.choice(left) if left else None

    def _is_new(self, choose: Callable[[str, Domain], Any]) -> bool:
        """Whether what `choose` makes of the space is valid and was not tried."""
        try:
            return repr(self._config.hyperparameters(self._space.sample(choose))) not in self._known
        except (InputError, SpaceError) as error:
            self._invalid = str(error)
            return False

    def _tell_duplicate(self, asked: optuna.Trial, twin: str) -> None:
        """A configuration that was tried is not run again: the study learns the value of its twin, if there is one yet."""
        asked.set_user_attr("duplicate_of", twin)
        point = best_point(self._ledger.curve(twin), self._config.selection)
        if point is not None and self._ledger.curve(twin).status != "running":
            self._study.tell(asked, point.val_loss)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _tell(self, trial: str) -> None:
        """Close the Optuna trial. Nothing happens if it is closed already."""
        number = self._numbers.get(trial)
        if number is None:
            return
        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        curve = self._ledger.curve(trial)
        handle = optuna.Trial(self._study, frozen._trial_id)
        if curve.reason:
            handle.set_user_attr("reason", curve.reason)
        state, value, reports = outcome(curve, self._config.selection)
        for samples_seen, loss in reports.items():
            if samples_seen not in frozen.intermediate_values:  # a kill may have left some of them behind
                handle.report(loss, samples_seen)
        if state == TrialState.COMPLETE:
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=state)
