"""All that a GPU has to show, in one command: the tests that need one, and how far packing pays.

    .venv/bin/python tests/gpu/run.py            # under ten minutes on one card; writes gpu.md

The tests are those marked `gpu`, wherever they lie. Packing is `tests/benchmarks/packing.py` with a Llama of 1.1
billion parameters, bfloat16 and rows of 256 tokens, one to a batch: the case in which a trial alone leaves most of a
card idle. What is wanted of it: at 8 trials 4 times the tokens of one, at 16 trials 8 times, never fewer than as many
processes, and at most a third of the memory of 8 processes.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = "tests/trainables/engine/accelerator_cases.py"  # of which most run on a stand-in
PACKING = ["--bases", "bf16", "--batches", "1", "--ranks", "16"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", nargs="+", type=int, default=[8, 16], help="at once")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="a file for the table")
    given = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("gpu: this machine has no CUDA device that torch can use", file=sys.stderr)
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", CASES]
    done = subprocess.run(tests, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu") as folder:
        table = Path(folder) / "packing.md"
        trials = [str(each) for each in given.trials]
        packing = [str(ROOT / "tests" / "benchmarks" / "packing.py"), *PACKING]
        subprocess.run([sys.executable, *packing, "--trials", *trials, "--out", table], check=True)
        given.out.write_text(page(done.stdout, table.read_text()))
    print(f"written: {given.out}")
    return done.returncode


def page(tests: str, packing: str) -> str:
    """The table for the docs. tests: what pytest said, of which the last line counts."""
    counted = tests.strip().splitlines()[-1].strip("= ")
    return f"{datetime.now(UTC):%Y-%m-%d}, {packing.rstrip()}\n\nTests marked `gpu`: {counted}.\n"


if __name__ == "__main__":
    sys.exit(main())
