"""MLflow sink: one MLflow run per trial, of the experiment that has the project's name.

A job on the queue of a background thread for all that is told, and `_Store`, which alone talks to
MLflow. Metrics have the names that W&B shows, with samples seen as their step; what stands for a
trial is `best/...`. A run is found again by its tags, so a later process goes on with it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.background import Background
from sweeps.tracking.config import TrackingConfig
from sweeps.tracking.protocol import SweepEnd, Table
from sweeps.tracking.wandb import best_of, row_of
from trainables.evaluation.record import Evaluation

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INSTALL = "pip install 'finetune-sweeps[mlflow]'"
MOST_PARAMS = 100  # in a request
LONGEST = 500  # value of a parameter, or of a tag, that every server takes


class MlflowTracker:
    """Tracks a sweep's trials in MLflow. Every call returns at once, and none raises.

    Args:
        config: `mlflow` is a tracking server or a database, or true: what MLFLOW_TRACKING_URI
        names, else a SQLite file in `folder`. `project` is the name of the experiment.
        sweep: Name of the sweep's folder: the tag `sweep` of its runs.
        folder: Local folder for all that is written where there is no server.
        log: Takes one line for people. It is called from the background thread too.
        about: What all trials of the sweep have in common (task, model, data): parameters of each
        run.
    """

    def __init__(
        self,
        config: TrackingConfig,
        sweep: str,
        folder: Path,
        log: Callable[[str], None],
        about: Mapping[str, object],
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._background = Background("MLflow", log)
        self._store = _Store(config, sweep, folder.absolute() / "mlflow", about)
        self._open = True
        self._background.put("its start", self._start)

    def _start(self) -> None:
        try:
            self._store.open()
        except ModuleNotFoundError as error:
            self._background.give_up(f"not tracking: {error.name} is not installed ({INSTALL})")

    def trial_started(self, trial: str, params: Mapping[str, object]) -> None:
        """Begin the trial's run, or go on with it if an earlier process had begun it."""
        given = dict(params)
        self._put(f"start of {trial}", lambda: self._store.start(trial, given))

    def evaluation(self, trial: str, evaluation: Evaluation) -> None:
        """Log one evaluation over samples seen."""
        self._put(f"evaluation of {trial}", lambda: self._store.evaluate(trial, evaluation))

    def noted(self, trial: str, words: str) -> None:
        """Tag the trial's run with it."""
        self._put(f"note of {trial}", lambda: self._store.note(trial, words))

    def trial_finished(
        self, trial: str, *, status: str, verdict: str, verdict_reason: str, best: Evaluation | None
    ) -> None:
        """Write the trial's outcome as tags, and the numbers of `best` as metrics `best/...`."""
        outcome = {"status": status, "verdict": verdict, "verdict_reason": verdict_reason}
        self._put(f"end of {trial}", lambda: self._store.finish(trial, outcome, best))

    def sweep_finished(self, end: SweepEnd) -> None:
        """Tag the winner's run `winner`, and log the tables there; an earlier winner loses the
        mark.
        """
        mark = {"winner_reason": end.reason, "winner_checkpoint": end.checkpoint}
        self._put(f"winner {end.trial}", lambda: self._store.mark(end.trial, mark))
        for name, table in end.tables.items():
            self._put(name, partial(self._store.table, end.trial, name, table))

    def close(self, timeout_s: float = 30) -> None:
        """Write all that is queued, end every run, and say where the runs are; returns within
        `timeout_s`. Runs of trials that had not finished are marked killed.
        """
        if not self._open:
            return
        self._open = False
        self._background.put("end", self._close)
        if not self._background.close(timeout_s):
            self._background.say("late", "not all was done in time")

    def _put(self, what: str, job: Callable[[], None]) -> None:
        self._background.put(what, job)

    def _close(self) -> None:
        self._store.close()
        self._background.say("where", self._store.where())


class _Store:
    """Talks to MLflow, from one thread. Its errors come out as they are."""

    def __init__(
        self,
        config: TrackingConfig,
        sweep: str,
        folder: Path,
        about: Mapping[str, object],
    ) -> None:
        self._project, self._sweep, self._folder = config.project, sweep, folder
        given = config.mlflow
        named = given if isinstance(given, str) else os.environ.get("MLFLOW_TRACKING_URI")
        self._uri = named or f"sqlite:///{folder}/mlflow.db"
        self._is_own = not named
        self._about = dict(_flat(about))
        self._tags = {each: "true" for each in config.tags}
        self._client: MlflowClient
        self._experiment = ""
        self._runs: dict[str, Run] = {}  # of trials that go on
        self._known: dict[str, str] = {}  # ids of runs

    def open(self) -> None:
        if self._is_own:
            self._folder.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # which tell of every table they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._project)
        if found is not None:
            self._experiment = found.experiment_id
            return
        # of a database alone MLflow would put them into the current folder
        artifacts = (self._folder / "artifacts").as_uri() if self._is_own else None
        self._experiment = self._client.create_experiment(self._project, artifacts)

    def start(self, trial: str, params: Mapping[str, object]) -> None:
        run = self._find(trial)
        if run is None:
            tags = {**self._tags, "sweep": self._sweep, "trial": trial}
            run = self._client.create_run(self._experiment, tags=tags, run_name=trial)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._runs[trial], self._known[trial] = run, run.info.run_id
        given = self._about | dict(_flat(params))
        new = {name: value for name, value in given.items() if name not in run.data.params}
        self._log_params(run.info.run_id, new)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in params.items()]
        for first in range(0, len(entries), MOST_PARAMS):
            self._client.log_batch(run_id, params=entries[first : first + MOST_PARAMS])

    def _open_run(self, trial: str) -> Run:
        """Of a trial that goes on; begun here where the store failed at its start."""
        if trial not in self._runs:
            self.start(trial, {})
        return self._runs[trial]

    def evaluate(self, trial: str, evaluation: Evaluation) -> None:
        run = self._open_run(trial)
        if evaluation.samples_seen <= run.data.metrics.get("samples_seen", -1):
            return  # by an earlier process
        self._log(run.info.run_id, row_of(evaluation), evaluation.samples_seen)

    def note(self, trial: str, words: str) -> None:
        self._tag(self._open_run(trial).info.run_id, {"note": words})

    def finish(self, trial: str, outcome: Mapping[str, str], best: Evaluation | None) -> None:
        run = self._open_run(trial)
        if best is not None:
            self._log(run.info.run_id, best_of(best), best.samples_seen)
        self._tag(run.info.run_id, outcome)
        status = "FAILED" if outcome["status"] == "failed" else "FINISHED"
        self._client.set_terminated(run.info.run_id, status)
        del self._runs[trial]

    def mark(self, trial: str, mark: Mapping[str, str]) -> None:
        for run in self._search("tags.winner = 'true'"):
            self._tag(run.info.run_id, {"winner": "false"})
        self._tag(self._id(trial), {"winner": "true", **mark})

    def table(self, trial: str, name: str, table: Table) -> None:
        content = {"columns": [*table.columns], "data": [[*row] for row in table.rows]}
        self._client.log_dict(self._id(trial), content, f"{name}.json")

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run.info.run_id, "KILLED")
        self._runs.clear()

    def where(self) -> str:
        if not self._is_own:
            return f"{len(self._known)} runs in experiment {self._project}"
        return f"{len(self._known)} runs; see them with: mlflow ui --backend-store-uri {self._uri}"

    def _id(self, trial: str) -> str:
        """Of the run of a trial, which may have ended in an earlier process."""
        if trial not in self._known:
            run = self._find(trial)
            if run is None:
                raise LookupError(f"{trial} has no run")
            self._known[trial] = run.info.run_id
        return self._known[trial]

    def _find(self, trial: str) -> Run | None:
        return next(iter(self._search(f"tags.trial = '{trial}'")), None)

    def _search(self, condition: str) -> Sequence[Run]:
        words = f"tags.sweep = '{self._sweep}' and {condition}"  # a sweep's name has no quotes
        return self._client.search_runs([self._experiment], words)

    def _log(self, run_id: str, row: Mapping[str, object], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(_key(name), float(value), now, step)
            for name, value in row.items()
            if isinstance(value, int | float)
        ]
        self._client.log_batch(run_id, metrics=found)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            run_id, tags=[RunTag(name, value[:LONGEST]) for name, value in tags.items()]
        )


def _flat(nested: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """Parameters: values as text, and the names of what is nested with dots."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield _key(f"{before}{name}"), str(value)[:LONGEST]


def _key(name: str) -> str:
    """With the characters alone that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]
