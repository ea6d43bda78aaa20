"""From a configuration to a winner: prepare data, open study and slots, run Tune, select, hand
over, report.
"""

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from sweeps.config.draws import first_of_each_method
from sweeps.config.errors import ConfigError
from sweeps.config.loading import dump, from_tree, with_own_space
from sweeps.config.resuming import as_trained, check_resumable, differences
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import ALIKE, HEARTBEAT_S, INTERRUPTED, NO_SLOT, UNFINISHED
from sweeps.reporting.console import print_board
from sweeps.reporting.live import Display
from sweeps.reporting.words import (
    LOST,
    format_params,
)
from sweeps.run.estimates import smallest_estimates
from sweeps.run.plan import search_words
from sweeps.run.preparation import prepare_data, rehearsed
from sweeps.run.signals import SignalHandler
from sweeps.run.storage import check_storage, storage_url
from sweeps.selection.curves import Curve
from sweeps.selection.ranking import finalists
from sweeps.selection.verdicts import best_point, standing_verdict
from trainables.data.config import DataConfig
from trainables.data.manifest import MANIFEST, Manifest
from trainables.engine.schedule import trained_samples
from trainables.evaluation.record import Evaluation
from trainables.models.files import fingerprint, load_tokenizer
from trainables.storage.checkpoints import CHECKPOINT

SLOT_END_TIMEOUT_S = 30.0
JOBS = {
    "baselines": "other ways than fine-tuning",
    "test": "the winner on the sealed test split",
    "forgetting": "what the winner has forgotten",
}
BASELINES = {"kind": "baselines"}
WATCH_S = 0.5  # between rounds of the watching thread
GROW_S = 10.0  # between looks at the cluster's size
ASK_TIMEOUT_S = 10.0  # the coordinator may be starting again


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a sweep ended: `board` as `best --json` prints it, and where the sweep's folder
    is.
    """

    board: dict[str, Any]
    folder: str
    status: str  # finished | interrupted | failed


def new_folder(config: SweepConfig) -> Ledger:
    """The ledger of a new sweep in STORAGE/NAME-YYYYMMDD-HHMMSS, a folder that no other sweep
    has.
    """
    while True:
        ledger = Ledger(f"{storage_url(config)}/{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
        if ledger.store.claim():
            return ledger
        time.sleep(
            random.uniform(0.5, 1.5)
        )  # who wants the same name at the same moment must not do so again


def absolute_paths(config: SweepConfig) -> SweepConfig:
    """The configuration with data files and model folder as absolute paths: the sweep's folder must
    not depend on where it began.
    """

    def absolute(source: Any) -> Any:
        if (
            isinstance(source, str)
            and source
            and not source.startswith("hf:")
            and "://" not in source
        ):
            return str(Path(source).expanduser().absolute())
        return source

    data: DataConfig = replace(
        config.data,
        train=absolute(config.data.train),
        validation=absolute(config.data.validation),
        test=absolute(config.data.test),
    )
    model = config.model
    if not model.name.startswith("package:") and Path(model.name).expanduser().is_dir():
        model = replace(model, name=absolute(model.name))
    return replace(config, data=data, model=model)


def start(config: SweepConfig, console: Console) -> Outcome:
    """Run a new sweep."""
    config = with_own_space(absolute_paths(config))
    check_storage(config)
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        # bad data is refused here, before there is a folder of a sweep that never began
        prepare_data(config, Path(scratch) / "data")
        rehearsed(
            config,
            Path(scratch) / "data",
            lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
        ledger = new_folder(config)
        _write_configuration(ledger, config)
        ledger.store.write_json("base.json", fingerprint(config.model))
        staged = ledger.store.scratch()
        shutil.copytree(Path(scratch) / "data", staged, dirs_exist_ok=True)
        ledger.store.publish(staged, "data", last=MANIFEST)
    return _run(config, ledger, console, elapsed_s=0.0)


def resume(ledger: Ledger, config: SweepConfig, console: Console) -> Outcome:
    """Go on with a sweep, maybe with another configuration: finished trials are kept, unfinished
    ones go on from their last checkpoints with what they began.
    """
    status, elapsed_s = ledger.status()
    if status == "running":
        raise ConfigError(
            f"{ledger.store.path('')}: this sweep is running; `best` shows how far it is"
        )
    if not ledger.has_data():
        raise ConfigError(
            f"{ledger.store.path('')}: has no prepared data, so it never began; run it anew"
        )
    ledger.store.clear_scratch()
    ledger.load()
    config = with_own_space(config)
    for line in _amend(ledger, config):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for curve in ledger.curves():
        if curve.status != "running":
            ledger.prune(
                curve.id, config.selection
            )  # a kill can come between the end of a trial and its pruning
    return _run(config, ledger, console, elapsed_s=elapsed_s)


def tracked(config: SweepConfig, manifest: Manifest, base: dict[str, str]) -> dict[str, Any]:
    """Task, model and data as they stand in the configuration of every W&B run; base: what
    `fingerprint` gave.
    """
    data: dict[str, Any] = {}
    for name in [name for name in ("train", "validation", "test") if name in manifest.splits]:
        split = manifest.splits[name]
        source = manifest.sources.get(name, manifest.sources["train"])  # a share of train
        data[name] = {
            "source": source.source,
            "rows": split.rows or split.read,
            "fingerprint": split.fingerprint or split.raw_fingerprint or None,
        }
    files = hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest() if base else None
    model = {name: getattr(config.model, name) for name in ("name", "revision", "dtype")}
    return {
        "task": config.task,
        "model": {**model, "fingerprint": base.get("commit", files)},
        "data": data,
    }


def _amend(ledger: Ledger, config: SweepConfig) -> list[str]:
    """Let the sweep go on as `config`; says what has changed since it last ran. Raises ConfigError
    for what cannot.
    """
    ran_with = ledger.store.find("configurations")
    last = ran_with[-1] if ran_with else "sweep.yaml"
    former = from_tree(
        OmegaConf.create(ledger.store.read_bytes(last).decode()), (), ledger.store.path(last)
    )
    found = differences(former, config)
    if not found:
        return []
    check_resumable(former, config)
    for curve in ledger.curves():
        params = as_trained(former, config, curve.params)
        if params != curve.params:
            ledger.restate(curve.id, params)
    _write_configuration(ledger, config)
    return [f"Changed: {words}" for words in found]


def _write_configuration(ledger: Ledger, config: SweepConfig) -> None:
    """The last of `configurations` is what trials were run with, also when somebody edits
    sweep.yaml.
    """
    number = len(ledger.store.find("configurations")) + 1
    ledger.store.write_bytes(f"configurations/{number:03d}.yaml", dump(config).encode())
    ledger.store.write_bytes("sweep.yaml", dump(config).encode())


def _run(config: SweepConfig, ledger: Ledger, console: Console, *, elapsed_s: float) -> Outcome:
    sweep = _Sweep(config, ledger, console, elapsed_s)
    ledger.set_status("running", elapsed_s)
    try:
        if sweep.trials_left() or sweep.to_measure():
            sweep.search()
        elif elapsed_s > 0:
            console.print(
                "Nothing is left to do: all trials have ended, and all is measured.",
                highlight=False,
            )
        outcome = sweep.conclude()
    except BaseException as error:
        interrupted = sweep.stopped == INTERRUPTED or isinstance(error, KeyboardInterrupt)
        ledger.set_status("interrupted" if interrupted else "failed", sweep.elapsed_s())
        raise
    finally:
        sweep.close()
    return outcome


class _Sweep:
    """One process's work on a sweep."""

    def __init__(
        self, config: SweepConfig, ledger: Ledger, console: Console, elapsed_s: float
    ) -> None:
        from sweeps.tracking.wandb import Tracker

        self.config, self.ledger = config, ledger
        self.console = console
        self.stopped: str | None = None  # why no trial may start or go on any more
        self._elapsed_before, self._began = elapsed_s, time.monotonic()
        self._budget = config.search.time_budget_s()
        self.manifest = ledger.manifest()
        self.rows = self.manifest.splits["train"].rows
        self.display = Display(
            console,
            name=ledger.name,
            trials=config.search.trials
            + config.selection.finalists.top * config.selection.finalists.seeds,
            selection=config.selection,
            time_budget_s=None if self._budget is None else max(0.0, self._budget - elapsed_s),
        )
        local = ledger.store.local
        self._scratch = Path(tempfile.mkdtemp(prefix="finetune-sweeps-"))
        self._tracking = (local or self._scratch) / "tracking"
        base = ledger.store.read_json("base.json") if ledger.store.exists("base.json") else {}
        about = tracked(config, self.manifest, base)
        self.tracker = Tracker(
            config.tracking, ledger.name, self._tracking, self.display.say, about
        )
        self._coordinator: Any = None
        self._dashboard_labels: dict[str, Any] = {}
        self._slots: list[threading.Thread] = []
        self._lost: dict[str, str] = {}  # slots that are gone for good, and why
        self._quarantined: dict[
            str, dict[str, str]
        ] = {}  # slots that failed one trial after another, and those trials
        self._limits: dict[
            str, int
        ] = {}  # how many trials of a kind share a slot, as far as was said
        self._asked_for_baselines = False
        self._watching = False
        self._beating = threading.Lock()
        self._succeeded = False  # whether a trial of this process was evaluated
        self._failures: list[str] = []  # why trials of this process failed
        self._reference = ledger.reference()
        self._has_baseline = ledger.store.exists("baseline.json")

    def elapsed_s(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    # --- the search ---

    def trials_left(self) -> bool:
        curves, finals, drawn = (
            self.ledger.curves(),
            self.config.selection.finalists,
            self.ledger.drawn(),
        )
        again = finals.seeds * len(finalists(curves, self.config.selection)) if finals.top else 0
        return (
            bool(self.ledger.unfinished())
            or drawn < self.config.search.trials
            or len(curves) - drawn < again
        )

    def to_measure(self) -> dict[str, dict[str, Any]]:
        """What is still to be measured when the trials have ended, by name; see
        trainables.evaluation.jobs.
        """
        found: dict[str, dict[str, Any]] = {}
        if self._wants_baselines():
            found["baselines"] = BASELINES
        winner, _ = self.ledger.select(self.config.selection)
        if winner is None:
            return found
        of_winner = self._trained(self.ledger.curve(winner.trial), winner.point)
        if "test" in self.manifest.splits and self.ledger.of_winner("test", winner) is None:
            default = self.ledger.default(self.config.selection)
            other = default is not None and default[0].id != winner.trial
            found["test"] = {
                "kind": "test",
                **of_winner,
                "default": self._trained(*default) if other else None,
            }
        if (
            self.config.task != "classification"
            and self.ledger.of_winner("forgetting", winner) is None
        ):
            found["forgetting"] = {"kind": "forgetting", **of_winner}
        return found

    def _trained(self, curve: Curve, point: Evaluation) -> dict[str, Any]:
        return {
            "checkpoint": f"{point.folder}/{CHECKPOINT}",
            "params": self.config.complete(curve.params),
        }

    def _wants_baselines(self) -> bool:
        wanted = self.config.selection.baselines and self.config.task != "causal_lm"
        return wanted and not self.ledger.store.exists("baselines.json")

    def search(self) -> None:
        """Run trials until there are no more to run; leaves no process behind."""
        import ray

        from cluster.connect import connect, plan_slots
        from sweeps.search.following import follow_space
        from sweeps.search.study import STUDY, open_study
        from trainables.runtime.coordinator import start_coordinator

        os.environ.update(
            RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=os.environ.get(
                "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
            ),
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
            TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
            TUNE_DISABLE_SIGINT_HANDLER="1",
            # carriers of trials start side by side; slots decide who trains
            TUNE_MAX_PENDING_TRIALS_PG="16",
            TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="0",
            RAY_CHDIR_TO_TRIAL_DIR="0",
            RAY_AIR_NEW_OUTPUT="0",  # the new output prints a header at every verbosity
        )
        for note in self.manifest.notes:
            self.display.say(note)
        space = self.config.space()
        self._study_file = (self.ledger.store.local or self._scratch) / STUDY
        if self.ledger.store.local is None and self.ledger.store.exists(STUDY):
            self._study_file.write_bytes(self.ledger.store.read_bytes(STUDY))
        study = open_study(self._study_file, self.ledger.name, self.config.search, self.config.seed)
        study = follow_space(study, self.config, self.ledger, self.display.say)
        with connect(self.config.cluster, namespace=f"sweep-{self.ledger.name}") as connection:
            if connection.dashboard_url:
                token = (
                    f" (its token: {connection.dashboard_token})"
                    if connection.dashboard_token
                    else ""
                )
                self.display.say(f"Ray dashboard: {connection.dashboard_url}{token}")
            plan = plan_slots(
                ray.cluster_resources(), ray.nodes(), self.config.cluster, self.config.search.trials
            )
            self.display.say(plan.reason)
            if self.trials_left():
                self.display.say(f"search: {search_words(self.config)}")
            pack = (
                self.config.cluster.trials_per_slot if plan.slots < self.config.search.trials else 1
            )
            self._coordinator = start_coordinator(self.ledger.name, "coordinator", pack, plan.slots)
            if self._has_baseline:
                ray.get(self._coordinator.skip_baseline.remote())
            with self._signals():
                pad_token_id = load_tokenizer(self.config.model).pad_token_id
                self._start = lambda plan: self._start_slot(connection, plan, pad_token_id)
                for _ in range(plan.slots):
                    self._start(plan)
                watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
                self.display.start()
                self._watching = True
                watcher.start()
                began = time.monotonic()
                try:
                    if self.trials_left():
                        self._tune(space, study, connection)
                    if self.stopped not in UNFINISHED:
                        self._measure()
                finally:
                    self._account(plan, time.monotonic() - began)
                    self._watching = False
                    watcher.join()
                    self.display.stop()
                    self._close_slots()
                    self._save_study()

    def _close_slots(self) -> None:
        import ray

        deadline = time.monotonic() + SLOT_END_TIMEOUT_S
        while any(slot.is_alive() for slot in self._slots) and time.monotonic() < deadline:
            ray.get(
                self._coordinator.close.remote()
            )  # again and again: a coordinator that was restarted has not heard of it
            for slot in self._slots:
                slot.join(1.0)

    def _tune(self, space: Any, study: Any, connection: Any) -> None:
        import ray
        from ray import tune

        from sweeps.search.scheduler import make_scheduler
        from sweeps.search.searcher import StudySearcher
        from sweeps.search.stopping import HopelessStopper
        from trainables.runtime.trial import Trial

        searcher = StudySearcher(
            config=self.config,
            space=space,
            study=study,
            ledger=self.ledger,
            order={"coordinator": "coordinator", "namespace": connection.namespace},
            stopped=lambda: self.stopped,
            room=lambda: ray.get(self._coordinator.room.remote()) > 0,
            on_start=self._trial_started,
            on_end=self._trial_ended,
            say=self.display.say,
        )
        stopping = self.config.search.early_stopping
        tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=make_scheduler(self.config, self.rows, self.ledger.curves()),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self._scratch),
                verbose=0,
                stop=HopelessStopper(
                    config=stopping,
                    selection=self.config.selection,
                    ledger=self.ledger,
                    reference=lambda: self._reference,
                    on_evaluation=self._evaluated,
                    on_stop=searcher.stop_reason,
                ),
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()

    def _measure(self) -> None:
        """What the winner is compared with, and the sealed test, on slots that have nothing else to
        do now.
        """
        import ray

        left = self.to_measure()
        if left:
            self.display.say(f"measuring: {', '.join(JOBS[name] for name in left)}")
        while left and self.stopped not in UNFINISHED:
            for (
                name,
                what,
            ) in (
                left.items()
            ):  # again and again: a coordinator that was restarted has not heard of it
                ray.get(self._coordinator.job.remote(name, what))
            results = ray.get(self._coordinator.snapshot.remote())["jobs"]
            for name in [name for name in left if results.get(name) is not None]:
                del left[name]
                if "error" in results[name]:
                    self.display.say(f"not measured: {JOBS[name]}: {results[name]['error']}")
                elif name == "baselines":
                    self.ledger.store.write_json("baselines.json", results[name])
                    for broken in [each for each in results[name].values() if "error" in each]:
                        self.display.say(f"not measured: {broken['words']}: {broken['error']}")
                elif name == "forgetting":
                    self.ledger.write_forgetting(results[name], self.config.selection)
                else:
                    self.ledger.write_test(results[name], self.config.selection)
            time.sleep(0.2)

    def _account(self, plan: Any, seconds: float) -> None:
        """Add what this process held of accelerators, or else of cores, to what the sweep took."""
        device = "GPU" if plan.resources_per_worker.get("GPU") else "CPU"
        held = plan.slots * plan.workers_per_slot * plan.resources_per_worker.get(device, 1.0)
        before = (
            self.ledger.store.read_json("cost.json")
            if self.ledger.store.exists("cost.json")
            else {}
        )
        self.ledger.store.write_json(
            "cost.json",
            {
                "device": "GPU" if device == "GPU" else "CPU core",
                "device_seconds": before.get("device_seconds", 0.0) + seconds * held,
            },
        )

    def _start_slot(self, connection: Any, plan: Any, pad_token_id: int) -> None:
        from trainables.runtime.capacity import MAX_GROUP_SIZE
        from trainables.runtime.protocol import SlotConfig
        from trainables.runtime.slot import run_slot

        name, train = f"{self.ledger.name}-slot{len(self._slots)}", self.config.train
        slot = SlotConfig(
            slot=name,
            coordinator="coordinator",
            namespace=connection.namespace,
            storage=self.ledger.store.url,
            model=self.config.model,
            task=self.config.task,
            baseline=first_of_each_method(self.config)[0],
            seed=self.config.seed,
            pad_token_id=pad_token_id,
            evaluate_every=None if train.evaluate_every == "epoch" else int(train.evaluate_every),
            max_tokens=train.max_tokens,
            precision=train.precision,
            save_dtype=train.save_dtype,
            gradient_checkpointing=train.gradient_checkpointing,
            most=min(MAX_GROUP_SIZE, math.ceil(self.config.search.trials / plan.slots)),
            probe_rows=train.probe_rows,
            forgetting=self.config.selection.limits.of_forgetting,
            baseline_minutes=self.config.selection.baseline_minutes,
            threads=plan.threads_per_worker,
            estimates=(
                smallest_estimates(self.config) if plan.resources_per_worker.get("GPU") else {}
            ),
        )

        def run() -> None:
            import ray

            error = "it ended before the sweep did"
            try:
                run_slot(
                    slot,
                    workers=plan.workers_per_slot,
                    resources_per_worker=plan.resources_per_worker,
                    folder=str(self._scratch / "slots"),
                )
            except (
                Exception
            ) as raised:  # the border to Ray Train: a lost slot is news for the sweep, not its end
                error = (
                    str(raised).strip().splitlines()[0]
                    if str(raised).strip()
                    else type(raised).__name__
                )
            if self._watching:
                try:
                    ray.get(self._coordinator.slot_lost.remote(name, error))
                    self._lost[name] = ray.get(self._coordinator.snapshot.remote())["lost"][name]
                except (
                    ray.exceptions.RayError
                ):  # the cluster itself is gone; the main thread hears of it from Tune
                    return
                again = list(self._lost.values()).count(self._lost[name]) > 1
                self.display.say(
                    f"{name} is lost: {'for the same reason' if again else self._lost[name]}"
                )
                self._stop_without_slots()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._watching = True
        self._slots.append(thread)
        thread.start()

    # --- what happens to trials ---

    def _trial_started(self, trial: str, params: dict[str, Any], resumed: bool) -> None:
        import ray

        from trainables.runtime.dashboard import dashboard_label

        ray.get(self._coordinator.expect.remote(trial, self.config.complete(params)))
        self._dashboard_labels[trial] = dashboard_label(
            trial, f"{self.ledger.name} {trial}: {format_params(params)}"
        )
        word = "goes on" if resumed else "starts"
        self.display.say(f"{trial} {word}: {format_params(params)}")
        self.tracker.trial_started(trial, self.config.complete(params))

    def _evaluated(self, trial: str, evaluation: Evaluation) -> None:
        if not self.ledger.record(trial, evaluation):
            return
        self._succeeded = self._succeeded or evaluation.val_loss is not None
        self.ledger.prune(trial, self.config.selection)
        self.tracker.evaluation(trial, evaluation)
        numbers = {**evaluation.metrics, **{name: getattr(evaluation, name) for name in LOST}}
        metrics = "".join(
            f", {name} {value:.4f}" for name, value in numbers.items() if value is not None
        )
        losses = [
            "not finite" if loss is None else f"{loss:.4f}"
            for loss in (evaluation.val_loss, evaluation.probe_loss)
        ]
        self.display.say(
            f"{trial} epoch {evaluation.epoch:g}: val loss {losses[0]}, probe loss"
            f" {losses[1]}{metrics}"
        )

    def _trial_ended(self, trial: str) -> None:
        import ray

        ray.get(self._coordinator.leave.remote(trial))
        ray.kill(self._dashboard_labels.pop(trial))
        self.ledger.prune(trial, self.config.selection)
        curve = self.ledger.curve(trial)
        judged = standing_verdict(curve, self._reference, self.config.selection)
        best = best_point(curve, self.config.selection)
        self.tracker.trial_finished(
            trial,
            status=curve.status,
            verdict=judged.word,
            verdict_reason=judged.reason,
            best=best,
        )
        number = f", best val loss {best.val_loss:.4f} at epoch {best.epoch:g}" if best else ""
        why = f" ({curve.reason})" if curve.reason else ""
        self.display.say(f"{trial} {curve.status}{why}{number}; {judged.shown}")
        if curve.status == "failed":
            from sweeps.search.failures import common_cause

            self._failures.append(curve.reason or "")
            if not self._succeeded and common_cause(self._failures) is not None:
                self._stop(ALIKE)

    # --- watching over it ---

    def _stop(self, reason: str) -> None:
        """Stop what runs, in order: trials end at once, nothing new starts."""
        import ray

        if self.stopped is None:
            self.stopped = reason
            if reason == INTERRUPTED:
                self._heartbeat()  # first of all: a job that is stopped may have seconds to live
            self.display.say(f"Stopping: {reason}")
            ray.get(self._coordinator.stop_trials.remote(reason), timeout=ASK_TIMEOUT_S)

    def _watch(self) -> None:
        """Everything that goes on beside the trials. No duty may silence another, failing or
        hanging: without a heartbeat another host would resume the same sweep, without the time
        budget it would not end.
        """
        duties = {
            "heartbeat": (self._heartbeat, HEARTBEAT_S),
            "time budget": (self._keep_to_the_budget, WATCH_S),
            "reminding the coordinator": (self._remind, WATCH_S),
            "looking at the slots": (self._look, WATCH_S),
            "growing with the cluster": (self._grow, GROW_S),
        }
        threads = [
            threading.Thread(target=self._repeat, args=(name, *duty), name=name, daemon=True)
            for name, duty in duties.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(self, name: str, duty: Callable[[], None], every_s: float) -> None:
        told: set[type] = set()
        done = time.monotonic()
        while self._watching:
            time.sleep(min(WATCH_S, every_s))
            if time.monotonic() - done < every_s:
                continue
            done = time.monotonic()
            try:
                duty()
            # the border of a watching thread: it must outlive whatever goes wrong in its duty
            except Exception as error:
                if type(error) not in told:
                    told.add(type(error))
                    self.display.say(
                        f"The sweep goes on, but {name} failed: {type(error).__name__}: {error}"
                    )

    def _keep_to_the_budget(self) -> None:
        if self._budget is not None and self.elapsed_s() > self._budget:
            self._stop(f"the time budget of {self.config.search.time_budget} is spent")

    def _remind(self) -> None:
        """Tell the coordinator what it may have forgotten: one that was restarted knows nothing."""
        if self._has_baseline:
            self._coordinator.skip_baseline.remote()
        if self.stopped is not None:
            self._coordinator.stop_trials.remote(self.stopped)
        self._coordinator.expect_slots.remote(len(self._slots))
        for slot, error in list(self._lost.items()):
            self._coordinator.slot_lost.remote(slot, error)

    def _look(self) -> None:
        """What the slots have found out, and the live table."""
        import ray

        try:
            snapshot = ray.get(self._coordinator.snapshot.remote(), timeout=ASK_TIMEOUT_S)
        except ray.exceptions.RayError:
            return  # the coordinator is starting again
        if not self._has_baseline and snapshot["baseline"] is not None:
            self._has_baseline = True
            self.ledger.store.write_json("baseline.json", snapshot["baseline"])
            self._reference = self.ledger.reference()
            if "val_loss" in snapshot["baseline"]:
                self.display.say(
                    f"the untuned model: val loss {snapshot['baseline']['val_loss']:.4f}"
                )
        for sort, limit in snapshot["limits"].items():
            if self._limits.get(sort) != limit:
                self._limits[sort] = limit
                shared = (
                    f"{limit} trials share a slot" if limit > 1 else "a trial has a slot to itself"
                )
                self.display.say(f"measured: {shared} ({sort})")
        for slot, failed in snapshot["quarantined"].items():
            if slot not in self._quarantined:
                last = list(failed.values())[-1]
                self.display.say(
                    f"{slot} gets no more trials: {len(failed)} failed on it one after another "
                    f"({', '.join(failed)}; the last: {last}); they go on elsewhere"
                )
        self._quarantined = snapshot["quarantined"]
        self._stop_without_slots()
        left = len(self.ledger.curves()) < self.config.search.trials
        if not self._asked_for_baselines and not left and self._wants_baselines():
            # a slot that finds no more trials need not wait for the last of the others
            self._asked_for_baselines = True
            self._coordinator.job.remote("baselines", BASELINES)
        self.display.refresh(self.ledger.curves(), snapshot, self._total_samples)

    def _stop_without_slots(self) -> None:
        if self._slots and len(self._lost.keys() | self._quarantined.keys()) == len(self._slots):
            self._stop(NO_SLOT)

    def _grow(self) -> None:
        """Start the slots that a cluster has room for since nodes have joined it, and those in the
        place of lost ones.
        """
        import ray

        from cluster import ClusterError
        from cluster.connect import plan_slots

        cluster, trials = self.config.cluster, self.config.search.trials
        try:
            plan = plan_slots(ray.cluster_resources(), ray.nodes(), cluster, trials, can_grow=True)
        except ClusterError:  # no room for any now
            return
        more = plan.slots - (len(self._slots) - len(self._lost))
        if more > 0 and self.stopped is None:
            self.display.say(
                f"Starting {more} more {'slot' if more == 1 else 'slots'}: {plan.reason}"
            )
            for _ in range(more):
                self._start(plan)
            ray.get(self._coordinator.expect_slots.remote(len(self._slots)), timeout=ASK_TIMEOUT_S)

    def _heartbeat(self) -> None:
        try:
            with self._beating:
                ending = self.stopped == INTERRUPTED
                self.ledger.set_status(
                    "interrupted" if ending else "running", self.elapsed_s(), ending=ending
                )
                self._save_study()
        except (
            OSError
        ) as error:  # a store that does not answer for a while, or a full disk: the trials go on
            self.display.say(f"The sweep's folder cannot be written: {error}")

    def _save_study(self) -> None:
        """An object store gets copies of the journal, which grows in a local file."""
        from sweeps.search.study import STUDY

        if self.ledger.store.local is None:
            self.ledger.store.write_bytes(STUDY, self._study_file.read_bytes())

    def _total_samples(self, curve: Curve) -> int:
        return trained_samples(self.rows, self.config.hyperparameters(curve.params))

    def _signals(self) -> Any:
        """Ctrl-C and SIGTERM stop the sweep in order; a second one ends it at once."""
        return SignalHandler(
            lambda: threading.Thread(target=self._stop, args=(INTERRUPTED,), daemon=True).start()
        )

    # --- the end ---

    def close(self) -> None:
        self.tracker.close()
        if self.ledger.store.local is None and self._tracking.is_dir():
            self.ledger.store.publish(self._tracking, "tracking", last="")
        shutil.rmtree(self._scratch, ignore_errors=True)

    def conclude(self) -> Outcome:
        """Select, hand over the winner, write the report; print leaderboard, winner and reason."""
        from sweeps.reporting.handover import hand_over
        from sweeps.reporting.publish import write_report

        status = {INTERRUPTED: "interrupted", NO_SLOT: "failed", ALIKE: "failed"}.get(
            self.stopped or "", "finished"
        )
        self.ledger.set_status(status, self.elapsed_s())
        board = self.ledger.board(self.config.name, self.config.selection)
        lines = []
        if board["winner"] is not None and status == "finished":
            folder = hand_over(self.ledger, self.config, board)
            self.tracker.winner(board["winner"]["trial"], board["winner"]["reason"], folder)
            lines.append(f"Checkpoint: {folder}")
        lines.append(f"Report: {write_report(self.ledger, self.config)}")
        if self.stopped == ALIKE:
            from sweeps.search.failures import common_cause

            cause = common_cause(self._failures)
            lines.append(
                f"Stopped, as {ALIKE}: {cause}. Mend it and go on: python -m sweeps resume"
                f" {board['folder']}"
            )
        print_board(self.console, board)
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        return Outcome(board=board, folder=board["folder"], status=status)
