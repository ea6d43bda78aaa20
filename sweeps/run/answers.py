"""Whose answers are written after the search, and what comes of them."""

from collections.abc import Iterator, Sequence

from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import Ledger
from sweeps.selection.curves import Curve
from sweeps.selection.measure import metric_words
from sweeps.selection.ranking import nearest
from sweeps.selection.results import Winner
from sweeps.selection.verdicts import candidates
from trainables.evaluation.record import (
    AnswersJob,
    Evaluation,
    Job,
    MeasuredAnswers,
    TrainedCheckpoint,
    untuned_name,
)
from trainables.hyperparameters import base_of
from trainables.metrics.config import settings_digest
from trainables.storage.checkpoints import CHECKPOINT

MOST_SHARE = 0.15  # of a sweep's time that answers should take


def trained(config: SweepConfig, curve: Curve, point: Evaluation) -> TrainedCheckpoint:
    return TrainedCheckpoint(
        checkpoint=f"{point.folder}/{CHECKPOINT}", parameters=config.complete(curve.params)
    )


class Answers:
    """The jobs that have rows of the validation split answered."""

    def __init__(self, config: SweepConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._digest = settings_digest(config.metrics, config.generation)

    def of_candidates(self) -> dict[str, Job]:
        """Of what the winner may be, and of the untuned models, as far as they are not known."""
        config = self._config
        if not config.metrics:
            return {}
        found = dict(self._of_untuned())
        if config.generation.when != "winner":
            curves = self._ledger.curves()
            best = nearest(curves, config.selection, config.generation.candidates)
            if (default := self._ledger.default(config.selection)) is not None:
                best.append(default)
            found |= self._of_trials([*best, *self._answered_otherwise(curves)])
        return found

    def _answered_otherwise(self, curves: Sequence[Curve]) -> Iterator[tuple[Curve, Evaluation]]:
        """Those that may win by a metric of which they were asked before metrics or rows were set
        otherwise: what was not asked alike does not compare.
        """
        selection = self._config.selection
        if selection.measure.is_loss:
            return
        for curve in curves:
            for point in candidates(curve, selection):
                written = self._ledger.answers(point.folder) if point.checkpoint else None
                if written is not None and written.settings != self._digest:
                    yield curve, point

    def of_winner(self, winner: Winner) -> dict[str, Job]:
        """Of the winner and the default configuration."""
        if not self._config.metrics:
            return {}
        found = [(self._ledger.curve(winner.trial), winner.point)]
        if (default := self._ledger.default(self._config.selection)) is not None:
            found.append(default)
        return self._of_trials(found)

    def _of_trials(self, models: Sequence[tuple[Curve, Evaluation]]) -> dict[str, Job]:
        return {
            f"answers of {curve.id} at step {point.step}": AnswersJob(
                folder=point.folder,
                base=base_of(curve.params),
                trained=trained(self._config, curve, point),
            )
            for curve, point in models
            if not self.are_known(point.folder)
        }

    def _of_untuned(self) -> Iterator[tuple[str, Job]]:
        bases = self._config.bases
        for base in bases:
            name = untuned_name(base, bases[0])
            folder = f"baselines/validation/{name}"
            if not self.are_known(folder):
                yield f"answers of {name}", AnswersJob(folder=folder, base=base)

    def are_known(self, folder: str) -> bool:
        """Whether a model has been asked as the sweep file now says."""
        written = self._ledger.answers(folder)
        return written is not None and written.settings == self._digest

    def are_of(self, split: str, name: str) -> bool:
        """Whether one of those that are scored beside trials has been asked, if any is."""
        return not self._config.metrics or self.are_known(f"baselines/{split}/{name}")

    def take(self, job: AnswersJob, found: MeasuredAnswers) -> str:
        """Note what came of a job; in words."""
        if job.trained is None:
            name = job.folder.rsplit("/", 1)[-1].replace("_", " ")
        else:
            name = job.folder.split("/")[1]
            self._ledger.note_answers(name)
        numbers = [
            f"{metric_words(metric)} {'unknown' if value is None else format(value, '.4f')}"
            for metric, value in found.metrics.items()
        ]
        words = f"{name} answered {found.rows} rows in {found.seconds:.0f} s: {', '.join(numbers)}"
        return "; ".join([words, *found.notes])

    def share_words(self, elapsed_s: float) -> str:
        """What share of the sweep's time answers took; empty where none were written."""
        if not (seconds := sum(self._written_in())):
            return ""
        share = seconds / max(elapsed_s, seconds)
        words = f"answers took {seconds:.0f} s, {share:.0%} of the sweep's time"
        if share <= MOST_SHARE:
            return words
        return f"{words}; less with lower generation.candidates, rows or max_new_tokens"

    def _written_in(self) -> Iterator[float]:
        """Seconds that each model took, in this process or an earlier one."""
        if not self._config.metrics:
            return
        own = {*self._ledger.task.metric_names}
        folders = [
            point.folder
            for curve in self._ledger.curves()
            for point in curve.points
            if point.metrics.keys() - own  # it has metrics of answers, so it has written some
        ]
        bases = self._config.bases
        folders += [f"baselines/validation/{untuned_name(base, bases[0])}" for base in bases]
        for folder in folders:
            if (written := self._ledger.answers(folder)) is not None:
                yield written.seconds
