"""What is said for a process that ends before it can say it."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal
from cluster.reaper import reaped

with reaped(own=False, last_words="go on with it") as end_is_told:
    {end}
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "go on with it\n"),
        ("os._exit(1)", "go on with it\n"),
        ("end_is_told(); os._exit(1)", ""),
        ("pass", ""),
    ],
)
def test_last_words_are_those_of_a_process_that_has_not_told_its_end(end: str, said: str) -> None:
    program = PROGRAM.format(end=end)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", said)


def test_an_error_in_there_is_told_by_the_process_itself() -> None:
    program = PROGRAM.format(end="raise SystemExit('told')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "told\n"
