"""The sweep's folder: what is written, read back, kept and deleted. Reading needs neither Ray nor
torch.

- sweep.yaml: the resolved configuration; configurations/001.yaml ...: those that it has run with
- log.txt: what happened; progress.json: how far trials are, while it runs
- drivers/0001.json ...: the processes that have run it
- status.json: running | finished | interrupted | failed, and a heartbeat
- study.journal: the Optuna study
- base.json: which base model it is; lineage.json: the winners that it (or
  each of several) went on from
- data/: prepared splits and their manifest
- baseline.json: losses of the untuned model
- trials/<id>/trial.json: parameters; outcome.json: how it ended; attempt-<n>/step-<s>/: its
  evaluations
- baselines.json: other ways than fine-tuning; baselines/SPLIT/NAME.npy, NAME.outcomes.npy: of each
  row
- test.json: what the sealed test split gave, once there was a winner
- forgetting.json: loss on general text before and after, and how far predictions moved
- earlier.json: what the earlier winner and this one give on the earlier sweep's validation rows
- cost.json: what the sweep took
- control/: what people have asked of it while it ran, and what came of it (see control.py)
- winner/: the checkpoint, its card, how to load it
- report.html
"""

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from sweeps.ledger.comparing import Comparisons
from sweeps.ledger.leaderboard import (
    BASELINE_NAMES,
    BaselineRow,
    EarlierForgetting,
    EarlierScoring,
    Forgetting,
    TestScores,
    WinnerRow,
)
from sweeps.ledger.progress import PROGRESS, Progress
from sweeps.ledger.status import DEAD_AFTER_S, process_runs, process_start
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import PRIOR, Curve, Reference
from sweeps.selection.ranking import select
from sweeps.selection.results import Winner
from sweeps.selection.statistics import by_unit, compare, mean_interval
from sweeps.selection.verdicts import best_point, kept_points
from trainables.data.manifest import EARLIER, MANIFEST, Manifest, data_of, manifest_of
from trainables.evaluation.answered import (
    ANSWERS,
    Answered,
    Asked,
    answers_file,
    read_answers,
    read_asked,
)
from trainables.evaluation.record import (
    Baseline,
    Evaluation,
    MeasuredEarlier,
    MeasuredForgetting,
    Metrics,
    Score,
    ScoredTest,
    Untuned,
    UntunedFailed,
    UntunedResults,
    untuned_name,
)
from trainables.hyperparameters import base_of
from trainables.models.lineage import LINEAGE, Ancestor, lineage_json, lineage_of
from trainables.storage.checkpoints import (
    CHECKPOINT,
    LOSSES,
    OUTCOMES,
    STATE,
    read_evaluations,
)
from trainables.storage.records import from_json, to_json
from trainables.storage.store import Stamp, Store
from trainables.tasks import TASKS, Task

DATA_MANIFEST = f"data/{MANIFEST}"
UNTUNED = "baseline.json"
FORMER_OUTCOMES = "predictions.npy"  # of classification, the same by another name
REPORT = "report.html"
WINNER = "winner"  # folder of what is handed over


@dataclass(kw_only=True)
class RecordedTrial:
    """What a trial has done so far."""

    params: Mapping[str, object]
    status: str = "running"
    reason: str | None = None
    default: bool = False
    """Whether it is what one would train without a search."""
    finalist_of: str | None = None
    """The trial that had this configuration first."""
    by_hand: str | None = None
    """How it was asked for by somebody; None: the search drew it."""
    command: str | None = None
    """That asked for it."""

    @property
    def is_drawn(self) -> bool:
        """Whether it is of the search itself: finalists repeat its trials, and others were asked
        for by hand.
        """
        return self.finalist_of is None and self.by_hand is None

    points: list[Evaluation] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrialBegun:
    """trial.json."""

    id: str
    params: Mapping[str, object]
    default: bool = False
    finalist_of: str | None = None
    by_hand: str | None = None
    command: str | None = None
    started: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """outcome.json."""

    status: str
    reason: str | None
    ended: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WrittenStatus:
    """status.json: the sweep's status, and the process that wrote it."""

    status: str
    ending: bool = False
    """Whether the process was on its way to an orderly end."""
    pid: int
    began: str | None
    host: str
    time: float
    elapsed_s: float
    paused: bool = False
    """Whether somebody has let it pause."""

    def holds(self) -> bool:
        """Whether the process that wrote it still runs."""
        if self.host == socket.gethostname():
            return process_runs(self.pid, self.began)
        return self.status == "running" and time.time() - self.time < DEAD_AFTER_S

    @property
    def by(self) -> tuple[str, int, str | None]:
        """Which process has written it."""
        return self.host, self.pid, self.began

    @property
    def present(self) -> str:
        """The sweep's status: one whose process is gone is `interrupted`, whatever it wrote
        last.
        """
        if self.status == "running" or self.ending:
            return "running" if self.holds() else "interrupted"
        return self.status


Written = TypeVar("Written")


class Ledger:
    """A sweep's folder, and in memory what its trials have done so far."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.name = self.store.url.rsplit("/", 1)[-1]
        self._trials: dict[str, RecordedTrial] = {}
        self._beside_search: set[str] = set()  # of these, those that the search did not draw
        self.news = 0  # times that `load` found what it had not seen before
        self._stamps: dict[str, dict[str, Stamp]] = {}  # of each trial's files, when it was read
        self._beside: dict[str, list[np.ndarray]] = {}  # by file; of each base
        self._comparisons = Comparisons(self)

    # --- trials, as they run ---

    def begin(
        self,
        trial: str,
        params: Mapping[str, object],
        *,
        default: bool = False,
        finalist_of: str | None = None,
        by_hand: str | None = None,
        command: str | None = None,
    ) -> None:
        """default: what one would train without a search; finalist_of: the trial that had this
        configuration first; by_hand: how somebody asked for it, by which `command`.
        """
        begun = TrialBegun(
            id=trial,
            params=params,
            default=default,
            finalist_of=finalist_of,
            by_hand=by_hand,
            command=command,
            started=time.time(),
        )
        self.store.write_json(f"trials/{trial}/trial.json", to_json(begun))
        self._trials[trial] = RecordedTrial(
            params=params,
            default=default,
            finalist_of=finalist_of,
            by_hand=by_hand,
            command=command,
        )
        if not self._trials[trial].is_drawn:
            self._beside_search.add(trial)

    def restate(self, trial: str, params: Mapping[str, object]) -> None:
        """Write the parameters of a trial anew, which say the same under another configuration."""
        file = f"trials/{trial}/trial.json"
        begun = replace(self._whole(file, TrialBegun), params=params)
        self.store.write_json(file, to_json(begun))
        self._trials[trial].params = params

    def record(self, trial: str, evaluation: Evaluation) -> bool:
        """Take note of an evaluation that the slot has written; False when it was known already.
        Older attempts' evaluations after it are void, as those of a checkpoint that was cut short.
        """
        points, attempt = self._trials[trial].points, evaluation.attempt
        points[:] = [p for p in points if p.attempt >= attempt or p.step < evaluation.step]
        if any(point.step == evaluation.step for point in points):
            return False
        points.append(
            replace(evaluation, checkpoint=self.store.path(f"{evaluation.folder}/{CHECKPOINT}"))
        )
        return True

    def finish(self, trial: str, status: str, reason: str | None) -> None:
        outcome = TrialOutcome(status=status, reason=reason, ended=time.time())
        self.store.write_json(f"trials/{trial}/outcome.json", to_json(outcome))
        state = self._trials[trial]
        state.status, state.reason = status, reason

    def prune(self, trial: str, config: SelectionConfig) -> None:
        """Keep the checkpoints that could win for this trial and, while it runs, what it would go
        on from; delete the rest.
        """
        entry = self._trials[trial]
        kept = kept_points(self.curve(trial), config)
        last = entry.points[-1] if entry.points and entry.status == "running" else None
        for index, point in enumerate(entry.points):
            if point is not last:
                self.store.delete(f"{point.folder}/{STATE}")
            if point is not last and point not in kept and point.checkpoint is not None:
                self.store.delete(f"{point.folder}/{CHECKPOINT}")
                entry.points[index] = replace(point, checkpoint=None)

    def drop(self, trial: str) -> None:
        """Delete the checkpoints of a trial that has ended; its evaluations stay."""
        points = self._trials[trial].points
        for index, point in enumerate(points):
            if point.checkpoint is not None:
                self.store.delete(f"{point.folder}/{CHECKPOINT}")
                points[index] = replace(point, checkpoint=None)

    def curve(self, trial: str) -> Curve:
        entry = self._trials[trial]
        return Curve(
            id=trial,
            status=entry.status,
            params=entry.params,
            points=tuple(entry.points),
            reason=entry.reason,
            finalist_of=entry.finalist_of,
        )

    def curves(self) -> list[Curve]:
        return [self.curve(trial) for trial in self.trials()]

    def is_compared(self, trial: str) -> bool:
        """Whether `trial` is there to be compared with: the default configuration, or a
        finalist.
        """
        return self._trials[trial].default or self._trials[trial].finalist_of is not None

    def trials(self) -> list[str]:
        """In the order of their numbers: t10000 comes after t9999."""
        return sorted(self._trials, key=lambda trial: (len(trial), trial))

    def begun(self) -> int:
        """How many trials there are."""
        return len(self._trials)

    def drawn(self) -> int:
        """Trials of the search itself."""
        return len(self._trials) - len(self._beside_search)

    def repeated(self) -> int:
        """Trials that are finalists with new seeds."""
        return sum(entry.finalist_of is not None for entry in self._trials.values())

    def asked_for(self) -> int:
        """Trials that somebody has added."""
        return sum(entry.by_hand is not None for entry in self._trials.values())

    def by_hand(self, trial: str) -> str | None:
        """How somebody asked for it; None: the search drew it."""
        return self._trials[trial].by_hand

    def made_by(self, command: str) -> str | None:
        """The trial that a command has made."""
        found = (trial for trial, entry in self._trials.items() if entry.command == command)
        return next(found, None)

    def default(self, config: SelectionConfig) -> tuple[Curve, Evaluation] | None:
        """The default configuration with its checkpoint that may win, where it has one."""
        for trial in [trial for trial, entry in self._trials.items() if entry.default]:
            point = best_point(self.curve(trial), config)
            if point is not None and point.checkpoint is not None:
                return self.curve(trial), point
        return None

    def unfinished(self) -> list[str]:
        return [trial for trial in self.trials() if self._trials[trial].status == "running"]

    # --- reading back ---

    def load(self) -> "Ledger":
        """Read all trials from the folder; of those that it has read before only the ones whose
        files are others by now.
        """
        by_trial: dict[str, dict[str, Stamp]] = {}
        for name, stamp in self.store.stamps("trials").items():
            by_trial.setdefault(name.split("/")[1], {})[name] = stamp
        read: dict[str, RecordedTrial] = {}
        for trial, stamps in by_trial.items():
            if f"trials/{trial}/trial.json" not in stamps:
                continue
            known = self._stamps.get(trial) == stamps and trial in self._trials
            read[trial] = self._trials[trial] if known else self._read_trial(trial, stamps)
        if by_trial != self._stamps:
            self.news += 1
        if _answers(by_trial) != _answers(self._stamps):  # what was compared may be others by now
            self._comparisons = Comparisons(self)
        self._take(read)
        self._stamps = by_trial
        return self

    def _take(self, trials: dict[str, RecordedTrial]) -> None:
        self._trials = trials
        self._beside_search = {trial for trial, entry in trials.items() if not entry.is_drawn}

    def copy(self) -> "Ledger":
        """What it holds now, for a thread that must not see it change."""
        made = Ledger(self.store.url)
        entries = list(self._trials.items())
        made._take({trial: replace(entry, points=list(entry.points)) for trial, entry in entries})
        return made

    def progress(self) -> Progress | None:
        """How far the trials are; None where no process of the sweep runs."""
        if self.status()[0] != "running":
            return None
        try:
            return self._read(PROGRESS, Progress)
        except FileNotFoundError:  # the sweep came to its end at this moment
            return None

    def _read_trial(self, trial: str, names: Mapping[str, Stamp]) -> RecordedTrial:
        """names: of all files of the trial."""
        sizes = {name: seen.size for name, seen in names.items()}
        points = [
            self._with_answers(each, [*names])
            for each in read_evaluations(self.store, trial, sizes)
        ]
        begun = self._whole(f"trials/{trial}/trial.json", TrialBegun)
        outcome, ended = f"trials/{trial}/outcome.json", None
        if outcome in names:
            ended = self._whole(outcome, TrialOutcome)
        return RecordedTrial(
            status="running" if ended is None else ended.status,
            params=begun.params,
            points=points,
            reason=None if ended is None else ended.reason,
            default=begun.default,
            finalist_of=begun.finalist_of,
            by_hand=begun.by_hand,
            command=begun.command,
        )

    def _with_answers(self, point: Evaluation, names: Sequence[str]) -> Evaluation:
        """With the metrics of its answers, which may have been written later; names: of files."""
        if answers_file(point.folder) not in names:
            return point
        answers = self.answers(point.folder)
        return (
            point if answers is None else replace(point, metrics={**point.metrics, **answers.means})
        )

    def answers(self, folder: str) -> Answered | None:
        """What an evaluation, or a baseline, wrote to rows; None where it was not asked."""
        return read_answers(self.store, folder)

    def asked(self, split: str, base: str = "") -> Asked | None:
        """The rows that models over a base were asked, with their own answers."""
        return read_asked(self.store, split, data_of(base, next(iter(self.data_folders()))))

    def note_answers(self, trial: str) -> None:
        """Answers to rows have been written for a trial: its evaluations have their metrics."""
        points = self._trials[trial].points
        names = self.store.find(f"trials/{trial}")
        points[:] = [self._with_answers(point, names) for point in points]
        self._comparisons = Comparisons(self)  # what was compared may have been answered otherwise

    def losses(self, folder: str) -> np.ndarray | None:
        """Losses [G, 2] of an evaluation, or of a baseline (`baselines/SPLIT/NAME`): summed loss
        and targets of each unit, a row or the rows that belong together (see
        sweeps.selection.statistics).
        """
        of_rows = self.row_losses(folder)
        if of_rows is None:
            return None
        split = folder.split("/")[1] if folder.startswith("baselines/") else "validation"
        return by_unit(of_rows, self.groups(split, len(of_rows)))

    def row_losses(self, folder: str) -> np.ndarray | None:
        """The same of each row [N, 2]."""
        return self.array(
            f"{folder}.npy" if folder.startswith("baselines/") else f"{folder}/{LOSSES}"
        )

    def outcomes(self, folder: str) -> np.ndarray | None:
        """Outcomes of each row [N, M] of an evaluation or a baseline, as the task has them; None
        where there are none.
        """
        between = "." if folder.startswith("baselines/") else "/"
        for name in (OUTCOMES, FORMER_OUTCOMES):
            if (found := self.array(f"{folder}{between}{name}")) is not None:
                return found
        return None

    def groups(self, split: str, rows: int | None = None) -> np.ndarray | None:
        """Which rows of a split belong together [N]; None where each stands for itself. rows: N,
        which differs where several base models cut a text into blocks of tokens of their own; None:
        of the first base.
        """
        return self.beside(split, "groups", rows)

    def beside(self, split: str, what: str, rows: int | None = None) -> np.ndarray | None:
        """What stands beside the tokens of a split: its "groups" or "slices" [N]."""
        name = f"{split}.{what}.npy"
        known = self._beside.get(name)
        if known is None:
            files = (f"{folder}/{name}" for folder in self.data_folders().values())
            known = [found for file in files if (found := self.array(file)) is not None]
            if known or split != "test":  # which is tokenised late
                self._beside[name] = known
        return next((each for each in known if rows in (None, len(each))), None)

    def train_rows(self) -> dict[str, int]:
        """Of the training split for each base model, by the words for them."""
        folders = self.data_folders()
        return {base: self.manifest(folder).train.rows for base, folder in folders.items()}

    def data_folders(self) -> dict[str, str]:
        """Where the data for each base model lie, by the words for them."""
        bases = (self.manifest().bases if self.has_data() else ()) or ("",)
        return {base: f"data/{data_of(base, bases[0])}".rstrip("/") for base in bases}

    def array(self, name: str) -> np.ndarray | None:
        """A file of the folder; None where there is none."""
        return np.load(io.BytesIO(self.store.read_bytes(name))) if self.store.exists(name) else None

    # --- the sweep ---

    @property
    def folder(self) -> str:
        """Where the sweep's folder is, as a user can type it: a path, or a URL."""
        return self.store.path("").rstrip("/")

    def set_status(
        self,
        status: str,
        elapsed_s: float,
        *,
        ending: bool = False,
        paused: bool = False,
        once: bool = False,
    ) -> None:
        """ending: the process that writes this is on its way to an orderly end, and may be killed
        before it comes there; paused: somebody has let it pause; once: where storage does not work,
        it is not tried again.
        """
        written = WrittenStatus(
            status=status,
            ending=ending,
            pid=os.getpid(),
            began=process_start(os.getpid()),
            host=socket.gethostname(),
            time=time.time(),
            elapsed_s=elapsed_s,
            paused=paused,
        )
        store = self.store.once() if once else self.store
        store.write_json("status.json", to_json(written))

    def process(self) -> WrittenStatus | None:
        """The process that has run the sweep last, and what it wrote; None before it has."""
        return self._read("status.json", WrittenStatus)

    def status(self) -> tuple[str, float]:
        """The sweep's status, and the seconds it has run."""
        written = self.process()
        return ("interrupted", 0.0) if written is None else (written.present, written.elapsed_s)

    def reference(self) -> Reference:
        """What not fine-tuning gives: the untuned model (measured by the first slot) and the best
        single answer that train's labels tell.
        """
        found = self.baselines()
        untuned, prior = found.get("untuned", BaselineRow()), found.get("prior", BaselineRow())
        first = Reference(
            val_loss=untuned.val_loss,
            probe_loss=untuned.probe_loss,
            prior_loss=prior.val_loss,
            prior=prior.words or PRIOR,
        )
        others = {
            base: replace(first, val_loss=each.val_loss, probe_loss=each.probe_loss)
            for base, each in self._untuned_others().items()
        }
        return replace(first, others=others)

    def baselines(self) -> dict[str, BaselineRow]:
        """Those that were measured, by name."""
        found: dict[str, BaselineRow] = {}
        manifest = self.manifest() if self.has_data() else None
        if isinstance(untuned := self.untuned(), UntunedResults):
            for name, row in _untuned_rows(untuned, manifest).items():
                answered = self._means_of(f"baselines/validation/{name}")  # after it was measured
                found[name] = replace(row, metrics={**row.metrics, **answered})
        if manifest is not None and (prior := label_prior(manifest)) is not None:
            found["prior"] = prior
        for name, measured in self.measured_baselines().items():
            if measured.error is None:
                found[name] = BaselineRow.of(measured)
        return {
            name: replace(row, words=row.words or BASELINE_NAMES.get(name))
            for name, row in found.items()
        }

    def _means_of(self, folder: str) -> Metrics:
        """Of the metrics of what a baseline wrote, where it was asked."""
        answers = self.answers(folder)
        return {} if answers is None else answers.means

    def untuned(self) -> Untuned | None:
        """What the first slot found of the untuned model; None where it has not looked yet."""
        if not self.store.exists(UNTUNED):
            return None
        written = self.store.read_json(UNTUNED)
        kind = UntunedFailed if "error" in written else UntunedResults
        return from_json(kind, written, self.store.path(UNTUNED))

    def _untuned_others(self) -> Mapping[str, UntunedResults]:
        """Of all but the first base."""
        untuned = self.untuned()
        return untuned.others if isinstance(untuned, UntunedResults) else {}

    def write_untuned(self, untuned: Untuned) -> None:
        self.store.write_json(UNTUNED, to_json(untuned))

    def measured_baselines(self) -> dict[str, Baseline]:
        """Other ways than fine-tuning, also those that were left out."""
        if not self.store.exists("baselines.json"):
            return {}
        written = self.store.read_json("baselines.json")
        where = self.store.path("baselines.json")
        return {name: from_json(Baseline, each, where) for name, each in written.items()}

    def write_baselines(self, found: Mapping[str, Baseline]) -> None:
        self.store.write_json(
            "baselines.json", {name: to_json(each) for name, each in found.items()}
        )

    def write_test(self, scored: ScoredTest, config: SelectionConfig) -> None:
        """Keep what the test split gave, with intervals, how optimistic validation was, and who
        scored the same split before.
        """
        winner, _ = self.select(config)
        assert winner is not None, "the test split is scored for a winner"
        own = scored.scores["winner"].loss
        assert own is not None and winner.point.val_loss is not None, "a winner's losses are finite"
        manifest, scores = self.manifest(), dict(scored.scores)
        if (prior := label_prior(manifest, "test")) is not None:
            scores["prior"] = Score(loss=prior.val_loss, metrics=prior.metrics, words=prior.words)
        test = TestScores(
            trial=winner.trial,
            step=winner.point.step,
            split=to_json(scored.split),
            scores={name: self._with_interval(name, score) for name, score in scores.items()},
            optimism=own - winner.point.val_loss,
            scored_before=self._register(winner, manifest.splits["test"].raw_fingerprint),
        )
        self.store.write_json("test.json", to_json(test))

    def _with_interval(self, name: str, score: Score) -> Score:
        words = score.words or BASELINE_NAMES.get(name)
        losses = self.losses(f"baselines/test/{name}")
        low, high = (losses is not None and mean_interval(losses)) or (None, None)
        return replace(score, words=words, low=low, high=high)

    def _register(self, winner: Winner, fingerprint: str) -> tuple[EarlierScoring, ...]:
        """Write down that this winner was scored on the test split; who was before."""
        beside = self.store.above()  # the other sweeps look there too
        register = f"test-sets/{fingerprint[:16]}.json"
        written = beside.read_json(register) if beside.exists(register) else []
        known = [from_json(EarlierScoring, each, beside.path(register)) for each in written]
        own = (self.name, winner.trial, winner.point.step)
        # a checkpoint that is measured again, after a kill, is no second look; another winner of
        # this sweep is
        before = [each for each in known if (each.sweep, each.trial, each.step) != own]
        now = EarlierScoring(
            sweep=self.name, trial=winner.trial, step=winner.point.step, time=time.time()
        )
        beside.write_json(register, [to_json(each) for each in (*before, now)])
        return tuple(before)

    def write_forgetting(self, measured: MeasuredForgetting, config: SelectionConfig) -> None:
        winner, _ = self.select(config)
        assert winner is not None, "what is forgotten is measured of a winner"
        forgotten = Forgetting(
            trial=winner.trial,
            step=winner.point.step,
            before=measured.before,
            after=measured.after,
            kl=measured.kl,
            interval=self._rise("general"),
        )
        self.store.write_json("forgetting.json", to_json(forgotten))

    def _rise(self, split: str) -> tuple[float, float] | None:
        """95% interval of how much higher a split's loss is after than before."""
        found = compare(*(self.losses(f"baselines/{split}/{name}") for name in ("before", "after")))
        if found is None or found.low is None or found.high is None:
            return None
        return found.low, found.high

    def write_earlier(self, measured: MeasuredEarlier, config: SelectionConfig) -> None:
        winner, _ = self.select(config)
        assert winner is not None, "what is forgotten is measured of a winner"
        forgotten = EarlierForgetting(
            trial=winner.trial,
            step=winner.point.step,
            sweep=self.lineage(self.base_of(winner))[-1].sweep,
            before=measured.before,
            after=measured.after,
            interval=self._rise(EARLIER),
        )
        self.store.write_json("earlier.json", to_json(forgotten))

    def earlier_of(self, winner: Winner | None) -> EarlierForgetting | None:
        """What the winner has forgotten of the earlier sweep's data."""
        return _of_winner(self._read("earlier.json", EarlierForgetting), winner)

    def write_lineages(self, of_bases: Mapping[str, Sequence[Ancestor]]) -> None:
        """As `lineages` gives them."""
        found = {base: lineage_json(ancestors) for base, ancestors in of_bases.items()}
        self.store.write_json(LINEAGE, found.get("", found))

    def lineages(self) -> dict[str, tuple[Ancestor, ...]]:
        """The winners that each base model came from, the oldest first, by the words for those that
        came from any; "" is the only one.
        """
        if not self.store.exists(LINEAGE):
            return {}
        content, where = self.store.read_json(LINEAGE), self.store.path(LINEAGE)
        of_bases = content if isinstance(content, Mapping) else {"": content}
        return {base: lineage_of(each, where) for base, each in of_bases.items()}

    def lineage(self, base: str) -> tuple[Ancestor, ...]:
        """The winners that a base model came from, the oldest first."""
        return self.lineages().get(base, ())

    def base_of(self, winner: Winner) -> str:
        """The word for the base model of the trial that won."""
        return base_of(self.curve(winner.trial).params)

    def test_of(self, winner: Winner | None) -> TestScores | None:
        """What the test split gave the winner; None when it was not scored, or for a checkpoint
        that won before.
        """
        return _of_winner(self.scored_test(), winner)

    def scored_test(self) -> TestScores | None:
        """What the test split gave whichever winner it was scored for last."""
        return self._read("test.json", TestScores)

    def forgetting_of(self, winner: Winner | None) -> Forgetting | None:
        """The same of what the winner has forgotten."""
        return _of_winner(self._read("forgetting.json", Forgetting), winner)

    def _read(self, name: str, kind: type[Written]) -> Written | None:
        """A file of the folder; None where it is not there."""
        return self._whole(name, kind) if self.store.exists(name) else None

    def _whole(self, name: str, kind: type[Written]) -> Written:
        return from_json(kind, self.store.read_json(name), self.store.path(name))

    def handed_over(self) -> WinnerRow | None:
        """What `winner/` holds."""
        return self._read(f"{WINNER}/winner.json", WinnerRow)

    def holds(self, trial: str, step: int) -> bool:
        """Whether `winner/` holds this checkpoint, and not one that won before."""
        held = self.handed_over()
        return held is not None and (held.trial, held.step) == (trial, step)

    def select(
        self, config: SelectionConfig, reference: Reference | None = None
    ) -> tuple[Winner | None, str]:
        """The winner so far, and the reason in words."""
        by_metric = partial(self._comparisons.by, config.measure.name)
        return select(self.curves(), config, self.losses, reference, by_metric)

    def is_default(self, trial: str) -> bool:
        """Whether `trial` is what one would train without a search."""
        return self._trials[trial].default

    @property
    def task(self) -> Task:
        return TASKS[self.manifest().task]

    def has_data(self) -> bool:
        """Whether the sweep's data were prepared to the end."""
        return self.store.exists(DATA_MANIFEST)

    def manifest(self, folder: str = "data") -> Manifest:
        """Of the prepared data, of several base models those for the first, or of those in one of
        `data_folders`.
        """
        name = f"{folder}/{MANIFEST}"
        return manifest_of(self.store.read_json(name), self.store.path(name))


def _untuned_rows(untuned: UntunedResults, manifest: Manifest | None) -> dict[str, BaselineRow]:
    """Of each base."""
    first = "" if manifest is None else next(iter(manifest.bases), "")
    return {
        untuned_name(base, first): BaselineRow(
            val_loss=each.val_loss,
            probe_loss=each.probe_loss,
            metrics=each.metrics,
            words=f"the untuned {base}" if base else None,
        )
        for base, each in {first: untuned, **untuned.others}.items()
    }


OfWinner = TypeVar("OfWinner", TestScores, Forgetting, EarlierForgetting)


def _of_winner(found: OfWinner | None, winner: Winner | None) -> OfWinner | None:
    if found is None or winner is None:
        return None
    own = (found.trial, found.step) == (winner.trial, winner.point.step)
    return found if own else None


def _answers(by_trial: Mapping[str, Mapping[str, Stamp]]) -> list[tuple[str, Stamp]]:
    """Files of answers with their stamps."""
    return [
        (name, stamp)
        for stamps in by_trial.values()
        for name, stamp in stamps.items()
        if name.endswith(f"/{ANSWERS}")
    ]


def label_prior(manifest: Manifest, split: str = "validation") -> BaselineRow | None:
    """What always giving the best single answer that train's labels tell is worth on `split`; None
    where the task has no such answer.
    """
    found = TASKS[manifest.task].prior(manifest.train, manifest.splits[split])
    if found is None:
        return None
    return BaselineRow(
        val_loss=found.loss,
        metrics=found.metrics,
        label=found.answer,
        words=f"train's {found.what}",
    )
