"""From a configuration to a winner: prepare, search, evaluate, conclude."""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sweeps.config.loading import with_own_space
from sweeps.config.metrics import with_metric
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.status import ALIKE, INTERRUPTED, NO_SLOT, UNFINISHED
from sweeps.reporting.console import print_board
from sweeps.reporting.live import Display
from sweeps.run.baseline import KnownBaseline
from sweeps.run.earlier import lineage, with_local_model
from sweeps.run.environment import set_environment
from sweeps.run.folder import absolute_paths, amend, new_folder, tracked, write_configuration
from sweeps.run.jobs import Jobs
from sweeps.run.lifetime import Lifetime
from sweeps.run.monitor import Monitor
from sweeps.run.plan import auto_words, search_words
from sweeps.run.preparation import earlier_sweeps, prepare_data, rehearsed
from sweeps.run.signals import SignalHandler
from sweeps.run.slots import COORDINATOR, Slots, add_cost
from sweeps.run.storage import check_storage
from sweeps.search.failures import common_cause
from sweeps.selection.ranking import finalists
from trainables.data.manifest import MANIFEST
from trainables.errors import InputError
from trainables.models.lineage import LINEAGE, lineage_json

if TYPE_CHECKING:
    import optuna
    from ray.actor import ActorHandle

    from cluster.connect import SlotPlan
    from sweeps.search.prior import Known


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a sweep ended: the `board` that `best` prints, and where the sweep's folder
    is.
    """

    board: Leaderboard
    folder: str
    status: str  # finished | interrupted | failed


def start(config: SweepConfig, console: Console) -> Outcome:
    """Run a new sweep."""
    config, ledger = prepare(_settled(absolute_paths(config)), console)
    return Sweep(config, ledger, console, elapsed_s=0.0).run()


def _settled(config: SweepConfig) -> SweepConfig:
    """With what follows from its own files and words before data are read."""
    return with_own_space(with_local_model(with_metric(config)))


def prepare(config: SweepConfig, console: Console) -> tuple[SweepConfig, Ledger]:
    """The configuration with what follows from the data, and the folder of a new sweep with all
    that is known before the first trial. Bad data is refused before there is a folder of a sweep
    that never began.
    """
    check_storage(config)
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        data = Path(scratch) / "data"
        manifest = prepare_data(config, data)
        for line in auto_words(config, manifest):
            _print(console, line)
        config = with_own_space(config, manifest.train.rows)
        base = config.model.fingerprints()
        prior = earlier_sweeps(config, manifest, base)
        rehearsed(config, data, lambda line: _print(console, line))
        ledger = new_folder(config)
        write_configuration(ledger, config)
        ledger.store.write_json("base.json", base)
        if ancestors := lineage(config):
            ledger.store.write_json(LINEAGE, lineage_json(ancestors))
        if prior is not None:
            prior.save(ledger)
        staged = ledger.store.scratch()
        shutil.copytree(data, staged, dirs_exist_ok=True)
        ledger.store.publish(staged, "data", last=MANIFEST)
    return config, ledger


def resume(ledger: Ledger, config: SweepConfig, console: Console) -> Outcome:
    """Go on with a sweep, maybe with another configuration: finished trials are kept, unfinished
    ones go on from their last checkpoints with what they began.
    """
    status, elapsed_s = ledger.status()
    if status == "running":
        raise InputError(
            f"{ledger.store.path('')}: this sweep is running; `best` shows how far it is"
        )
    if not ledger.has_data():
        raise InputError(
            f"{ledger.store.path('')}: has no prepared data, so it never began; run it anew"
        )
    ledger.store.clear_scratch()
    ledger.load()
    config = with_own_space(with_metric(config), ledger.manifest().train.rows)
    for line in amend(ledger, config):
        _print(console, line)
    for curve in ledger.curves():
        if curve.status != "running":
            # a kill can come between the end of a trial and its pruning
            ledger.prune(curve.id, config.selection)
    return Sweep(config, ledger, console, elapsed_s=elapsed_s).run()


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class StudyFile:
    """The study's journal. It grows in a local file, of which an object store gets copies."""

    def __init__(self, ledger: Ledger, scratch: Path) -> None:
        self._store = ledger.store
        self._path = ledger.store.local or scratch

    def open(self) -> Path:
        from sweeps.search.study import STUDY

        if self._store.local is None and self._store.exists(STUDY):
            (self._path / STUDY).write_bytes(self._store.read_bytes(STUDY))
        return self._path / STUDY

    def save(self) -> None:
        from sweeps.search.study import STUDY

        if self._store.local is None:
            self._store.write_bytes(STUDY, (self._path / STUDY).read_bytes())


@dataclass(frozen=True, kw_only=True)
class Running:
    """What there is while slots run."""

    coordinator: "ActorHandle"
    namespace: str
    """Of named actors."""
    study: "optuna.Study"


class Sweep:
    """One process's work on a sweep that is prepared: search, evaluate, conclude."""

    def __init__(
        self, config: SweepConfig, ledger: Ledger, console: Console, elapsed_s: float
    ) -> None:
        from sweeps.tracking.protocol import open_tracker

        self.config, self.ledger, self.console = config, ledger, console
        self.goes_on = elapsed_s > 0
        self.manifest = ledger.manifest()
        self.rows = ledger.train_rows()
        budget = config.search.time_budget_s()
        finals = config.selection.finalists
        self.display = Display(
            console,
            name=ledger.name,
            trials=config.search.trials + finals.top * finals.seeds,
            selection=config.selection,
            time_budget_s=None if budget is None else max(0.0, budget - elapsed_s),
        )
        self._scratch = Path(tempfile.mkdtemp(prefix="finetune-sweeps-"))
        self._tracking = (ledger.store.local or self._scratch) / "tracking"
        base = ledger.store.read_json("base.json") if ledger.store.exists("base.json") else {}
        about = tracked(config, self.manifest, base, ledger.lineage())
        self.tracker = open_tracker(
            config.tracking,
            sweep=ledger.name,
            folder=self._tracking,
            log=self.display.say,
            about=about,
        )
        self._study_file = StudyFile(ledger, self._scratch)
        self.lifetime = Lifetime(
            ledger,
            config.search,
            elapsed_s=elapsed_s,
            say=self.display.say,
            save_study=self._study_file.save,
        )
        self.jobs = Jobs(config, ledger, self.manifest, self.display.say)
        self.baseline = KnownBaseline(ledger)
        self.failures: list[str] = []  # why trials of this process failed

    def run(self) -> Outcome:
        self.ledger.set_status("running", self.lifetime.elapsed_s())
        try:
            if self.trials_left() or self.jobs.left():
                with self._slots_running() as running:
                    self._search(running)
                    self._evaluate(running)
            elif self.goes_on:
                _print(
                    self.console,
                    "Nothing is left to do: all trials have ended, and all is measured.",
                )
            return self._conclude()
        except BaseException as error:
            interrupted = self.lifetime.stopped == INTERRUPTED
            interrupted = interrupted or isinstance(error, KeyboardInterrupt)
            status = "interrupted" if interrupted else "failed"
            self.ledger.set_status(status, self.lifetime.elapsed_s())
            raise
        finally:
            self.close()

    def trials_left(self) -> bool:
        """Whether there are trials to begin, or to go on with."""
        curves, drawn = self.ledger.curves(), self.ledger.drawn()
        finals = self.config.selection.finalists
        again = finals.seeds * len(finalists(curves, self.config.selection)) if finals.top else 0
        more = drawn < self.config.search.trials or len(curves) - drawn < again
        return bool(self.ledger.unfinished()) or more

    @contextmanager
    def _slots_running(self) -> Iterator[Running]:
        """Connect to Ray, start coordinator, slots and what watches over them; leaves no process
        behind.
        """
        set_environment()
        # now, as Ray's modules cannot be imported by the threads of slots at the same time
        import sweeps.run.tune  # noqa: F401
        from cluster.connect import connect

        for note in self.manifest.notes:
            self.display.say(note)
        study = self._open_study()
        with connect(self.config.cluster, namespace=f"sweep-{self.ledger.name}") as connection:
            if connection.dashboard_url:
                token = connection.dashboard_token
                shown = f" (its token: {token})" if token else ""
                self.display.say(f"Ray dashboard: {connection.dashboard_url}{shown}")
            plan = self._plan()
            coordinator = self._start_coordinator(plan)
            slots = Slots(
                self.config,
                self.ledger,
                lifetime=self.lifetime,
                coordinator=coordinator,
                namespace=connection.namespace,
                folder=self._scratch / "slots",
                say=self.display.say,
            )
            monitor = Monitor(
                self.config,
                self.ledger,
                coordinator=coordinator,
                lifetime=self.lifetime,
                slots=slots,
                jobs=self.jobs,
                baseline=self.baseline,
                display=self.display,
                rows=self.rows,
            )
            with self._signals():
                for _ in range(plan.slots):
                    slots.start(plan)
                self.display.start()
                monitor.start()
                began = time.monotonic()
                try:
                    yield Running(
                        coordinator=coordinator, namespace=connection.namespace, study=study
                    )
                finally:
                    add_cost(self.ledger, plan, time.monotonic() - began)
                    slots.ending = True
                    monitor.stop()
                    self.display.stop()
                    slots.close()
                    self._study_file.save()

    def _open_study(self) -> "optuna.Study":
        from sweeps.search.following import follow_space
        from sweeps.search.study import open_study

        config = self.config
        study = open_study(
            self._study_file.open(),
            self.ledger.name,
            config.search,
            config.seed,
            known=self._known,
        )
        return follow_space(study, config, self.ledger, self.display.say)

    @cached_property
    def _known(self) -> "Known":
        from sweeps.search.prior import Known, saved_prior

        return Known.of(saved_prior(self.ledger), self.config)

    def _plan(self) -> "SlotPlan":
        import ray

        from cluster.connect import plan_slots

        plan = plan_slots(
            ray.cluster_resources(), ray.nodes(), self.config.cluster, self.config.search.trials
        )
        self.display.say(plan.reason)
        if self.trials_left():
            self.display.say(f"search: {search_words(self.config, self._known)}")
        return plan

    def _start_coordinator(self, plan: "SlotPlan") -> "ActorHandle":
        import ray

        from trainables.runtime.coordinator import start_coordinator

        more_trials_than_slots = plan.slots < self.config.search.trials
        trials_per_slot = self.config.cluster.trials_per_slot if more_trials_than_slots else 1
        coordinator = start_coordinator(self.ledger.name, COORDINATOR, trials_per_slot, plan.slots)
        self.lifetime.coordinator = coordinator
        if self.baseline.known:
            ray.get(coordinator.skip_baseline.remote())
        return coordinator

    def _signals(self) -> SignalHandler:
        """Ctrl-C and SIGTERM stop the sweep in order; a second one ends it at once."""

        def stop() -> None:
            threading.Thread(target=self.lifetime.stop, args=(INTERRUPTED,), daemon=True).start()

        return SignalHandler(stop)

    # --- the way ---

    def _search(self, running: Running) -> None:
        """Run trials until there are no more to run."""
        from sweeps.run.tune import TrialEvents, search

        if not self.trials_left():
            return
        events = TrialEvents(
            self.config,
            self.ledger,
            coordinator=running.coordinator,
            lifetime=self.lifetime,
            baseline=self.baseline,
            tracker=self.tracker,
            say=self.display.say,
            failures=self.failures,
        )
        search(
            self.config,
            self.ledger,
            study=running.study,
            first=self._known.first(self.config.search.trials),
            rows=self.rows,
            events=events,
            coordinator=running.coordinator,
            namespace=running.namespace,
            lifetime=self.lifetime,
            baseline=self.baseline,
            folder=self._scratch,
            say=self.display.say,
        )

    def _evaluate(self, running: Running) -> None:
        """What the winner is compared with, and the sealed test, on slots that have nothing else to
        do now.
        """
        if self.lifetime.stopped not in UNFINISHED:
            self.jobs.run(running.coordinator, self.lifetime)

    def _conclude(self) -> Outcome:
        """Select, hand over the winner, write the report; print leaderboard, winner and reason."""
        from sweeps.reporting.handover import hand_over
        from sweeps.reporting.leaderboard import leaderboard
        from sweeps.reporting.publish import write_report
        from sweeps.reporting.samples import samples_of, samples_table

        stopped = self.lifetime.stopped
        endings = {INTERRUPTED: "interrupted", NO_SLOT: "failed", ALIKE: "failed"}
        status = endings.get(stopped or "", "finished")
        self.ledger.set_status(status, self.lifetime.elapsed_s())
        board = leaderboard(self.ledger, self.config.name, self.config.selection)
        lines = []
        if board.winner is not None and status == "finished":
            folder = hand_over(self.ledger, self.config, board)
            self.tracker.winner(board.winner.trial, board.winner.reason, folder)
            if samples := samples_of(self.ledger, board):
                self.tracker.answers(board.winner.trial, *samples_table(samples))
            lines.append(f"Checkpoint: {folder}")
        lines.append(f"Report: {write_report(self.ledger, self.config)}")
        if stopped == ALIKE:
            lines.append(
                f"Stopped, as {ALIKE}: {common_cause(self.failures)}. Mend it and go on: python -m"
                f" sweeps resume {board.folder}"
            )
        print_board(self.console, board)
        for line in lines:
            _print(self.console, line)
        return Outcome(board=board, folder=board.folder, status=status)

    def close(self) -> None:
        self.tracker.close()
        if self.ledger.store.local is None and self._tracking.is_dir():
            self.ledger.store.publish(self._tracking, "tracking", last="")
        shutil.rmtree(self._scratch, ignore_errors=True)
