"""A whole sweep by freeze and thaw, killed and resumed. What its slot trains is a formula."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.standing_in import write_sweep
from tests.sweeps.conftest import ROOT, environment
from tests.sweeps.run.failing import folder_of
from tests.sweeps.run.killing import evaluations, wait_for

TRIALS = 10
SEARCH = """
  scheduler: freeze_thaw
  patience: 0.01
  sampler: random
"""
SWEEPS = [sys.executable, "-c", "from tests.standing_in import main; main()"]


@contextmanager
def begun(log: Path, ray_tmp: str, *arguments: str):
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*SWEEPS, *arguments],
            cwd=ROOT,
            env=environment(ray_tmp),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def kept(folder: Path) -> dict[str, tuple[str, str | None]]:
    """How each configuration ended."""
    found = {}
    for trial in sorted(folder.glob("trials/*")):
        params = json.loads((trial / "trial.json").read_text())["params"]
        outcome = json.loads((trial / "outcome.json").read_text())
        found[json.dumps(params, sort_keys=True)] = outcome["status"], outcome["reason"]
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_that_is_killed_is_the_undisturbed_one(ray_tmp, tmp_path):
    folders = []
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        file = write_sweep(tmp_path / name, TRIALS, slots=1, share=1, more=SEARCH)
        log = tmp_path / f"{name}.log"
        with begun(log, ray_tmp, "run", str(file)) as process:
            if name == "killed":
                few = 5

                def evaluated(runs: Path = tmp_path / name / "runs", few: int = few) -> Path | None:
                    folder = folder_of(runs)
                    made = [*folder.glob("trials/*/*/*/evaluation.json")] if folder else []
                    return folder if len(made) >= few else None

                folder = wait_for(evaluated, process, log)
                process.kill()
                process.wait()
                with begun(log, ray_tmp, "resume", str(folder)) as process:
                    assert process.wait() == 0, log.read_text()
            else:
                assert process.wait() == 0, log.read_text()
        folders.append(folder_of(tmp_path / name / "runs"))
    undisturbed, killed = folders
    ends = kept(undisturbed)
    assert kept(killed) == ends
    assert any((reason or "").startswith("paused for good") for _, reason in ends.values())
    assert [*evaluations(killed).items()] == [*evaluations(undisturbed).items()]
