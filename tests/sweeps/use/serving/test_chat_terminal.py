"""Lines that are piped into `chat`, and what comes out."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
pytestmark = pytest.mark.slow


def chat(*arguments: object, lines: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sweeps", "chat", *map(str, arguments)],
        cwd=ROOT,
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )


def test_history_is_kept_until_it_is_reset(chats: dict[str, Path]) -> None:
    done = chat(
        chats["alpha"],
        "--max-new-tokens",
        12,
        lines=[
            "Name a color 7",
            "Name a color 7",
            "/reset",
            "/rest",
            "Name a color 7",
            "/quit",
            "x",
        ],
    )
    assert done.returncode == 0, done.stderr
    first, second, reset, wrong, again = done.stdout.splitlines()
    assert first == again and first, "nothing is left of what was said"
    assert second != first, "what was said before is read again"
    assert reset == "forgotten" and wrong.startswith("/rest: no such command")


def test_the_base_beside_the_winner(chats: dict[str, Path]) -> None:
    done = chat(chats["beta"], "--base", "--max-new-tokens", 8, lines=["Name a color 7"])
    assert done.returncode == 0, done.stderr
    base, winner = done.stdout.splitlines()
    assert base.startswith("base: ") and winner.startswith("winner: ")
    assert base.removeprefix("base: ") != winner.removeprefix("winner: ")


def test_a_line_that_is_too_long_is_told_and_the_talk_goes_on(chats: dict[str, Path]) -> None:
    done = chat(chats["alpha"], "--max-new-tokens", 4, lines=["a b c d " * 300, "Name a color 7"])
    first, second = done.stdout.splitlines()
    assert first.startswith("no answer: ") and "the model takes 512" in first and second


def test_a_classifier_classifies_each_line(classifier: Path) -> None:
    done = chat(classifier, lines=["bright good 1", "", "bad 2", "/quit"])
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    for line in (first, second):
        assert line.startswith(("long  (long ", "short  (short "))
    refused = chat(classifier, "--base", lines=[])
    assert refused.returncode == 2 and refused.stderr.startswith("--base: ")
