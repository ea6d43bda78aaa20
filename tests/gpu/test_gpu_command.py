"""The command for a machine with a GPU, as far as one without can tell."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parent / "run.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_so_in_a_line():
    done = subprocess.run([sys.executable, RUN], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gpu: this machine has no CUDA device that torch can use\n"


def test_the_page_has_card_date_table_and_what_the_tests_said():
    said = "..s\n\n=== 3 passed, 1 skipped in 9.1s ===\n"
    table = "NVIDIA X, 8 cores\n\n| base | K |\n|---|---|\n| bf16 | 8 |\n"
    page = runpy.run_path(str(RUN))["page"](said, table)
    date, rest = page.split(", ", 1)
    assert len(date.split("-")) == 3
    assert rest == f"{table}\nTests marked `gpu`: 3 passed, 1 skipped in 9.1s.\n"
