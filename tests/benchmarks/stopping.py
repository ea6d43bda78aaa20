"""What early stopping saves and what it costs, over recorded runs: trials of several horizons, and four ways to compare them.

    python tests/benchmarks/stopping.py                       # replays curves.json; seconds
    python tests/benchmarks/stopping.py --record plays.json --configurations 24     # trains them anew; an hour on a core

`curves.json` holds real runs: a Llama of 260,000 parameters (stories260K) on 256 blocks of tinyshakespeare, full fine-tuning and
LoRA, random learning rates, batch sizes and ranks; each configuration with a linear schedule over 1, 2, 3 and 4 epochs, and at
a constant rate over 4, which holds a run of any length at that rate. One evaluation an epoch.

A simulated sweep draws 24 trials, each a configuration and a horizon, and runs them on 4 slots. The ways:

  nobody is stopped
  equal samples      Tune's ASHA in samples seen: a finished short run is compared with an unfinished long one
  share of schedule  rungs at shares of each trial's own epochs
  same horizon       rungs of its own for each number of epochs
  sweeps.search.stopping    as it is shipped: equal samples, and only with trials whose rate has come down no further

Regret is the lowest loss that was evaluated, above that of the same trials when nobody is stopped. `wrongly` is the share of the
runs whose end would have been among the best quarter of the sweep, and that were stopped before it. `--toy` replays a formula
in place of recordings: losses of runs that have learnt 1 - exp(-rate * epochs), plus what their learning rate still leaves.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler  # noqa: E402

from sweeps.search.scheduler import SampleAsha  # noqa: E402
from trainables.hyperparameters import Hyperparameters, parse  # noqa: E402

CURVES = Path(__file__).parent / "curves.json"
FACTOR, TRIALS, SLOTS, HORIZONS = 3.0, 24, 4, (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole recorded run: validation losses at the ends of its epochs."""

    hp: Hyperparameters
    losses: Sequence[float]

    @property
    def epochs(self) -> int:
        return len(self.losses)


Decide = Callable[[str, Run, int, float], bool]  # trial, run, epoch, loss -> whether it goes on


def nobody(rows: int) -> Decide:
    return lambda trial, run, epoch, loss: True


def tune_asha(time: Callable[[Run, int], float], grace: float, longest: float) -> Decide:
    asha = AsyncHyperBandScheduler(
        "time",
        "loss",
        "min",
        max_t=longest,
        grace_period=grace,
        reduction_factor=FACTOR,
        stop_last_trials=False,
    )

    def decide(trial: str, run: Run, epoch: int, loss: float) -> bool:
        stand_in = SimpleNamespace(trial_id=trial)
        if trial not in asha._trial_info:
            asha.on_trial_add(None, stand_in)
        said = asha.on_trial_result(None, stand_in, {"time": time(run, epoch), "loss": loss})
        return said == TrialScheduler.CONTINUE

    return decide


def equal_samples(rows: int) -> Decide:
    return tune_asha(lambda run, epoch: epoch * rows, rows, max(HORIZONS) * rows)


def share_of_schedule(rows: int) -> Decide:
    return tune_asha(lambda run, epoch: epoch / run.epochs, 1 / FACTOR, 1.0)


def same_horizon(rows: int) -> Decide:
    of = {epochs: equal_samples(rows) for epochs in HORIZONS}
    return lambda trial, run, epoch, loss: of[run.epochs](trial, run, epoch, loss)


def shipped(rows: int) -> Decide:
    asha = SampleAsha([rows, round(FACTOR * rows)], FACTOR, {"": rows})
    return lambda trial, run, epoch, loss: asha.report(trial, run.hp, epoch * rows, loss)


WAYS = {
    "nobody is stopped": nobody,
    "equal samples": equal_samples,
    "share of schedule": share_of_schedule,
    "same horizon": same_horizon,
    "sweeps.search.stopping": shipped,
}


def replay(runs: Sequence[Run], decide: Decide) -> list[int]:
    """How many epochs of each of `runs` are trained, `SLOTS` at a time, each epoch taking as long as another."""
    trained = [0] * len(runs)
    waiting = iter(range(len(runs)))
    busy = [
        (1.0 + slot / SLOTS, number) for slot, number in zip(range(SLOTS), waiting, strict=False)
    ]
    while busy:
        now, number = heapq.heappop(busy)
        run = runs[number]
        trained[number] += 1
        goes_on = decide(f"t{number}", run, trained[number], run.losses[trained[number] - 1])
        following = number if goes_on and trained[number] < run.epochs else next(waiting, None)
        if following is not None:
            heapq.heappush(busy, (now + 1.0, following))
    return trained


def simulate(recorded: dict[str, list[list[Run]]], sweeps: int) -> list[dict[str, Any]]:
    """A line for each kind of schedule and way. recorded: for each kind, the runs of each configuration."""
    lines = []
    for kind, configurations in recorded.items():
        sums = {way: [0.0] * 4 for way in WAYS}
        for number in range(sweeps):
            generator = random.Random(number)
            runs = [generator.choice(generator.choice(configurations)) for _ in range(TRIALS)]
            lowest = min(min(run.losses) for run in runs)
            quarter = sorted(min(run.losses) for run in runs)[TRIALS // 4 - 1]
            good = [n for n, run in enumerate(runs) if min(run.losses) <= quarter]
            for way, make in WAYS.items():
                trained = replay(runs, make(100))
                found = min(
                    min(run.losses[:epochs]) for run, epochs in zip(runs, trained, strict=True)
                )
                total = sums[way]
                total[0] += sum(trained) / sum(run.epochs for run in runs)
                total[1] += found - lowest
                total[2] += (found - lowest) ** 2
                total[3] += sum(
                    min(runs[n].losses[: trained[n]]) > min(runs[n].losses) for n in good
                ) / len(good)
        for way, (samples, regret, squares, wrongly) in sums.items():
            mean = regret / sweeps
            error = math.sqrt(max(0.0, squares / sweeps - mean**2) / sweeps)
            lines.append(
                {
                    "schedule": kind,
                    "way": way,
                    "samples": samples / sweeps,
                    "regret": mean,
                    "error": error,
                }
                | {"wrongly": wrongly / sweeps}
            )
    return lines


def load(file: Path) -> dict[str, list[list[Run]]]:
    """Recorded runs by schedule. At a constant rate a run of n epochs is the beginning of a longer one."""
    found: dict[str, dict[str, list[Run]]] = {}
    for trial in json.loads(file.read_text())["trials"]:
        params = trial["params"]
        key = json.dumps(
            {name: value for name, value in params.items() if name != "epochs"}, sort_keys=True
        )
        losses = [loss for _, loss, _ in trial["points"]]
        horizons = HORIZONS if params["schedule"] == "constant" else (int(params["epochs"]),)
        of = found.setdefault(params["schedule"], {}).setdefault(key, [])
        for epochs in horizons:
            if len(losses) >= epochs:  # a run that exploded has no end
                of.append(Run(hp=parse({**params, "epochs": epochs}), losses=losses[:epochs]))
    return {
        schedule: [runs for runs in of.values() if len(runs) == len(HORIZONS)]
        for schedule, of in sorted(found.items())
    }


def toy(configurations: int = 200) -> dict[str, list[list[Run]]]:
    generator, found = random.Random(0), {}
    for schedule in ("constant", "linear"):
        found[schedule] = []
        for _ in range(configurations):
            learnt, runs = generator.uniform(0.1, 1.0), []
            for epochs in HORIZONS:
                params = {
                    "method": "full",
                    "learning_rate": 1e-4,
                    "batch_size": 10,
                    "warmup_ratio": 0.0,
                }
                left = [
                    1 - e / epochs if schedule == "linear" else 1.0 for e in range(1, epochs + 1)
                ]
                losses = [
                    1 + math.exp(-learnt * e) + 0.5 * rate for e, rate in enumerate(left, start=1)
                ]
                runs.append(
                    Run(hp=parse({**params, "epochs": epochs, "schedule": schedule}), losses=losses)
                )
            found[schedule].append(runs)
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| schedule | way | samples | regret, nats | best quarter stopped wrongly |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {each['schedule']} | {each['way']} | {each['samples']:.1%} | {each['regret']:.4f} ± {each['error']:.4f} | "
        f"{each['wrongly']:.1%} |"
        for each in lines
    ]
    return "\n".join(rows)


def record(out: Path, configurations: int) -> None:
    """Train the runs that `curves.json` holds."""
    import tempfile

    import torch
    from omegaconf import OmegaConf

    from sweeps.config.loading import from_tree
    from sweeps.run.preparation import prepare_data
    from trainables.engine.group import GroupSettings, NonFinite, open_group
    from trainables.models.files import load_tokenizer

    data = ROOT.parent / "shared" / "data"
    with tempfile.TemporaryDirectory() as scratch:
        general = Path(scratch) / "general.txt"
        general.write_text("The manual says what each word does. " * 40)
        method = {
            "full": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "lora": {
                "learning_rate": {"log_uniform": [1e-3, 5e-2]},
                "rank": {"choice": [4, 8, 16]},
                "alpha": "2 * rank",
            },
        }
        text = f"{data}/text/tinyshakespeare.txt"
        sweep = {
            "name": "plays",
            "task": "causal_lm",
            "model": {"name": f"{data}/models/stories260K"},
            "data": {"train": text, "validation": 0.01, "max_length": 32, "rows": 256},
            "search": {"space": {"method": method, "batch_size": {"choice": [8, 16]}, "epochs": 4}},
            "selection": {"general_text": str(general)},
        }
        config = from_tree(OmegaConf.create(sweep), (), "plays")
        rows = prepare_data(config, Path(scratch) / "data").splits["train"].rows
        group = open_group(
            Path(scratch) / "data",
            model=config.model,
            task=config.task,
            settings=GroupSettings(probe_rows=8),
            pad_token_id=load_tokenizer(config.model).pad_token_id,
            device=torch.device("cpu"),
        )
        found = []
        for params in config.draws()[:configurations]:
            for schedule, epochs in [
                ("constant", max(HORIZONS)),
                *(("linear", horizon) for horizon in HORIZONS),
            ]:
                params = {**params, "epochs": epochs, "schedule": schedule}
                hp, points = parse(params), []
                group.join("t", hp)
                while not points or points[-1][0] < epochs * rows:
                    try:
                        if group.step(["t"]):
                            of = group.evaluate(["t"])["t"]
                            points.append(
                                [of.samples_seen, round(of.val_loss, 5), round(of.probe_loss, 5)]
                            )
                    except NonFinite:
                        break
                group.leave("t")
                found.append({"params": params, "points": points})
            out.write_text(json.dumps({"rows": rows, "trials": found}))
            print(f"{len(found)} runs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--toy", action="store_true", help="a formula in place of recordings")
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--record", type=Path, help="train the runs anew and write them here")
    parser.add_argument("--configurations", type=int, default=24)
    given = parser.parse_args()
    if given.record:
        return record(given.record, given.configurations)
    print(table(simulate(toy() if given.toy else load(given.curves), given.sweeps)))


if __name__ == "__main__":
    main()
