"""How good the chosen checkpoint is: four ways to choose one, over simulated sweeps whose truth is known.

    python tests/benchmarks/selection.py                      # 200 sweeps, half a minute on one core
    python tests/benchmarks/selection.py --sweeps 1000 --out selection.md

The ways:
  last checkpoint         the trial whose last evaluation has the lowest validation loss, and its last checkpoint
  lowest training loss    the same by the probe loss (training rows in eval mode)
  bare argmin             the lowest validation loss of all evaluations of all trials
  sweeps.selection        `select` as it is shipped, with its defaults

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

from sweeps.ledger import Ledger  # noqa: E402
from sweeps.selection import Curve, Point, Reference, SelectionConfig, select, verdict  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Task:
    """Losses in nats, as lowest and highest; standard deviations are shares of the mean."""

    untuned: tuple[float, float]
    floor: tuple[float, float]  # the lowest loss that a sweep can reach, as a share of the untuned model's
    difficulty: float
    trial_effect: float  # the same for all evaluations of a trial
    evaluation_effect: float


@dataclass(frozen=True, kw_only=True)
class Method:
    parameters: int
    overfits: float  # beside full fine-tuning
    excess: float  # scale of its trials' floors above the sweep's


TASKS = (
    Task(untuned=(0.7, 1.6), floor=(0.4, 0.75), difficulty=0.7, trial_effect=0.22, evaluation_effect=0.15),  # classes
    Task(untuned=(2.0, 4.0), floor=(0.5, 0.85), difficulty=0.3, trial_effect=0.03, evaluation_effect=0.02),  # text
)
METHODS = (
    Method(parameters=100_000_000, overfits=1.0, excess=0.05),  # full
    Method(parameters=30_000_000, overfits=1.0, excess=0.05),  # the upper layers
    Method(parameters=10_000_000, overfits=0.7, excess=0.05),  # LoRA, rank 64
    Method(parameters=1_000_000, overfits=0.5, excess=0.05),  # LoRA, rank 8
    Method(parameters=100_000, overfits=0.2, excess=0.08),  # IA3
)
ROWS, PROBE_ROWS, TRAIN_ROWS_PER_ROW = (100, 500, 2000), 512, 9
TRIALS, EPOCHS, WIGGLE, OVERFIT_RISE = (20, 60), (3, 12), 0.003, 0.02
OVERFIT_SHARE = (0.0, 0.8)
OTHERS = {"healthy": 0.45, "still improving": 0.25, "underfit": 0.12, "diverged": 0.09, "collapsed": 0.09}
TRIALS_READ = 1000
NOISES, EVALUATIONS, RISES, CURVES_PER_CELL = (0.002, 0.005, 0.01, 0.02), (4, 6, 10, 20), (0.05, 0.1, 0.2), 1000
CONFIG = SelectionConfig()


def trend(
    family: str, evaluations: int, rng: np.random.Generator, *, untuned: float, floor: float, rise: float | None = None
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
        turn = min(int(evaluations * rng.uniform(0.2, 0.7)), evaluations - 2)  # the evaluation with the lowest loss
        val = fall(4 / passed[turn])
        probe = val * (1 - gap)
        after = np.arange(1, evaluations - turn) / (evaluations - 1 - turn)
        rise = math.exp(rng.uniform(math.log(0.03), math.log(0.6))) if rise is None else rise
        val[turn + 1 :] = val[turn] * (1 + rise * after ** rng.uniform(1, 2))
        probe[turn + 1 :] = probe[turn] * rng.uniform(0.1, 0.7) ** after
        return val, probe
    broken = rng.integers(1, evaluations)
    val[broken:] = probe[broken:] = untuned * (rng.uniform(3, 10) if family == "diverged" else rng.uniform(0.95, 1.1))
    if family == "diverged" and rng.random() < 0.5:
        val[-1] = probe[-1] = np.nan
    return val, probe


def is_overfit(val: np.ndarray, probe: np.ndarray, index: int) -> bool:
    """Whether evaluation `index` is overfit in truth, from true losses [evaluations]."""
    if index == 0:
        return False
    lowest = int(np.nanargmin(val[:index]))
    return bool(val[index] > val[lowest] * (1 + OVERFIT_RISE) and probe[index] < probe[lowest])


def rows_of(true: np.ndarray, difficulty: np.ndarray, task: Task, rng: np.random.Generator) -> np.ndarray:
    """Losses [evaluations, N] of one trial's evaluations, true losses [evaluations], on rows of these difficulties [N]."""

    def factor(spread: float, shape: tuple[int, ...]) -> np.ndarray:
        sigma = math.sqrt(math.log1p(spread**2))
        return np.exp(np.float32(sigma) * rng.standard_normal(shape, dtype=np.float32) - np.float32(sigma**2 / 2))

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
    difficulty, of_probe = (rng.gamma(shape, 1 / shape, n).astype(np.float32) for n in (rows, PROBE_ROWS))
    curves, truth, row_losses = [], {}, {}
    for trial in range(rng.integers(TRIALS[0], TRIALS[1] + 1)):
        method = METHODS[rng.integers(len(METHODS))]
        overfits = rng.random() < share * method.overfits
        family = "overfit" if overfits else str(rng.choice(list(OTHERS), p=list(OTHERS.values())))
        evaluations = int(rng.integers(EPOCHS[0], EPOCHS[1] + 1))
        own_floor = min(floor * (1 + rng.gamma(2, method.excess)), untuned)
        val, probe = trend(family, evaluations, rng, untuned=untuned, floor=own_floor)
        val, probe = (losses * (1 + WIGGLE * rng.standard_normal(evaluations)) for losses in (val, probe))
        on_rows, on_probe = rows_of(val, difficulty, task, rng), rows_of(probe, of_probe, task, rng).mean(axis=1)
        name, points = f"t{trial:04}", []
        for i in range(evaluations):
            folder, finite = f"{name}/{i + 1}", bool(np.isfinite(val[i]))
            points.append(
                Point(
                    step=i + 1,
                    samples_seen=(i + 1) * TRAIN_ROWS_PER_ROW * rows,
                    epoch=i + 1,
                    val_loss=float(on_rows[i].mean()) if finite else None,
                    probe_loss=float(on_probe[i]) if finite else None,
                    trainable_parameters=method.parameters,
                    checkpoint=folder,
                    folder=folder,
                )
            )
            if finite:
                truth[folder] = Truth(loss=float(val[i]), overfit=is_overfit(val, probe, i))
                row_losses[folder] = on_rows[i]
        curves.append(Curve(id=name, status="complete", points=points))
    return Sweep(rows=rows, curves=curves, truth=truth, row_losses=row_losses)


def last_checkpoint(sweep: Sweep) -> Point:
    ends = [curve.points[-1] for curve in sweep.curves]
    return min((p for p in ends if p.val_loss is not None), key=lambda p: p.val_loss)


def lowest_training_loss(sweep: Sweep) -> Point:
    ends = [curve.points[-1] for curve in sweep.curves]
    return min((p for p in ends if p.probe_loss is not None), key=lambda p: p.probe_loss)


def bare_argmin(sweep: Sweep) -> Point:
    return min((p for c in sweep.curves for p in c.points if p.val_loss is not None), key=lambda p: p.val_loss)


def platform_select(sweep: Sweep) -> Point:
    winner, reason = select(sweep.curves, CONFIG, sweep.losses)
    if winner is None:
        raise RuntimeError(reason)
    return winner.point


WAYS: Mapping[str, Callable[[Sweep], Point]] = {
    "last checkpoint": last_checkpoint,
    "lowest training loss": lowest_training_loss,
    "bare argmin": bare_argmin,
    "sweeps.selection": platform_select,
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


def judge(sweep: Sweep, point: Point) -> Choice:
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
    families: Sequence[str], evaluations: int, noise: float, rise: float | None, seed: int, curves: int
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
            val, probe = (losses * (1 + noise * rng.standard_normal(evaluations)) for losses in trends)
            points = [
                Point(step=i, samples_seen=i, epoch=i, val_loss=float(v), probe_loss=float(p))
                for i, (v, p) in enumerate(zip(val, probe, strict=True), 1)
            ]
            reference = Reference(val_loss=untuned, probe_loss=untuned)
            words.append(verdict(Curve(id=family, status="complete", points=points), reference, CONFIG).word)
    return words


VERDICTS = f"""\
| noise | evaluations | false alarms | {" | ".join(f"hits, rise of {rise:.0%}" for rise in RISES)} |
|---|---|---|{"---|" * len(RISES)}"""


def verdicts_table(seed: int, curves: int = CURVES_PER_CELL) -> str:
    """Shares of healthy and still improving trials called otherwise, and of overfit ones called overfit."""
    lines, good = [VERDICTS], ("healthy", "still improving")
    for noise in NOISES:
        for evaluations in EVALUATIONS:
            alarms = [word not in good for word in verdicts(good, evaluations, noise, None, seed, curves // 2)]
            hits = [
                np.mean([word == "overfit" for word in verdicts(["overfit"], evaluations, noise, rise, seed, curves)])
                for rise in RISES
            ]
            cells = [f"{noise:.1%}", str(evaluations), f"{np.mean(alarms):.1%}", *(f"{hit:.1%}" for hit in hits)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reading(folder: Path, trials: int = TRIALS_READ, evaluations: int = 5, rows: int = 2000) -> str:
    """What it takes to read a sweep's folder of so many trials, and to select in it."""
    rng = np.random.default_rng(0)
    difficulty = rng.exponential(1, rows)
    for number in range(trials):
        trial = f"trials/t{number:04d}"
        (folder / trial).mkdir(parents=True)
        (folder / trial / "trial.json").write_text(json.dumps({"id": f"t{number:04d}", "params": {"method": "lora"}}))
        (folder / trial / "outcome.json").write_text('{"status": "complete", "reason": null}')
        for step in range(1, evaluations + 1):
            at = f"{trial}/attempt-1/step-{step:08d}"
            (folder / at / "checkpoint").mkdir(parents=True)
            (folder / at / "checkpoint/adapter_model.safetensors").touch()
            losses = np.stack([difficulty * (2 - step / 10 + 0.1 * rng.random(rows)), np.ones(rows)], 1)
            np.save(folder / at / "losses.npy", losses.astype(np.float32))
            loss = float(losses[:, 0].mean())
            record = {"step": step, "samples_seen": step, "epoch": step, "val_loss": loss, "probe_loss": loss - 0.01}
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
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    tables = "\n\n".join([about, choices_table(choices), verdicts_table(given.seed), read])
    print(f"{tables}\n\n{time.perf_counter() - began:.0f} s")
    if given.out:
        given.out.write_text(tables + "\n")


if __name__ == "__main__":
    main()
