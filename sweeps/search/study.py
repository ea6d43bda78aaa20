"""A Tune Searcher over Optuna's ask and tell, with persistent storage.

Ray's own OptunaSearch tells the last value of a trial, tells stopped trials COMPLETE, and leaves
trials RUNNING after a NaN or a restore. Here a trial is told the best validation loss of its
evaluations that may win, see `outcome`.
"""

import errno
import os
import warnings
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Choice, Domain, Int, LogUniform, Uniform
from sweeps.config.schema import SearchConfig
from sweeps.search.draws import DrawnByNumber
from sweeps.search.points import plain
from sweeps.search.prior import InformedTPESampler, Known

STUDY = "study.journal"  # the study's file in the sweep's folder

# what the study notes of a trial
TRIAL = "trial"  # the sweep's id of it
DUPLICATE_OF = "duplicate_of"  # the sweep's id of an earlier trial with the same configuration


Done = TypeVar("Done")


class Again(Protocol):
    """How what the disk refuses is done again, as `Store.again` does."""

    def __call__(self, action: Callable[[], Done], /) -> Done: ...


def _do(action: Callable[[], Done]) -> Done:
    return action()


def open_study(
    path: Path,
    name: str,
    config: SearchConfig,
    seed: int,
    *,
    known: Known | None = None,
    read_only: bool = False,
    again: Again = _do,
) -> optuna.Study:
    """The study in the journal at `path`; made if it is not there. A journal file is safe on
    network file systems too. known: what earlier sweeps know.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not read_only:
        # a killed sweep can leave its lock; only one sweep writes here
        for left in path.parent.glob(f"{path.name}*.lock*"):
            left.unlink()
    storage = StudyStorage(WholeJournal(path, again))
    # the folder may have been renamed since; the last is that of the space as it is now
    name = next(reversed(optuna.get_all_study_names(storage)), name)
    if read_only:
        return optuna.load_study(study_name=name, storage=storage)
    study = optuna.create_study(
        study_name=name, storage=storage, direction="minimize", load_if_exists=True
    )
    study.sampler = make_sampler(config, seed, known)
    return study


class StudyStorage(JournalStorage):
    """A journal's storage that remembers which trials wait. Optuna asks for these whenever a trial
    is drawn, and the original looks through all that there ever were; this one through those that
    were added since, by whomever.
    """

    def __init__(self, journal: JournalFileBackend) -> None:
        super().__init__(journal)
        # of each study: how many of its trials were looked at, and the ids of those that waited
        self._waiting: dict[int, tuple[int, list[int]]] = {}

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if states != (TrialState.WAITING,) or deepcopy:
            return super().get_all_trials(study_id, deepcopy, states)
        with self._thread_lock:
            self._sync_with_backend()
            ids = self._replay_result._study_id_to_trial_ids[study_id]
            trials = self._replay_result._trials
            looked_at, waited = self._waiting.get(study_id, (0, []))
            may_wait = [*waited, *ids[looked_at:]]
            waiting = [each for each in may_wait if trials[each].state == TrialState.WAITING]
            self._waiting[study_id] = len(ids), waiting
            return [trials[each] for each in waiting]


class WholeJournal(JournalFileBackend):
    """A journal to which a record is appended whole or not at all, and again where that fails: half
    a line, which a full disk leaves, would spoil all that follow.
    """

    def __init__(self, path: Path, again: Again) -> None:
        super().__init__(str(path))
        self._path, self._again = path, again

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        yield from self._again(lambda: [*super(WholeJournal, self).read_logs(log_number_from)])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._again(lambda: self._append(logs))

    def _append(self, logs: list[dict[str, Any]]) -> None:
        size = self._path.stat().st_size  # raises where there is none: it must not begin anew
        try:
            super().append_logs(logs)
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, size)
            raise
        except RuntimeError as error:  # its lock could not be given back
            if self._path.stat().st_size == size:
                raise OSError(errno.EIO, str(error), str(self._path)) from error


def trials_of(study: optuna.Study) -> Iterator[tuple[str, FrozenTrial]]:
    """Those that the sweep trains or has trained, each with the sweep's id of it."""
    for frozen in study.get_trials(deepcopy=False):
        if TRIAL in frozen.user_attrs and DUPLICATE_OF not in frozen.user_attrs:
            yield frozen.user_attrs[TRIAL], frozen


def storage_of(study: optuna.Study) -> BaseStorage:
    """Where a study lies. Optuna has no public way from a study to it."""
    return study._storage


def trial_numbered(study: optuna.Study, number: int) -> optuna.Trial:
    """A trial of the study that can be reported to, also one of an earlier process."""
    return optuna.Trial(study, _id_of(study, number))


def frozen_numbered(study: optuna.Study, number: int) -> FrozenTrial:
    """What the study has noted of a trial; `Study.get_trials` would go through all of them."""
    return storage_of(study).get_trial(_id_of(study, number))


def _id_of(study: optuna.Study, number: int) -> int:
    storage = storage_of(study)
    of_study = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(of_study, number)


def make_sampler(
    config: SearchConfig, seed: int, known: Known | None = None
) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        # the grid is, and `group`, which models each branch of the space by itself
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.sampler:
            case "random":
                sampler = optuna.samplers.RandomSampler()
            case "grid":
                sampler = _Grid()
            case "tpe":
                startup = config.random_trials()
                sampler = InformedTPESampler(known or Known(), n_startup_trials=startup)
    return DrawnByNumber(sampler, seed)


class _Grid(optuna.samplers.BruteForceSampler):
    """Leaves the end of the search to the searcher: the original calls `study.stop()`, which only
    `study.optimize` allows.
    """

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        pass


def suggest_with(trial: optuna.Trial) -> Callable[[str, Domain], object]:
    """How a search space asks this Optuna trial for a value."""

    def suggest(name: str, domain: Domain) -> object:
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
