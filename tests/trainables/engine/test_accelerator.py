"""The path of an accelerator, on a stand-in for one (accelerator_cases.py), in a process of its own: autograd makes its
threads when a process first computes gradients, and has none for a device that comes later.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("accelerator_cases.py")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("not slow and not long", marks=pytest.mark.slow),
        pytest.param("slow and not long", marks=pytest.mark.slow),
        pytest.param("long", marks=pytest.mark.long),
    ],
    ids=["short", "slow", "long"],
)
def test_in_a_process_of_its_own(kind: str) -> None:
    cases = [str(CASES), "-m", f"{kind} and not gpu", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run([sys.executable, "-m", "pytest", *cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
