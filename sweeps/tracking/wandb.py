"""Weights & Biases sink: one W&B run per trial and one of the sweep, grouped by sweep.

`WandbTracker` is what a sweep calls (see sweeps.tracking.protocol). Its calls put a job on a queue
and return; one background thread does the jobs through `Sink`, which alone talks to wandb.
Whatever goes wrong there (no key, no server, no disk, a dead wandb-core) is caught in that thread,
logged in one line, and never reaches the sweep.

What wandb 0.31 does, and what follows from it here (tests/sweeps/tracking/test_tracking.py holds
each of these):
- A failed `wandb.init` leaves its run id "in use" until wandb-core ends, and a dead wandb-core
  breaks every open run.
  Both are mended in one way: end the service, start it again, reopen what is needed under the same
  id (`Sink.reset`).
- Reopening a run offline makes a second folder. `wandb sync` uploads the folders of one id in order
  of start time, and
  the last summary and metric definitions win. So what a run was told is kept in
  `state/<trial>.json` and said again.
  Offline runs of the best finished trials stay open until the end: one of them is to be marked as
  the winner.
- A row that is logged overwrites the summary. So a trial's summary is written when it has ended:
  with the numbers of the
  checkpoint that stands for it, not of its last evaluation.
- A module that is imported while a run is open is told to wandb-core, by the thread that imports
  it. Where wandb-core has ended, that import fails: the hooks are taken back.
- Artifacts are used, waited for and linked online alone. So the sweep's own run is written online
  alone: until then what it is to hold lies in `end.json`.
- `_step` follows the trial's own step, so it goes on rising after a resume and no row is written
  twice.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import hashlib
import json
import os
import queue
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sweeps.tracking.background import one_line
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.online import NO_KEY, mode_of, probe
from sweeps.tracking.protocol import SweepEnd
from sweeps.tracking.winner import (
    ALIAS,
    REGISTRY,
    base_artifact,
    data_artifact,
    lora_artifact,
    valid_name,
    winner_artifact,
)
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation
from trainables.storage.records import from_json, to_json
from trainables.storage.store import Store

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run as PublicRun

INIT_TIMEOUT_S = 8.0
FINISH_TIMEOUT_S = 15.0
FLUSH_INTERVAL_S = 1
MOST_OPEN = 16
"""Offline runs of finished trials that stay open; each takes some 2 MB."""
ARTIFACT_TIMEOUT_S = 20.0
UPLOAD_BYTES_PER_S = 5e6
"""As slow as an upload may be that is waited for."""
SWEEP = "sweep"
"""In the place of a trial: the sweep's own run."""
END = "end.json"
"""What the last sweep that finished has told."""
SWEEPS = ("python", "-m", "sweeps")
MAX_FAILURES = 3
"""Jobs that may fail in a row (each was tried twice) before tracking is given up."""


class WandbTracker:
    """Tracks a sweep's trials in W&B. Every call returns at once, and none raises.

    Args:
        config: Where to track.
        sweep: Name of the sweep's folder: the group of its runs, and the first part of their ids.
        folder: Local folder for all that wandb writes; it and the environment's WANDB_* folders are
        set here.
        log: Takes one line for people. It is called from the background thread too.
        about: What all trials of the sweep have in common (task, model, data): it goes into the
        config of each run.
    """

    def __init__(
        self,
        config: TrackingConfig,
        sweep: str,
        folder: Path,
        log: Callable[[str], None],
        about: Mapping[str, object] | None = None,
    ) -> None:
        self._log = log
        self._jobs: queue.SimpleQueue[tuple[str, tuple[object, ...]]] = queue.SimpleQueue()
        self._logged: set[str] = set()
        self._sink: Sink | None = None
        self._abandoned = False
        self._open = mode_of(config) != "off"
        if not self._open:
            return
        folder = folder.absolute()
        pin_folders(folder)
        self._thread = threading.Thread(
            target=self._work,
            args=(config, sweep, folder, dict(about or {})),
            name="tracking",
            daemon=True,
        )
        self._thread.start()

    def trial_started(self, trial: str, params: Mapping[str, object]) -> None:
        """Open the trial's run, or go on with it if an earlier process had opened it."""
        self._put("trial_started", trial, dict(params))

    def evaluation(self, trial: str, evaluation: Evaluation) -> None:
        """Log one evaluation over samples_seen."""
        self._put("evaluation", trial, evaluation)

    def noted(self, trial: str, words: str) -> None:
        """Write it into the run's summary, behind what was noted before."""
        self._put("noted", trial, words)

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        """Write the trial's outcome into its run's summary and finish the run (exit code 1 if
        `status` is failed).

        best: the evaluation of the checkpoint that stands for the trial; the summary then has its
        numbers, under the names of the curves and under `best/`. None where the trial has none, and
        the summary is that of the last one.
        """
        self._put("trial_finished", trial, status, verdict, verdict_reason, best)

    def sweep_finished(self, end: SweepEnd) -> None:
        """Mark the winner's run: summary `winner=True` and tag `winner`, which an earlier winner
        loses. Online also write the sweep's own run and log the winner as an artifact; what cannot
        be done now is kept for `python -m sweeps sync`.
        """
        self._put("sweep_finished", end.trial, end)

    def close(self, timeout_s: float = 30) -> None:
        """Write all that is queued, finish every run, and say where the runs are; returns within
        `timeout_s`, and as much later as the files of a winner take.

        Runs of trials that had not finished are marked preempted. What could not be uploaded in
        time stays on disk.
        """
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        reserve_s = min(2.0, timeout_s / 4)
        self._jobs.put(("close", ()))
        self._thread.join(timeout_s - reserve_s)
        if self._thread.is_alive() and self._sink and self._sink.upload_s:
            self._thread.join(self._sink.upload_s)
        if self._thread.is_alive():
            self._abandoned = True
            self._say("late", "not all was done in time; what was logged by then is on disk")
            if self._sink:
                self._sink.kill_service()  # so that whatever the thread waits for fails
            self._thread.join(reserve_s)
        if self._sink:
            self._say("where", self._sink.where())

    def _put(self, job: str, *args: object) -> None:
        if self._open:
            self._jobs.put((job, copy.deepcopy(args)))

    def _say(self, kind: str, line: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            self._log(f"W&B: {line}")

    def _work(
        self, config: TrackingConfig, sweep: str, folder: Path, about: dict[str, object]
    ) -> None:
        try:
            sink = Sink(config, sweep, folder, about, self._say)
        except Exception as error:
            self._open = False
            self._say("start", f"not tracking, because it did not start ({one_line(error)})")
            return
        self._sink = sink
        atexit.register(
            self.close
        )  # after wandb's own hook, so before it: that one waits for uploads without limit
        failures = 0
        while not self._abandoned:
            job, args = self._jobs.get()
            if job == "close":
                self._try(sink, job, args)
                return
            if failures < MAX_FAILURES:
                done = self._try(sink, job, args) or self._abandoned or self._try(sink, job, args)
                failures = 0 if done else failures + 1
                if failures == MAX_FAILURES:
                    self._say(
                        "gave up",
                        f"gave up after {failures} failures in a row; the sweep goes on without it",
                    )
        sink.reset()

    def _try(self, sink: Sink, job: str, args: tuple[object, ...]) -> bool:
        try:
            sink.do(job, args)
        except Exception as error:
            what = job if job == "close" else f"{job} of {args[0]}"
            self._say(f"failed {type(error).__name__}", f"{what} failed ({one_line(error)})")
            sink.reset()
            return False
        return True


@dataclass(kw_only=True)
class _Run:
    """What W&B was told of one trial, and its open run."""

    params: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    """Keys of the logged rows."""
    last_step: int = -1
    logged: dict[str, str] = field(default_factory=dict)
    """Of tables and artifacts: the digest of what W&B has."""
    live: wandb.Run | None = None
    online: bool = False
    finishing: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        return self.summary.get("status", "running") != "running"


class Sink:
    """Talks to wandb, from one thread (but `wandb.Run.finish`, which may wait for uploads, gets
    threads of its own).
    """

    def __init__(
        self,
        config: TrackingConfig,
        sweep: str,
        folder: Path,
        about: Mapping[str, object],
        say: Callable[[str, str], None],
    ) -> None:
        self._config, self._sweep, self._folder, self._about, self._say = (
            config,
            sweep,
            folder,
            about,
            say,
        )
        self._group = sweep[:128]
        self._runs: dict[str, _Run] = {}
        self._service: Any = None
        self._service_lock = threading.Lock()
        self._base_url, self._key = "", None
        self._always_offline = mode_of(config) == "offline"
        self._group_url: str | None = None
        self._offline_runs: set[str] = set()
        self._incomplete: list[str] = []
        self._end: SweepEnd | None = None  # what is still to be completed
        self.picked_by: str | None = None
        """What `pick` takes for the winner, once it is online."""
        self.upload_s = 0.0
        """How long files that are being read or uploaded may take."""
        self.patient = False
        """Whether somebody has asked for the upload, and waits for it."""
        for below in (
            "state",
            "wandb/logs",
        ):  # wandb would make its folders with rights of its own, not the umask's
            (folder / below).mkdir(parents=True, exist_ok=True)
        self._start_service()
        if not self._always_offline:
            self._log_in()

    def do(self, job: str, args: tuple[object, ...]) -> None:
        """Do one job. Errors of wandb, the server and the disk come out as they are."""
        jobs = {
            "trial_started": self._trial_started,
            "evaluation": self._evaluation,
            "noted": self._noted,
            "trial_finished": self._trial_finished,
            "sweep_finished": self._sweep_finished,
            "close": self._close,
        }
        if job != "close" and not self._service_alive():
            if self._service:
                self._say("service", "wandb-core had ended; it was started again")
            self.reset()
            self._start_service()
        jobs[job](*args)

    def _trial_started(self, trial: str, params: dict[str, object]) -> None:
        run = self._run(trial)
        run.params = params
        run.summary.update(status="running")
        self._reopen(trial, run).summary.update({"status": "running"})
        self._save(trial, run)

    def _evaluation(self, trial: str, evaluation: Evaluation) -> None:
        run = self._run(trial)
        if evaluation.step <= run.last_step:
            return
        row = row_of(evaluation)
        live = self._reopen(trial, run)
        for key in row.keys() - set(run.metrics):
            _define_metric(live, key)
            run.metrics.append(key)
        live.log(row, step=evaluation.step, commit=True)
        run.last_step = evaluation.step
        run.summary |= row
        self._save(trial, run)

    def _noted(self, trial: str, words: str) -> None:
        run = self._run(trial)
        notes = {"notes": [*run.summary.get("notes", []), words]}
        self._reopen(trial, run).summary.update(notes)
        run.summary |= notes
        self._save(trial, run)

    def _trial_finished(
        self,
        trial: str,
        status: str,
        verdict: str,
        verdict_reason: str,
        best: Evaluation | None,
    ) -> None:
        run = self._run(trial)
        outcome = {"status": status, "verdict": verdict, "verdict_reason": verdict_reason}
        if best:
            outcome |= row_of(best) | best_of(best)
        self._reopen(trial, run).summary.update(outcome)
        run.summary |= outcome
        if run.online or not best or status == "failed":
            self._finish(run)
        self._finish_behind()
        self._save(trial, run)

    def _finish_behind(self) -> None:
        """Finish the runs of finished trials that many others are ahead of."""
        ended = [
            run
            for run in self._runs.values()
            if run.live and run.ended and not run.summary.get("winner")
        ]
        for run in sorted(ended, key=lambda run: run.summary["best/val_loss"])[MOST_OPEN:]:
            self._finish(run)

    def _sweep_finished(self, trial: str, end: SweepEnd) -> None:
        write_end(self._folder, end)  # first, so that `sync` knows of it whatever fails here
        self._end = end
        for path in sorted((self._folder / "state").glob("*.json")):
            other = self._run(path.stem)
            if path.stem != trial and other.summary.get("winner"):
                self._mark(path.stem, other, {"winner": False})
        mark = {"winner": True, "winner_reason": end.reason, "winner_checkpoint": end.checkpoint}
        self._mark(trial, self._run(trial), mark)
        if self._online():
            self._complete_or_say(end)

    def _complete_or_say(self, end: SweepEnd) -> None:
        try:
            self.complete(end)
        except Exception as error:
            self._say("winner", f"the winner was not handed over whole ({one_line(error)})")

    def complete(self, end: SweepEnd) -> list[str]:
        """Do what only works online: the sweep's own run with its tables, the artifacts that it
        used, the winner's, and the link to the registry. Returns what was new, in words. Nothing is
        logged again that W&B has.
        """
        run = self._run(SWEEP)
        run.summary = {**end.summary, "status": "finished", "winner_trial": end.trial}
        run.summary |= {"reason": end.reason, "paragraph": end.paragraph}
        run.summary["findings"] = list(end.findings)
        told = _digest([to_json(end), self._config.__dict__])
        if run.logged.get("end") == told:
            self._end = None
            self.picked_by = run.logged.get("pick")
            return []
        live = self._reopen(SWEEP, run)
        if not run.online:
            raise OSError("the server does not answer")
        tables = self._log_tables(run, live, end)
        live.summary.update(run.summary)
        done = [*self._use_sources(run, live, end), *self._log_winner(run, live, end)]
        self._finish(run)
        assert run.finishing is not None, "it is being finished"
        run.finishing.join()
        if live.sync_dir in self._incomplete:
            raise OSError("its run was not uploaded")
        run.logged |= tables | {"end": told}
        self._save(SWEEP, run)
        self._end, self.upload_s = None, 0.0
        return [*(f"table {name}" for name in tables), *done]

    def _log_tables(self, run: _Run, live: wandb.Run, end: SweepEnd) -> dict[str, str]:
        """Digests of the tables that are new."""
        import wandb

        found = {}
        for name, table in end.tables.items():
            digest = _digest([table.columns, table.rows])
            if run.logged.get(name) == digest:
                continue
            columns = list[str | int](table.columns)
            shown = wandb.Table(columns=columns, allow_mixed_types=True)
            for row in table.rows:
                shown.add_data(*row)
            live.log({name: shown})
            found[name] = digest
        return found

    def _use_sources(self, run: _Run, live: wandb.Run, end: SweepEnd) -> list[str]:
        told = [end.data_fingerprint, *(to_json(each) for each in end.data), to_json(end.base)]
        digest = _digest([*told, self._config.dataset])
        if run.logged.get("sources") == digest:
            return []
        sources = [data_artifact(self._config, end), base_artifact(end.base)]
        used = [live.use_artifact(source) for source in sources if source is not None]
        run.logged["sources"] = digest
        self._save(SWEEP, run)
        return [f"used {artifact.name}" for artifact in used]

    def _log_winner(self, run: _Run, live: wandb.Run, end: SweepEnd) -> list[str]:
        done, size = [], Store(end.checkpoint).size()
        kinds = {"winner": winner_artifact, "lora": lora_artifact}
        for kind, made in kinds.items():
            how = (self._config.artifact, self._config.artifact_limit_gb, self._config.lora_base)
            digest = _digest([end.metadata, kind, *how])
            if run.logged.get(kind) == digest:
                continue
            self.upload_s = size / UPLOAD_BYTES_PER_S  # of all, as it is read before
            with made(self._config, artifact_name(self._sweep, kind), end) as artifact:
                if artifact is None:
                    continue
                entries = artifact.manifest.entries.values()
                uploaded = sum(entry.size or 0 for entry in entries if entry.ref is None)
                self.upload_s = uploaded / UPLOAD_BYTES_PER_S
                aliases = [ALIAS, "best", end.trial]
                logged = live.log_artifact(artifact, aliases=aliases)
                limit_s = None if self.patient else int(ARTIFACT_TIMEOUT_S + self.upload_s)
                logged.wait(limit_s)
            done.append(f"artifact {logged.name}")
            run.logged[kind] = digest
            if kind == "winner":
                run.logged["version"] = logged.qualified_name
                run.logged["pick"] = f"{logged.qualified_name.rpartition(':')[0]}:{ALIAS}"
            self._save(SWEEP, run)
        self.picked_by = run.logged.get("pick")
        return [*done, *self._link(run)]

    def _link(self, run: _Run) -> list[str]:
        """To the registry, where one is asked for."""
        import wandb

        version, collection = run.logged.get("version"), self._config.registry
        if version is None or collection is None:
            return []
        target = collection if "/" in collection else f"{REGISTRY}/{collection}"
        if run.logged.get("link") == (linked := f"{version} {target}"):
            return []
        wandb.Api().artifact(version).link(target)
        run.logged["link"] = linked
        self._save(SWEEP, run)
        return [f"link to {target}"]

    def _mark(self, trial: str, run: _Run, mark: dict[str, object]) -> None:
        was_open = run.live is not None
        if not was_open and mark.items() <= run.summary.items():
            return  # by an earlier process
        run.summary |= mark
        live = self._reopen(trial, run)
        live.summary.update(mark)
        live.tags = self._tags(run)
        if not was_open:
            self._finish(run)
        self._save(trial, run)

    def _close(self) -> None:
        for run in self._runs.values():
            if run.live and run.ended:
                self._finish(run)
            elif run.live:
                run.live.mark_preempting()
                self._finish(run, exit_code=1)
        for run in self._runs.values():
            if run.finishing:
                run.finishing.join()
        _teardown()

    def where(self) -> str:
        """Where the runs are, and how to upload what is not on the server."""
        parts = []
        if self._group_url:
            parts.append(f"runs at {self._group_url}")
        if self.picked_by:
            command = shlex.join([*SWEEPS, "pick", self.picked_by, "--to", "winner"])
            parts.append(f"fetch the winner with: {command}")
        left = []
        if self._offline_runs:
            left.append(f"offline runs: {len(self._offline_runs)}")
        if self._incomplete:
            left.append(f"runs not fully uploaded: {len(set(self._incomplete))}")
        if self._end is not None:
            left.append("the winner is not uploaded")
        if left:
            sweep = str(self._about.get("folder") or self._folder.parent)
            command = shlex.join([*SWEEPS, "sync", sweep])
            parts.append(f"{', '.join(left)}; upload with: {command}")
        return "; ".join(parts) or "no runs"

    def reset(self) -> None:
        """End wandb-core and forget every open run; the next job starts it again and reopens the
        run that it needs.
        """
        live = [run for run in self._runs.values() if run.live]
        if live and self._service_alive():
            time.sleep(FLUSH_INTERVAL_S + 0.2)
        self.kill_service()
        for run in live:
            if run.online and run.live is not None:
                self._incomplete.append(run.live.sync_dir)
            run.live = None
        _teardown()
        self._service = None

    def kill_service(self) -> None:
        """Kill wandb-core, so that whatever waits for it fails. For any thread."""
        with self._service_lock:
            if self._service_alive():
                self._service.kill()

    def _service_alive(self) -> bool:
        import psutil

        try:
            return self._service is not None and self._service.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _start_service(self) -> None:
        import psutil
        import wandb

        # wandb replaces both: an exception would be printed twice. A service of another process
        # could end at any time.
        exit_, excepthook = sys.exit, sys.excepthook
        os.environ.pop("WANDB_SERVICE", None)
        session = wandb.setup(
            wandb.Settings(
                root_dir=str(self._folder),
                # for the session, so that it looks for a key; each run has a mode of its own
                mode="online",
                silent=True,
                console="off",
                reinit="create_new",
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                stop_fn=lambda: self._say(
                    "stop", "a stop asked for in the web page was ignored"
                ),  # not SIGINT to us
                symlink=False,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_stats=True,  # of the sweep's process, where no trial trains
                x_save_requirements=False,
                x_transaction_log_flush_interval=FLUSH_INTERVAL_S,
            )
        )
        sys.exit, sys.excepthook = exit_, excepthook
        ours = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that was killed may end meanwhile
                ours += (
                    [(child.create_time(), child)] if child.name().startswith("wandb-core") else []
                )
        with self._service_lock:
            self._service = max(ours, key=lambda each: each[0])[1]
        self._base_url = session.settings.base_url

    def problem(self) -> str | None:
        """Why nothing can be uploaded now, or None. Raises InputError without a key."""
        if self._key is None:
            raise InputError(f"W&B: {NO_KEY}")
        found = probe(self._base_url, self._key)
        return found and found.why

    def runs_online(self) -> dict[str, PublicRun]:
        """The runs of the sweep that the server has, by their ids."""
        import wandb

        api = wandb.Api()
        project = f"{self._config.entity or api.default_entity}/{self._config.project}"
        try:
            runs = api.runs(project, filters={"group": self._group}, per_page=500, lazy=False)
            return {run.id: run for run in runs}
        except ValueError:
            return {}  # there is no such project yet

    def told(self, trial: str) -> dict[str, Any]:
        """What a trial's run was told: its `summary`, its `last_step`."""
        return vars(self._run(trial))

    def go_on(self, trial: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Upload those of a trial's rows that the server does not have, and what the trial was told
        last. Raises OSError where they did not arrive.
        """
        run = self._run(trial)
        live = self._reopen(trial, run)
        if not run.online:
            raise OSError("W&B: the server does not answer any more; another `sync` goes on")
        for row in rows:
            if row["_step"] >= live.starting_step:
                shown = {name: value for name, value in row.items() if not name.startswith("_")}
                live.log(shown, step=row["_step"], commit=True)
        live.summary.update(run.summary)
        self._finish(run)
        assert run.finishing is not None, "it is being finished"
        run.finishing.join()
        if live.sync_dir in self._incomplete:
            raise OSError("W&B: a run was not uploaded whole; another `sync` goes on")

    def _log_in(self) -> None:
        import wandb

        try:
            found = wandb.login(
                prompt=False, verify=False
            )  # verifying waits for the server; probe() does it in 3 s
        except wandb.Error as error:
            self._go_offline(one_line(error), for_good=True)
            return
        if not found:
            self._go_offline(NO_KEY, for_good=True)
        self._key = wandb.setup().settings.api_key

    def _go_offline(self, why: str, *, for_good: bool) -> None:
        self._always_offline = for_good
        asked = "warning: online was asked for, but " if self._config.wandb == "online" else ""
        self._say("offline", f"{asked}{why}, so runs are written to {self._folder / 'wandb'}")

    def _online(self) -> bool:
        """Whether the next run can go to the server. Asked for each: `wandb.init` would wait, and
        spoil the run id.
        """
        if self._always_offline:
            return False
        problem = probe(self._base_url, self._key)
        if problem:
            self._go_offline(problem.why, for_good=problem.for_good)
        return problem is None

    def _run(self, trial: str) -> _Run:
        if trial not in self._runs:
            path = self._folder / "state" / f"{trial}.json"
            try:
                self._runs[trial] = _Run(**json.loads(path.read_text()))
            except FileNotFoundError:
                self._runs[trial] = _Run(params={})
            except (ValueError, TypeError) as error:
                self._say(
                    "state",
                    f"could not read {path} ({one_line(error)}); its run goes on with what is new",
                )
                self._runs[trial] = _Run(params={})
        return self._runs[trial]

    def _save(self, trial: str, run: _Run) -> None:
        path = self._folder / "state" / f"{trial}.json"
        state = {
            "params": run.params,
            "summary": run.summary,
            "metrics": run.metrics,
            "last_step": run.last_step,
            "logged": run.logged,
        }
        try:
            path.with_suffix(".new").write_text(json.dumps(state, default=str))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            self._say("disk", f"could not write {path} ({one_line(error)})")

    def _tags(self, run: _Run) -> list[str]:
        # Never empty: a run that is reopened with no tags gets those back that the server knows,
        # "winner" among them.
        tags = [*self._config.tags, str(run.params.get("method", "trial"))[:64]]
        return [*tags, "winner"] if run.summary.get("winner") else tags

    def _reopen(self, trial: str, run: _Run) -> wandb.Run:
        import wandb

        if run.live:
            return run.live
        if run.finishing:
            run.finishing.join(FINISH_TIMEOUT_S + 1)
        run.online = self._online()
        try:
            live = wandb.init(
                mode="online" if run.online else "offline",
                project=self._config.project,
                entity=self._config.entity,
                id=run_id(self._sweep, trial),
                name=f"{trial} {run.params.get('method', '')}".strip(),
                group=self._group,
                job_type=_job_type(trial, run.params),
                tags=self._tags(run),
                config={**self._about, **run.params},
                resume="allow",
            )
        except Exception as error:
            if run.online:
                self._go_offline(f"wandb.init failed ({one_line(error)})", for_good=True)
            raise
        run.live = live
        _leave_imports_alone()
        if run.online:
            self._group_url = f"{live.project_url}/groups/{quote(self._group, safe='')}"
        else:
            self._offline_runs.add(trial)
        _define_metric(live, "samples_seen")
        for key in run.metrics:
            _define_metric(live, key)
        live.summary.update(run.summary)
        return live

    def _finish(self, run: _Run, exit_code: int | None = None) -> None:
        live, run.live, online = run.live, None, run.online
        assert live is not None
        if exit_code is None:
            exit_code = 1 if run.summary.get("status") == "failed" else 0

        def finish() -> None:
            try:
                live.finish(exit_code)
                # A key that was refused while the run went on ends the upload, and finish() does
                # not say so.
                problem = probe(self._base_url, self._key) if online else None
                why = problem and problem.why
            except Exception as error:
                why = one_line(error)
            if why and online:
                self._incomplete.append(live.sync_dir)
            if why:
                self._say("finish", f"a run was not finished properly ({why})")

        run.finishing = threading.Thread(
            target=finish, name=f"tracking finish {live.id}", daemon=True
        )
        run.finishing.start()


def write_end(folder: Path, end: SweepEnd) -> None:
    """folder: of all that trackers write."""
    partial = folder / f"{END}.new"
    partial.write_text(json.dumps(to_json(end), indent=1))
    partial.replace(folder / END)


def read_end(folder: Path) -> SweepEnd | None:
    """None of a sweep that has told of no winner."""
    if not (folder / END).is_file():
        return None
    return from_json(SweepEnd, json.loads((folder / END).read_text()), str(folder / END))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def run_id(sweep: str, trial: str) -> str:
    """The W&B run id of a trial: the same in every process that goes on with the sweep."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", sweep)[:64]
    if name != sweep:
        name = f"{name[:48]}-{hashlib.sha256(sweep.encode()).hexdigest()[:8]}"
    return f"{name}-{trial}"


def artifact_name(sweep: str, kind: str = "winner") -> str:
    """Of what a sweep leaves in W&B; kind: winner, or lora."""
    return valid_name(run_id(sweep, kind))


def _job_type(trial: str, params: Mapping[str, object]) -> str:
    """By which W&B parts the runs of a group."""
    if trial == SWEEP:
        return SWEEP
    first = params.get("finalist_of")
    return "trial" if first is None else f"seeds of {first}"


def row_of(evaluation: Evaluation) -> dict[str, object]:
    names = {
        "samples_seen": "samples_seen",
        "epoch": "epoch",
        "val_loss": "val/loss",
        "probe_loss": "probe/loss",
        "train_loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "forgetting": "val/forgetting",
        "kl": "val/kl",
    }
    row = {name: getattr(evaluation, key) for key, name in names.items()}
    row |= {f"val/{name}": value for name, value in evaluation.metrics.items()}
    return {name: value for name, value in row.items() if value is not None}


def best_of(evaluation: Evaluation) -> dict[str, object]:
    names = ("step", "samples_seen", "epoch", "val_loss", "probe_loss")
    found = {f"best/{name}": getattr(evaluation, name) for name in names}
    found |= {f"best/{name}": value for name, value in evaluation.metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def _define_metric(live: wandb.Run, key: str) -> None:
    if key == "samples_seen":
        live.define_metric(key, hidden=True)
    else:
        live.define_metric(key, step_metric="samples_seen")


def pin_folders(folder: Path) -> None:
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ[name] = str(folder)
    # The user's own settings file may name a server of their own: wandb only reads it.
    if (
        "WANDB_CONFIG_DIR" not in os.environ
        and not Path("~/.config/wandb/settings").expanduser().exists()
    ):
        os.environ["WANDB_CONFIG_DIR"] = str(folder)


def _leave_imports_alone() -> None:
    """Take back what wandb does when a module is imported: it tells its service of some of them, in
    the thread that imports, where the import then fails if the service has ended.
    """
    with contextlib.suppress(ImportError):  # another wandb may have no such thing
        from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

        unregister_all_post_import_hooks()


def _teardown() -> None:
    import wandb

    # it exits with the service's code, and a service that was killed has broken pipes
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
