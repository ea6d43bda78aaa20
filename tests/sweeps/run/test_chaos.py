"""A short chaos run: `tests/sweeps/run/chaos.py` is the long one."""

import math
from pathlib import Path

import pytest

from tests.sweeps.run.chaos import Chaos, differences, results, run, twice, write_file

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

TRIALS, KILLS = 8, 12


def test_a_sweep_under_random_kills_ends_as_one_that_nobody_disturbs(
    shared_data: Path, ray_tmp: Path, tmp_path: Path
) -> None:
    chaos = Chaos(seed=13, seconds=math.inf, most=KILLS)
    disturbed = run(write_file(tmp_path / "chaos", TRIALS), ray_tmp, chaos.act)
    undisturbed = run(write_file(tmp_path / "undisturbed", TRIALS), ray_tmp)
    assert chaos.kills and disturbed.resumed > 0 == undisturbed.resumed
    assert differences(disturbed, undisturbed) == []
    assert twice(disturbed.folder) == twice(undisturbed.folder) == 0
    assert len(results(disturbed.folder)) == TRIALS
