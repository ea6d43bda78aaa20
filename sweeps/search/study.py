"""A Tune Searcher over Optuna's ask and tell, with persistent storage.

Ray's own OptunaSearch tells the last value of a trial, tells stopped trials COMPLETE, and leaves
trials RUNNING after a NaN or a restore. Here a trial is told the best validation loss of its
evaluations that may win, see `outcome`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Choice, Domain, Int, LogUniform, Uniform
from sweeps.config.schema import SearchConfig
from sweeps.search.points import plain
from sweeps.search.prior import InformedTPESampler, Known

STUDY = "study.journal"  # the study's file in the sweep's folder

# what the study notes of a trial
TRIAL = "trial"  # the sweep's id of it
DUPLICATE_OF = "duplicate_of"  # the sweep's id of an earlier trial with the same configuration


def open_study(
    path: Path,
    name: str,
    config: SearchConfig,
    seed: int,
    *,
    known: Known | None = None,
    read_only: bool = False,
) -> optuna.Study:
    """The study in the journal at `path`; made if it is not there. A journal file is safe on
    network file systems too. known: what earlier sweeps know.
    """
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
    study = optuna.create_study(
        study_name=name, storage=storage, direction="minimize", load_if_exists=True
    )
    # a sampler with the same seed would repeat its first suggestions after a restart
    study.sampler = make_sampler(config, seed + len(study.trials), known)
    return study


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
    storage = storage_of(study)
    of_study = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))


def make_sampler(
    config: SearchConfig, seed: int, known: Known | None = None
) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "grid":
        with warnings.catch_warnings():  # "BruteForceSampler is experimental"
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _Grid(seed=seed)
    with (
        warnings.catch_warnings()
    ):  # "group is experimental": it models each branch of the space by itself
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return InformedTPESampler(
            known or Known(), seed=seed, n_startup_trials=config.random_trials()
        )


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
