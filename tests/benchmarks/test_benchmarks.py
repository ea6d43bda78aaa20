"""The benchmarks start, and their arithmetic is right; what they measure is never asserted."""

import subprocess
import sys
import time
from pathlib import Path

import arms  # pytest puts this folder on sys.path
import overhead
import psutil
import pytest

SCRIPT = Path(overhead.__file__)


def arm(name: str, ends: list[float], training: float, cpu_per_s: float) -> overhead.RowResults:
    trials = [{"training": 99.0, "training_cpu": 99.0, "val_loss": 4.0}]  # the first does not count
    trials += [{"training": training, "training_cpu": training / 2, "val_loss": 3.0}] * (
        len(ends) - 1
    )
    return overhead.summarise(name, ends, trials, lambda when: cpu_per_s * when)


def test_help_names_the_options() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "--trials" in done.stdout
        and "--out" in done.stdout
        and "--child" not in done.stdout
    )


def test_one_trial_has_no_second() -> None:
    with pytest.raises(SystemExit, match="--trials: must be at least 2, got 1"):
        overhead.main(["--trials", "1"])


def test_it_says_what_data_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(overhead, "MODEL", tmp_path / "model")
    with pytest.raises(SystemExit, match="model: not there"):
        overhead.main([])


def test_overhead_is_time_between_ends_less_training() -> None:
    found = arm("x", [14.0, 10.0, 11.0], training=0.5, cpu_per_s=3.0)
    assert found.gaps == (1.0, 3.0) and found.wall == 2.0 and found.overhead == 1.5
    assert found.cpu == 6.0 and found.cpu_overhead == 5.75
    assert found.losses == (4.0, 3.0, 3.0)


def test_every_trial_must_have_ended() -> None:
    trials = [{"training": 0.0, "training_cpu": 0.0, "val_loss": 0.0}] * 3
    with pytest.raises(AssertionError):
        overhead.summarise("x", [1.0, 2.0], trials, lambda when: when)


def test_table_compares_with_the_first_arm() -> None:
    ours, stock = arm("ours", [0.0, 1.0, 2.0], 0.5, 1.0), arm("stock", [0.0, 9.0, 21.0], 0.5, 2.0)
    header, rule, first, second = overhead.table([ours, stock]).splitlines()
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in (header, rule, first, second)
    ]
    assert len({len(row) for row in cells}) == 1
    assert cells[2] == [
        "ours",
        "1.000 (1.000–1.000)",
        "0.500",
        "0.500",
        "1.0",
        "1.00",
        "0.250",
        "0.75",
        "1.0",
        "4.0000, 3.0000",
    ]
    assert cells[3] == [
        "stock",
        "10.500 (9.000–12.000)",
        "0.500",
        "10.000",
        "20.0",
        "21.00",
        "0.250",
        "20.75",
        "27.7",
        "4.0000, 3.0000",
    ]


def test_no_overhead_has_no_ratio() -> None:
    assert arms.ratio(3.0, 1.5) == "2.0" and arms.ratio(3.0, 0.0) == arms.ratio(3.0, -0.1) == "-"


def test_learning_rates_differ_and_stay_the_same() -> None:
    assert overhead.learning_rates(3) == [1e-4, 1e-3, 1e-2]
    assert len(set(overhead.learning_rates(8))) == 8


def test_clock_counts_children_after_their_end() -> None:
    burn = "import time\nwhile time.process_time() < 0.8: pass"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}]); time.sleep(1)",
        ]
    ) as root:
        with arms.TreeClock(psutil.Process(root.pid)) as clock:
            root.wait()
    assert 0.3 < clock.at(time.time()) < 5.0
    assert 4 * 2**20 < clock.peak < 2**30
    assert clock.alive() == []


@pytest.mark.skipif(arms.MEMORY != "PSS", reason="this kernel does not say what processes share")
def test_shared_memory_counts_once() -> None:
    fork = "import os\nheld = b'x' * (64 << 20)\nos.fork()\nprint(flush=True)\nos.read(0, 1)"
    with subprocess.Popen(
        [sys.executable, "-c", fork], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as root:
        root.stdout.readline(), root.stdout.readline()  # both are there
        tree = [psutil.Process(root.pid), *psutil.Process(root.pid).children()]
        each = [arms.memory(process) for process in tree]
        root.stdin.close()
        psutil.wait_procs(tree)
    assert len(each) == 2 and min(each) > 32 << 20 and 64 << 20 < sum(each) < 96 << 20
    assert [arms.memory(process) for process in tree] == [0, 0]
