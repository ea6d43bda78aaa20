"""Ray's temporary folder is deleted while a sweep with a Ray of its own runs."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeps.run.failing import IN_ORDER, Running, evaluated, results
from tests.sweeps.run.killing import of_the_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets lie below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def begun(shakespeare, temp_dir: Path, tmp_path: Path) -> Iterator[Running]:
    """A sweep that has evaluated, and whose Ray has lost its folder then."""
    sweep = Running(temp_dir, tmp_path / "log", "run", shakespeare(IN_ORDER))
    try:
        sweep.until(lambda: evaluated(tmp_path / "runs", 1))
        shutil.rmtree(temp_dir / "ray")
        yield sweep
    finally:
        sweep.kill()


def test_a_sweep_goes_on_with_what_runs(begun: Running) -> None:
    assert begun.process.wait() == 0, begun.log
    assert begun.log.count("Ray's temporary folder is gone, ") == 1, begun.log


def test_a_sweep_whose_slot_cannot_start_again_says_why_and_is_resumed(
    begun: Running, sweeps, tmp_path: Path
) -> None:
    of_the_sweep(begun.process.pid, "Slot").kill()
    assert begun.process.wait() == 1, begun.log
    (folder,) = (tmp_path / "runs").glob("*-*")
    told = begun.log.strip().splitlines()[-1]
    assert told.startswith("Failed, as Ray's temporary folder was deleted while it ran ("), told
    assert told.endswith(f"Go on with: python -m sweeps resume {folder}"), told
    assert "Traceback" not in begun.log, begun.log
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    begun.gone(within_s=60)
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    ended = results(sweeps("best", folder, "--json").out)
    for status, _, records in ended["trials"].values():
        assert status == "complete"
        steps = [step for step, *_ in records]
        assert steps == sorted(set(steps)) and len(steps) == 5, steps
