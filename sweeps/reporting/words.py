"""Findings in one line each, the same wherever they are shown."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sweeps.ledger.harness import HarnessScore
from sweeps.ledger.leaderboard import (
    SPLITS,
    BaselineRow,
    ClassAnswers,
    EarlierForgetting,
    Forgetting,
    MetricsReport,
    Score,
    ShownEvaluation,
    SlicePart,
    SplitName,
    TestScores,
    TrialRow,
    WinnerSlices,
)
from sweeps.ledger.progress import Progress
from sweeps.selection.results import Final
from sweeps.selection.statistics import Difference
from trainables.data.manifest import Manifest
from trainables.models.lineage import Ancestor

LOST = ("forgetting", "kl")  # what is measured of a language model where it has a limit

BEHIND = "above the best (95%)"

NO_INTERVAL = "too few for an interval"


def format_params(params: Mapping[str, object]) -> str:
    """One configuration in one line: the method first, rates in short."""
    rest = [f"{name}={short_value(value)}" for name, value in params.items() if name != "method"]
    return " ".join([str(params.get("method", "")), *rest]).strip()


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def loss_words(manifest: Manifest | None) -> str | None:
    """What the losses of a sweep are, with their unit; None where its data are not there."""
    if manifest is None:
        return None
    if manifest.encoding.in_bytes:
        return "bits per byte of the target text, which compare over all base models"
    from trainables.tasks import TASKS  # with all that reads conversations

    return TASKS[manifest.task].loss.words


def verdict_words(trial: TrialRow) -> str:
    """The verdict of the checkpoint that stands for a trial, and what befell the trial after it."""
    later = f", later {trial.verdict_later}" if trial.verdict_later else ""
    return f"{trial.verdict or ''}{later}"


def average_words(of: ShownEvaluation) -> str:
    """That an evaluation is one of averaged weights, after the samples that it has seen."""
    return f" (average of {of.averaged} evaluations)" if of.averaged else ""


def expected_words(expected: Final) -> str:
    """What new seeds of the winner's configuration say of it."""
    seeds = len(expected.seeds)
    spread = "" if expected.spread is None else f" ± {expected.spread:.4f}"
    of_failed = (
        f"; {len(expected.failed)} more gave no checkpoint that may win" if expected.failed else ""
    )
    return (
        f"expected {expected.mean:.4f}{spread}, the mean of {seeds} new"
        f" seed{'s' if seeds > 1 else ''}{of_failed}"
    )


def test_words(test: TestScores) -> str:
    """What the sealed test split gave the winner."""
    score = test.winner
    words = (
        f"loss {_loss(score)} ({_interval_words(score)}) on {test.summary.rows} rows,"
        f" {abs(test.optimism):.4f} {'above' if test.optimism > 0 else 'below'} that on validation"
    )
    words += "".join(f", {name} {number(value)}" for name, value in score.metrics.items())
    if (default := test.scores.get("default")) is not None:
        words += (
            f"; the default configuration has {_loss(default)}"
            f" ({_interval_words(default, short=True)})"
        )
    if before := test.scored_before:
        names = list(dict.fromkeys(each.sweep for each in before))
        others = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        words += (
            f"; CAREFUL: this test split has now been scored {len(before) + 1} times (before by"
            f" {others}), so it is no longer unseen"
        )
    return words


def _loss(score: Score) -> str:
    return "not finite" if score.loss is None else f"{score.loss:.4f}"


def _interval_words(score: Score, *, short: bool = False) -> str:
    if score.low is None:
        return NO_INTERVAL
    return f"{'' if short else '95% interval '}{score.low:.4f} to {score.high:.4f}"


def forgetting_words(found: Forgetting) -> str:
    """What the winner has lost of what its base knew."""
    change = f"{found.after - found.before:+.4f}{_rise_words(found.interval)}"
    return (
        f"loss on general text {found.before:.4f} before and {found.after:.4f} after,"
        f" {change}; on the task's own prompts its predictions are"
        f" {found.kl:.4f} nats (KL) from the base's"
    )


def harness_words(scores: Sequence[HarnessScore]) -> str:
    """What tasks of lm-eval gave the winner, each beside what they gave its base."""
    return "; ".join(
        f"{each.task} {each.metric}{_how_asked(each)} {each.trained:.4f}, the base"
        f" {each.base:.4f}, {score_difference(each)}"
        for each in scores
    )


def _how_asked(score: HarnessScore) -> str:
    """As far as it is not as usual."""
    how = [] if score.filter == "none" else [score.filter]
    how += [f"{score.shots} shots"] if score.shots else []
    how += ["as chat"] if score.chat else []
    how += [f"of {score.samples} samples"] if score.limit is not None else []
    return f" ({', '.join(how)})" if how else ""


def score_difference(score: HarnessScore) -> str:
    """Trained less base, with its standard error."""
    if score.standard_error is None:
        return f"{score.difference:+.4f}"
    how = "" if score.paired else " (not paired)"
    return f"{score.difference:+.4f} ± {score.standard_error:.4f}{how}"


def earlier_words(found: EarlierForgetting) -> str:
    """What the winner has lost of what the earlier one had learnt."""
    before, after = found.before.loss, found.after.loss
    words = (
        f"loss on the validation rows of {found.sweep} {_loss(found.before)} before and"
        f" {_loss(found.after)} after"
    )
    if before is not None and after is not None:
        words += f", {after - before:+.4f}{_rise_words(found.interval)}"
    for name, value in found.after.metrics.items():
        words += f"; {name} {number(found.before.metrics.get(name))} and {number(value)}"
    return words


def _rise_words(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " (95% interval {:+.4f} to {:+.4f})".format(*interval)


def lineage_words(lineage: Sequence[Ancestor]) -> str:
    """The winners that the sweep went on from, the last first."""
    return ", which went on from ".join(each.words for each in reversed(lineage))


def slices_words(slices: WinnerSlices) -> str:
    """The winner's loss for each value of a column, the worst first, on the last split that was
    scored.
    """
    split = "test" if slices.test else "validation"
    found = slices.on(split)
    shown = [_slice_words(each) for each in found]
    if len(shown) > 8:
        shown = [*shown[:5], f"{len(shown) - 7} more", *shown[-2:]]
    gap = ""
    worst, best = found[0], found[-1]
    if len(found) > 1 and worst.loss is not None and best.loss is not None:
        gap = f"; worst {worst.value or 'empty'}, {worst.loss - best.loss:.4f} above the best"
    return f"{split} loss by {slices.column}: {'; '.join(shown)}{gap}"


def _slice_words(part: SlicePart) -> str:
    bounds = f"{NO_INTERVAL}, " if part.low is None else f"{part.low:.4f} to {part.high:.4f}, "
    accuracy = part.metrics.get("accuracy")
    also = "" if accuracy is None else f", accuracy {accuracy:.4f}"
    return f"{part.value or 'empty'} {number(part.loss)} ({bounds}{part.rows} rows{also})"


def measured_splits(metrics: MetricsReport) -> list[SplitName]:
    """The splits on which anything was measured."""
    return [
        split
        for split in SPLITS
        if any(each.on(split) is not None for each in metrics.alternatives)
    ]


def alternatives_columns(metrics: MetricsReport) -> list[str]:
    """`loss` and the metrics that any alternative has."""
    measured = [
        found
        for each in metrics.alternatives
        for split in SPLITS
        if (found := each.on(split)) is not None
    ]
    return list(dict.fromkeys(["loss", *(name for found in measured for name in found.metrics)]))


def answered_words(of_class: ClassAnswers) -> str:
    """The answers that the rows of a class got, the commonest first: a row of the confusion matrix
    in words.
    """
    answers = list(of_class.answered_as.items())
    more = f", {sum(count for _, count in answers[4:])} other" if len(answers) > 4 else ""
    return ", ".join(f"{label} {count}" for label, count in answers[:4]) + more


def interval(difference: Difference | None) -> str:
    """How far a trial's loss lies above the lowest, and between which bounds."""
    if difference is None:
        return "-"
    if difference.low is None:
        return f"{difference.mean:+.4f} ({NO_INTERVAL})"
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def baseline_cost(baseline: BaselineRow) -> str:
    """What a baseline took to measure, and how long its requests are."""
    parts = []
    if (seconds := baseline.seconds) is not None:
        parts.append(f"{seconds:.1f} s" if seconds < 60 else duration(seconds))
    if (tokens := baseline.tokens_per_request) is not None:
        parts.append(f"{tokens:.0f} tokens a request")
    return ", ".join(parts)


def cost_words(cost: float) -> str:
    """Parameters as they are; arithmetic as a multiple of the untuned model's."""
    return f"{cost:,}" if isinstance(cost, int) else f"{cost:.3f} times"


def short_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def head_words(name: str, ended: int, progress: Progress) -> str:
    """How far a sweep is, in one line; ended: trials."""
    left = progress.left_s
    rest = f"about {duration(left)} left" if left is not None else "time left not known yet"
    return (
        f"{name}: {ended} of {progress.trials} trials ended, {duration(progress.elapsed_s)} so far,"
        f" {rest}{', paused' if progress.paused else ''}"
    )


def when(time: float) -> str:
    """A moment, as people read it."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
