"""Questions about geography to SQL: a sweep chosen by execution accuracy, with what the untuned model, prompts with examples and the
default configuration reach on the same rows.

    .venv/bin/python tests/benchmarks/text_to_sql.py --trials 6
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arms import ROOT, machine, require
from tweets import call

DATA = ROOT.parent / "shared" / "data"
SWEEP = """
name: text-to-sql
task: instruction
storage: {work}/runs
model: {{name: {model}}}
data:
  train: {data}/text_to_sql/geography.jsonl
  columns: {{prompt: question, completion: sql}}
  group: {group}
  validation: 0.2
  test: 0.2
  max_length: 384
search:
  trials: {trials}
  space:
    method:
      full: {{learning_rate: {{log_uniform: [1e-3, 6e-3]}}}}
      lora: {{rank: 16, learning_rate: {{log_uniform: [5e-3, 3e-2]}}}}
    batch_size: 8
    epochs: {epochs}
metrics: [{{sql_execution: {{database: {data}/text_to_sql/geography.sqlite}}}}, exact_match]
generation: {{rows: 150, max_new_tokens: 200}}
selection: {{metric: sql_execution}}
tracking: {{wandb: off}}
"""


def tell(folder: str) -> None:
    """Print what models of a sweep reached by its metrics, and a few of their answers."""
    command = [sys.executable, "-m", "sweeps", "best", folder, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(json.dumps(json.loads(done.stdout)["metrics"]["compared"], indent=1))
    call("samples", folder, "--rows", "5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default=str(DATA / "models" / "stories260K"))
    parser.add_argument(
        "--group", default="group", help="column of rows that belong together; null: none"
    )
    given = parser.parse_args()
    require(DATA / "text_to_sql" / "geography.jsonl")
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="sql", dir="/tmp"))
    try:
        file = work / "sweep.yaml"
        file.write_text(SWEEP.format(work=work, data=DATA, **vars(given)))
        tell(call("run", file)[-1])
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
