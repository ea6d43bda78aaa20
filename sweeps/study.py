"""A Tune Searcher over Optuna's ask and tell, with persistent storage.

Ray's own OptunaSearch tells the last value of a trial, tells stopped trials COMPLETE, and leaves trials RUNNING after a NaN
or a restore. Here a trial is told the best validation loss of its evaluations that are not overfit; COMPLETE is a trial
that trained to its end, PRUNED one that was stopped, FAIL one that failed.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search_spaces import Choice, Domain, Int, LogUniform, Space, Uniform
from sweeps.config import ConfigError, SearchConfig, SweepConfig
from sweeps.ledger import UNFINISHED, Ledger
from sweeps.selection import best_point, finalists
from trainables.errors import InputError

STUDY = "study.journal"  # the study's file in the sweep's folder
MAX_REDRAWS = 100  # draws in a row that are duplicates or invalid before the space counts as exhausted


def open_study(path: Path, name: str, config: SearchConfig, seed: int, *, read_only: bool = False) -> optuna.Study:
    """The study in the journal at `path`; made if it is not there. A journal file is safe on network file systems too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not read_only:
        # a killed sweep can leave its lock; only one sweep writes here
        for left in path.parent.glob(f"{path.name}*.lock*"):
            left.unlink()
    storage = JournalStorage(JournalFileBackend(str(path)))
    name = next(iter(optuna.get_all_study_names(storage)), name)  # that of a folder which was renamed since
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
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.startup_trials, group=True)


class _Grid(optuna.samplers.BruteForceSampler):
    """Leaves the end of the search to the searcher: the original calls `study.stop()`, which only `study.optimize` allows."""

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        pass


def plain(value: Any) -> Any:
    """A choice as Optuna stores it: lists become JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


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
        self._known: dict[str, str] = {}  # parameters -> our id
        self._exhausted = False
        self._waiting = self._reconcile()

    def _reconcile(self) -> list[str]:
        """Bring study and ledger together after a start or a kill; returns the trials that have to go on."""
        for frozen in self._study.get_trials(deepcopy=False):
            trial = frozen.user_attrs.get("trial")
            if trial is not None and "duplicate_of" not in frozen.user_attrs:
                self._numbers[trial] = frozen.number
        for curve in self._ledger.curves():
            self._known[_signature(self._config.complete(curve.params))] = curve.id
            if curve.status != "running":
                self._tell(curve.id)
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get("trial") not in {curve.id for curve in self._ledger.curves()}:
                self._study.tell(
                    frozen.number, state=TrialState.FAIL
                )  # killed between being asked and being written down
        # the first trial is what one would train without a search
        for initial in self._config.search.initial or [self._space.middle()]:
            encoded = {name: plain(value) for name, value in self._space.encode(initial).items()}
            self._study.enqueue_trial(encoded, skip_if_exists=True)
        return self._ledger.unfinished()

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
                self._reasons.get(trial, f"behind the others at {result.get('samples_seen')} samples (ASHA)"),
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
        invalid = ""
        for _ in range(MAX_REDRAWS):
            asked = self._study.ask()
            params = self._space.sample(suggest_with(asked))
            try:
                self._config.hyperparameters(params)
            except InputError as error:
                invalid = str(error)
                asked.set_user_attr("invalid", invalid)
                self._study.tell(asked, state=TrialState.FAIL)
                continue
            signature = _signature(self._config.complete(params))
            if signature in self._known:
                self._tell_duplicate(asked, self._known[signature])
                if self._config.search.sampler == "grid":  # it repeats itself only when nothing is left
                    self._exhausted = True
                    self._say(f"The grid is exhausted: the sweep ends with {len(self._ledger.curves())} trials.")
                    return None
                continue
            trial = f"t{len(self._ledger.curves()) + 1:04d}"
            asked.set_user_attr("trial", trial)
            self._known[signature] = trial
            self._numbers[trial] = asked.number
            frozen = self._study.get_trials(deepcopy=False)[asked.number]
            first = not self._ledger.curves() and "fixed_params" in frozen.system_attrs
            self._ledger.begin(trial, params, default=first)
            return trial
        if invalid and not self._ledger.curves():
            raise ConfigError(
                f"search.space: {MAX_REDRAWS} configurations in a row are invalid, the last because: {invalid}"
            )
        self._exhausted = True
        self._say(
            f"No new configuration in {MAX_REDRAWS} draws: the space is exhausted, the sweep ends with {len(self._ledger.curves())} trials."
        )
        return None

    def _tell_duplicate(self, asked: optuna.Trial, twin: str) -> None:
        """A configuration that was tried is not run again: the study learns the value of its twin, if there is one yet."""
        asked.set_user_attr("duplicate_of", twin)
        point = best_point(self._ledger.curve(twin), self._config.selection)
        if point is not None and self._ledger.curve(twin).status != "running":
            self._study.tell(asked, point.val_loss)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _tell(self, trial: str) -> None:
        """Close the Optuna trial: its best loss that is not overfit, and its state. Nothing happens if it is closed already."""
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
        if curve.status == "failed" or not (curve.points or (curve.reason or "").startswith("diverged")):
            self._study.tell(number, state=TrialState.FAIL)
            return
        point = best_point(curve, self._config.selection)
        if point is None:
            # nothing of it may win: pruned without a value is the worst there is for TPE, which ignores FAIL
            self._study.tell(number, state=TrialState.PRUNED)
            return
        reports = [(p.samples_seen, p.val_loss) for p in curve.points if p.val_loss is not None]
        if curve.status == "pruned":
            # Optuna takes the last reported value of a pruned trial for its value: the best goes last
            reports.append((curve.points[-1].samples_seen + 1, point.val_loss))
        for samples_seen, loss in reports:
            if samples_seen not in frozen.intermediate_values:  # a kill may have left some of them behind
                handle.report(loss, samples_seen)
        if curve.status == "complete":
            self._study.tell(number, point.val_loss)
        else:
            self._study.tell(number, state=TrialState.PRUNED)


def _signature(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=list)
