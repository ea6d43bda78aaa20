"""The sweep's folder: what is written, read back, kept and deleted. Reading needs neither Ray nor
torch.

sweep.yaml              the resolved configuration;  configurations/001.yaml ...: those that it has
run with status.json             running | finished | interrupted | failed, and a heartbeat
study.journal           the Optuna study base.json               which base model it is data/
prepared splits and their manifest baseline.json           losses of the untuned model
trials/<id>/trial.json  parameters;  outcome.json: how it ended;  attempt-<n>/step-<s>/: its
evaluations baselines.json          other ways than fine-tuning;  baselines/SPLIT/NAME.npy,
NAME.predictions.npy: of each row test.json               what the sealed test split gave, once
there was a winner forgetting.json         loss on general text before and after, and how far
predictions moved cost.json               what the sweep took winner/                 the
checkpoint, its card, how to load it report.html
"""

import io
import math
import os
import socket
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from sweeps.ledger.leaderboard import leaderboard
from sweeps.ledger.status import DEAD_AFTER_S, process_runs, process_start
from sweeps.reporting.metrics import default_evaluation, metrics_of
from sweeps.reporting.worth import worth
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.ranking import final_ranking, pareto, select
from sweeps.selection.results import Winner
from sweeps.selection.statistics import by_unit, compare, mean_interval, slice_intervals
from sweeps.selection.verdicts import best_point, excluded_reason, standing_verdict
from trainables.data.manifest import MANIFEST, Manifest, TokenSummary, manifest_of
from trainables.evaluation.record import Evaluation
from trainables.storage.checkpoints import (
    CHECKPOINT,
    LOSSES,
    PREDICTIONS,
    STATE,
    evaluation_folders,
    read_evaluation,
)
from trainables.storage.records import from_json
from trainables.storage.store import Store

WORDS = {
    "untuned": "the untuned model",
    "prior": "train's label shares",
    "default": "the default configuration",
}

DATA_MANIFEST = f"data/{MANIFEST}"
WINNER = "winner"  # folder of what is handed over


class Ledger:
    """A sweep's folder, and in memory what its trials have done so far."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.name = self.store.url.rsplit("/", 1)[-1]
        self._curves: dict[str, dict[str, Any]] = {}
        self._group_of_rows: dict[str, np.ndarray | None] = {}

    # --- trials, as they run ---

    def begin(
        self,
        trial: str,
        params: dict[str, Any],
        *,
        default: bool = False,
        finalist_of: str | None = None,
    ) -> None:
        """default: what one would train without a search; finalist_of: the trial that had this
        configuration first.
        """
        self.store.write_json(
            f"trials/{trial}/trial.json",
            {
                "id": trial,
                "params": params,
                "default": default,
                "finalist_of": finalist_of,
                "started": time.time(),
            },
        )
        self._curves[trial] = {
            "status": "running",
            "params": params,
            "points": [],
            "reason": None,
            "default": default,
            "finalist_of": finalist_of,
        }

    def restate(self, trial: str, params: dict[str, Any]) -> None:
        """Write the parameters of a trial anew, which say the same under another configuration."""
        begun = self.store.read_json(f"trials/{trial}/trial.json")
        self.store.write_json(f"trials/{trial}/trial.json", {**begun, "params": params})
        self._curves[trial]["params"] = params

    def record(self, trial: str, evaluation: Evaluation) -> bool:
        """Take note of an evaluation that the slot has written; False when it was known already."""
        points = self._curves[trial]["points"]
        if any(point.step == evaluation.step for point in points):
            return False
        points.append(
            replace(evaluation, checkpoint=self.store.path(f"{evaluation.folder}/{CHECKPOINT}"))
        )
        return True

    def finish(self, trial: str, status: str, reason: str | None) -> None:
        self.store.write_json(
            f"trials/{trial}/outcome.json",
            {"status": status, "reason": reason, "ended": time.time()},
        )
        self._curves[trial].update(status=status, reason=reason)

    def prune(self, trial: str, config: SelectionConfig) -> None:
        """Keep the checkpoint that would win for this trial and, while it runs, what it would go on
        from; delete the rest.
        """
        entry = self._curves[trial]
        best = best_point(self.curve(trial), config)
        last = entry["points"][-1] if entry["points"] and entry["status"] == "running" else None
        for index, point in enumerate(entry["points"]):
            if point is not last:
                self.store.delete(f"{point.folder}/{STATE}")
            if point is not last and point is not best and point.checkpoint is not None:
                self.store.delete(f"{point.folder}/{CHECKPOINT}")
                entry["points"][index] = _without_checkpoint(point)

    def curve(self, trial: str) -> Curve:
        entry = self._curves[trial]
        return Curve(
            id=trial,
            status=entry["status"],
            params=entry["params"],
            points=tuple(entry["points"]),
            reason=entry["reason"],
            finalist_of=entry["finalist_of"],
        )

    def curves(self) -> list[Curve]:
        return [self.curve(trial) for trial in sorted(self._curves)]

    def is_compared(self, trial: str) -> bool:
        """Whether `trial` is there to be compared with: the default configuration, or a
        finalist.
        """
        return self._curves[trial]["default"] or self._curves[trial]["finalist_of"] is not None

    def drawn(self) -> int:
        """Trials of the search itself: finalists repeat them."""
        return sum(entry["finalist_of"] is None for entry in self._curves.values())

    def default(self, config: SelectionConfig) -> tuple[Curve, Evaluation] | None:
        """The default configuration with its checkpoint that may win, where it has one."""
        for trial in [trial for trial, entry in self._curves.items() if entry["default"]]:
            point = best_point(self.curve(trial), config)
            if point is not None and point.checkpoint is not None:
                return self.curve(trial), point
        return None

    def unfinished(self) -> list[str]:
        return [
            trial for trial, entry in sorted(self._curves.items()) if entry["status"] == "running"
        ]

    # --- reading back ---

    def load(self) -> "Ledger":
        """Read all trials from the folder."""
        by_trial: dict[str, list[str]] = {}
        for name in self.store.find("trials"):
            by_trial.setdefault(name.split("/")[1], []).append(name)
        self._curves = {}
        for trial, names in by_trial.items():
            if f"trials/{trial}/trial.json" not in names:
                continue
            files = set(names)
            with_checkpoint = {
                name.split(f"/{CHECKPOINT}/")[0] for name in names if f"/{CHECKPOINT}/" in name
            }
            points = [
                evaluation if folder in with_checkpoint else replace(evaluation, checkpoint=None)
                for folder in evaluation_folders(self.store, trial, names)
                for evaluation in [read_evaluation(self.store, folder)]
            ]
            outcome = f"trials/{trial}/outcome.json"
            ended = (
                self.store.read_json(outcome)
                if outcome in files
                else {"status": "running", "reason": None}
            )
            begun = self.store.read_json(f"trials/{trial}/trial.json")
            self._curves[trial] = {
                "status": ended["status"],
                "params": begun["params"],
                "points": points,
                "reason": ended["reason"],
                "default": begun.get("default", False),
                "finalist_of": begun.get("finalist_of"),
            }
        return self

    def losses(self, folder: str) -> np.ndarray | None:
        """Losses [G, 2] of an evaluation, or of a baseline (`baselines/SPLIT/NAME`): summed loss
        and number of targets of each unit, a row or the rows that belong together (see
        sweeps.selection.statistics).
        """
        of_rows = self.row_losses(folder)
        split = folder.split("/")[1] if folder.startswith("baselines/") else "validation"
        return None if of_rows is None else by_unit(of_rows, self._groups(split))

    def row_losses(self, folder: str) -> np.ndarray | None:
        """The same of each row [N, 2]."""
        return self._array(
            f"{folder}.npy" if folder.startswith("baselines/") else f"{folder}/{LOSSES}"
        )

    def predictions(self, folder: str) -> np.ndarray | None:
        """Predicted and true class of each row [N, 2] of an evaluation or a baseline; None where
        there are none.
        """
        return self._array(
            f"{folder}.{PREDICTIONS}"
            if folder.startswith("baselines/")
            else f"{folder}/{PREDICTIONS}"
        )

    def _groups(self, split: str) -> np.ndarray | None:
        """Which rows of a split belong together [N]; None where each stands for itself."""
        if split not in self._group_of_rows:
            found = self._array(f"data/{split}.groups.npy")
            if found is None and split == "test":  # which is tokenised late
                return None
            self._group_of_rows[split] = found
        return self._group_of_rows[split]

    def _array(self, name: str) -> np.ndarray | None:
        return np.load(io.BytesIO(self.store.read_bytes(name))) if self.store.exists(name) else None

    # --- the sweep ---

    def set_status(self, status: str, elapsed_s: float, *, ending: bool = False) -> None:
        """ending: the process that writes this is on its way to an orderly end, and may be killed
        before it comes there.
        """
        self.store.write_json(
            "status.json",
            {
                "status": status,
                "ending": ending,
                "pid": os.getpid(),
                "began": process_start(os.getpid()),
                "host": socket.gethostname(),
                "time": time.time(),
                "elapsed_s": elapsed_s,
            },
        )

    def status(self) -> tuple[str, float]:
        """The sweep's status, and the seconds it has run. A sweep whose process is gone is
        `interrupted`, whatever it wrote last.
        """
        if not self.store.exists("status.json"):
            return "interrupted", 0.0
        written = self.store.read_json("status.json")
        status = written["status"]
        if status == "running" or written.get("ending"):
            if written["host"] == socket.gethostname():
                alive = process_runs(written["pid"], written["began"])
            else:
                alive = status == "running" and time.time() - written["time"] < DEAD_AFTER_S
            status = "running" if alive else "interrupted"
        return status, written["elapsed_s"]

    def reference(self) -> Reference:
        """What not fine-tuning gives: the untuned model (measured by the first slot) and the label
        prior of train.
        """
        baseline = self.baselines()
        untuned, prior = baseline.get("untuned", {}), baseline.get("prior", {})
        return Reference(
            val_loss=untuned.get("val_loss"),
            probe_loss=untuned.get("probe_loss"),
            prior_loss=prior.get("val_loss"),
        )

    def baselines(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.store.exists("baseline.json"):
            measured = self.store.read_json("baseline.json")
            if "error" not in measured:
                found["untuned"] = measured
        manifest = self.manifest() if self.has_data() else None
        if manifest is not None and (prior := label_prior(manifest)) is not None:
            found["prior"] = prior
        if self.store.exists("baselines.json"):
            measured = self.store.read_json("baselines.json")
            found |= {
                name: baseline for name, baseline in measured.items() if "error" not in baseline
            }
        for name in found.keys() & WORDS.keys():
            found[name]["words"] = WORDS[name]
        return found

    def write_test(self, measured: dict[str, Any], config: SelectionConfig) -> None:
        """Keep what the test split gave, with intervals, how optimistic validation was, and who
        scored the same split before.
        """
        winner, _ = self.select(config)
        assert winner is not None, "the test split is scored for a winner"
        manifest, scores = self.manifest(), measured["scores"]
        if (prior := label_prior(manifest, "test")) is not None:
            scores["prior"] = {"loss": prior["val_loss"], "metrics": prior["metrics"]}
        for name, score in scores.items():
            if name in WORDS:
                score["words"] = WORDS[name]
            losses = self.losses(f"baselines/test/{name}")
            if losses is not None:
                score["low"], score["high"] = mean_interval(losses) or (None, None)
        scored = Store(
            self.store.url.rsplit("/", 1)[0]
        )  # beside the sweeps: the others look there too
        register = f"test-sets/{manifest.splits['test'].raw_fingerprint[:16]}.json"
        own = {"sweep": self.name, "trial": winner.trial, "step": winner.point.step}
        before = scored.read_json(register) if scored.exists(register) else []
        # a checkpoint that is measured again, after a kill, is no second look; another winner of
        # this sweep is
        before = [
            each for each in before if any(each.get(name) != value for name, value in own.items())
        ]
        scored.write_json(register, [*before, {**own, "time": time.time()}])
        self.store.write_json(
            "test.json",
            {
                "trial": winner.trial,
                "step": winner.point.step,
                "split": measured["split"],
                "scores": scores,
                "optimism": scores["winner"]["loss"] - winner.point.val_loss,
                "scored_before": before,
            },
        )

    def write_forgetting(self, measured: dict[str, Any], config: SelectionConfig) -> None:
        winner, _ = self.select(config)
        assert winner is not None, "what is forgotten is measured of a winner"
        found = compare(*(self.losses(f"baselines/general/{name}") for name in ("before", "after")))
        interval = [found.low, found.high] if found and found.low is not None else None
        of = {"trial": winner.trial, "step": winner.point.step}
        self.store.write_json("forgetting.json", {**of, **measured, "interval": interval})

    def of_winner(self, name: str, winner: Winner | None) -> dict[str, Any] | None:
        """What `test` or `forgetting` gave the winner; None when it was not measured, or of a
        checkpoint that won before.
        """
        if winner is None or not self.store.exists(f"{name}.json"):
            return None
        found = self.store.read_json(f"{name}.json")
        own = (found.get("trial"), found.get("step")) == (winner.trial, winner.point.step)
        return found if own else None

    def holds(self, winner: dict[str, Any]) -> bool:
        """Whether `winner/` holds this one, and not one that won before."""
        if not self.store.exists("winner/winner.json"):
            return False
        held = self.store.read_json("winner/winner.json")
        return (held["trial"], held["step"]) == (winner["trial"], winner["step"])

    def select(
        self, config: SelectionConfig, reference: Reference | None = None
    ) -> tuple[Winner | None, str]:
        """The winner so far, and the reason in words."""
        return select(self.curves(), config, self.losses, reference)

    def board(self, name: str, config: SelectionConfig) -> dict[str, Any]:
        """Everything that `best --json` prints and the report shows."""
        curves, reference, manifest = (
            self.curves(),
            self.reference(),
            self.manifest() if self.has_data() else None,
        )
        winner, reason = self.select(config, reference)
        board: dict[str, Any] = {
            "sweep": name,
            "folder": self.store.path("").rstrip("/"),
            "status": self.status()[0],
            "metric": "val_loss",
            "winner": None,
            "baselines": self.baselines(),
        }
        if winner is None:
            board["reason"] = reason
        else:
            params = next(curve.params for curve in curves if curve.id == winner.trial)
            board["winner"] = {
                "trial": winner.trial,
                **_shown(winner.point),
                "params": dict(params),
                "reason": reason,
                "tied": list(winner.tied),
                "expected": None if winner.expected is None else asdict(winner.expected),
            }
        board["pareto"] = (
            {
                "cost": config.pareto,
                "front": [{"trial": c.id, **_shown(point)} for c, point in pareto(curves, config)],
            }
            if config.pareto
            else None
        )
        board["finalists"] = [asdict(final) for final in final_ranking(curves, config)]
        differences = winner.differences if winner is not None else {}
        lowest = self.losses(winner.lowest) if winner is not None else None
        for name, baseline in board["baselines"].items():
            found = compare(lowest, self.losses(f"baselines/validation/{name}"))
            baseline["difference"] = None if found is None else asdict(found)
        board["trials"] = []
        for curve in curves:
            judged = standing_verdict(curve, reference, config)
            board["trials"].append(
                {
                    "id": curve.id,
                    "status": curve.status,
                    "status_reason": curve.reason,
                    "verdict": judged.word,
                    "verdict_reason": judged.reason,
                    "verdict_later": judged.later,
                    "difference": (
                        asdict(differences[curve.id]) if curve.id in differences else None
                    ),
                    "params": dict(curve.params),
                    "default": self._curves[curve.id]["default"],
                    "finalist_of": curve.finalist_of,
                    "evaluations": [
                        {
                            **_shown(point),
                            "excluded": excluded_reason(list(curve.points), index, config),
                        }
                        for index, point in enumerate(curve.points)
                    ],
                }
            )
        board["trials"] = [{"rank": row.rank, **row.trial} for row in leaderboard(board)]
        board["cost"] = (
            self.store.read_json("cost.json") if self.store.exists("cost.json") else None
        )
        for name in ("test", "forgetting"):
            board[name] = self.of_winner(name, winner)
        board["tokens_per_request"] = (
            _tokens_per_request(manifest, board["test"]) if manifest is not None else None
        )
        board["slices"] = None
        if winner is not None and manifest is not None:
            board["slices"] = self._slices(winner.point, manifest, board["test"])
        board["metrics"] = self._metrics(board, manifest) if winner is not None else None
        board["not_measured"] = self._not_measured(board["test"])
        waits = (
            config.baselines
            and board["status"] == "running"
            and not self.store.exists("baselines.json")
        )
        board["worth"] = None if waits else worth(board, self.losses)
        return board

    def _metrics(self, board: dict[str, Any], manifest: Manifest | None) -> dict[str, Any]:
        folders = {
            "winner": board["winner"]["folder"],
            "default": (default_evaluation(board) or {}).get("folder", ""),
        }

        def predictions(split: str, name: str) -> np.ndarray | None:
            own = split == "validation" and name in folders
            return self.predictions(folders[name] if own else f"baselines/{split}/{name}")

        labels = list(manifest.labels) or None if manifest is not None else None
        return metrics_of(board, labels, predictions, self._groups)

    def _not_measured(self, test: dict[str, Any] | None) -> list[dict[str, str]]:
        """`split`, `words` and `error` of each baseline that was left out."""
        measured = {"validation": {}, "test": {} if test is None else test["scores"]}
        if self.store.exists("baselines.json"):
            measured["validation"] = self.store.read_json("baselines.json")
        return [
            {"split": split, "words": each["words"], "error": each["error"]}
            for split, found in measured.items()
            for each in found.values()
            if "error" in each
        ]

    def _slices(
        self, point: Evaluation, manifest: Manifest, test: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """The winner's loss and metrics for each value of `data.slice`, on validation and, where it
        was scored, on test; the worst first.
        """
        if manifest.data.slice is None:
            return None
        measured = {"validation": (point.slices, point.folder)}
        if test is not None:
            measured["test"] = (test["scores"]["winner"].get("slices", {}), "baselines/test/winner")
        found: dict[str, Any] = {"column": manifest.data.slice}
        for split, (slices, folder) in measured.items():
            if not slices:
                continue
            intervals: dict[str, tuple[float, float] | None] = {}
            losses, of_rows = self.row_losses(folder), self._array(f"data/{split}.slices.npy")
            if losses is not None and of_rows is not None:
                intervals = slice_intervals(
                    losses, of_rows, manifest.encoding.slices, self._groups(split)
                )
            parts = []
            for value, each in slices.items():
                low, high = intervals.get(value) or (None, None)
                parts.append({"value": value, **each, "low": low, "high": high})
            found[split] = sorted(
                parts, key=lambda each: -math.inf if each["loss"] is None else -each["loss"]
            )
        return found if len(found) > 1 else None

    def has_data(self) -> bool:
        """Whether the sweep's data were prepared to the end."""
        return self.store.exists(DATA_MANIFEST)

    def manifest(self) -> Manifest:
        """Of the prepared data."""
        return manifest_of(self.store.read_json(DATA_MANIFEST), self.store.path(DATA_MANIFEST))


def _tokens_per_request(manifest: Manifest, test: dict[str, Any] | None) -> float | None:
    """Tokens that are no targets of a row of the test split, where it was scored, or of validation,
    on average: what goes into the model for one answer.
    """
    if manifest.task == "causal_lm":
        return None
    split = manifest.splits["validation"]
    if test is not None:
        split = from_json(TokenSummary, test["split"], "test.json")
    answers = split.targets if manifest.task == "instruction" else 0
    return (split.tokens - answers) / split.rows


def label_prior(manifest: Manifest, split: str = "validation") -> dict[str, Any] | None:
    """Always answering with train's label shares: loss on `split` in nats and accuracy of its
    majority class.
    """
    splits = manifest.splits
    if (train := splits["train"].label_counts) is None:
        return None
    validation = splits[split].label_counts or {}
    rows, total = sum(train.values()), sum(validation.values())
    loss = (
        -sum(count * math.log(train[label] / rows) for label, count in validation.items()) / total
    )
    majority = max(train, key=lambda label: train[label])
    return {
        "val_loss": loss,
        "metrics": {"accuracy": validation.get(majority, 0) / total},
        "class": majority,
    }


def _shown(point: Evaluation) -> dict[str, Any]:
    return {
        "step": point.step,
        "samples_seen": point.samples_seen,
        "epoch": point.epoch,
        "val_loss": point.val_loss,
        "probe_loss": point.probe_loss,
        "train_loss": point.train_loss,
        "metrics": dict(point.metrics),
        "slices": {value: dict(each) for value, each in point.slices.items()},
        "forgetting": point.forgetting,
        "kl": point.kl,
        "inference_cost": point.inference_cost,
        "trainable_parameters": point.trainable_parameters,
        "checkpoint_bytes": point.checkpoint_bytes,
        "checkpoint": point.checkpoint,
        "folder": point.folder,
    }


def _without_checkpoint(point: Evaluation) -> Evaluation:
    return replace(point, checkpoint=None)
