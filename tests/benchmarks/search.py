"""Samples that a search trains until it holds a checkpoint within 1% of the best there is, over recorded runs.

    python tests/benchmarks/search.py                                  # all that is recorded
    python tests/benchmarks/search.py --jobs plays --orders 20 --ways random freeze-thaw

The runs are those of `curves/` (record.py: real fine-tuning by this platform) and `epochs`: those of curves.json (stopping.py),
27 configurations with a linear schedule over 1 to 4 epochs and a constant one over 4, each combination a configuration here.
A run of a way draws configurations out of the recorded ones in an order of its own and trains on 4 slots, all of which take as
long for a sample; what it trains is counted until the lowest loss that it has measured is within 1% of the lowest of all.
Where a job has two seeds, odd orders have one and even ones the other.

  random            every configuration to its end
  ASHA              the same, and `sweeps.search.scheduler` stops them
  TPE + ASHA        and Optuna's TPE chooses them, told as this platform tells it
  Ray               Ray's OptunaSearch and ASHAScheduler, with their defaults, in samples
  freeze-thaw       `sweeps.search.freeze_thaw`

A searcher asks for any point of the space; it gets the nearest configuration that is recorded and has not run. Freeze-thaw asks
for none: it has the next `POOL` configurations of the order before it, as it would have draws of the space.

Shares are of the full grid: all configurations to their ends.
"""

import argparse
import heapq
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(Path(__file__).parent / "curves")]

import record  # noqa: E402
import stopping  # noqa: E402

from search_spaces import Space  # noqa: E402
from sweeps.search.freeze_thaw import Candidate, FreezeThaw, place  # noqa: E402
from sweeps.search.scheduler import SampleAsha  # noqa: E402
from trainables.engine.schedule import annealed, is_due, samples_seen, total_steps  # noqa: E402
from trainables.hyperparameters import Hyperparameters, parse  # noqa: E402

SLOTS, NEAR, POOL, FACTOR, STARTUP = 4, 0.01, 64, 3.0, 10
EPOCHS_SPACE = {
    "method": {
        "full": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "lora": {
            "learning_rate": {"log_uniform": [1e-3, 5e-2]},
            "rank": {"choice": [4, 8, 16]},
            "alpha": "2 * rank",
        },
    },
    "batch_size": {"choice": [8, 16]},
    "epochs": {"int": [1, 4]},
    "schedule": {"choice": ["linear", "constant"]},
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A configuration and what it comes to."""

    hp: Hyperparameters
    place: Mapping[str, float]
    samples: Sequence[int]
    annealed: Sequence[float]
    losses: Mapping[int, Sequence[float]]
    """By seed; not finite from where it exploded."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    rows: int
    configurations: Sequence[Recorded]
    seeds: Sequence[int]

    @property
    def samples(self) -> int:
        """Of the full grid."""
        return sum(each.samples[-1] for each in self.configurations)

    def lowest(self, seed: int) -> float:
        return min(
            loss
            for each in self.configurations
            for loss in each.losses[seed]
            if math.isfinite(loss)
        )


def load(name: str) -> Job | None:
    """None: nothing is recorded."""
    if name == "epochs":
        file, tree, every = stopping.CURVES, EPOCHS_SPACE, None
    else:
        file, tree = record.HERE / f"{name}.json", record.SPACES[name]
        every = record.JOBS[name].rows // 2
    if not file.exists():
        return None
    held = json.loads(file.read_text())
    rows, space = held["rows"], Space.from_dict(tree)
    runs: dict[int, dict[int, dict[str, Any]]] = {}
    for number, each in enumerate(held["trials"]):
        runs.setdefault(each.get("number", number), {})[each.get("seed", 0)] = each
    seeds = sorted({seed for of in runs.values() for seed in of})
    found = []
    for of in runs.values():
        if len(of) < len(seeds):  # of which one is still to be recorded
            continue
        params = of[seeds[0]]["params"]
        hp = parse(params)
        steps = range(1, total_steps(rows, hp) + 1)
        samples = [samples_seen(rows, hp, k) for k in steps if is_due(rows, hp, k, every or rows)]
        losses = {}
        for seed, run in of.items():
            known = {seen: math.inf if loss is None else loss for seen, loss, _ in run["points"]}
            losses[seed] = [known.get(seen, math.inf) for seen in samples]
        found.append(
            Recorded(
                hp=hp,
                place=place(space, params),
                samples=samples,
                annealed=[annealed(hp, seen / samples[-1]) for seen in samples],
                losses=losses,
            )
        )
    return Job(name=name, rows=rows, configurations=found, seeds=seeds)


# --- ways ---


class Way(Protocol):
    """A search under way. Configurations go by their numbers, evaluations by theirs."""

    def next(self) -> int | None:
        """Which configuration trains to its next evaluation; None: nobody for now."""
        ...

    def told(self, number: int, evaluation: int, loss: float) -> None: ...


Searcher = Callable[[], int | None]
Stopping = Callable[[int, int, float], bool]  # configuration, evaluation, loss -> goes on


class InTurn:
    """A searcher chooses configurations, and a scheduler stops some of them for good."""

    def __init__(
        self,
        job: Job,
        draw: Searcher,
        goes_on: Stopping,
        ended: Callable[[int, Sequence[float], bool], None] = lambda *_: None,
    ) -> None:
        """ended: told of a configuration that has, its losses and whether it was stopped."""
        self._job, self._draw, self._goes_on, self._ended = job, draw, goes_on, ended
        self._go_on: list[int] = []
        self._losses: dict[int, list[float]] = {}

    def next(self) -> int | None:
        return self._go_on.pop() if self._go_on else self._draw()

    def told(self, number: int, evaluation: int, loss: float) -> None:
        losses = self._losses.setdefault(number, [])
        losses.append(loss)
        goes_on = self._goes_on(number, evaluation, loss)
        last = evaluation + 1 == len(self._job.configurations[number].samples)
        if goes_on and not last and math.isfinite(loss):
            self._go_on.append(number)
        else:
            self._ended(number, losses, not last)


class Places:
    """The recorded configurations that have not run, by where they lie."""

    def __init__(self, job: Job, order: Sequence[int]) -> None:
        self.names = sorted({name for each in job.configurations for name in each.place})
        self._left = list(order)
        self._at = {
            number: np.array([job.configurations[number].place.get(n, 0.5) for n in self.names])
            for number in order
        }

    def of(self, number: int) -> dict[str, float]:
        return dict(zip(self.names, self._at[number].tolist(), strict=True))

    def first(self) -> int | None:
        return self._left.pop(0) if self._left else None

    def nearest(self, asked: Mapping[str, float]) -> int | None:
        if not self._left:
            return None
        at = np.array([asked[name] for name in self.names])
        found = min(self._left, key=lambda number: float(((self._at[number] - at) ** 2).sum()))
        self._left.remove(found)
        return found


def own_asha(job: Job) -> Stopping:
    most = max(each.samples[-1] for each in job.configurations)
    count = int(math.log(most / job.rows, FACTOR) + 1e-9) + 1
    asha = SampleAsha([round(job.rows * FACTOR**k) for k in range(count)], FACTOR, {"": job.rows})

    def goes_on(number: int, evaluation: int, loss: float) -> bool:
        each = job.configurations[number]
        return asha.report(str(number), each.hp, each.samples[evaluation], loss)

    return goes_on


def random_search(job: Job, order: Sequence[int], seed: int) -> Way:
    return InTurn(job, Places(job, order).first, lambda *_: True)


def asha(job: Job, order: Sequence[int], seed: int) -> Way:
    return InTurn(job, Places(job, order).first, own_asha(job))


def tpe_asha(job: Job, order: Sequence[int], seed: int) -> Way:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places = Places(job, order)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in places.names}
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
    )
    drawn = 0

    def draw() -> int | None:
        nonlocal drawn
        drawn += 1
        return places.first() if drawn <= STARTUP else places.nearest(study.ask(space).params)

    def ended(number: int, losses: Sequence[float], stopped: bool) -> None:
        finite = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            return
        state = optuna.trial.TrialState
        told = optuna.trial.create_trial(
            state=state.PRUNED if stopped else state.COMPLETE,
            params=places.of(number),
            distributions=space,
            value=min(finite),
            intermediate_values={
                job.configurations[number].samples[k]: loss for k, loss in enumerate(losses)
            },
        )
        study.add_trial(told)

    return InTurn(job, draw, own_asha(job), ended)


def ray_way(job: Job, order: Sequence[int], seed: int) -> Way:
    import optuna
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places = Places(job, order)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in places.names}
    search = OptunaSearch(space, metric="loss", mode="min", seed=seed)
    most = max(each.samples[-1] for each in job.configurations)
    scheduler = ASHAScheduler("samples", "loss", "min", max_t=most, grace_period=job.rows)
    asked: dict[int, str] = {}

    def draw() -> int | None:
        name = f"t{len(asked)}"
        found = places.nearest(search.suggest(name))
        if found is not None:
            asked[found] = name
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))
        return found

    def result(number: int, evaluation: int, loss: float) -> dict[str, float]:
        samples = job.configurations[number].samples[evaluation]
        # nan and inf are refused by Optuna; Ray's users report some high loss
        loss = loss if math.isfinite(loss) else 1e3
        return {"samples": samples, "loss": loss, "training_iteration": evaluation + 1}

    def goes_on(number: int, evaluation: int, loss: float) -> bool:
        said, trial = result(number, evaluation, loss), SimpleNamespace(trial_id=asked[number])
        search.on_trial_result(asked[number], said)
        return scheduler.on_trial_result(None, trial, said) == TrialScheduler.CONTINUE

    def ended(number: int, losses: Sequence[float], stopped: bool) -> None:
        said = result(number, len(losses) - 1, losses[-1])
        search.on_trial_complete(asked[number], said)

    return InTurn(job, draw, goes_on, ended)


class FreezeThawWay:
    def __init__(self, job: Job, order: Sequence[int], seed: int) -> None:
        self._order = order
        self._policy = FreezeThaw()
        self.rate = math.inf  # gain for each sample that is expected of the last choice
        self._candidates = {
            number: Candidate(place=each.place, samples=each.samples, annealed=each.annealed)
            for number, each in enumerate(job.configurations)
        }

    def next(self) -> int | None:
        begun = [
            n for n in self._order if self._candidates[n].losses or self._candidates[n].running
        ]
        fresh = [n for n in self._order if n not in begun][:POOL]
        numbers = [*begun, *fresh]
        choice = self._policy.choose([self._candidates[number] for number in numbers])
        if choice is None:
            return None
        self.rate = math.inf if choice.gain is None else choice.gain / choice.cost
        number = numbers[choice.number]
        self._candidates[number] = replace(self._candidates[number], running=True)
        return number

    def told(self, number: int, evaluation: int, loss: float) -> None:
        of = self._candidates[number]
        self._candidates[number] = replace(
            of, losses=[*of.losses, loss], running=False, ended=not math.isfinite(loss)
        )


WAYS: dict[str, Callable[[Job, Sequence[int], int], Way]] = {
    "random": random_search,
    "ASHA": asha,
    "TPE + ASHA": tpe_asha,
    "Ray": ray_way,
    "freeze-thaw": FreezeThawWay,
}


def trained_until_near(job: Job, way: Way, seed: int) -> int:
    """Samples that all slots have trained when the lowest loss is within `NEAR` of the lowest of all; those of
    the whole search, and the grid's where it ends before.
    """
    lowest = job.lowest(seed)
    goal = lowest + NEAR * abs(lowest)
    made: dict[int, int] = {}
    busy: list[tuple[float, int, int]] = []  # until when, how many came before, configuration
    now, free, count, spent = 0.0, SLOTS, 0, 0
    while True:
        while free and (number := way.next()) is not None:
            each, k = job.configurations[number], made.get(number, 0)
            takes = each.samples[k] - (each.samples[k - 1] if k else 0)
            heapq.heappush(busy, (now + takes, count, number))
            free, count = free - 1, count + 1
        if not busy:
            return job.samples
        now, _, number = heapq.heappop(busy)
        free, k = free + 1, made.get(number, 0)
        each = job.configurations[number]
        spent += each.samples[k] - (each.samples[k - 1] if k else 0)
        loss = each.losses[seed][k]
        made[number] = k + 1
        if loss <= goal:
            return spent
        way.told(number, k, loss)


def until_patience(
    job: Job, order: Sequence[int], seed: int, patience: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """Where freeze and thaw ends a search on one slot (`search.patience`): the share of the grid that it has trained, and
    how far its lowest loss lies above the lowest of all, as a share of that.
    """
    way, made = FreezeThawWay(job, order, seed), [0] * len(job.configurations)
    found: dict[float, tuple[float, float]] = {}
    spent, best, lowest = 0, math.inf, job.lowest(seed)
    while len(found) < len(patience) and (number := way.next()) is not None:
        for each in patience:
            if way.rate * spent < each:
                found.setdefault(each, (spent / job.samples, (best - lowest) / abs(lowest)))
        of, k = job.configurations[number], made[number]
        spent += of.samples[k] - (of.samples[k - 1] if k else 0)
        made[number], loss = k + 1, of.losses[seed][k]
        best = min(best, loss)
        way.told(number, k, loss)
    return {each: found.get(each, (1.0, 0.0)) for each in patience}


def patience_table(job: Job, patience: Sequence[float], orders: int) -> str:
    found = []
    for order in range(orders):
        numbers = np.random.default_rng(order).permutation(len(job.configurations)).tolist()
        found.append(until_patience(job, numbers, job.seeds[order % len(job.seeds)], patience))
    lines = [f"| patience, {job.name} | trained: median | 90% | above the lowest: median | 90% |"]
    lines.append("|---" * 5 + "|")
    for each in patience:
        cells = [
            np.quantile([of[each][part] for of in found], q) for part in (0, 1) for q in (0.5, 0.9)
        ]
        trained, above = (
            [f"{cell:.1%}" for cell in cells[:2]],
            [f"{cell:.2%}" for cell in cells[2:]],
        )
        lines.append(f"| {each:g} | {' | '.join([*trained, *above])} |")
    return "\n".join(lines)


def measure(job: Job, ways: Sequence[str], orders: int) -> dict[str, list[float]]:
    """By way: of each order, the share of the full grid that was trained."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for order in range(orders):
        rng = np.random.default_rng(order)
        numbers = rng.permutation(len(job.configurations)).tolist()
        seed = job.seeds[order % len(job.seeds)]
        for way in ways:
            trained = trained_until_near(job, WAYS[way](job, numbers, order), seed)
            found[way].append(trained / job.samples)
    return found


def table(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    lines = ["| way | " + " | ".join(f"{job}: median | 90%" for job in measured) + " |"]
    lines.append("|---" * (1 + 2 * len(measured)) + "|")
    for way in next(iter(measured.values())):
        cells = [f"{np.quantile(of[way], q):.1%}" for of in measured.values() for q in (0.5, 0.9)]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = ["epochs", *record.JOBS]
    parser.add_argument("--jobs", nargs="+", choices=jobs, default=jobs)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--patience", nargs="+", type=float, help="where freeze-thaw would end")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    measured = {}
    for name in given.jobs:
        if (job := load(name)) is None:
            print(f"{name}: not recorded yet", file=sys.stderr)
            continue
        print(
            f"{name}: {len(job.configurations)} configurations, {job.samples} samples, "
            f"{len(job.seeds)} seeds",
            flush=True,
        )
        if given.patience:
            print(patience_table(job, given.patience, given.orders), flush=True)
            continue
        began = time.process_time()
        measured[name] = measure(job, given.ways, given.orders)
        print(f"{time.process_time() - began:.0f} s", flush=True)
    if measured:
        print(table(measured))


if __name__ == "__main__":
    main()
