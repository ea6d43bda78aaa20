"""From a prepared sweep to its winner: search, evaluate, conclude."""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sweeps.config.schema import SweepConfig
from sweeps.ledger.driver import Driver
from sweeps.ledger.folder import Ledger
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.progress import RunningTrial
from sweeps.ledger.status import ALIKE, INTERRUPTED, NO_SLOT, UNFINISHED
from sweeps.ledger.story import Story
from sweeps.reporting.console import print_board
from sweeps.reporting.live import Display
from sweeps.reporting.words import duration
from sweeps.run.baseline import KnownBaseline
from sweeps.run.budget import end_unfinished, too_short
from sweeps.run.device_time import DeviceTime
from sweeps.run.disk import Disk
from sweeps.run.environment import set_environment
from sweeps.run.folder import (
    TRACKING,
    about,
)
from sweeps.run.head import ClusterLost, HeadWatch, end_process
from sweeps.run.job_page import JobPage
from sweeps.run.jobs import Jobs
from sweeps.run.lifetime import Lifetime
from sweeps.run.monitor import Monitor
from sweeps.run.news import Ending, tell_end
from sweeps.run.onlookers import Onlookers
from sweeps.run.pace import Pace
from sweeps.run.plan import search_words
from sweeps.run.signals import SignalHandler
from sweeps.run.slots import COORDINATOR, Slots
from sweeps.run.steering import Steering, trials_in_all
from sweeps.run.study_file import StudyFile
from sweeps.search.failures import common_cause
from sweeps.selection.curves import Curve
from sweeps.selection.ranking import finalists
from sweeps.tracking.background import one_line
from sweeps.tracking.notify import Notifier
from trainables.engine.schedule import trained_samples
from trainables.storage.patience import StorageLost, StorageTaken

if TYPE_CHECKING:
    import optuna
    from ray.actor import ActorHandle

    from cluster.connect import Connection, SlotPlan
    from cluster.shares import ShareOfSweep
    from sweeps.search.prior import Known


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a sweep ended: the `board` that `best` prints, and where the sweep's folder
    is.
    """

    board: Leaderboard
    folder: str
    status: str  # finished | interrupted | failed


def print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


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
        self,
        config: SweepConfig,
        ledger: Ledger,
        console: Console,
        elapsed_s: float,
        driver: Driver | None = None,
    ) -> None:
        from sweeps.tracking.protocol import open_tracker

        self.config, self.ledger, self.console = config, ledger, console
        self.goes_on = elapsed_s > 0
        self.manifest = ledger.manifest()
        self.rows = ledger.train_rows()
        self.story = Story(ledger.store)
        self.display = Display(
            console, name=ledger.name, selection=config.selection, story=self.story
        )
        self.onlookers = Onlookers(config, ledger, self.story)
        self._scratch = Path(tempfile.mkdtemp(prefix="finetune-sweeps-"))
        self._kept = ExitStack()  # what is written back at the end
        self._tracking = self._kept.enter_context(
            ledger.store.working_copy(TRACKING, self._scratch)
        )
        self.tracker = open_tracker(
            config.tracking,
            sweep=ledger.name,
            folder=self._tracking,
            log=self.display.say,
            about=about(ledger, config),
        )
        self.notifier = Notifier(config.tracking, self.display.say)
        self._study_file = StudyFile(ledger, self._scratch)
        self.device_time = DeviceTime(ledger)
        self.lifetime = Lifetime(
            ledger,
            config.search,
            elapsed_s=elapsed_s,
            say=self.display.say,
            save_study=partial(self._study_file.save, once=True),
            held=self.device_time,
            driver=driver,
        )
        self.pace = self._pace()
        self.page = JobPage(ledger, config.selection, self.pace.trials, self.display.say)
        self.steering = Steering(
            config,
            ledger,
            lifetime=self.lifetime,
            tracker=self.tracker,
            pace=self.pace,
            page=self.page,
            say=self.display.say,
        )
        ledger.store.insist(self.lifetime.patience, marker="sweep.yaml")
        self.jobs = Jobs(config, ledger, self.manifest, self.display.say)
        self.baseline = KnownBaseline(ledger)
        self._handed_over: Leaderboard | None = None  # as soon as its winner is written
        # how far trials were when last some ran
        self._trained: Mapping[str, RunningTrial] = {}
        self.failures: list[str] = []  # why trials of this process failed

    def run(self) -> Outcome:
        try:
            self.onlookers.forget()
            self.ledger.set_status("running", self.lifetime.elapsed_s())
            folder = self.ledger.folder
            self.display.say(f"{folder}: follow it with `python -m sweeps watch {folder}`")
            self.page.tell("running")
            self.steering.begin()
            self.steering.act()  # bounds that were set while nothing ran
            if self.lifetime.spent and self.trials_left():
                self._end_unfinished(self.lifetime.spent)
            if self._searches() or self.jobs.left():
                with self._slots_running() as running:
                    self._search(running)
                    self._evaluate(running)
            elif self.goes_on and not self.lifetime.spent:
                print_line(
                    self.console,
                    "Nothing is left to do: all trials have ended, and all is measured.",
                )
            return self._conclude()
        except StorageLost as lost:
            self._break_off(lost)
            raise OSError(f"{lost}; {self._after_loss(lost)}") from lost
        except BaseException as error:
            self._break_off(error)
            if type(error).__module__.startswith("ray."):  # the cluster has not done its part
                raise OSError(f"{one_line(error)}. {self._go_on}") from error
            raise
        finally:
            self.close()

    def _after_loss(self, lost: StorageLost) -> str:
        """What has come of the sweep, and what there is to do."""
        if isinstance(lost, StorageTaken):
            return "the sweep has ended here"
        return (
            "the sweep is interrupted; mend it and go on:"
            f" python -m sweeps resume {self.ledger.folder}"
        )

    def _pace(self) -> Pace:
        config = self.config

        def total_samples(curve: Curve) -> int:
            hp = config.hyperparameters(curve.params)
            return trained_samples(self.rows[hp.model], hp)

        return Pace(
            self.ledger.name,
            trials=trials_in_all(config, self.ledger),
            time_budget_s=config.search.time_budget_s(),
            total_samples=total_samples,
            clock=self.lifetime.elapsed_s,
            paused=lambda: self.lifetime.paused,
        )

    def _break_off(self, error: BaseException) -> None:
        """Say how the sweep ended, which an error has cut short."""
        board = self._handed_over
        if board is not None:
            status: Ending = "finished"
            self.display.say(
                "The sweep has finished, but not all was told of it; its page:"
                f" python -m sweeps report {board.folder}"
            )
        elif self.lifetime.stopped == INTERRUPTED or isinstance(
            error, KeyboardInterrupt | StorageLost
        ):
            status = "interrupted"
        else:
            status = "failed"
        why = one_line(error) if board is None else ""
        self.story.tell(f"{status}: {why}" if why else status)
        with suppress(OSError):  # of a store that fails the first error is told
            self.story.save()
            self.ledger.set_status(status, self.lifetime.elapsed_s(), once=True)
        tell_end(self.notifier, self.ledger, status, why=why, board=board)
        self.page.tell(status, board=board)

    @property
    def _go_on(self) -> str:
        return f"Go on with: python -m sweeps resume {self.ledger.folder}"

    @property
    def _last_words(self) -> str:
        """Where the process can say nothing itself."""
        return (
            "The sweep's process has ended before its time: it crashed, was killed, maybe for its"
            f" memory, or Ray ended it as this machine's raylet is gone. {self._go_on}"
        )

    def _leave(self, lost: ClusterLost, monitor: Monitor, connection: "Connection") -> None:
        """End this process, as nothing can be asked of the cluster any more, not even to end."""

        def tell() -> None:
            monitor.pause()
            self.display.stop()
            self._break_off(lost)

        def say() -> None:
            print(f"Failed, as {lost}. {self._go_on}", file=sys.stderr, flush=True)
            connection.end_is_told()

        end_process(1, tell, self.close, say, own=connection.own)

    def trials_left(self) -> bool:
        """Whether there are trials to begin, or to go on with."""
        curves = self.ledger.curves()
        finals = self.config.selection.finalists
        again = finals.seeds * len(finalists(curves, self.config.selection)) if finals.top else 0
        trials = self.lifetime.search.trials  # which people may have changed
        more = self.ledger.drawn() < trials or self.ledger.repeated() < again
        return more or self.steering.expects()

    def _searches(self) -> bool:
        """Whether trials may run: some are left, and time for them."""
        return self.trials_left() and not self.lifetime.spent

    def _end_unfinished(self, spent: str) -> None:
        """Nothing is left of a budget when the sweep goes on."""
        end_unfinished(self.ledger, self.config, spent)
        ran = duration(self.lifetime.elapsed_s())
        self.display.say(
            f"No trial is drawn, as {spent} (the sweep has run for {ran}); a larger one in `search`"
            " goes on"
        )

    @contextmanager
    def _slots_running(self) -> Iterator[Running]:
        """Connect to Ray, start coordinator, slots and what watches over them; leaves no process
        behind.
        """
        set_environment()
        import ray

        # now, as Ray's modules cannot be imported by the threads of slots at the same time
        import sweeps.run.tune  # noqa: F401
        from cluster.connect import connect

        for note in self.manifest.notes:
            self.display.say(note)
        study = self._open_study()
        namespace, last_words = f"sweep-{self.ledger.name}", self._last_words
        with connect(self.config.cluster, namespace=namespace, last_words=last_words) as connection:
            if connection.dashboard_url:
                token = connection.dashboard_token
                shown = f" (its token: {token})" if token else ""
                self.display.say(f"Ray dashboard: {connection.dashboard_url}{shown}")
            # slots that are asked for by number may wait for nodes that a cluster has yet to bring
            plan = self._plan(can_grow=not connection.own)
            coordinator = self._start_coordinator(plan, shared=not connection.own)

            def leave(lost: ClusterLost) -> None:
                self._leave(lost, monitor, connection)

            slots = Slots(
                self.config,
                self.ledger,
                lifetime=self.lifetime,
                coordinator=coordinator,
                namespace=connection.namespace,
                folder=self._scratch / "slots",
                socket=connection.socket,
                say=self.display.say,
                give_up=leave,
                share=None if connection.own else self._share(),
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
                notifier=self.notifier,
                page=self.page,
                rows=self.rows,
                pace=self.pace,
                onlookers=self.onlookers,
                steering=self.steering,
                head=HeadWatch(ray.get_runtime_context().gcs_address, self.display.say, leave),
            )
            with self._signals():
                slots.begin(plan)
                self.display.start()
                monitor.start()
                self.device_time.start(plan, slots.held)
                try:
                    yield Running(
                        coordinator=coordinator, namespace=connection.namespace, study=study
                    )
                finally:
                    slots.ending = True
                    self._trained = monitor.trained
                    monitor.stop()
                    self.display.stop()
                    self.device_time.stop()
                    with suppress(OSError):  # the next heartbeat writes it
                        self.device_time.save()
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
            again=self._study_file.again,
        )
        return follow_space(study, config, self.ledger, self.display.say)

    @cached_property
    def _known(self) -> "Known":
        from sweeps.search.prior import Known, saved_prior

        return Known.of(saved_prior(self.ledger), self.config)

    def _plan(self, *, can_grow: bool) -> "SlotPlan":

        from cluster.connect import plan_slots_now

        cluster, trials = self.config.cluster, self.lifetime.search.trials
        plan = plan_slots_now(cluster, trials, can_grow=can_grow)
        self.display.say(plan.reason)
        if self.trials_left():
            self.display.say(f"search: {search_words(self.config, self._known)}")
        return plan

    def _share(self) -> "ShareOfSweep":
        from cluster.shares import ShareOfSweep

        cluster = self.config.cluster
        return ShareOfSweep(
            self.ledger.folder, weight=cluster.priority, slice_s=cluster.slice_minutes * 60
        )

    def _start_coordinator(self, plan: "SlotPlan", *, shared: bool) -> "ActorHandle":
        import ray

        from trainables.runtime.coordinator import start_coordinator

        more_trials_than_slots = shared or plan.slots < self.lifetime.search.trials
        trials_per_slot = self.config.cluster.trials_per_slot if more_trials_than_slots else 1
        coordinator = start_coordinator(
            self.ledger.name,
            COORDINATOR,
            trials_per_slot,
            plan.slots,
            hang_s=self.config.cluster.hang_minutes * 60,
        )
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

        if not self._searches():
            self.steering.end()
            return
        disk = Disk(self.config, self.ledger, self.display.say)
        disk.keep_to_the_budget()
        events = TrialEvents(
            self.config,
            self.ledger,
            coordinator=running.coordinator,
            lifetime=self.lifetime,
            baseline=self.baseline,
            tracker=self.tracker,
            say=self.display.say,
            failures=self.failures,
            disk=disk,
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
            steering=self.steering,
            disk=disk,
        )

    def _evaluate(self, running: Running) -> None:
        """What the winner is compared with, and the sealed test, on slots that have nothing else to
        do now.
        """
        if self.lifetime.stopped not in UNFINISHED:
            self.jobs.run(running.coordinator, self.lifetime)

    def _conclude(self) -> Outcome:
        """Select, hand over the winner, write the reports and tell who waits; print leaderboard,
        winner and reason.
        """
        from sweeps.reporting.leaderboard import leaderboard

        self.lifetime.check_storage()
        stopped = self.lifetime.stopped
        endings: dict[str, Ending] = {
            INTERRUPTED: "interrupted",
            NO_SLOT: "failed",
            ALIKE: "failed",
        }
        status = endings.get(stopped or "", "finished")
        with self.lifetime.beating():
            board = leaderboard(self.ledger, self.config.name, self.config.selection, status)
            lines, report, url = self._hand_on(board)
            if (handed := self._handed_over) is not None:
                board = handed
            for line in [status, *lines]:
                self.story.tell(line)
            with suppress(OSError):
                self.story.save()
        # last of all: who waits for the end finds all that belongs to it
        self.ledger.set_status(status, self.lifetime.elapsed_s())
        print_board(self.console, board)
        for line in lines:
            print_line(self.console, line)
        why = self._why_failed()
        tell_end(self.notifier, self.ledger, status, why=why, board=board, report=report)
        self.page.tell(status, board=board, report=url)
        return Outcome(board=board, folder=board.folder, status=status)

    def _hand_on(self, board: Leaderboard) -> tuple[list[str], str, str | None]:
        """Write what the sweep has come to; lines that say where it is, the report's place, and
        where the W&B Report is.
        """
        from sweeps.reporting.ending import sweep_end
        from sweeps.reporting.handover import hand_over
        from sweeps.reporting.publish import publish_in_time, write_report

        lines, finished = [], board.status == "finished"
        if board.winner is not None and finished:
            folder = hand_over(self.ledger, self.config, board)
            board = self._handed_over = replace(board, winner_folder=folder)
            self.tracker.sweep_finished(sweep_end(self.ledger, self.config, board, folder))
            lines.append(f"Checkpoint: {folder}")
        report, url = write_report(self.ledger, self.config, board), None
        lines.append(f"Report: {report}")
        if finished:
            url = publish_in_time(self.ledger, self.config, board, self.display.say)
        if url:
            report = url
            lines.append(f"W&B Report: {url}")
        if self.lifetime.stopped and self.lifetime.stopped == self.lifetime.spent:
            short = too_short(
                self.ledger,
                self.config,
                trained=self._trained,
                rows=self.rows,
                ran_s=self.lifetime.elapsed_s(),
                folder=board.folder,
            )
            lines += [] if short is None else [short]
        if why := self._why_failed():
            lines.append(
                f"Stopped, as {why}. Mend it and go on: python -m sweeps resume {board.folder}"
            )
        return lines, report, url

    def _why_failed(self) -> str:
        """Empty where it did not."""
        if self.lifetime.stopped == ALIKE:
            return f"{ALIKE}: {common_cause(self.failures)}"
        if self.lifetime.stopped == NO_SLOT:
            return f"{NO_SLOT}: {self.lifetime.detail}" if self.lifetime.detail else NO_SLOT
        return ""

    def close(self) -> None:
        self.notifier.close()
        self.tracker.close()
        with suppress(OSError):  # the lines were printed too
            self.story.save()
        try:
            self._kept.close()
        except OSError as error:  # the sweep is as it is; what was tracked stays here
            self.display.say(f"tracking: not kept with the sweep, but in {self._tracking}: {error}")
            return
        shutil.rmtree(self._scratch, ignore_errors=True)
