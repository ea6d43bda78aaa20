"""A sweep that is steered while it runs: what people leave in its folder is done, in order."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from sweeps.ledger.control import Answer, Command, ControlBox
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import BY_HAND
from sweeps.reporting.words import format_params
from sweeps.run.commands import amended, check_command, configuration, target_of
from sweeps.run.folder import amend
from sweeps.run.job_page import JobPage
from sweeps.run.lifetime import ASK_TIMEOUT_S, Lifetime
from sweeps.run.pace import Pace
from sweeps.selection.curves import Curve
from trainables.errors import InputError

if TYPE_CHECKING:
    from sweeps.search.searcher import StudySearcher
    from sweeps.tracking.protocol import Tracker

LOOK_S = 1.0  # between looks for commands
STORE_S = 5.0  # the same at an object store, where each is a listing


class Steering:
    """Does commands, one after another. Each has its answer when it is done, and one without an
    answer is taken up again by the next process: so each comes to the same, done once or twice.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        *,
        lifetime: Lifetime,
        tracker: "Tracker",
        pace: Pace,
        page: JobPage,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._ledger = config, ledger
        self._lifetime, self._tracker = lifetime, tracker
        self._pace, self._page, self._say = pace, page, say
        self._box = ControlBox(ledger.store)
        self.every_s = LOOK_S if ledger.store.local is not None else STORE_S
        self.searcher: StudySearcher | None = None
        self._over = False
        self._noted: set[str] = set()

    def begin(self) -> None:
        """A sweep that was paused when its process ended is paused still."""
        if self._box.is_paused():
            self._lifetime.pause()
            folder = self._ledger.folder
            self._say(f"paused, as it was: python -m sweeps ctl {folder} go-on lets it go on")

    def waiting(self) -> bool:
        """Whether there are commands to be done."""
        return bool(self._box.waiting())

    def expects(self) -> bool:
        """Whether trials may still be asked for: while some run, and while commands wait."""
        return bool(self._ledger.unfinished()) or self.waiting()

    def attach(self, searcher: "StudySearcher") -> None:
        """Trials are searched from now on, within the bounds as they are by now."""
        self.searcher = searcher
        searcher.follow(self._config)

    def end(self) -> None:
        """The search is over: what comes now is left to `resume`."""
        self.searcher, self._over = None, True

    def act(self) -> None:
        """Do what waits, as far as it can be done now; what comes after waits too."""
        for number in [] if self._over or self._lifetime.stopped else self._box.waiting():
            try:
                answer = self._do(number, self._box.command(number))
            except InputError as error:
                answer = Answer(state="refused", words=str(error))
            if answer is None:
                return
            self._box.answer(number, replace(answer, time=time.time()))
            done = self._box.of(number)
            self._say(f"{done.by}: {done.command}: {done.state}: {done.words}")

    def _do(self, number: str, command: Command) -> Answer | None:
        """None: it cannot be done yet, or not to its end."""
        if not (command.what == "set" and self._box.begun(number)):
            check_command(command, self._config, self._ledger)
        match command.what:
            case "stop":
                assert command.trial is not None
                return self._stop(command.trial, command.by)
            case "clone" | "add":
                return self._add(number, command)
            case "pause":
                self._lifetime.pause()
                return self._heard("nothing new starts, and trials wait after their evaluations")
            case "go-on":
                self._lifetime.go_on()
                return self._heard("it goes on")
            case "set":
                return self._set(number, command)

    def _heard(self, words: str) -> Answer:
        self._lifetime.heartbeat()
        return Answer(state="done", words=words)

    def _stop(self, trial: str, by: str) -> Answer | None:
        """Done when the ledger says so."""
        import ray

        curve, coordinator = self._ledger.curve(trial), self._lifetime.coordinator
        if curve.status != "running":
            return Answer(state="done", words=f"{trial} is stopped; it has {_shown(curve)}")
        if trial not in self._noted:
            self._noted.add(trial)
            self._tracker.noted(trial, f"{BY_HAND} of {by}")
        if self.searcher is not None:
            self.searcher.stop(trial)
        if coordinator is not None:
            ray.get(coordinator.stop_trial.remote(trial, BY_HAND), timeout=ASK_TIMEOUT_S)
        return None

    def _add(self, number: str, command: Command) -> Answer | None:
        if self.searcher is None:
            return None
        params = configuration(command, self._config, self._ledger)
        by_hand = f"clone of {command.trial}" if command.trial else "added"
        try:
            trial = self.searcher.add(number, params, f"{by_hand} by {command.by}")
        except InputError as error:
            raise InputError(f"{command.what}: {error}") from error
        if trial is None:
            return None
        self._count_trials()
        words = f"{trial} comes next: {format_params(self._ledger.curve(trial).params)}"
        return Answer(state="done", words=words, trial=trial)

    def _set(self, number: str, command: Command) -> Answer:
        begun = self._box.begun(number)
        target = target_of(command, self._config) if begun is None else begun.value
        if begun is None:
            self._box.answer(number, Answer(state="begun", words="", value=target))
        config = amended(command, self._config, target)
        changed = amend(self._ledger, config)
        self._config = config
        self._lifetime.search = config.search
        if self.searcher is not None:
            self.searcher.follow(config)
        self._count_trials()
        self._pace.budget_s = config.search.time_budget_s()
        return Answer(state="done", words="; ".join(changed) or f"search.{command.setting} is that")

    def _count_trials(self) -> None:
        self._pace.trials = trials_in_all(self._config, self._ledger)
        self._page.trials = self._pace.trials


def _shown(curve: Curve) -> str:
    number = len(curve.points)
    return f"{number} evaluation{'s' if number > 1 else ''}" if number else "no evaluation"


def trials_in_all(config: SweepConfig, ledger: Ledger) -> int:
    """That the sweep will have."""
    finals = config.selection.finalists
    return config.search.trials + finals.top * finals.seeds + ledger.asked_for()
