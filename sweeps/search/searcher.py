"""A Tune Searcher over Optuna's ask and tell."""

import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

import optuna
from optuna.distributions import CategoricalChoiceType
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from search_spaces import Domain, Space, SpaceError
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import BY_HAND, UNFINISHED
from sweeps.reporting.words import duration, format_params
from sweeps.search.choosing import BLIND_DRAWS, Begins, Chooser, Chosen, GoesOn, Over
from sweeps.search.outcome import BEHIND, PAUSED, constraints, outcome
from sweeps.search.points import Point, plain
from sweeps.search.study import (
    DUPLICATE_OF,
    TRIAL,
    frozen_numbered,
    suggest_with,
    trial_numbered,
    trials_of,
)
from sweeps.selection.ranking import finalists
from trainables.errors import InputError
from trainables.runtime.protocol import Parameters
from trainables.runtime.tune_dicts import TrialConfig, TrialResult
from trainables.storage.patience import StorageLost

EARLIER = "earlier"  # what the study notes of a configuration that an earlier sweep has found
COMMAND = "command"  # what the study notes of a trial that somebody has asked for: by which
MAX_REDRAWS = 20  # suggestions in a row that are known or invalid before one is drawn blindly

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
        paused: Callable[[], bool] = lambda: False,
        more: Callable[[], bool] = lambda: False,
        full: Callable[[], bool] = lambda: False,
        chooser: Chooser | None = None,
        on_pause: Callable[[str], None] = lambda _: None,
        wanted: Callable[[str], bool] = lambda _: False,
        elapsed_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """first: points of the space to try after the initial ones. `coordinator` and `namespace`
        name the actor that trials ask; `stopped` tells why no trial may start any more, `room`
        whether another could train at once: until then none is drawn, so that it is drawn knowing
        more. `paused` tells whether none may start for now, `more` whether somebody may still ask
        for trials where the search itself has no more, `full` whether there is no room on disk for
        new ones. chooser: who says who trains next, a trial that waits or a new one; else those
        that wait go first. on_pause: told of a trial that leaves its place to another; wanted:
        whether one that fits nowhere waits for the slot of a trial; elapsed_s: that the sweep has
        run.
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
        self._paused, self._more, self._full = paused, more, full
        self._chooser, self._on_pause, self._wanted = chooser, on_pause, wanted
        self._elapsed_s = elapsed_s
        self._pausing: set[str] = set()  # that end for Tune, and not for the sweep
        self._lock = threading.RLock()  # Tune asks, and somebody may ask for trials meanwhile
        self._fresh: set[str] = set()  # of those that wait, the ones that were asked for by hand
        self.finished = False
        """Whether there is nothing more to come of it."""
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
        self._unwritten = self._asked_but_unwritten()
        self._enqueue_first()
        return [trial for trial in self._ledger.unfinished() if not self._drop(trial)]

    def _enqueue_first(self) -> None:
        # the first trial is what one would train without a search
        middle = [] if self._ledger.drawn() else [self._space.middle()]
        for initial in self._config.search.initial or middle:
            encoded = {name: plain(value) for name, value in self._space.encode(initial).items()}
            self._study.enqueue_trial(encoded, skip_if_exists=True)
        for point in self._first:
            self._study.enqueue_trial(dict(point), {EARLIER: True}, skip_if_exists=True)

    def _asked_but_unwritten(self) -> list[int]:
        """Numbers of the study's trials that a kill kept from being written down. They come next:
        who went on to others would draw other trials than an undisturbed search.
        """
        written = {curve.id for curve in self._ledger.curves()}
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        unwritten = [each for each in running if each.user_attrs.get(TRIAL) not in written]
        for each in unwritten:
            if COMMAND in each.user_attrs:  # which is done anew
                self._study.tell(each.number, state=TrialState.FAIL)
        return [each.number for each in unwritten if COMMAND not in each.user_attrs]

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
        try:
            with self._lock:
                return self._suggest(trial_id)
        except StorageLost:  # the sweep ends, and `resume` goes on from what is written
            return self._finish()

    def _suggest(self, trial_id: str) -> dict[str, object] | str | None:
        if (reason := self._stopped()) is not None:
            self._end_waiting(reason)
            return self._finish()
        # in this order: the coordinator may take a while to answer
        if not self._room() or self._paused():
            return None
        trial, resumed = self._next()
        if trial is None and self._may_show_later():
            return None
        trial = trial or (None if self._full() else self._next_finalist())
        if trial is None:
            return None if self._more() else self._finish()
        self._ids[trial_id] = trial
        curve = self._ledger.curve(trial)
        self._on_start(trial, dict(curve.params), resumed)
        return TrialConfig(
            id=trial,
            label=f"{self._ledger.name} {trial}: {format_params(curve.params)}",
            params=self._config.complete(curve.params),
            coordinator=self._coordinator,
            namespace=self._namespace,
            compared=self._ledger.is_compared(trial),
        ).to_tune()

    def _next(self) -> tuple[str | None, bool]:
        """Which trial of the search comes, None for now or no more; and whether it goes on."""
        if self._waiting and self._waiting[0] in self._fresh:
            return self._waiting.pop(0), False
        if self._chooser is not None:
            return self._chosen(self._chooser)
        if self._waiting:
            return self._waiting.pop(0), True
        return self._draw_unless_done(), False

    def _chosen(self, chooser: Chooser) -> tuple[str | None, bool]:
        chosen = self._choice(chooser, self._waiting, self._searched())
        match chosen:
            case GoesOn(trial=trial):
                self._waiting.remove(trial)
                return trial, True
            case Begins(point=point):
                return self._draw_unless_done(point), False
            case Over() as over:
                ran = f"as much again as in the {duration(self._elapsed_s())} so far"
                paused = f"{len(self._waiting)} trials stay paused"
                self._say(
                    f"The search ends, and {paused}: {over.words(ran)}; a smaller one trains longer"
                )
                self._exhausted = True
                self._end_waiting(f"{PAUSED}, as the search has ended")
        return None, False

    def _choice(
        self, chooser: Chooser, waiting: Collection[str], running: Collection[str]
    ) -> Chosen:
        return chooser.choose(waiting, running, may_draw=self._may_draw())

    def _searched(self) -> list[str]:
        """Trials of the search that train."""
        running = [self._ledger.curve(trial) for trial in self._ids.values()]
        return [curve.id for curve in running if curve.finalist_of is None]

    def goes_on(self, trial_id: str) -> bool:
        """Whether a Tune trial keeps its place after an evaluation; else it waits, and is told to
        end.
        """
        with self._lock:
            trial = self._ids[trial_id]
            if self._chooser is None or self._stopped() is not None:
                return True
            others = [each for each in self._searched() if each != trial]
            chosen = self._choice(self._chooser, [*self._waiting, trial], others)
            if chosen == GoesOn(trial=trial) and not self._wanted(trial):
                return True
            self._pausing.add(trial)
            return False

    def _finish(self) -> str:
        self.finished = True
        return Searcher.FINISHED

    def _end_waiting(self, reason: str) -> None:
        """Those that were to go on and cannot end too, unless `resume` goes on with them."""
        if reason not in UNFINISHED:
            for trial in list(self._waiting):
                self._end(trial, reason)

    def _end(self, trial: str, reason: str) -> None:
        """One that waits to start, or to go on."""
        self._waiting.remove(trial)
        self._ledger.finish(trial, "pruned", reason)
        self._tell(trial)
        self._on_end(trial)

    def _may_show_later(self) -> bool:
        """Which are the finalists, when the last trial of the search has ended; and whether one
        that trains pauses, and goes on.
        """
        if self._config.selection.finalists.top == 0 and self._chooser is None:
            return False
        return bool(self._searched() or self._waiting)

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Nothing: intermediate values are told with the end of the trial, from the ledger."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        with self._lock:
            self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, object] | None, error: bool) -> None:
        trial = self._ids.pop(trial_id, None)
        if trial is None or self._ledger.curve(trial).status != "running":
            return
        if trial in self._pausing:
            self._pause(trial)
            return
        found = TrialResult.from_tune(result or {})
        if self._is_left_to_resume(found, silent=not error and not result):
            return
        if error:
            end = "failed", "its coordinator failed again and again"
        else:
            end = self._end_of(trial, found)
        with suppress(StorageLost):  # the sweep ends, and `resume` goes on from what is written
            self._ledger.finish(trial, *end)
            self._tell(trial)
            self._on_end(trial)

    def _pause(self, trial: str) -> None:
        self._pausing.discard(trial)
        self._waiting.append(trial)
        self._on_pause(trial)

    def _is_left_to_resume(self, result: TrialResult, *, silent: bool) -> bool:
        """silent: Tune ends the trial without a result of it."""
        if result.ended == "stopped" and result.reason in UNFINISHED:
            return True
        return silent and self._stopped() in UNFINISHED

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

    # --- by hand, while it runs ---

    def follow(self, config: SweepConfig) -> None:
        """The sweep goes on as `config`, which has other bounds of the search."""
        with self._lock:
            self._config = config
            if self._chooser is not None:
                self._chooser.follow(config)

    def stop(self, trial: str) -> None:
        """End a trial that waits to start, or to go on; one that runs is the coordinator's."""
        with self._lock:
            if trial in self._waiting:
                self._end(trial, BY_HAND)

    def add(self, command: str, params: Mapping[str, object], by_hand: str) -> str | None:
        """Begin the trial that `command` asks for, which comes next; what `params` leave open is
        sampled. None: the search is over. Raises InputError for what cannot be trained, and for
        what was tried.
        """
        with self._lock:
            if self.finished:
                return None
            trial = self._ledger.made_by(command)
            if trial is None:
                trial = self._begin_given(command, params, by_hand)
                self._waiting.insert(sum(each in self._fresh for each in self._waiting), trial)
                self._fresh.add(trial)
            return trial

    def _begin_given(self, command: str, params: Mapping[str, object], by_hand: str) -> str:
        given = {name: plain(value) for name, value in self._space.encode(params).items()}
        twin = None
        for _ in range(MAX_REDRAWS):
            asked = self._asked_for(given, command)
            trial = self._begin(asked, by_hand=by_hand, command=command)
            if trial is not None:
                return trial
            noted = frozen_numbered(self._study, asked.number)
            twin = noted.user_attrs.get(DUPLICATE_OF)
            if noted.params.keys() == given.keys():  # nothing was sampled
                break
        if twin is not None:
            raise InputError(f"{twin} has this configuration already")
        raise InputError(f"it cannot be trained: {self._invalid}")

    def _asked_for(self, given: Mapping[str, CategoricalChoiceType], command: str) -> optuna.Trial:
        """A trial of the study that has these values, before those that wait there."""
        fixed = {"fixed_params": dict(given)}
        running = create_trial(
            state=TrialState.RUNNING, system_attrs=fixed, user_attrs={COMMAND: command}
        )
        self._study.add_trial(running)
        return trial_numbered(self._study, len(self._study.get_trials(deepcopy=False)) - 1)

    # --- inside ---

    def stop_reason(self, trial_id: str, reason: str) -> None:
        """Remember why the platform stops the Tune trial `trial_id`."""
        self._reasons[self._ids[trial_id]] = reason

    def _next_finalist(self) -> str | None:
        """A configuration of the best with a seed that it was not trained with; None when all have
        been.
        """
        if not self._config.selection.finalists.top:
            return None
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

    def _may_draw(self) -> bool:
        left = self._ledger.drawn() < self._config.search.trials and not self._exhausted
        return left and not self._full()

    def _draw_unless_done(self, point: Mapping[str, object] | None = None) -> str | None:
        return self._draw(point) if self._may_draw() else None

    def _draw(self, point: Mapping[str, object] | None = None) -> str | None:
        """The trial of a new configuration that is valid and was not tried before; None when the
        space has no more. point: which, where it has been chosen.
        """
        if point is not None:
            self._enqueue(point)
        # the grid repeats itself only when nothing is left that it could tell apart
        for _ in range(1 if self._config.search.sampler == "grid" else MAX_REDRAWS):
            if trial := self._begin(self._ask()):
                return trial
        if untried := self._untried():
            self._enqueue(untried)
            trial = self._begin(self._ask())
            assert trial is not None, "it was checked before"
            return trial
        self._end_search()
        return None

    def _enqueue(self, point: Mapping[str, object]) -> None:
        self._study.enqueue_trial({key: plain(value) for key, value in point.items()})

    def _ask(self) -> optuna.Trial:
        if self._unwritten:
            return trial_numbered(self._study, self._unwritten.pop(0))
        return self._study.ask()

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

    def _begin(
        self, asked: optuna.Trial, *, by_hand: str | None = None, command: str | None = None
    ) -> str | None:
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
            self._tell_duplicate(
                asked, self._known[hyperparameters], is_asked_for=by_hand is not None
            )
            return None
        trial = f"t{self._ledger.begun() + 1:04d}"
        asked.set_user_attr(TRIAL, trial)
        self._known[hyperparameters] = trial
        self._numbers[trial] = asked.number
        frozen = frozen_numbered(self._study, asked.number)
        is_own = "fixed_params" in frozen.system_attrs and EARLIER not in frozen.user_attrs
        first = is_own and by_hand is None and not self._ledger.drawn()
        self._ledger.begin(trial, params, default=first, by_hand=by_hand, command=command)
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

    def _tell_duplicate(self, asked: optuna.Trial, twin: str, *, is_asked_for: bool) -> None:
        """A configuration that was tried is not run again: the study learns the value of its twin,
        if there is one yet; but not of one that somebody has asked for, as what they have left open
        would be drawn there again.
        """
        asked.set_user_attr(DUPLICATE_OF, twin)
        curve = self._ledger.curve(twin)
        value = None if curve.status == "running" else outcome(curve, self._config.searching)[1]
        if value is not None and not is_asked_for:
            self._study.tell(asked, value)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _tell(self, trial: str) -> None:
        """Close the Optuna trial. Nothing happens if it is closed already."""
        number = self._numbers.get(trial)
        if number is None:
            return
        frozen = frozen_numbered(self._study, number)
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
        for name, broken in constraints(curve).items():
            if name not in handle.constraints:  # as with the reports
                handle.set_constraint(name, broken)
        if state == TrialState.COMPLETE:
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=state)
