import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from trainables.data.batches import epoch_order
from trainables.streams import Purpose, stream

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = (
    *range(30),
    2**32,
    2**32 + 1,
    3 * 2**32 + 7,
)  # in words of 32 bits the last are others' numbers


def test_no_two_purposes_and_no_epoch_draw_alike() -> None:
    drawn = [
        tuple(stream(purpose, seed).permutation(50))
        for purpose in get_args(Purpose)
        for seed in SEEDS
    ]
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in SEEDS[:30] for epoch in range(40)}
    assert len(set(drawn)) == len(drawn) and not orders.intersection(drawn)


def test_draws_are_a_function_of_purpose_and_numbers() -> None:
    assert (
        stream("probe", 3).permutation(8).tolist()
        == stream("probe", np.int64(3)).permutation(8).tolist()
    )
    # pinned: splits and probe of a sweep that is run again must be those of the first time
    assert stream("probe", 0).permutation(8).tolist() == [7, 6, 1, 4, 3, 0, 5, 2]


def test_every_draw_of_numpy_has_a_named_stream() -> None:
    """But orders of epochs, which the first test looks at."""
    drawing = re.compile(r"np\.random\.(?!Generator\b)\w+|PCG64|default_rng|SeedSequence")
    files = {file.name: file.read_text() for file in (ROOT / "trainables").rglob("*.py")}
    assert {name for name, text in files.items() if drawing.search(text)} == {
        "batches.py",
        "streams.py",
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_probe_is_the_beginning_of_no_epoch(lab, seed: int) -> None:
    probe = lab.group("bert", seed=seed, probe_rows=7)._probe_rows.tolist()
    rows = len(lab.split("bert"))
    assert probe not in [
        sorted(epoch_order(rows, seed, epoch)[:7].tolist()) for epoch in range(100)
    ]
