"""A Tune Searcher over Optuna's ask and tell."""

import random
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Domain, Space, SpaceError
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import UNFINISHED
from sweeps.search.outcome import BEHIND, outcome
from sweeps.search.points import Point, plain
from sweeps.search.study import (
    DUPLICATE_OF,
    TRIAL,
    suggest_with,
    trial_numbered,
    trials_of,
)
from sweeps.selection.ranking import finalists
from trainables.errors import InputError
from trainables.runtime.protocol import Parameters
from trainables.runtime.tune_dicts import TrialConfig, TrialResult

EARLIER = "earlier"  # what the study notes of a configuration that an earlier sweep has found
MAX_REDRAWS = 20  # suggestions in a row that are known or invalid before one is drawn blindly

# of which none is new and valid before the space is gone through, or counts as exhausted

BLIND_DRAWS = 1000

MAX_SIZE = 100_000  # of a space that is gone through


class StudySearcher(Searcher):
    """Asks Optuna for trials and tells it what became of them. The ledger is the truth; the study
    can lag behind it by a kill.
    """

    def __init__(
        self,
        *,
        config: SweepConfig,
        space: Space,
        study: optuna.Study,
        ledger: Ledger,
        first: Sequence[Point] = (),
        coordinator: str,
        namespace: str,
        stopped: Callable[[], str | None],
        room: Callable[[], bool],
        on_start: Callable[[str, Parameters, bool], None],
        on_end: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """first: points of the space to try after the initial ones. `coordinator` and `namespace`
        name the actor that trials ask; `stopped` tells why no trial may start any more, `room`
        whether another could train at once: until then none is drawn, so that it is drawn knowing
        more.
        """
        super().__init__(metric="val_loss", mode="min")
        self._config = config
        self._space = space
        self._study = study
        self._first = first
        self._ledger = ledger
        self._coordinator, self._namespace = coordinator, namespace
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
        """Bring study and ledger together after a start or a kill; returns the trials that have to
        go on.
        """
        self._numbers = {trial: frozen.number for trial, frozen in trials_of(self._study)}
        for curve in self._ledger.curves():
            self._known[repr(self._config.hyperparameters(curve.params))] = curve.id
            if curve.status != "running":
                self._tell(curve.id)
        self._close_unwritten()
        self._enqueue_first()
        return [trial for trial in self._ledger.unfinished() if not self._drop(trial)]

    def _enqueue_first(self) -> None:
        # the first trial is what one would train without a search
        middle = [] if self._ledger.curves() else [self._space.middle()]
        for initial in self._config.search.initial or middle:
            encoded = {name: plain(value) for name, value in self._space.encode(initial).items()}
            self._study.enqueue_trial(encoded, skip_if_exists=True)
        for point in self._first:
            self._study.enqueue_trial(dict(point), {EARLIER: True}, skip_if_exists=True)

    def _close_unwritten(self) -> None:
        """Trials of the study that a kill kept from being written down."""
        written = {curve.id for curve in self._ledger.curves()}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get(TRIAL) not in written:
                self._study.tell(frozen.number, state=TrialState.FAIL)

    def _drop(self, trial: str) -> bool:
        """End an unfinished trial that has shown nothing yet and lies outside the space, which has
        changed since it was drawn.
        """
        curve = self._ledger.curve(trial)
        if trial in self._numbers or curve.points or curve.finalist_of is not None:
            return False
        self._ledger.finish(trial, "pruned", "the search space has changed, and it lies outside")
        return True

    # --- Tune's interface ---

    # Tune's own annotation leaves out the word for an end that its documentation gives
    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trial_id: str
    ) -> dict[str, object] | str | None:
        if self._stopped() is not None:
            return Searcher.FINISHED
        if not self._room():
            return None
        resumed = bool(self._waiting)
        trial = self._waiting.pop(0) if resumed else self._draw_unless_done()
        if trial is None and self._finalists_show_later():
            return None
        trial = trial or self._next_finalist()
        if trial is None:
            return Searcher.FINISHED
        self._ids[trial_id] = trial
        curve = self._ledger.curve(trial)
        self._on_start(trial, dict(curve.params), resumed)
        return TrialConfig(
            id=trial,
            params=self._config.complete(curve.params),
            coordinator=self._coordinator,
            namespace=self._namespace,
            compared=self._ledger.is_compared(trial),
        ).to_tune()

    def _finalists_show_later(self) -> bool:
        """When the last trial of the search has ended."""
        running = [self._ledger.curve(trial) for trial in self._ids.values()]
        return self._config.selection.finalists.top > 0 and any(
            curve.finalist_of is None for curve in running
        )

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Nothing: intermediate values are told with the end of the trial, from the ledger."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        trial = self._ids.pop(trial_id, None)
        if trial is None or self._ledger.curve(trial).status != "running":
            return
        found = TrialResult.from_tune(result or {})
        silent = not error and not result
        # `resume` goes on with it
        if found.ended == "stopped" and found.reason in UNFINISHED:
            return
        if silent and self._stopped() in UNFINISHED:
            return
        if error:
            self._ledger.finish(trial, "failed", "its Tune actor died again and again")
        else:
            self._ledger.finish(trial, *self._end_of(trial, found))
        self._tell(trial)
        self._on_end(trial)

    def _end_of(self, trial: str, result: TrialResult) -> tuple[str, str | None]:
        """Status and reason of a trial that has no more to come."""
        reason = result.reason
        match result.ended:
            case "finished":
                return "complete", None
            case "failed":
                return "failed", f"{reason} (log: {result.log})" if result.log else reason
            case "diverged":
                return "pruned", f"diverged: {reason}"
            case "stopped":
                return "pruned", reason
        behind = f"{BEHIND} at {result.samples_seen} samples (ASHA)"
        return "pruned", self._reasons.get(trial, behind)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: study and ledger are on disk after every call."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune pickles its Tuner to restore it; a sweep goes on from its ledger instead
        return object, ()

    # --- inside ---

    def stop_reason(self, trial_id: str, reason: str) -> None:
        """Remember why the platform stops the Tune trial `trial_id`."""
        self._reasons[self._ids[trial_id]] = reason

    def _next_finalist(self) -> str | None:
        """A configuration of the best with a seed that it was not trained with; None when all have
        been.
        """
        curves = self._ledger.curves()
        for first in finalists(curves, self._config.selection):
            params = dict(self._ledger.curve(first).params)
            seed = self._config.complete(params)["seed"]
            known = {
                self._config.complete(c.params)["seed"]
                for c in curves
                if first in (c.id, c.finalist_of)
            }
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
        """The trial of a new configuration that is valid and was not tried before; None when the
        space has no more.
        """
        # the grid repeats itself only when nothing is left that it could tell apart
        for _ in range(1 if self._config.search.sampler == "grid" else MAX_REDRAWS):
            if trial := self._begin(self._study.ask()):
                return trial
        if untried := self._untried():
            self._study.enqueue_trial({key: plain(value) for key, value in untried.items()})
            trial = self._begin(self._study.ask())
            assert trial is not None, "it was checked before"
            return trial
        self._end_search()
        return None

    def _end_search(self) -> None:
        """The space has no more: InputError where it never had any that is valid."""
        if self._invalid and not self._ledger.curves():
            raise InputError(
                "search.space: no valid configuration was found, the last is not because:"
                f" {self._invalid}"
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

    def _begin(self, asked: optuna.Trial) -> str | None:
        """The trial of what Optuna suggests; None, and Optuna is told, where that is invalid or was
        tried before.
        """
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
        asked.set_user_attr(TRIAL, trial)
        self._known[hyperparameters] = trial
        self._numbers[trial] = asked.number
        frozen = self._study.get_trials(deepcopy=False)[asked.number]
        is_own = "fixed_params" in frozen.system_attrs and EARLIER not in frozen.user_attrs
        first = is_own and not self._ledger.curves()
        self._ledger.begin(trial, params, default=first)
        return trial

    def _untried(self) -> Mapping[str, object] | None:
        """Some configuration that is valid and was not tried, as `Space.encode` gives it; None
        where none is found.
        """
        generator = random.Random(
            f"{self._config.seed} {len(self._study.get_trials(deepcopy=False))}"
        )
        for _ in range(BLIND_DRAWS):
            drawn: dict[str, object] = {}
            if self._is_new(
                lambda key, domain, drawn=drawn: drawn.setdefault(key, domain.draw(generator))
            ):
                return drawn
        size = self._space.size()
        if size is None or size > MAX_SIZE:
            return None
        left = [
            each
            for each in self._space.configurations()
            if self._is_new(lambda key, _, each=each: each[key])
        ]
        return generator.choice(left) if left else None

    def _is_new(self, choose: Callable[[str, Domain], object]) -> bool:
        """Whether what `choose` makes of the space is valid and was not tried."""
        try:
            return repr(self._config.hyperparameters(self._space.sample(choose))) not in self._known
        except (InputError, SpaceError) as error:
            self._invalid = str(error)
            return False

    def _tell_duplicate(self, asked: optuna.Trial, twin: str) -> None:
        """A configuration that was tried is not run again: the study learns the value of its twin,
        if there is one yet.
        """
        asked.set_user_attr(DUPLICATE_OF, twin)
        curve = self._ledger.curve(twin)
        value = None if curve.status == "running" else outcome(curve, self._config.searching)[1]
        if value is not None:
            self._study.tell(asked, value)
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
        handle = trial_numbered(self._study, number)
        if curve.reason:
            handle.set_user_attr("reason", curve.reason)
        state, value, reports = outcome(curve, self._config.searching)
        for samples_seen, loss in reports.items():
            if (
                samples_seen not in frozen.intermediate_values
            ):  # a kill may have left some of them behind
                handle.report(loss, samples_seen)
        if state == TrialState.COMPLETE:
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=state)
