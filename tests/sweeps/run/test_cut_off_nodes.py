"""A node that is cut off by the network while a slot there trains, and that comes back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns import two_nodes
from tests.sweeps.conftest import ROOT
from tests.sweeps.run.failing import IN_ORDER, results
from tests.sweeps.run.killing import of_the_sweep, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

EVALUATIONS = 10  # of a trial


def read(evaluation: Path) -> tuple[int, float, float]:
    told = json.loads(evaluation.read_text())
    return told["step"], told["val_loss"], told["probe_loss"]


def test_what_a_cut_off_node_still_writes_takes_nothings_place(
    shakespeare, sweeps, tmp_path: Path
) -> None:
    slots = (
        "{slots: 1, trials_per_slot: 1}",
        "{slots: 2, trials_per_slot: 1, resources_per_worker: {CPU: 1}}",
    )
    file = shakespeare(IN_ORDER.replace(*slots).replace("epochs: 1", "epochs: 2"))
    log = tmp_path / "log"

    def begun(attempt: int) -> set[Path]:
        """Trials that have evaluated in it, or that it has begun anew."""
        inside = "step-*/evaluation.json" if attempt == 1 else "attempt.json"
        found = tmp_path.glob(f"runs/*/trials/*/attempt-{attempt}/{inside}")
        return {path.parents[2 if attempt == 1 else 1] for path in found}

    with two_nodes() as network, log.open("w") as stream:

        def start(storage: str) -> subprocess.Popen:
            at = f"cluster.address={network.address}", f"storage={tmp_path}/{storage}"
            return subprocess.Popen(
                network.head.command(sys.executable, "-m", "sweeps", "run", file, *at),
                cwd=ROOT,
                env=dict(network.env),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

        assert start("undisturbed").wait() == 0, log.read_text()
        sweep = start("runs")
        try:
            wait_for(lambda: len(begun(1)) == 2, sweep, log)
            cut_off = of_the_sweep(network.node_process.pid, "Slot")
            cut_off.suspend()  # between two evaluations: it has the next one to write still
            network.node.unplug()
            wait_for(lambda: begun(2), sweep, log)
            (trial,) = begun(2)
            # checkpoints that are not needed any more are deleted
            kept = [*trial.glob("attempt-*/attempt.json")]
            kept += trial.glob("attempt-*/step-*/evaluation.json")
            before = {path: path.read_bytes() for path in kept}
            cut_off.resume()
            late: list[Path] = []

            def wrote() -> bool:
                found = trial.glob("attempt-1/step-*/evaluation.json")
                late[:] = [path for path in found if path not in before]
                return bool(late)

            wait_for(wrote, sweep, log)
            network.node.plug()
            network.node_process.wait()  # Ray ends a node that it has given up
            assert sweep.wait() == 0, log.read_text()
        finally:
            if sweep.poll() is None:
                sweep.kill()
                sweep.wait()
    assert not cut_off.is_running()
    assert {path: path.read_bytes() for path in before} == before
    (late_one,) = late
    (undisturbed,) = (tmp_path / "undisturbed").glob("shakespeare-*")
    told = results(sweeps("best", trial.parents[1], "--json").out)
    assert told == results(sweeps("best", undisturbed, "--json").out)
    assert [len(records) for *_, records in told["trials"].values()] == [EVALUATIONS] * 2
    assert len([*trial.parent.glob("*/attempt-*")]) == 3
    assert len([*trial.parent.glob("*/attempt-*/step-*/evaluation.json")]) == 2 * EVALUATIONS + 1
    # what came too late is what the trial had come to elsewhere, and stands for itself
    assert read(late_one) in told["trials"][trial.name][2]
