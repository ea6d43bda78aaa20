"""Whether new rows are still those that a sweep's winner was trained for.

Letters of shapes: N rows, G units of them (see `sweeps.selection.statistics`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from sweeps.reporting.metrics import resampled_metrics
from sweeps.selection.statistics import by_unit, mean_interval
from sweeps.use.scoring import score
from sweeps.use.trained import Trained, open_trained
from trainables.data.tokens import GROUPS
from trainables.errors import InputError
from trainables.evaluation.drift import (
    MIN_UNITS,
    TwoSample,
    classifier_two_sample,
    higher_loss,
    kolmogorov_smirnov,
    shares,
    unit_means,
)
from trainables.evaluation.reloaded import MAX_TOKENS
from trainables.models.files import quiet
from trainables.streams import stream
from trainables.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainables.data.arrow import Row, Split
    from trainables.engine.scoring import RowResults

NEW = "new"
LOSS = "the loss"
BOUNDS = (0.025, 0.975)
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number on the new rows and on those before, each with its 95% interval."""

    name: str
    new: float
    new_interval: Interval | None
    before: float | None
    before_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What new rows say."""

    sweep: str
    trial: str
    rows: int
    """New ones that were looked at."""
    reference: str
    """The split that they were held against."""
    reference_rows: int
    level: float
    """Chance that one of the tests alarms where nothing has changed."""
    drifted: bool
    words: str
    tests: tuple[TwoSample, ...]
    alarms: tuple[str, ...]
    """What differs beyond noise."""
    measured: tuple[Measured, ...] = ()
    """Loss and metrics, where the new rows have labels."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of one side, as far as they are looked at."""

    split: "Split"
    chosen: np.ndarray
    """Positions, which rise."""
    groups: np.ndarray | None
    """Of the chosen ones."""

    @classmethod
    def of(cls, split: "Split", groups: np.ndarray | None, most: int, seed: int) -> "_Rows":
        drawn = stream("drift: rows", seed).permutation(len(split))[:most]
        chosen = np.sort(drawn)
        return cls(split=split, chosen=chosen, groups=None if groups is None else groups[chosen])

    @property
    def rows(self) -> "list[Row]":
        return self.split.rows(self.chosen)

    @property
    def labels(self) -> np.ndarray:
        """The class of each."""
        assert self.split.labels is not None, "rows have a class"
        return self.split.labels[self.chosen]

    @property
    def units(self) -> int:
        return len(self.chosen) if self.groups is None else len(np.unique(self.groups))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Of units, of what the chosen rows have."""
        return unit_means(values, self.groups)


def monitor(
    folder: str, given: str, *, labelled: bool = False, level: float = 0.01, most: int = 5000
) -> Monitored:
    """Hold the rows of `given` (what `data.train` may be) against those that the winner of the
    sweep in `folder` was measured on: its test split where that was scored, else validation.

    labelled: whether the new rows have their labels. level: chance that anything alarms where
    nothing has changed. most: rows of either side that are looked at, drawn by the sweep's seed.

    Raises InputError for what cannot be read, or are too few rows to tell.
    """
    with open_trained(folder) as trained, TemporaryDirectory() as scratch:
        split, losses = _reference(trained)
        seed = trained.manifest.seed
        groups = trained.ledger.groups(split, len(losses))
        before = _Rows.of(trained.split(split), groups, most, seed)
        now = _Rows.of(*_read(trained, given, Path(scratch), labelled), most, seed)
        _check_enough(now, given)
        _check_enough(before, f"the {split} split of {folder}")
        tests, measured = _unlabelled(trained, before, now), ()
        if labelled or not trained.task.targets_are_answers:  # a text is its own label
            was, found = losses[before.chosen], score(trained, now.split, now.chosen)
            tests = [*_labelled(trained, before, now, was, found.losses), *tests]
            outcomes = _outcomes(trained, split, before)
            measured = tuple(_measured(trained, before, now, was, outcomes, found))
        alarms = tuple(each.what for each in tests if each.p_value < level / len(tests))
        return Monitored(
            sweep=trained.ledger.name,
            trial=trained.trial,
            rows=len(now.chosen),
            reference=split,
            reference_rows=len(before.chosen),
            level=level,
            drifted=bool(alarms),
            words=_words(folder, alarms, tests, measured),
            tests=tuple(tests),
            alarms=alarms,
            measured=measured,
        )


def _reference(trained: Trained) -> tuple[str, np.ndarray]:
    """The split that new rows are held against, and the winner's losses on its rows [N, 2]. The
    test split did not choose the winner, so that its losses are not too low by that choice.
    """
    ledger, test = trained.ledger, trained.ledger.scored_test()
    own = (trained.trial, trained.evaluation.step)
    if test is not None and (test.trial, test.step) == own:
        losses = ledger.row_losses("baselines/test/winner")
        if losses is not None:
            return "test", losses
    losses = ledger.row_losses(trained.evaluation.folder)
    assert losses is not None, "every evaluation keeps its losses"
    return "validation", losses


def _read(
    trained: Trained, given: str, scratch: Path, labelled: bool
) -> "tuple[Split, np.ndarray | None]":
    """The new rows as tokens, and which of them belong together [N]."""
    from trainables.data.new_rows import tokenise_new
    from trainables.data.prepare import open_split

    tokenizer = trained.tokenizer
    tokenise_new(given, trained.manifest, NEW, tokenizer, scratch, labelled=labelled)
    groups = scratch / GROUPS.format(NEW)
    return open_split(scratch, NEW), np.load(groups) if groups.exists() else None


def _check_enough(rows: _Rows, where: str) -> None:
    if rows.units < MIN_UNITS:
        raise InputError(
            f"{where}: {rows.units} rows (or groups of them) are too few to tell; at least"
            f" {MIN_UNITS} are needed"
        )


# --- tests ---


def _unlabelled(trained: Trained, before: _Rows, now: _Rows) -> list[TwoSample]:
    """Of the rows as the frozen base reads them, and of what the winner answers."""
    embedded = _embedded(trained, before, now)
    found = [classifier_two_sample(*embedded, trained.manifest.seed, "the rows")]
    model, answers = trained.load(), []
    for rows in (before, now):
        answers.append(_answers(trained, model, rows))
    (old, old_classes), (new, new_classes) = answers
    task = trained.task
    is_number = task.problem_type is not None and not task.loss.is_likelihood
    sure = "the answers" if is_number else "the confidence"
    found.append(kolmogorov_smirnov(old, new, sure))
    if old_classes is not None and new_classes is not None:
        labels = trained.spec.outputs
        found.append(shares(old_classes, new_classes, labels, "the answers"))
    return found


def _embedded(trained: Trained, before: _Rows, now: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """Means of the frozen base's last hidden states over the tokens of each unit's rows [G, D] and
    [M, D].
    """
    from trainables.evaluation.bench import Bench, load_backbone
    from trainables.evaluation.embeddings import embed

    bench = Bench(
        model=trained.config.model,
        task=trained.task,
        labels=trained.manifest.labels,
        train=before.split,
        pool=before.chosen,
        split=now.split,
        pad_token_id=trained.spec.pad_token_id,
        max_tokens=MAX_TOKENS,
        seed=trained.manifest.seed,
        device=trained.device,
        minutes=math.inf,
        deadline=math.inf,
    )
    quiet()
    base = load_backbone(bench)
    backbone = base.get_encoder() if base.config.is_encoder_decoder else base
    old, new = ([_asked(row, trained.task) for row in each.rows] for each in (before, now))
    found = embed(bench, backbone, old, new)
    return before.means(found.pool), now.means(found.rows)


def _asked(row: "Row", task: Task) -> "Row":
    """What a model is given of a row: without the answer, where that stands in it."""
    from trainables.evaluation.latency import prompt_ids

    if not (task.is_language_model and task.continues_text and task.targets_are_answers):
        return row
    return {"input_ids": prompt_ids(row, task)}


def _answers(
    trained: Trained, model: "PreTrainedModel", rows: _Rows
) -> tuple[np.ndarray, np.ndarray | None]:
    from trainables.evaluation.confidence import read_answers

    found = read_answers(
        model,
        trained.task,
        rows.rows,
        pad_token_id=trained.spec.pad_token_id,
        max_tokens=MAX_TOKENS,
        device=trained.device,
    )
    classes = None if found.classes is None else rows.means(found.classes)
    return rows.means(found.confidence), classes


def _labelled(
    trained: Trained, before: _Rows, now: _Rows, was: np.ndarray, found: np.ndarray
) -> list[TwoSample]:
    """Of the winner's losses [N, 2], and of what is true."""
    units = by_unit(was, before.groups), by_unit(found, now.groups)
    tests = [higher_loss(*units, LOSS)]
    if trained.task.has_classes:
        classes = np.eye(len(trained.manifest.labels))
        old, new = (each.means(classes[each.labels]) for each in (before, now))
        tests.append(shares(old, new, trained.manifest.labels, "the labels"))
    return tests


# --- numbers ---


def _outcomes(trained: Trained, split: str, before: _Rows) -> np.ndarray | None:
    """What the winner answered to the rows before [N, M]."""
    folder = "baselines/test/winner" if split == "test" else trained.evaluation.folder
    kept = trained.ledger.outcomes(folder)
    return None if kept is None else kept[before.chosen]


def _measured(
    trained: Trained,
    before: _Rows,
    now: _Rows,
    was: np.ndarray,
    outcomes: np.ndarray | None,
    found: "RowResults",
) -> Iterator[Measured]:
    """The loss, and the task's metrics of outcomes."""
    yield Measured(
        name="loss",
        new=float(found.losses[:, 0].sum() / found.losses[:, 1].sum()),
        new_interval=mean_interval(by_unit(found.losses, now.groups)),
        before=float(was[:, 0].sum() / was[:, 1].sum()),
        before_interval=mean_interval(by_unit(was, before.groups)),
    )
    new = found.rows_outcomes
    if new is None or outcomes is None:
        return
    metrics = trained.task.metrics
    bounds = [_bounds(metrics, each, rows) for each, rows in ((new, now), (outcomes, before))]
    values = metrics(new), metrics(outcomes)
    for name, value in values[0].items():
        if not math.isfinite(value):  # such as AUROC where a class has no rows
            continue
        yield Measured(
            name=name,
            new=value,
            new_interval=bounds[0].get(name),
            before=values[1].get(name),
            before_interval=bounds[1].get(name),
        )


def _bounds(
    metrics: Callable[[np.ndarray], dict[str, float]], outcomes: np.ndarray, rows: _Rows
) -> dict[str, Interval]:
    groups = rows.groups
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1]
    drawn = resampled_metrics({NEW: outcomes}, metrics, groups)[NEW]
    return {
        name: (float(low), float(high))
        for name, values in drawn.items()
        if np.isfinite(values).any()
        for low, high in [np.nanquantile(values, BOUNDS)]
    }


def _words(
    folder: str, alarms: Sequence[str], tests: Sequence[TwoSample], measured: Sequence[Measured]
) -> str:
    """What has changed, and what to do."""
    found = {each.what: each.words for each in tests}
    if not alarms:
        return "Nothing has changed beyond noise: the winner need not be trained further."
    said = "; ".join(f"{what}: {found[what]}" for what in alarms)
    go_on = f"continue training from the winner with new rows (model.name: {folder})"
    if LOSS in alarms:
        return f"Drifted, and the winner is worse for it: {said}. So {go_on}."
    if measured:
        return (
            f"Drifted, but the winner's loss is not higher beyond noise: {said}. It may stay; watch"
            f" it, or {go_on}."
        )
    return (
        f"Drifted: {said}. Label some of these rows and look at the loss (--labels); where it is"
        f" higher, {go_on}."
    )


def table(found: Monitored) -> list[str]:
    """What was found, line by line."""
    lines = [
        f"{found.rows} new rows against {found.reference_rows} of the {found.reference} split of"
        f" {found.sweep} ({found.trial}); each of {len(found.tests)} tests at"
        f" {found.level / len(found.tests):.2g}:"
    ]
    for each in found.tests:
        differs = "DIFFERS" if each.what in found.alarms else "same"
        lines.append(f"  {each.what:<15} {differs:<8} p {each.p_value:<8.2g} {each.words}")
    for each in found.measured:
        new, before = (
            _with_interval(*side)
            for side in ((each.new, each.new_interval), (each.before, each.before_interval))
        )
        lines.append(f"  {each.name:<15} {new}, before {before}")
    return lines


def _with_interval(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" + (" ({:.4f} to {:.4f})".format(*interval) if interval else "")
