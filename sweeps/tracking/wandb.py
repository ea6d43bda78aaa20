"""Weights & Biases sink: one W&B run per trial, grouped by sweep.

`WandbTracker` is what a sweep calls (see sweeps.tracking.protocol). Its calls put a job on a queue
and return; one background thread does the jobs through `_Sink`, which alone talks to wandb.
Whatever goes wrong there (no key, no server, no disk, a dead wandb-core) is caught in that thread,
logged in one line, and never reaches the sweep.

What wandb 0.31 does, and what follows from it here (tests/sweeps/tracking/test_tracking.py holds
each of these):
- A failed `wandb.init` leaves its run id "in use" until wandb-core ends, and a dead wandb-core
  breaks every open run.
  Both are mended in one way: end the service, start it again, reopen what is needed under the same
  id (`_Sink.reset`).
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
- `_step` follows the trial's own step, so it goes on rising after a resume and no row is written
  twice.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import copy
import hashlib
import http.client
import json
import os
import queue
import re
import shlex
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sweeps.tracking.config import TrackingConfig
from trainables.evaluation.record import Evaluation

if TYPE_CHECKING:
    import wandb

PROBE_TIMEOUT_S = 3.0
INIT_TIMEOUT_S = 8.0
FINISH_TIMEOUT_S = 15.0
FLUSH_INTERVAL_S = 1
MOST_OPEN = 16
"""Offline runs of finished trials that stay open; each takes some 2 MB."""
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
        self._sink: _Sink | None = None
        self._abandoned = False
        self._open = not (
            config.wandb == "off"
            or (config.wandb == "auto" and os.environ.get("WANDB_MODE") == "disabled")
        )
        if not self._open:
            return
        folder = folder.absolute()
        _pin_folders(folder)
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

    def winner(self, trial: str, reason: str, checkpoint: str) -> None:
        """Mark the trial's run: summary `winner=True` and tag `winner`. An earlier winner loses the
        mark.
        """
        self._put("winner", trial, reason, checkpoint)

    def answers(self, trial: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Log the table `answers` in the trial's run."""
        self._put("answers", trial, list(columns), [list(row) for row in rows])

    def close(self, timeout_s: float = 30) -> None:
        """Write all that is queued, finish every run, and say where the runs are; returns within
        `timeout_s`.

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
            sink = _Sink(config, sweep, folder, about, self._say)
        except Exception as error:
            self._open = False
            self._say("start", f"not tracking, because it did not start ({_one_line(error)})")
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

    def _try(self, sink: _Sink, job: str, args: tuple[object, ...]) -> bool:
        try:
            sink.do(job, args)
        except Exception as error:
            what = job if job == "close" else f"{job} of {args[0]}"
            self._say(f"failed {type(error).__name__}", f"{what} failed ({_one_line(error)})")
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
    live: wandb.Run | None = None
    online: bool = False
    finishing: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        return self.summary.get("status", "running") != "running"


class _Sink:
    """Talks to wandb, from one thread (but `wandb.Run.finish`, which may wait for uploads, gets
    threads of its own).
    """

    def __init__(
        self,
        config: TrackingConfig,
        sweep: str,
        folder: Path,
        about: dict[str, object],
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
        self._always_offline = config.wandb == "offline" or (
            config.wandb == "auto" and os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        )
        self._group_url: str | None = None
        self._offline_runs: set[str] = set()
        self._incomplete: list[str] = []
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
            "trial_finished": self._trial_finished,
            "winner": self._winner,
            "answers": self._answers,
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
        row = _row(evaluation)
        live = self._reopen(trial, run)
        for key in row.keys() - set(run.metrics):
            _define_metric(live, key)
            run.metrics.append(key)
        live.log(row, step=evaluation.step, commit=True)
        run.last_step = evaluation.step
        run.summary |= row
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
            outcome |= _row(best) | _best(best)
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

    def _winner(self, trial: str, reason: str, checkpoint: str) -> None:
        for path in sorted((self._folder / "state").glob("*.json")):
            other = self._run(path.stem)
            if path.stem != trial and other.summary.get("winner"):
                self._mark(path.stem, other, {"winner": False})
        self._mark(
            trial,
            self._run(trial),
            {"winner": True, "winner_reason": reason, "winner_checkpoint": checkpoint},
        )

    def _answers(self, trial: str, columns: list[str], rows: list[list[object]]) -> None:
        import wandb

        run, digest = self._run(trial), hashlib.sha256(repr((columns, rows)).encode()).hexdigest()
        if run.summary.get("answers_digest") == digest:
            return  # by an earlier process
        was_open = run.live is not None
        live = self._reopen(trial, run)
        table = wandb.Table(columns=list[str | int](columns))
        for row in rows:
            table.add_data(*row)
        live.log({"answers": table})
        run.summary["answers_digest"] = digest
        live.summary.update({"answers_digest": digest})
        if not was_open:
            self._finish(run)
        self._save(trial, run)

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
        if self._offline_runs:
            command = shlex.join(["wandb", "sync", str(self._folder / "wandb")])
            parts.append(f"offline runs: {len(self._offline_runs)}; upload them with: {command}")
        if self._incomplete:
            command = shlex.join(
                ["wandb", "sync", "--include-online", *sorted(set(self._incomplete))]
            )
            parts.append(
                f"runs not fully uploaded: {len(set(self._incomplete))}; upload them with:"
                f" {command}"
            )
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

    def _log_in(self) -> None:
        import wandb

        try:
            found = wandb.login(
                prompt=False, verify=False
            )  # verifying waits for the server; _probe() does it in 3 s
        except wandb.Error as error:
            self._go_offline(_one_line(error), for_good=True)
            return
        if not found:
            self._go_offline(
                "no API key is configured (`wandb login` or WANDB_API_KEY)", for_good=True
            )
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
        problem = _probe(self._base_url, self._key)
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
                    f"could not read {path} ({_one_line(error)}); its run goes on with what is new",
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
        }
        try:
            path.with_suffix(".new").write_text(json.dumps(state, default=str))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            self._say("disk", f"could not write {path} ({_one_line(error)})")

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
                job_type="trial",
                tags=self._tags(run),
                config=self._about | run.params,
                resume="allow",
            )
        except Exception as error:
            if run.online:
                self._go_offline(f"wandb.init failed ({_one_line(error)})", for_good=True)
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
                problem = _probe(self._base_url, self._key) if online else None
                why = problem and problem.why
            except Exception as error:
                why = _one_line(error)
            if why and online:
                self._incomplete.append(live.sync_dir)
            if why:
                self._say("finish", f"a run was not finished properly ({why})")

        run.finishing = threading.Thread(
            target=finish, name=f"tracking finish {live.id}", daemon=True
        )
        run.finishing.start()


def run_id(sweep: str, trial: str) -> str:
    """The W&B run id of a trial: the same in every process that goes on with the sweep."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", sweep)[:64]
    if name != sweep:
        name = f"{name[:48]}-{hashlib.sha256(sweep.encode()).hexdigest()[:8]}"
    return f"{name}-{trial}"


def _row(evaluation: Evaluation) -> dict[str, object]:
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


def _best(evaluation: Evaluation) -> dict[str, object]:
    names = ("step", "samples_seen", "epoch", "val_loss", "probe_loss")
    found = {f"best/{name}": getattr(evaluation, name) for name in names}
    found |= {f"best/{name}": value for name, value in evaluation.metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def _define_metric(live: wandb.Run, key: str) -> None:
    if key == "samples_seen":
        live.define_metric(key, hidden=True)
    else:
        live.define_metric(key, step_metric="samples_seen")


@dataclass(frozen=True)
class _Problem:
    why: str
    for_good: bool = False


def _probe(base_url: str, key: str | None) -> _Problem | None:
    """Why the W&B server cannot be used now, or None. Asks whose the key is; without a key, any
    answer will do.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    request = urllib.request.Request(f"{base_url}/graphql", data=question, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as response:
            viewer = json.load(response)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return _Problem(f"{base_url} refused the key (HTTP {error.code})", for_good=True)
        return _Problem(f"{base_url} answered HTTP {error.code}") if error.code >= 500 else None
    except (OSError, http.client.HTTPException) as error:
        return _Problem(f"{base_url} does not answer ({_one_line(error)})")
    except (ValueError, KeyError, TypeError):
        return _Problem(f"{base_url} is no W&B server")
    return (
        _Problem(f"{base_url} refused the key", for_good=True) if key and viewer is None else None
    )


def _pin_folders(folder: Path) -> None:
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


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__
