"""What a trial costs beside its training: this platform, and Ray's documented pattern of one Train run per Tune trial.

    python tests/benchmarks/overhead.py --trials 8

Every arm trains the same trials one after another in a process of its own, with a Ray of its own: the same blocks of
text in the same order, the same learning rates, steps and evaluation, one worker with one thread. Their validation
losses are in the table: where they agree, the arms did the same work.

Per trial = (end of the last trial - end of the first) / (trials - 1), so what is paid once is left out. An end is when
the process that runs Tune hears of it. Overhead = per trial - the seconds in training steps and evaluations: those of
the stock arms are measured inside their loops, those of the platform by training the same trials with
`trainables.engine.group.TrialGroup` in a process without Ray, which counts every disturbance by Ray as the platform's overhead.

CPU seconds are those of an arm's whole process tree, sampled. What a process did between its last sample and its end
is missed, which favours the arms that start and end many processes.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import DATA, environment, machine, open_group, ratio, require, run_arm

MODEL = DATA / "models" / "stories260K"
TEXT = DATA / "text" / "tinyshakespeare.txt"
ROWS, MAX_LENGTH, BATCH_SIZE, SEED = 200, 32, 20, 0
PLATFORM = "this platform"
STOCK = "stock: a TorchTrainer per Tune trial"
TUNED = "stock, tuned (health check every 0.2 s, reuse_actors)"


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """One arm. Seconds per trial after the first."""

    name: str
    gaps: tuple[float, ...]  # wall clock from each trial's end to the next one's
    cpu: float  # of the process tree
    training: float  # wall clock in training steps and evaluations
    training_cpu: float
    losses: tuple[float, ...]  # validation loss of every trial, in nats per token

    @property
    def wall(self) -> float:
        return sum(self.gaps) / len(self.gaps)

    @property
    def overhead(self) -> float:
        return self.wall - self.training

    @property
    def cpu_overhead(self) -> float:
        return self.cpu - self.training_cpu


def learning_rates(trials: int) -> list[float]:
    """From 1e-4 to 1e-2 in equal ratios."""
    return [float(f"{1e-4 * 100 ** (i / (trials - 1)):.3g}") for i in range(trials)]


def sweep_file(storage: Path, rates: Sequence[float]) -> str:
    """The platform's sweep. It tracks nothing and stops nothing early, because the stock arms do not either."""
    return f"""
name: overhead
task: causal_lm
storage: {storage}
seed: {SEED}
model: {{name: {MODEL}}}
data: {{train: {TEXT}, validation: 0.005, max_length: {MAX_LENGTH}, rows: {ROWS}}}
train:
  method: full
  epochs: 1
  batch_size: {BATCH_SIZE}
  schedule: constant
  warmup_ratio: 0.0
  weight_decay: 0.0
search:
  trials: {len(rates)}
  space: {{learning_rate: {{log_uniform: [1.0e-5, 0.1]}}}}
  initial: {json.dumps([{"learning_rate": rate} for rate in rates])}
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
tracking: {{wandb: "off"}}
cluster: {{slots: 1, resources_per_worker: {{CPU: 1}}}}
"""


# --- the arms, each in a process of its own ---


def train_with_pack(sweep: Path, out: Path) -> None:
    """Train the sweep's trials as its slot did, without Ray: what of a trial's time is training."""
    import torch

    torch.set_num_threads(1)
    config, group = open_group(sweep)
    found = []
    for number, params in enumerate(config.search.initial):
        trial = str(number)
        group.join(trial, config.hyperparameters(params))
        wall, cpu = time.perf_counter(), time.process_time()
        while not group.step([trial]):
            pass
        loss = group.evaluate([trial])[trial].val_loss
        found.append(
            {
                "training": time.perf_counter() - wall,
                "training_cpu": time.process_time() - cpu,
                "val_loss": loss,
            }
        )
        group.leave(trial)
    out.write_text(json.dumps(found))


def write_arrays(sweep: Path, out: Path) -> None:
    """The sweep's blocks and their order as plain arrays, so that the stock arms need nothing of this platform."""
    from trainables.data.batches import batch_indices, steps_per_epoch
    from trainables.data.prepare import open_split
    from trainables.tasks import TASKS

    arrays = {}
    for name in ("train", "validation"):
        split = open_split(sweep / "data", name)
        batch = TASKS["causal_lm"].collate(split.rows(np.arange(len(split))), 0)
        arrays |= {f"{name}_{key}": tensor.numpy() for key, tensor in batch.items()}
    rows = len(arrays["train_input_ids"])
    order = [
        batch_indices(rows, BATCH_SIZE, SEED, step)
        for step in range(steps_per_epoch(rows, BATCH_SIZE))
    ]
    np.savez(out, order=np.concatenate(order), **arrays)


def stock_loop(config: dict[str, Any]) -> None:
    """What runs on a Train worker, once per trial."""
    import ray.train
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForCausalLM.from_pretrained(config["model"])
    arrays = np.load(config["arrays"])
    data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"], weight_decay=0.0)

    def loss_and_targets(split: str, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        batch = {
            key: data[f"{split}_{key}"][rows] for key in ("input_ids", "attention_mask", "labels")
        }
        return model(**batch, use_cache=False).loss, int((batch["labels"][:, 1:] != -100).sum())

    wall, cpu = time.perf_counter(), time.process_time()
    model.train()
    for rows in data["order"].split(config["batch_size"]):
        optimizer.zero_grad()
        loss, _ = loss_and_targets("train", rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    nll, targets = 0.0, 0
    with torch.inference_mode():
        for rows in torch.arange(len(data["validation_labels"])).split(64):
            loss, count = loss_and_targets("validation", rows)
            nll, targets = nll + float(loss) * count, targets + count
    metrics = {
        "val_loss": nll / targets,
        "training": time.perf_counter() - wall,
        "training_cpu": time.process_time() - cpu,
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def run_stock(arrays: Path, out: Path, rates: Sequence[float], *, reuse_actors: bool) -> None:
    """https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html, with OptunaSearch."""
    import ray.train
    import ray.train.torch
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.search.optuna import OptunaSearch

    from cluster.config import ClusterConfig
    from cluster.connect import connect

    storage = str(out.parent / out.stem)

    def train_driver(config: dict[str, Any]) -> None:
        ray.train.torch.TorchTrainer(
            stock_loop,
            train_loop_config={
                **config,
                "model": str(MODEL),
                "arrays": str(arrays),
                "batch_size": BATCH_SIZE,
            },
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=storage,
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            ends.append(time.time())

    with connect(ClusterConfig(), namespace="overhead"):
        results = tune.Tuner(
            tune.with_resources(train_driver, {"CPU": 0.01}),
            param_space={"learning_rate": tune.loguniform(1e-5, 0.1)},
            tune_config=tune.TuneConfig(
                metric="val_loss",
                mode="min",
                search_alg=OptunaSearch(
                    points_to_evaluate=[{"learning_rate": rate} for rate in rates]
                ),
                num_samples=len(rates),
                max_concurrent_trials=1,
                reuse_actors=reuse_actors,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=storage, callbacks=[Ends()], verbose=0
            ),
        ).fit()
    rows = {result.config["learning_rate"]: result.metrics for result in results}
    names = ("training", "training_cpu", "val_loss")
    trials = [{name: rows[rate][name] for name in names} for rate in rates]
    out.write_text(json.dumps({"ends": ends, "trials": trials}))


# --- measuring them ---


def summarise(
    name: str,
    ends: Sequence[float],
    trials: Sequence[dict[str, float]],
    cpu_at: Callable[[float], float],
) -> RowResults:
    """`ends`: time.time() of every trial's end; `trials`: training, training_cpu and val_loss of each."""
    ends, after_first = sorted(ends), trials[1:]
    assert len(ends) == len(trials) and after_first, (ends, trials)
    return RowResults(
        name=name,
        gaps=tuple(b - a for a, b in zip(ends[:-1], ends[1:], strict=True)),
        cpu=(cpu_at(ends[-1]) - cpu_at(ends[0])) / len(after_first),
        training=sum(trial["training"] for trial in after_first) / len(after_first),
        training_cpu=sum(trial["training_cpu"] for trial in after_first) / len(after_first),
        losses=tuple(trial["val_loss"] for trial in trials),
    )


def measure(trials: int, work: Path, say: Callable[[str], None]) -> list[RowResults]:
    rates, script = learning_rates(trials), str(Path(__file__).resolve())
    say(f"{PLATFORM} …")
    file = work / "overhead.yaml"
    file.write_text(sweep_file(work / "runs", rates))
    clock, _ = run_arm(
        ["-m", "sweeps", "run", str(file)], work / "platform.log", environment(work, {})
    )
    (sweep,) = (work / "runs").iterdir()
    ends = [outcome.stat().st_mtime for outcome in sweep.glob("trials/*/outcome.json")]
    run_arm(
        [script, "--child", "group", str(sweep), str(work / "group.json")],
        work / "group.log",
        environment(work, {}),
    )
    found = [
        summarise(
            PLATFORM,
            ends,
            _with_losses_of(sweep, json.loads((work / "group.json").read_text())),
            clock.at,
        )
    ]
    for name, child, extra in (
        (STOCK, "stock", {}),
        (TUNED, "tuned", {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}),
    ):
        say(f"{name} …")
        out = work / f"{child}.json"
        arguments = [
            script,
            "--trials",
            str(trials),
            "--child",
            child,
            str(work / "group.npz"),
            str(out),
        ]
        clock, _ = run_arm(arguments, work / f"{child}.log", environment(work, extra))
        result = json.loads(out.read_text())
        found.append(summarise(name, result["ends"], result["trials"], clock.at))
    return found


def _with_losses_of(sweep: Path, trials: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """`trials` of `train_with_pack` with the losses that the sweep itself measured."""
    records = [
        json.loads(file.read_text())
        for file in sorted(sweep.glob("trials/*/attempt-*/step-*/evaluation.json"))
    ]
    return [
        {**trial, "val_loss": record["val_loss"]}
        for trial, record in zip(trials, records, strict=True)
    ]


# --- the table ---


def table(arms: Sequence[RowResults]) -> str:
    """Markdown; the first arm is what the others are compared with."""
    lines = [
        "| per trial after the first | wall s (min–max) | training s | overhead s | times ours | CPU s | training CPU s | overhead CPU s | times ours | val loss, first and last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    own = arms[0]
    for arm in arms:
        cells = [
            arm.name,
            f"{arm.wall:.3f} ({min(arm.gaps):.3f}–{max(arm.gaps):.3f})",
            f"{arm.training:.3f}",
            f"{arm.overhead:.3f}",
            ratio(arm.overhead, own.overhead),
            f"{arm.cpu:.2f}",
            f"{arm.training_cpu:.3f}",
            f"{arm.cpu_overhead:.2f}",
            ratio(arm.cpu_overhead, own.cpu_overhead),
            f"{arm.losses[0]:.4f}, {arm.losses[-1]:.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--trials", type=int, default=8, help="trials of each arm, at least 2 (default: 8)"
    )
    found.add_argument("--out", type=Path, help="a file for the table, besides the terminal")
    found.add_argument(
        "--child", nargs=3, help=argparse.SUPPRESS
    )  # NAME IN OUT: one arm, in its own process
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.trials < 2:
        raise SystemExit(f"--trials: must be at least 2, got {given.trials}")
    require(MODEL, TEXT)
    if given.child:
        name, source, out = given.child[0], Path(given.child[1]), Path(given.child[2])
        if name == "group":
            train_with_pack(source, out)
            write_arrays(source, out.with_suffix(".npz"))
        else:
            run_stock(source, out, learning_rates(given.trials), reuse_actors=name == "tuned")
        return
    before = machine()
    work = Path(tempfile.mkdtemp(prefix="fso", dir="/tmp"))  # short: Ray's socket paths are limited
    try:
        arms = measure(given.trials, work, lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = f"{before}; {given.trials} trials\n\n{table(arms)}\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
