"""What a sweep will do and on which data, known before it starts: `check` shows it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import joined_address
from search_spaces import rules
from sweeps.config.draws import first_of_each_method, of_each_base
from sweeps.config.loading import with_own_space
from sweeps.config.metrics import with_metric
from sweeps.config.schema import AUTO, SearchConfig, SweepConfig
from sweeps.run.earlier import with_local_model
from sweeps.run.estimates import memory_lines
from sweeps.run.preparation import doctor, known_sweeps, prepare_data, rehearsed, show
from sweeps.run.rates import MeasuredRate, measure_rates
from sweeps.run.storage import check_storage
from sweeps.selection.statistics import MIN_UNITS
from trainables.data.findings import SEVERITIES, Finding
from trainables.data.manifest import Manifest, SplitSummary
from trainables.data.showing import ShownRow
from trainables.engine.schedule import total_steps, trained_samples
from trainables.hyperparameters import Hyperparameters, parse, sharing_key
from trainables.metrics.choosing import metrics_from
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from cluster.connect import SlotPlan
    from sweeps.run.preflight import Rehearse
    from sweeps.search.prior import Known

STRAYS = 0.05  # share of its epochs by which a trial may train more or less before the plan says so


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """A split, in numbers; tokens are 0 where it is sealed until there is a winner."""

    rows: int
    tokens: int = 0
    targets: int = 0
    mean_length: float = 0.0
    longest: int = 0
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `check` has found and what `run` would do."""

    sweep: str
    task: str
    model: str
    splits: dict[str, SplitPlan]
    data: tuple[str, ...]
    """What there is to train and to judge by, in words."""
    findings: tuple[Finding, ...]
    """What is odd about it, the gravest first."""
    plan: tuple[str, ...]
    """What is searched, what comes after, and what it takes, in words."""
    shown: tuple[ShownRow, ...]
    measured: tuple[MeasuredRate, ...] = ()
    """How fast this machine trains a trial of each method, where that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a cluster does and costs, as far as it is known."""

    samples_per_s: float | None = None
    """Rows that all slots together train in a second."""
    measure: bool = False
    """Whether to find out how fast this machine is, by training for some steps."""
    price: float | None = None
    """Of the cluster for an hour, in any currency."""


def make_plan(
    config: SweepConfig,
    *,
    rows: int = 0,
    benchmarks: Sequence[str] = (),
    rates: Rates | None = None,
    examine: bool = True,
    rehearse: Rehearse | None = None,
) -> Plan:
    """Raises what `run` would raise, and trains nothing. rows: of train, to be shown; benchmarks:
    sources that must not be in train; examine: whether the doctor looks at the rows; rehearse: as
    `rehearsed` takes it.
    """
    rehearsal: list[str] = []
    rates = rates or Rates()
    check_storage(config)
    config = with_local_model(with_metric(config))
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        look = doctor(config, benchmarks) if examine else None
        manifest = prepare_data(config, Path(scratch), look)
        reasons = list(auto_words(config, manifest))
        config = with_own_space(config, manifest.train.rows)
        known = known_sweeps(config, manifest)
        rehearsed(config, Path(scratch), rehearsal.append, rehearse)
        shown = show(config, manifest, Path(scratch), rows) if rows else ()
        measured: tuple[MeasuredRate, ...] = ()
        if rates.measure:
            measured = measure_rates(config, Path(scratch), _slots_here(config))
    drawn = [parse(draw) for draw in config.draws()]
    odd = [*_large_batches(config, manifest.train.rows), *_odd_epochs(drawn, manifest.train.rows)]
    findings = [*manifest.findings, *odd, *_few_groups(manifest)]
    return Plan(
        sweep=config.name,
        task=config.task,
        model=config.model.words,
        splits={name: _split_plan(split) for name, split in manifest.splits.items()},
        data=tuple(_data(config, manifest)),
        findings=tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity))),
        plan=(
            *reasons,
            *_lines(config, manifest, drawn, rehearsal, known),
            *_rate_lines(measured),
            *_time(config, manifest.train, drawn, rates, measured),
        ),
        shown=shown,
        measured=measured,
    )


def auto_words(config: SweepConfig, manifest: Manifest) -> Iterator[str]:
    """Why the ranges of `search.space: auto` are what they are."""
    if config.search.space != AUTO:
        return
    for base in config.bases:
        setting, of = config.over(base).setting(manifest.train.rows), f" ({base})" if base else ""
        yield from (f"auto{of}: {rule}" for rule in rules(setting, config.train.fixed()))


def _split_plan(split: SplitSummary) -> SplitPlan:
    if not split.is_tokenised:
        return SplitPlan(rows=split.read)
    return SplitPlan(**{each.name: getattr(split, each.name) for each in fields(SplitPlan)})


def _lines(
    config: SweepConfig,
    manifest: Manifest,
    drawn: Sequence[Hyperparameters],
    rehearsal: Sequence[str],
    known: Known | None,
) -> Iterator[str]:
    yield from _search(config, manifest.train.rows, drawn, known)
    yield from _afterwards(config, manifest)
    yield from rehearsal
    slots = _slots_here(config)
    yield (
        f"Slots: decided on the cluster at {joined_address(config.cluster)}"
        if slots is None
        else f"Slots: {slots.reason}"
    )
    yield f"Trial groups: {_groups(config)}"
    for word, over, draws, _ in of_each_base(config):
        if word:
            yield f"Base model {word}: {over.model.name}"
        yield from memory_lines(over, draws)
    if config.search.time_budget:
        yield f"Time budget: {config.search.time_budget}"
    if config.search.device_budget_h() is not None:
        yield f"Device hours: {config.search.device_budget_words()}"


def _data(config: SweepConfig, manifest: Manifest) -> Iterator[str]:
    """What there is to train and to judge by."""
    for name, split in manifest.splits.items():
        if split.is_tokenised:
            yield (
                f"{name}: {split.rows} rows, {split.tokens} tokens (mean"
                f" {split.mean_length:.1f}, longest {split.longest}, {split.truncated} cut"
                f" to {manifest.max_length})"
            )
        else:
            yield f"{name}: {split.read} rows, sealed until there is a winner"
    yield from _weights(config, manifest)
    if labels := _labels(manifest):
        yield f"labels: {labels}"
    if counts := manifest.validation.slice_counts:
        parts = ", ".join(f"{value or 'empty'} {count}" for value, count in sorted(counts.items()))
        yield f"slices of validation by {config.data.slice}: {parts}"


def _labels(manifest: Manifest) -> str:
    """What is to be answered; empty where there are no labels."""
    named, train = ", ".join(manifest.labels), manifest.train
    if manifest.majority_label:
        share = f"{manifest.majority_share:.1%}"
        return f"{named}; majority {manifest.majority_label} with {share} of validation"
    if train.label_mean is not None and train.label_variance is not None:
        spread = math.sqrt(train.label_variance)
        return f"mean {train.label_mean:.4g}, standard deviation {spread:.4g}"
    return named


def _weights(config: SweepConfig, manifest: Manifest) -> Iterator[str]:
    """Of the sources of train that stand more or less than once in an epoch."""
    for number, part in enumerate(config.data.parts("train")):
        if part.weight != 1:
            source = manifest.sources.get(f"train[{number}]") or manifest.sources["train"]
            yield (
                f"{source.source}: {source.rows} rows, of which those in train stand"
                f" {part.weight:g} times in an epoch"
            )


def _search(
    config: SweepConfig, rows: int, drawn: Sequence[Hyperparameters], known: Known | None
) -> list[str]:
    """What varies, and how much is trained. rows: of train."""
    steps = [total_steps(rows, hp) for hp in drawn]
    samples = _mean_samples(rows, drawn) * config.search.trials
    return [
        f"Search: {search_words(config, known)}",
        *(known.words(config.search.trials) if known else ()),
        *(f"  {path}: {what}" for path, what in config.space().parameters),
        *(f"  {name}: fixed {value}" for name, value in config.train.fixed().items()),
        f"  steps per trial: {_span(steps)}; {samples:,.0f} samples in all if no trial stops early",
    ]


def _span(values: Collection[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _mean_samples(rows: int, drawn: Sequence[Hyperparameters]) -> float:
    """That a trial trains on."""
    return sum(trained_samples(rows, hp) for hp in drawn) / len(drawn)


def _rate_lines(measured: Sequence[MeasuredRate]) -> Iterator[str]:
    for each in measured:
        over = f" over {each.base}" if each.base else ""
        what = f"{each.method}{over} at batch_size {each.batch_size} on {each.device}"
        if each.tokens_per_s is None:
            yield f"Not measured: {what}: {each.words}"
        else:
            yield f"Measured here: {what}: {each.tokens_per_s:,.0f} tokens a second ({each.words})"


def _time(
    config: SweepConfig,
    train: SplitSummary,
    drawn: Sequence[Hyperparameters],
    rates: Rates,
    measured: Sequence[MeasuredRate],
) -> Iterator[str]:
    finals = config.selection.finalists
    trials = config.search.trials + min(finals.top, config.search.trials) * finals.seeds
    if rates.samples_per_s is not None:
        hours = _mean_samples(train.rows, drawn) * trials / rates.samples_per_s / 3600
        device_hours, how = None, f"at {rates.samples_per_s:g} rows a second"
    elif measured and all(each.tokens_per_s for each in measured):
        hours = device_hours = _measured_seconds(train, drawn, measured) * trials / 3600
        how = "at the rate measured here, on one such device"
        if (slots := _slots_here(config)) is not None:
            devices = slots.slots * slots.workers_per_slot
            hours /= devices
            how = f"at the rate measured here, on {devices} such device{'s'[: devices > 1]}"
    else:
        return
    cost = "" if rates.price is None else f", {hours * rates.price:,.2f} at {rates.price:g} an hour"
    amount = f"{hours:,.1f} h" if hours >= 0.1 else f"{hours * 60:,.1f} min"
    yield f"Time: about {amount} {how}{cost}; training alone, if no trial stops early"
    yield from _budget_lines(config.search, hours, device_hours)


def _budget_lines(search: SearchConfig, hours: float, device_hours: float | None) -> Iterator[str]:
    """How the budgets compare with what training is estimated to take. device_hours: None where
    nothing tells how many devices there are.
    """
    seconds = search.time_budget_s()
    budgets = [
        (f"the time budget of {search.time_budget}", seconds and seconds / 3600, hours),
        (search.device_budget_words(), search.device_budget_h(), device_hours),
    ]
    for words, has, needs in budgets:
        if has is not None and needs is not None:
            enough = f"is enough for {has / needs:.0%} of that"
            yield f"{words[0].upper()}{words[1:]} {'suffices' if has >= needs else enough}"


def _measured_seconds(
    train: SplitSummary, drawn: Sequence[Hyperparameters], measured: Sequence[MeasuredRate]
) -> float:
    """That a trial trains on one device, in the mean of those drawn."""
    rates = {(each.base, each.method): each.tokens_per_s or math.inf for each in measured}
    tokens = [trained_samples(train.rows, hp) * train.mean_length for hp in drawn]
    seconds = [each / rates[hp.model, hp.method] for each, hp in zip(tokens, drawn, strict=True)]
    return sum(seconds) / len(seconds)


def search_words(config: SweepConfig, known: Known | None = None) -> str:
    """How many trials are searched how, and how many of them at random. known: of earlier
    sweeps.
    """
    search, size = config.search, config.space().size()
    of = f" of {size} configurations" if size is not None else ""
    if search.scheduler == "freeze_thaw":
        return f"at most {search.trials} trials{of} by freeze and thaw"
    words, first = f"{search.trials} trials by {search.sampler}{of}", search.random_trials()
    if known is not None:
        first = known.random_trials(first)
    if search.sampler != "tpe" or first == 0:
        return words
    if first >= search.trials:
        return (
            f"{words}: a random search, as the sampler learns only from {first} trials on"
            " (search.startup_trials)"
        )
    return f"{words}, the first {first} at random, and what starts before those have ended"


def _answers(config: SweepConfig, manifest: Manifest) -> list[str]:
    """What models write to rows, and whose answers choose the winner."""
    given, selection = config.generation, config.selection
    if not config.metrics:
        return []
    best = f"the best {min(given.candidates, config.search.trials)} trial(s)"
    others = "the default configuration and the untuned model"
    who = {
        "winner": f"Then: the winner, {others}",
        "finalists": f"Then: {best}, {others}",
        "evaluations": f"Beside the trials: at every evaluation the trial, then {others}",
    }[given.when]
    rows = min(given.rows, manifest.validation.rows)
    called = ", ".join(each.name for each in metrics_from(config.metrics))
    test = " and as many of the test split" if "test" in manifest.splits else ""
    chosen = "the loss" if selection.measure.is_loss else selection.measure.name
    return [
        f"{who} answer {rows} rows of validation{test}, at most {given.max_new_tokens} tokens each,"
        f" measured by {called}; {chosen} chooses the winner"
    ]


def _afterwards(config: SweepConfig, manifest: Manifest) -> list[str]:
    """What is run and measured beside the trials of the search."""
    from trainables.evaluation.baselines import names

    selection, lines = config.selection, []
    if (finals := selection.finalists).top:
        top = min(finals.top, config.search.trials)
        lines.append(
            f"Finalists: {top * finals.seeds} trials more, the best {top} configuration(s) again"
            f" with {finals.seeds} new seed(s) each"
        )
    lines += _limits(config)
    first = config.over(config.bases[0]).model
    if selection.baselines and (ways := names(first, config.task)):
        lines.append(
            f"Beside the trials: {', '.join(ways)}; at most {selection.baseline_minutes:g} minutes"
            " a split"
        )
    lines += _answers(config, manifest)
    if "test" in manifest.splits:
        lines.append(
            "Then: the test split, scored once, for the winner and what it is compared with"
        )
    else:
        lines.append(
            "No test split: what is claimed of the winner rests on the rows by which it was chosen,"
            " allowing for that; data.test: 0.1 would set rows apart that it has not seen"
            " (recommended)"
        )
    if TASKS[config.task].continues_text:
        lines.append(
            "Then: what the winner has forgotten of"
            f" {selection.general_text or 'general text (Python manual)'}"
        )
    return lines


def _limits(config: SweepConfig) -> list[str]:
    found = config.selection.limits
    limits = {name: value for name, value in vars(found).items() if value is not None}
    rows = limits.pop("slice_rows")
    if not limits:
        return []
    words = ", ".join(f"{name} {value:g}" for name, value in limits.items())
    return [f"Limits: {words}{f' (slices of {rows} rows and more)' if found.of_slices else ''}"]


def _large_batches(config: SweepConfig, rows: int) -> Iterator[Finding]:
    sizes = {parse(draw).batch_size for draw in config.draws()}
    large = sorted(size for size in sizes if size > rows)
    some = " and ".join(map(str, large[:1] + large[1:][-1:]))
    if large:
        yield Finding(
            kind="large_batches",
            split="train",
            rows=rows,
            message=f"batch_size {some}: above the {rows} rows of train, so a step is a whole"
            " epoch",
            setting=f"batch_size: at most {rows}",
        )


def _odd_epochs(drawn: Sequence[Hyperparameters], rows: int) -> Iterator[Finding]:
    """Where whole batches train far more or less than the epochs that are asked for."""
    strays = {}
    for hp in drawn:
        epochs = trained_samples(rows, hp) / rows
        if abs(epochs - hp.epochs) > STRAYS * hp.epochs:
            strays[hp.epochs, hp.batch_size] = epochs
    if not strays:
        return
    (epochs, size), trained = max(strays.items(), key=lambda each: abs(each[1] / each[0][0] - 1))
    others = f"; so do {len(strays) - 1} other pairs of the two" if len(strays) > 1 else ""
    yield Finding(
        kind="odd_epochs",
        split="train",
        rows=rows,
        message=f"epochs {epochs:g} at batch_size {size} trains {trained:.2g} epochs, as steps take"
        f" whole batches{others}",
        setting="batch_size: a smaller one",
    )


def _few_groups(manifest: Manifest) -> Iterator[Finding]:
    groups = manifest.validation.groups
    if groups is None or groups >= MIN_UNITS:
        return
    yield Finding(
        kind="few_groups",
        split="validation",
        rows=manifest.validation.read,
        message=f"validation: its rows belong to {groups} group(s) or document(s), which with fewer"
        f" than {MIN_UNITS} tell nothing of noise: no intervals, no ties",
        setting="data.validation: a larger share",
    )


def _groups(config: SweepConfig) -> str:
    """Which trials may share a base."""
    from trainables.runtime.capacity import MAX_GROUP_SIZE

    together: dict[str, list[str]] = {}  # methods that share one base
    for base in of_each_base(config):
        for hp in map(parse, first_of_each_method(base.drawn)):
            if (key := sharing_key(hp)) is not None:
                of = f" over {hp.model}" if hp.model else ""
                together.setdefault(key, []).append(f"{hp.method}{of}")
    largest = config.cluster.trials_per_slot
    if not together or largest == 1:
        return "none, every trial has a slot to itself"
    most = (
        f"as many as a slot finds to pay, at most {MAX_GROUP_SIZE}"
        if largest == "auto"
        else f"at most {largest}"
    )
    return (
        f"trials of {', or of '.join(' and '.join(methods) for methods in together.values())} share"
        f" a base, {most}"
    )


def _slots_here(config: SweepConfig) -> SlotPlan | None:
    """What `run` would start on this machine; None: it runs on another cluster, which is not
    asked.
    """
    if joined_address(config.cluster) is not None:
        return None
    import torch

    from cluster.connect import plan_slots

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    resources = {name: amount for name, amount in resources.items() if amount}
    return plan_slots(
        resources, [{"Alive": True, "Resources": resources}], config.cluster, config.search.trials
    )
