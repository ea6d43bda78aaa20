"""How good the chosen checkpoint is, and how often what is claimed of it is false, over simulated sweeps whose truth is known.

    python tests/benchmarks/selection.py                      # 200 sweeps, ten minutes on one core
    python tests/benchmarks/selection.py --sweeps 1000 --out selection.md

The ways:
  last checkpoint         the trial whose last evaluation has the lowest validation loss, and its last checkpoint
  lowest training loss    the same by the probe loss (training rows in eval mode)
  bare argmin             the lowest validation loss of all evaluations of all trials
  half of the rows        the same by one half of the validation rows, so that the other half can be reported
  sweeps.selection.ranking        `select` as it is shipped, with its defaults
  prefer: cheapest        the same, and among the tied what costs least to use

Every evaluation has a true (population) loss, which no way sees. They see the mean over a finite validation split and over
probe rows. The loss of row i under evaluation t of trial k is

    true loss[k, t] * difficulty[i] * effect[k, i] * effect[k, t, i]        all factors independent, with mean 1

so that trials share what makes a row hard, and their differences are paired; factors and not terms, because a loss is
positive and its spread grows with it. What was chosen, once, before the first result was seen, and why:

- Difficulty is gamma distributed. Standard deviations of difficulty and of the two effects (`TASKS`) follow per-row losses that two
  real sweeps of this platform left: 16 encoders on 200 tweets (spread of a row's loss 0.3 to 0.8 of the mean, of the paired
  difference of two trials 0.47 in the median), 8 small language models on 551 blocks of text (0.11, 0.043, and 0.032
  between evaluations of one trial). Text here varies more (0.3): those blocks came from one author. Half the sweeps are of
  each kind, a third of them on 100, 500 and 2,000 validation rows; training has nine times as many; the probe 512 rows.
- A sweep has 20 to 60 trials of 3 to 12 epochs, with one evaluation an epoch. Methods have the trainable parameters of a
  model of about 100 million. All reach about the same loss ("LoRA without regret", Schulman 2025), IA3 less; the smaller overfit
  less ("LoRA learns less and forgets less", Biderman et al. 2024). A trial's floor lies above the sweep's by a gamma
  distributed share with mean 10% (IA3 16%): the best of 40 lies about 1% below the next, as
  good configurations do. Effects of two trials are independent; those of like configurations would be closer, and ties rarer.
- How many of full fine-tuning's trials overfit is uniform between 0 and 80% for every sweep: it hangs on the data and the
  epochs, and on nothing that a simulation knows. Of the rest 45% are healthy, 25% still improve, 12% underfit, 9% diverge
  and 9% collapse. Overfit trials end 3% to 60% above their minimum.
- The true loss of a checkpoint strays by 0.3% from its trend: the last batches leave their mark.

A choice is overfit in truth when its true loss is more than 2% above its trial's true minimum before it, at lower
true training loss. Regret is its true loss minus the lowest true loss of all checkpoints of the sweep; optimism its true loss minus
the measured one. Means have their standard errors over sweeps; all ways choose from the same sweeps.

The second table asks `verdict` about trials whose trend is known, with independent noise on validation and probe losses.

The third is about what is claimed: that the winner is better than the default configuration (the first trial) and than the
best of three baselines, which have a difficulty of their own and one evaluation. In sweeps of equal trials, default and
baselines are as good as every trial, so each claim is false; in the others they are worse by so much, and a claim is
right. A claim is a lower bound above 0 (95% interval, so 2.5% of claims may be false). The ways to bound the gain:
  as if not chosen        the paired bootstrap of winner and rival
  half of the rows        the same on the half by which the winner was not chosen
  out of bag              chosen anew on every resample, its gain measured on the rows that are not in it (percentiles)
  all at once             `gain_interval`: the bound of all candidates at once, on all rows

The fourth counts how often a 95% interval holds the truth where rows come in groups, whose rows share a part of what makes
them hard: of one mean, and of one paired difference. `rho` is the correlation of two rows of a group; groups are of 1 to 20
rows.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sweeps.ledger.folder import Ledger  # noqa: E402
from sweeps.selection.config import SelectionConfig  # noqa: E402
from sweeps.selection.curves import Curve, Reference  # noqa: E402
from sweeps.selection.ranking import select  # noqa: E402
from sweeps.selection.statistics import by_unit, compare, gain_interval, mean_interval  # noqa: E402
from sweeps.selection.verdicts import verdict  # noqa: E402
from trainables.evaluation.record import Evaluation  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Task:
    """Losses in nats, as lowest and highest; standard deviations are shares of the mean."""

    untuned: tuple[float, float]
    floor: tuple[
        float, float
    ]  # the lowest loss that a sweep can reach, as a share of the untuned model's
    difficulty: float
    trial_effect: float  # the same for all evaluations of a trial
    evaluation_effect: float


@dataclass(frozen=True, kw_only=True)
class Method:
    parameters: int
    overfits: float  # beside full fine-tuning
    excess: float  # scale of its trials' floors above the sweep's
    megabytes: float  # of its checkpoint


TASKS = (
    Task(
        untuned=(0.7, 1.6),
        floor=(0.4, 0.75),
        difficulty=0.7,
        trial_effect=0.22,
        evaluation_effect=0.15,
    ),  # classes
    Task(
        untuned=(2.0, 4.0),
        floor=(0.5, 0.85),
        difficulty=0.3,
        trial_effect=0.03,
        evaluation_effect=0.02,
    ),  # text
)
METHODS = (
    Method(parameters=100_000_000, overfits=1.0, excess=0.05, megabytes=400),  # full
    Method(parameters=30_000_000, overfits=1.0, excess=0.05, megabytes=400),  # the upper layers
    Method(parameters=10_000_000, overfits=0.7, excess=0.05, megabytes=40),  # LoRA, rank 64
    Method(parameters=1_000_000, overfits=0.5, excess=0.05, megabytes=4),  # LoRA, rank 8
    Method(parameters=100_000, overfits=0.2, excess=0.08, megabytes=0.4),  # IA3
)
ROWS, PROBE_ROWS, TRAIN_ROWS_PER_ROW = (100, 500, 2000), 512, 9
TRIALS, EPOCHS, WIGGLE, OVERFIT_RISE = (20, 60), (3, 12), 0.003, 0.02
OVERFIT_SHARE = (0.0, 0.8)
OTHERS = {
    "healthy": 0.45,
    "still improving": 0.25,
    "underfit": 0.12,
    "diverged": 0.09,
    "collapsed": 0.09,
}
TRIALS_READ = 1000
NOISES, EVALUATIONS, RISES, CURVES_PER_CELL = (
    (0.002, 0.005, 0.01, 0.02),
    (4, 6, 10, 20),
    (0.05, 0.1, 0.2),
    1000,
)
EQUAL_TRIALS, GAINS, BASELINES = (10, 20, 40), (0.02, 0.05, 0.1), 3
CORRELATIONS, GROUPS, GROUP_ROWS = (0.0, 0.1, 0.3), (10, 30, 100), 20
CONFIG, CHEAPEST = SelectionConfig(), SelectionConfig(prefer="cheapest")


def trend(
    family: str,
    evaluations: int,
    rng: np.random.Generator,
    *,
    untuned: float,
    floor: float,
    rise: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Population loss and training loss of each evaluation, both [evaluations] in nats; nan is a loss that is no number.

    rise: of an overfit trial, its last population loss above its lowest; drawn between 3% and 60% where it is None.
    """
    passed = np.arange(1, evaluations + 1) / evaluations
    gap = rng.uniform(0.02, 0.25) * passed

    def fall(rate: float) -> np.ndarray:
        return floor + (untuned - floor) * np.exp(-rate * passed)

    if family == "underfit":
        val = untuned * (1 - rng.uniform(0, 0.015) * passed)
        return val, val * (1 - 0.01 * passed)
    if family == "still improving":
        val = fall(rng.uniform(1, 2.5))
        return val, val * (1 - gap)
    val = fall(rng.uniform(4, 8))
    probe = val * (1 - gap)
    if family == "healthy":
        return val, probe
    if family == "overfit":
        turn = min(
            int(evaluations * rng.uniform(0.2, 0.7)), evaluations - 2
        )  # the evaluation with the lowest loss
        val = fall(4 / passed[turn])
        probe = val * (1 - gap)
        after = np.arange(1, evaluations - turn) / (evaluations - 1 - turn)
        rise = math.exp(rng.uniform(math.log(0.03), math.log(0.6))) if rise is None else rise
        val[turn + 1 :] = val[turn] * (1 + rise * after ** rng.uniform(1, 2))
        probe[turn + 1 :] = probe[turn] * rng.uniform(0.1, 0.7) ** after
        return val, probe
    broken = rng.integers(1, evaluations)
    val[broken:] = probe[broken:] = untuned * (
        rng.uniform(3, 10) if family == "diverged" else rng.uniform(0.95, 1.1)
    )
    if family == "diverged" and rng.random() < 0.5:
        val[-1] = probe[-1] = np.nan
    return val, probe


def is_overfit(val: np.ndarray, probe: np.ndarray, index: int) -> bool:
    """Whether evaluation `index` is overfit in truth, from true losses [evaluations]."""
    if index == 0:
        return False
    lowest = int(np.nanargmin(val[:index]))
    return bool(val[index] > val[lowest] * (1 + OVERFIT_RISE) and probe[index] < probe[lowest])


def rows_of(
    true: np.ndarray, difficulty: np.ndarray, task: Task, rng: np.random.Generator
) -> np.ndarray:
    """Losses [evaluations, N] of one trial's evaluations, true losses [evaluations], on rows of these difficulties [N]."""

    def factor(spread: float, shape: tuple[int, ...]) -> np.ndarray:
        sigma = math.sqrt(math.log1p(spread**2))
        return np.exp(
            np.float32(sigma) * rng.standard_normal(shape, dtype=np.float32)
            - np.float32(sigma**2 / 2)
        )

    shape = (len(true), len(difficulty))
    shared = difficulty * factor(task.trial_effect, shape[1:])
    return true[:, None].astype(np.float32) * shared * factor(task.evaluation_effect, shape)


@dataclass(frozen=True, kw_only=True)
class Truth:
    loss: float
    overfit: bool


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What selection sees of a sweep, and the truth; evaluations go by their folders."""

    rows: int
    curves: Sequence[Curve]
    truth: Mapping[str, Truth]
    row_losses: Mapping[str, np.ndarray] = field(default_factory=dict)  # [N]

    def losses(self, folder: str) -> np.ndarray:
        found = self.row_losses[folder]
        return np.stack([found, np.ones_like(found)], axis=1)


def simulate(index: int, seed: int) -> Sweep:
    rng = np.random.default_rng([seed, index])
    rows, task = ROWS[index % len(ROWS)], TASKS[index // len(ROWS) % len(TASKS)]
    untuned, share = rng.uniform(*task.untuned), rng.uniform(*OVERFIT_SHARE)
    floor = untuned * rng.uniform(*task.floor)
    shape = 1 / task.difficulty**2
    difficulty, of_probe = (
        rng.gamma(shape, 1 / shape, n).astype(np.float32) for n in (rows, PROBE_ROWS)
    )
    curves, truth, row_losses = [], {}, {}
    for trial in range(rng.integers(TRIALS[0], TRIALS[1] + 1)):
        method = METHODS[rng.integers(len(METHODS))]
        overfits = rng.random() < share * method.overfits
        family = "overfit" if overfits else str(rng.choice(list(OTHERS), p=list(OTHERS.values())))
        evaluations = int(rng.integers(EPOCHS[0], EPOCHS[1] + 1))
        own_floor = min(floor * (1 + rng.gamma(2, method.excess)), untuned)
        val, probe = trend(family, evaluations, rng, untuned=untuned, floor=own_floor)
        val, probe = (
            losses * (1 + WIGGLE * rng.standard_normal(evaluations)) for losses in (val, probe)
        )
        on_rows, on_probe = (
            rows_of(val, difficulty, task, rng),
            rows_of(probe, of_probe, task, rng).mean(axis=1),
        )
        name, points = f"t{trial:04}", []
        for i in range(evaluations):
            folder, finite = f"{name}/{i + 1}", bool(np.isfinite(val[i]))
            points.append(
                Evaluation(
                    step=i + 1,
                    samples_seen=(i + 1) * TRAIN_ROWS_PER_ROW * rows,
                    epoch=i + 1,
                    val_loss=float(on_rows[i].mean()) if finite else None,
                    probe_loss=float(on_probe[i]) if finite else None,
                    trainable_parameters=method.parameters,
                    checkpoint_bytes=int(1e6 * method.megabytes),
                    checkpoint=folder,
                    folder=folder,
                )
            )
            if finite:
                truth[folder] = Truth(loss=float(val[i]), overfit=is_overfit(val, probe, i))
                row_losses[folder] = on_rows[i]
        curves.append(Curve(id=name, status="complete", points=points))
    return Sweep(rows=rows, curves=curves, truth=truth, row_losses=row_losses)


def last_checkpoint(sweep: Sweep) -> Evaluation:
    ends = [curve.points[-1] for curve in sweep.curves]
    return min((p for p in ends if p.val_loss is not None), key=lambda p: p.val_loss)


def lowest_training_loss(sweep: Sweep) -> Evaluation:
    ends = [curve.points[-1] for curve in sweep.curves]
    return min((p for p in ends if p.probe_loss is not None), key=lambda p: p.probe_loss)


def bare_argmin(sweep: Sweep) -> Evaluation:
    return min(
        (p for c in sweep.curves for p in c.points if p.val_loss is not None),
        key=lambda p: p.val_loss,
    )


def half_of_the_rows(sweep: Sweep) -> Evaluation:
    points = [p for c in sweep.curves for p in c.points if p.val_loss is not None]
    return min(points, key=lambda p: sweep.row_losses[p.folder][::2].mean())


def platform_select(sweep: Sweep, config: SelectionConfig = CONFIG) -> Evaluation:
    winner, reason = select(sweep.curves, config, sweep.losses)
    if winner is None:
        raise RuntimeError(reason)
    return winner.point


def cheapest_select(sweep: Sweep) -> Evaluation:
    return platform_select(sweep, CHEAPEST)


WAYS: Mapping[str, Callable[[Sweep], Evaluation]] = {
    "last checkpoint": last_checkpoint,
    "lowest training loss": lowest_training_loss,
    "bare argmin": bare_argmin,
    "half of the rows": half_of_the_rows,
    "sweeps.selection.ranking": platform_select,
    "prefer: cheapest": cheapest_select,
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one way chose in one sweep; losses in nats."""

    rows: int
    overfit: bool
    regret: float
    relative: float  # regret, as a share of the best true loss
    optimism: float
    parameters: int
    samples: int


def judge(sweep: Sweep, point: Evaluation) -> Choice:
    found, best = sweep.truth[point.folder], min(truth.loss for truth in sweep.truth.values())
    return Choice(
        rows=sweep.rows,
        overfit=found.overfit,
        regret=found.loss - best,
        relative=found.loss / best - 1,
        optimism=found.loss - point.val_loss,
        parameters=point.trainable_parameters,
        samples=point.samples_seen,
    )


def mean(values: Sequence[float]) -> str:
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


CHOICES = """\
| validation rows | way | overfit in truth | regret, nats | 90th percentile | regret, relative | 90th percentile | within 1% of the best | log10 trainable parameters | samples | optimism, nats |
|---|---|---|---|---|---|---|---|---|---|---|"""


def choices_table(choices: Mapping[str, Sequence[Choice]]) -> str:
    """choices: of each way, one for every sweep."""
    lines = [CHOICES]
    sizes = sorted({choice.rows for found in choices.values() for choice in found})
    for rows in (None, *sizes):
        for way, found in choices.items():
            some = [choice for choice in found if rows is None or choice.rows == rows]
            relative = [choice.relative for choice in some]
            cells = [
                "all" if rows is None else f"{rows:,}",
                way,
                f"{np.mean([choice.overfit for choice in some]):.1%}",
                mean([choice.regret for choice in some]),
                f"{np.quantile([choice.regret for choice in some], 0.9):.4f}",
                f"{np.mean(relative):.2%}",
                f"{np.quantile(relative, 0.9):.2%}",
                f"{np.mean(np.array(relative) <= 0.01):.1%}",
                f"{np.mean([math.log10(choice.parameters) for choice in some]):.2f}",
                f"{np.mean([choice.samples for choice in some]):,.0f}",
                mean([choice.optimism for choice in some]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(
    families: Sequence[str],
    evaluations: int,
    noise: float,
    rise: float | None,
    seed: int,
    curves: int,
) -> list[str]:
    """What `verdict` says of so many trials of each of `families`; `noise` is a share of the loss."""
    rng = np.random.default_rng([seed, evaluations, round(1e6 * noise), round(1e6 * (rise or 0))])
    words = []
    for family in families:
        for _ in range(curves):
            task = TASKS[rng.integers(len(TASKS))]
            untuned = rng.uniform(*task.untuned)
            floor = untuned * rng.uniform(*task.floor)
            trends = trend(family, evaluations, rng, untuned=untuned, floor=floor, rise=rise)
            val, probe = (
                losses * (1 + noise * rng.standard_normal(evaluations)) for losses in trends
            )
            points = [
                Evaluation(step=i, samples_seen=i, epoch=i, val_loss=float(v), probe_loss=float(p))
                for i, (v, p) in enumerate(zip(val, probe, strict=True), 1)
            ]
            reference = Reference(val_loss=untuned, probe_loss=untuned)
            words.append(
                verdict(Curve(id=family, status="complete", points=points), reference, CONFIG).word
            )
    return words


VERDICTS = f"""\
| noise | evaluations | false alarms | {" | ".join(f"hits, rise of {rise:.0%}" for rise in RISES)} |
|---|---|---|{"---|" * len(RISES)}"""


def verdicts_table(seed: int, curves: int = CURVES_PER_CELL) -> str:
    """Shares of healthy and still improving trials called otherwise, and of overfit ones called overfit."""
    lines, good = [VERDICTS], ("healthy", "still improving")
    for noise in NOISES:
        for evaluations in EVALUATIONS:
            alarms = [
                word not in good
                for word in verdicts(good, evaluations, noise, None, seed, curves // 2)
            ]
            hits = [
                np.mean(
                    [
                        word == "overfit"
                        for word in verdicts(["overfit"], evaluations, noise, rise, seed, curves)
                    ]
                )
                for rise in RISES
            ]
            cells = [
                f"{noise:.1%}",
                str(evaluations),
                f"{np.mean(alarms):.1%}",
                *(f"{hit:.1%}" for hit in hits),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What one sweep says of its winner, whatever way bounds the gain: whether it is better than the default, and than the best
    of the baselines.
    """

    default: bool
    baseline: bool


def ones(losses: np.ndarray) -> np.ndarray:
    """Losses [N] of rows as what intervals take [N, 2]."""
    return np.stack([losses, np.ones_like(losses)], axis=1)


def lower_bound(way: str, trials: np.ndarray, rival: np.ndarray, rng: np.random.Generator) -> float:
    """Of how far the best of `trials` [K, N] lies below the lowest of `rival` [B, N], both chosen on these rows."""
    if way == "half of the rows":
        chosen, other = (each[:, ::2].mean(axis=1).argmin() for each in (trials, rival))
        return compare(ones(trials[chosen, 1::2]), ones(rival[other, 1::2])).low
    chosen, other = (each.mean(axis=1).argmin() for each in (trials, rival))
    if way == "as if not chosen":
        return compare(ones(trials[chosen]), ones(rival[other])).low
    if way == "all at once":
        return gain_interval(
            ones(trials[chosen]), [ones(each) for each in trials], [ones(each) for each in rival]
        )[0]
    rows, resamples = trials.shape[1], 200
    drawn = rng.integers(0, rows, (resamples, rows)) + rows * np.arange(resamples)[:, None]
    counts = (
        np.bincount(drawn.ravel(), minlength=resamples * rows)
        .reshape(resamples, rows)
        .astype(np.float32)
    )
    outside = (counts == 0).astype(np.float32)

    def lowest(losses: np.ndarray) -> np.ndarray:
        """Mean outside each resample of what has the lowest mean inside it."""
        chosen = (counts @ losses.T).argmin(axis=1)
        return (outside @ losses.T)[np.arange(len(counts)), chosen] / outside.sum(axis=1)

    return float(np.quantile(lowest(rival) - lowest(trials), 0.025))


BOUNDS = ("as if not chosen", "half of the rows", "out of bag", "all at once")


def claims(count: int, gain: float, sweeps: int, seed: int) -> dict[str, list[Claims]]:
    """What sweeps of `count` trials claim, by each way to bound the gain; the default and the baselines are worse by the share
    `gain`, and trials are equal. Every other sweep has five evaluations a trial, the others one.
    """
    found: dict[str, list[Claims]] = {way: [] for way in BOUNDS}
    for index in sorted(range(sweeps), key=lambda index: index % len(ROWS)):
        rng = np.random.default_rng([seed, count, round(1000 * gain), index])
        rows, task = ROWS[index % len(ROWS)], TASKS[index // len(ROWS) % len(TASKS)]
        evaluations = (1, 5)[index // len(ROWS) // len(TASKS) % 2]
        shape = 1 / task.difficulty**2
        difficulty = rng.gamma(shape, 1 / shape, rows).astype(np.float32)
        level = np.ones(evaluations)
        default = rows_of(level * (1 + gain), difficulty, task, rng)
        others = np.concatenate([rows_of(level, difficulty, task, rng) for _ in range(count - 1)])
        trials = np.concatenate([default, others])
        own = rng.gamma(shape, 1 / shape, rows).astype(np.float32)
        baselines = np.concatenate(
            [rows_of(np.array([1 + gain]), own, task, rng) for _ in range(BASELINES)]
        )
        wins = trials.mean(axis=1).argmin() < evaluations  # the default itself
        for way in BOUNDS:
            lowered = not wins and lower_bound(way, trials, default, rng) > 0
            found[way].append(
                Claims(default=lowered, baseline=lower_bound(way, trials, baselines, rng) > 0)
            )
    return found


CLAIMS = f"""\
| claim | way to bound the gain | {" | ".join(f"false, {count} equal trials" for count in EQUAL_TRIALS)} | {" | ".join(f"right, {gain:.0%} better" for gain in GAINS)} |
|---|---|{"---|" * (len(EQUAL_TRIALS) + len(GAINS))}"""


def claims_table(sweeps: int, seed: int) -> str:
    """Shares of sweeps that claim a gain: false where all trials are equal (three times as many sweeps, as a small share
    needs), right where default and baselines are worse.
    """
    cells = [(count, 0.0) for count in EQUAL_TRIALS] + [(EQUAL_TRIALS[1], gain) for gain in GAINS]
    measured = [claims(count, gain, sweeps if gain else 3 * sweeps, seed) for count, gain in cells]
    lines = [CLAIMS]
    for claim, words in (("default", "the search lowered the loss"), ("baseline", "worth it")):
        for way in BOUNDS:
            shares = [np.mean([getattr(each, claim) for each in found[way]]) for found in measured]
            lines.append(f"| {words} | {way} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


def alike(spread: float, rho: float, of_rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Factors [N] with mean 1; of their variance the share `rho` is that of the groups, `of_rows` [N]."""
    of_groups, own = (
        rng.standard_normal(of_rows.max() + 1)[of_rows],
        rng.standard_normal(len(of_rows)),
    )
    sigma = math.sqrt(math.log1p(spread**2))
    return np.exp(sigma * (math.sqrt(rho) * of_groups + math.sqrt(1 - rho) * own) - sigma**2 / 2)


def covered(groups: int, rho: float, sweeps: int, seed: int) -> dict[str, float]:
    """How often 95% intervals hold the truth, of rows and of groups, of a mean and of a paired difference."""
    hits: dict[str, list[bool]] = {
        f"{what}, {unit}": [] for what in ("mean", "difference") for unit in ("rows", "groups")
    }
    of_rows, task = (
        np.repeat(np.arange(groups), np.resize(np.arange(1, GROUP_ROWS + 1), groups)),
        TASKS[0],
    )
    for index in range(sweeps):
        rng = np.random.default_rng([seed, groups, round(100 * rho), index])
        difficulty = alike(task.difficulty, rho, of_rows, rng)
        first, second = (
            truth * difficulty * alike(task.trial_effect, rho, of_rows, rng)
            for truth in (1.0, 1.05)
        )
        for unit, which in (("rows", None), ("groups", of_rows)):
            a, b = (by_unit(ones(each), which) for each in (first, second))
            low, high = mean_interval(a) or (math.nan, math.nan)
            hits[f"mean, {unit}"].append(low <= 1 <= high)
            found = compare(a, b)
            hits[f"difference, {unit}"].append(found.low <= 0.05 <= found.high)
    return {name: float(np.mean(each)) for name, each in hits.items()}


COVERAGE = """\
| groups | rho | mean, by rows | mean, by groups | difference, by rows | difference, by groups |
|---|---|---|---|---|---|"""


def coverage_table(sweeps: int, seed: int) -> str:
    lines = [COVERAGE]
    for groups in GROUPS:
        for rho in CORRELATIONS:
            found = covered(groups, rho, sweeps, seed)
            cells = [
                found[f"{what}, {unit}"]
                for what in ("mean", "difference")
                for unit in ("rows", "groups")
            ]
            lines.append(f"| {groups} | {rho:g} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")
    return "\n".join(lines)


def reading(folder: Path, trials: int = TRIALS_READ, evaluations: int = 5, rows: int = 2000) -> str:
    """What it takes to read a sweep's folder of so many trials, and to select in it."""
    rng = np.random.default_rng(0)
    difficulty = rng.exponential(1, rows)
    for number in range(trials):
        trial = f"trials/t{number:04d}"
        (folder / trial).mkdir(parents=True)
        (folder / trial / "trial.json").write_text(
            json.dumps({"id": f"t{number:04d}", "params": {"method": "lora"}})
        )
        (folder / trial / "outcome.json").write_text('{"status": "complete", "reason": null}')
        for step in range(1, evaluations + 1):
            at = f"{trial}/attempt-1/step-{step:08d}"
            (folder / at / "checkpoint").mkdir(parents=True)
            (folder / at / "checkpoint/adapter_model.safetensors").touch()
            losses = np.stack(
                [difficulty * (2 - step / 10 + 0.1 * rng.random(rows)), np.ones(rows)], 1
            )
            np.save(folder / at / "losses.npy", losses.astype(np.float32))
            loss = float(losses[:, 0].mean())
            record = {
                "step": step,
                "samples_seen": step,
                "epoch": step,
                "val_loss": loss,
                "probe_loss": loss - 0.01,
            }
            record |= {"metrics": {}, "trainable_parameters": 1000, "folder": at}
            (folder / at / "evaluation.json").write_text(json.dumps(record))
    began = time.perf_counter()
    ledger = Ledger(str(folder)).load()
    read = time.perf_counter()
    winner, _ = ledger.select(CONFIG)
    done = time.perf_counter()
    assert winner is not None and not {"ray", "torch"} & set(sys.modules)
    return (
        f"A folder of {trials:,} trials with {evaluations} evaluations each of {rows:,} rows: read in {read - began:.2f} s, "
        f"selected in {done - read:.2f} s"
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--sweeps", type=int, default=200)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--out", type=Path, help="a file for the tables, besides the terminal")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.sweeps < len(ROWS):
        raise SystemExit(f"--sweeps: must be at least {len(ROWS)}, got {given.sweeps}")
    began = time.perf_counter()
    choices: dict[str, list[Choice]] = {way: [] for way in WAYS}
    for index in range(given.sweeps):
        sweep = simulate(index, given.seed)
        for way, choose in WAYS.items():
            choices[way].append(judge(sweep, choose(sweep)))
    about = (
        f"{given.sweeps} sweeps, seed {given.seed}, {CURVES_PER_CELL} trials a share of the second table; "
        f"Python {platform.python_version()}, numpy {importlib.metadata.version('numpy')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        read = reading(Path(folder))
    measured = claims_table(given.sweeps, given.seed), coverage_table(5 * given.sweeps, given.seed)
    tables = "\n\n".join(
        [about, choices_table(choices), verdicts_table(given.seed), *measured, read]
    )
    print(f"{tables}\n\n{time.perf_counter() - began:.0f} s")
    if given.out:
        given.out.write_text(tables + "\n")


if __name__ == "__main__":
    main()
