"""What earlier sweeps know of a search: their trials stand beside its own in TPE, the less the less
alike the sweeps are, and the best of the likest is tried first (Feurer et al. 2015,
https://doi.org/10.1609/aaai.v29i1.9354).

A loss compares only within its sweep. So each sweep's trials are parted into good and bad by their
own order, as TPE parts those of the search.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Space, SpaceError
from sweeps.config.schema import HYPERPARAMETERS, SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.opening import open_sweep
from sweeps.search.outcome import outcome
from sweeps.search.points import Point, located, parsed, trained_with
from sweeps.tracking.artifacts import ARTIFACT
from sweeps.tracking.runs import TrackedTrial, trials_of
from trainables.data.manifest import Manifest
from trainables.errors import InputError
from trainables.hyperparameters import base_of, parse
from trainables.models.files import digest_of
from trainables.storage.records import from_json, to_json

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator

PRIOR = "prior.json"
READ_BY = ("text", "text_pair", "label", "labels", "tokens", "tags", "columns", "train_on")
"""Settings of `data` that say what is learnt of a row."""
UNLIKE = 0.5  # what a trial counts for where the model differs; and again where the data do
TRIED_FIRST = 3  # configurations of the likest sweep, but no more than a quarter of the trials


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A trial that says something of its hyperparameters."""

    hyperparameters: Mapping[str, object]
    loss: float | None
    """Best that may win, per target of that sweep's validation split; None: nothing may."""


@dataclass(frozen=True, kw_only=True)
class EarlierSweep:
    """What a sweep has found, the best first."""

    folder: str
    same_model: bool
    same_data: bool
    trials: tuple[EarlierTrial, ...]
    other_bases: int = 0
    """Trials that are left out, as their base model is none of this search."""

    @property
    def likeness(self) -> float:
        """What a trial of it counts for, 0 to 1."""
        return UNLIKE ** ((not self.same_model) + (not self.same_data))


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Earlier sweeps, the likest first."""

    sweeps: tuple[EarlierSweep, ...] = ()

    def save(self, ledger: Ledger) -> None:
        if self.sweeps:
            ledger.store.write_json(PRIOR, to_json(self))


def saved_prior(ledger: Ledger) -> Prior:
    """What the sweep knew when it began."""
    if not ledger.store.exists(PRIOR):
        return Prior()
    return from_json(Prior, ledger.store.read_json(PRIOR), ledger.store.path(PRIOR))


def check_prior(config: SweepConfig) -> None:
    """Raise InputError where an earlier sweep cannot be opened, or is of another task."""
    for number, folder in enumerate(config.search.prior):
        if not folder.startswith(ARTIFACT):
            _open(folder, config, f"search.prior[{number}]")


def read_prior(config: SweepConfig, manifest: Manifest, base: Mapping[str, str]) -> Prior:
    """What the sweeps of `search.prior` have found. base: the `fingerprints` of the model.
    Raises InputError where one cannot be read, or is of another task.
    """
    sweeps = [
        _read(folder, config, manifest, base, f"search.prior[{number}]")
        for number, folder in enumerate(config.search.prior)
    ]
    return Prior(sweeps=tuple(sorted(sweeps, key=lambda each: -each.likeness)))


def _read(
    folder: str, config: SweepConfig, manifest: Manifest, base: Mapping[str, str], where: str
) -> EarlierSweep:
    if folder.startswith(ARTIFACT):
        return _tracked(folder, config, manifest, base, where)
    ledger, former = _open(folder, config, where)
    theirs = ledger.store.read_json("base.json") if ledger.store.exists("base.json") else {}
    bases = {word: digest_of(each) for word, each in former.model.of_each(theirs).items()}
    return _sweep(
        folder,
        _trials(ledger.load(), former),
        Bases.of(config, base, bases),
        same_data=ledger.has_data() and _rows_of(ledger.manifest()) == _rows_of(manifest),
    )


@dataclass(frozen=True, kw_only=True)
class Bases:
    """Which base models of an earlier sweep are which of this search."""

    ours: Mapping[str, str]
    """By their words for those that are the same, our words for them."""
    are_several: bool
    """Whether this search is over several."""

    @classmethod
    def of(
        cls, config: SweepConfig, base: Mapping[str, str], theirs: Mapping[str, object]
    ) -> "Bases":
        """base: our `fingerprints`; theirs: digests of their fingerprints, by their words."""
        own = {digest_of(each): word for word, each in config.model.of_each(base).items() if each}
        ours = {word: own[str(of)] for word, of in theirs.items() if of in own}
        return cls(ours=ours, are_several=bool(config.model.choice))

    def trial(self, earlier: EarlierTrial) -> EarlierTrial | None:
        """With our word for its base; None where it says nothing here. Where none of their bases is
        the only one of this search, all say something of another model.
        """
        given = {name: each for name, each in earlier.hyperparameters.items() if name != "model"}
        if not self.ours and not self.are_several:
            return replace(earlier, hyperparameters=given)
        word = self.ours.get(base_of(earlier.hyperparameters))
        if word is None:
            return None
        return replace(earlier, hyperparameters=given | ({"model": word} if word else {}))


def _sweep(
    folder: str, trials: Iterable[EarlierTrial], bases: Bases, *, same_data: bool
) -> EarlierSweep:
    told = [bases.trial(each) for each in trials]
    found = [each for each in told if each is not None]
    return EarlierSweep(
        folder=folder,
        same_model=bool(bases.ours),
        same_data=same_data,
        trials=tuple(sorted(found, key=_by_loss)),
        other_bases=len(told) - len(found),
    )


def _open(folder: str, config: SweepConfig, where: str) -> tuple[Ledger, SweepConfig]:
    try:
        ledger, former = open_sweep(folder)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if former.task != config.task:
        _refuse_task(where, folder, former.task, config)
    return ledger, former


def _tracked(
    name: str, config: SweepConfig, manifest: Manifest, base: Mapping[str, str], where: str
) -> EarlierSweep:
    """Of a sweep's runs in W&B."""
    told = trials_of(name, where)
    about = told[0].config
    if about.get("task") != config.task:
        _refuse_task(where, name, about.get("task"), config)
    data = about.get("data")
    return _sweep(
        name,
        _tracked_trials(told),
        Bases.of(config, base, _tracked_bases(about)),
        same_data=isinstance(data, Mapping) and _fingerprints(data) == _fingerprints_of(manifest),
    )


def _tracked_bases(about: Mapping[str, object]) -> Mapping[str, object]:
    """Digests of the base models' fingerprints, by the words for them."""
    one, several = about.get("model"), about.get("models")
    if isinstance(several, Mapping):
        digests = several.get("fingerprints")
        return digests if isinstance(digests, Mapping) else {}
    return {"": one.get("fingerprint")} if isinstance(one, Mapping) else {}


def _fingerprints(data: Mapping[str, Mapping[str, object]]) -> list[object]:
    """Of the rows of training and of choosing."""
    return [data.get(name, {}).get("fingerprint") for name in ("train", "validation")]


def _fingerprints_of(manifest: Manifest) -> list[object]:
    return [split.fingerprint for split in (manifest.train, manifest.validation)]


def _tracked_trials(told: Iterable[TrackedTrial]) -> Iterator[EarlierTrial]:
    """Those that say something; of a configuration that ran with several seeds the first."""
    seen: set[str] = set()
    for trial in told:
        if trial.summary.get("status") not in ("complete", "pruned"):
            continue
        names = (*HYPERPARAMETERS, "model") if "models" in trial.config else HYPERPARAMETERS
        given = {name: each for name, each in trial.config.items() if name in names}
        configuration = repr(sorted({**given, "seed": 0}.items()))
        if configuration in seen:
            continue
        seen.add(configuration)
        try:
            hyperparameters = {**parsed(parse(given)), **given}
        except InputError:  # which today's version does not train
            continue
        loss = trial.summary.get("best/val_loss")
        yield EarlierTrial(hyperparameters=hyperparameters, loss=loss)


def _refuse_task(where: str, name: str, task: object, config: SweepConfig) -> NoReturn:
    raise InputError(
        f"{where}: {name}: a sweep of task {task}; this one is of {config.task}, and"
        " what is good for one says little of the other"
    )


def _rows_of(manifest: Manifest) -> dict[str, object]:
    """What tells the rows of training and of choosing, and what is learnt of them, from others."""
    sources = {
        name: of.sha256 for name, of in manifest.sources.items() if not name.startswith("test")
    }
    read = {name: getattr(manifest.data, name) for name in READ_BY}
    return {**sources, **read, "replay": manifest.data.replay}


def _trials(ledger: Ledger, config: SweepConfig) -> Iterator[EarlierTrial]:
    for curve in ledger.curves():
        state, loss, _ = outcome(curve, config.searching)
        if curve.status == "running" or state == TrialState.FAIL or curve.finalist_of is not None:
            continue
        try:
            hyperparameters = trained_with(config, curve.params)
        except InputError:  # which today's version does not train
            continue
        yield EarlierTrial(hyperparameters=hyperparameters, loss=loss)


def _by_loss(trial: EarlierTrial) -> float:
    return np.inf if trial.loss is None else trial.loss


# In the space of this search


@dataclass(frozen=True, kw_only=True)
class KnownSweep:
    """An earlier sweep's trials that this search might have drawn."""

    sweep: EarlierSweep
    good: tuple[Point, ...]
    """The best first: as many as TPE would take for good."""
    bad: tuple[Point, ...]
    promising: tuple[Point, ...]
    """Those that may win, the best first."""

    def __len__(self) -> int:
        return len(self.good) + len(self.bad)

    @property
    def words(self) -> str:
        model, data = (
            "the same" if same else "another"
            for same in (self.sweep.same_model, self.sweep.same_data)
        )
        outside = len(self.sweep.trials) - len(self)
        more = f"; {outside} more lie outside the space" if outside else ""
        if self.sweep.other_bases:
            more += f"; {self.sweep.other_bases} more, of other base models, are left out"
        return (
            f"{len(self)} trials of {self.sweep.folder} ({model} model, {data} data: each counts"
            f" {self.sweep.likeness:g}{more})"
        )


@dataclass(frozen=True, kw_only=True)
class Known:
    """What earlier sweeps know of this search's space, the likest first."""

    sweeps: tuple[KnownSweep, ...] = ()

    @classmethod
    def of(cls, prior: Prior, config: SweepConfig) -> "Known":
        """A space may change when a sweep is resumed; what earlier ones found does not."""
        space = config.space()
        return cls(sweeps=tuple(_known(sweep, config, space) for sweep in prior.sweeps))

    def random_trials(self, startup: int) -> int:
        """How many of `startup` trials are left to be drawn at random."""
        worth = sum(each.sweep.likeness * len(each) for each in self.sweeps)
        return max(0, startup - round(worth))

    def words(self, trials: int) -> Iterator[str]:
        """For a search of so many trials."""
        for each in self.sweeps:
            yield f"Known: {each.words}"
        if first := len(self.first(trials)):
            yield f"  the best {first} of the likest sweep are tried first"
        elif self.sweeps and not any(map(len, self.sweeps)):
            yield "  none of their trials lies in this space, so nothing is known"

    def first(self, trials: int) -> list[Point]:
        """What a search of so many trials tries first."""
        found: list[Point] = []
        for known in [each for each in self.sweeps if each.promising][:1]:
            found += [p for i, p in enumerate(known.promising) if p not in known.promising[:i]]
        return found[: min(TRIED_FIRST, max(1, trials // 4))]


def _known(sweep: EarlierSweep, config: SweepConfig, space: Space) -> KnownSweep:
    points: list[Point] = []
    promising = 0
    for trial in sweep.trials:
        try:
            point, params = located(space, trial.hyperparameters)
            if config.hyperparameters(params).method != trial.hyperparameters.get("method"):
                continue
        except (SpaceError, InputError):
            continue
        points.append(point)
        promising += trial.loss is not None
    good = min(promising, default_gamma(len(points)))
    return KnownSweep(
        sweep=sweep,
        good=tuple(points[:good]),
        bad=tuple(points[good:]),
        promising=tuple(points[:promising]),
    )


class InformedTPESampler(TPESampler):
    """TPE to which the trials of earlier sweeps are known. What these count for fades as the search
    has trials of its own, unless the sweeps are alike: then one's are as good as the other's.
    """

    def __init__(self, known: Known, *, n_startup_trials: int) -> None:
        random = known.random_trials(n_startup_trials)
        super().__init__(n_startup_trials=random, group=True)
        self._known = known
        self._fades_in = max(1, n_startup_trials)

    # Optuna has no other place for observations that are no trials of the study
    def _build_parzen_estimator(
        self,
        study: "Study",
        search_space: dict[str, BaseDistribution],
        trials: list[FrozenTrial],
        handle_below: bool,
    ) -> "_ParzenEstimator":
        if not self._known.sweeps:
            return super()._build_parzen_estimator(study, search_space, trials, handle_below)
        own = self._get_internal_repr(trials, search_space, study)
        count = len(next(iter(own.values())))
        finished = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        points, weights = self._earlier(search_space, handle_below, len(finished))
        observations = {
            name: np.append(own[name], [of.to_internal_repr(point[name]) for point in points])
            for name, of in search_space.items()
        }
        parameters = self._parzen_estimator_parameters
        weights = np.append(parameters.weights(count), weights)
        return self._parzen_estimator_cls(observations, search_space, parameters, weights)

    def _earlier(
        self, names: Mapping[str, BaseDistribution], is_good: bool, own: int
    ) -> tuple[list[Point], list[float]]:
        """Good or bad points that have all of these parameters, and what each counts for when the
        search has `own` trials.
        """
        points: list[Point] = []
        weights: list[float] = []
        for each in self._known.sweeps:
            weight = each.sweep.likeness ** (1 + own / self._fades_in)
            found = [p for p in (each.good if is_good else each.bad) if names.keys() <= p.keys()]
            points += found
            weights += [weight] * len(found)
        return points, weights
