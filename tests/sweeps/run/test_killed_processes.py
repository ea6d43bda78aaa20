"""A sweep whose processes are killed, crash or stand still ends as one that nobody disturbs."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.sweeps.run.killing import evaluations, of_the_sweep, same, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

REST = """
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 2}
search:
  trials: 3
  early_stopping: {asha: false, overfit: false, diverged: false}
  space: {learning_rate: {choice: [0.001, 0.002, 0.004]}}
"""
EVALUATIONS = 10  # of a trial


@pytest.fixture
def write(shakespeare, general_text):
    """The file of a sweep whose slot takes all cores."""

    def write_file(more: str = "") -> Path:
        cores = len(os.sched_getaffinity(0))
        return shakespeare(
            f"{REST}\nselection: {{baselines: false, general_text: {general_text}}}"
            f"\ncluster: {{slots: 1, trials_per_slot: 1,"
            f" resources_per_worker: {{CPU: {cores}}}{more}}}"
        )

    return write_file


@pytest.fixture(scope="module")
def results():
    """What came of every configuration, in whatever sweep of this module: they must agree."""
    return {}


@pytest.mark.parametrize(
    ("named", "how"),
    [
        (None, None),
        ("TrainController", signal.SIGKILL),
        pytest.param("Slot", signal.SIGKILL, marks=pytest.mark.long),
        pytest.param("Slot", signal.SIGSEGV, marks=pytest.mark.long),
    ],
    ids=["undisturbed", "controller", "worker", "segfault"],
)
def test_a_slot_whose_process_dies_is_started_again_and_nothing_differs(
    start_sweeps, write, results, tmp_path: Path, named, how
) -> None:
    log = tmp_path / "log"
    process = start_sweeps(log, "run", write())
    if named is not None:
        wait_for(lambda: [*tmp_path.glob("runs/*/trials/*/attempt-1/step-*")][3:], process, log)
        of_the_sweep(process.pid, named).send_signal(how)
    assert process.wait() == 0, log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    ours = evaluations(folder)
    assert [len(records) for records in ours.values()] == [EVALUATIONS] * 3
    attempts = len([*folder.glob("trials/*/attempt-*")])
    assert attempts == (3 if named is None else 4)
    assert ("is started again" in log.read_text()) == (named == "TrainController")
    same(ours, results)


@pytest.mark.long
def test_a_trial_with_which_a_slot_stands_still_is_tried_once_more_and_the_others_go_on(
    start_sweeps, write, results, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start_sweeps(log, "run", write(", hang_minutes: 1"))
    for attempt in (1, 2):
        begun = f"runs/*/trials/t0002/attempt-{attempt}"
        if attempt == 1:
            begun += "/step-*/evaluation.json"
        wait_for(lambda begun=begun: [*tmp_path.glob(begun)], process, log)
        of_the_sweep(process.pid, "Slot").send_signal(signal.SIGSTOP)
    assert process.wait() == 0, log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert log.read_text().count("made no progress for 1 minutes with t0002") == 2
    outcome = json.loads((folder / "trials/t0002/outcome.json").read_text())
    assert outcome["status"] == "failed"
    assert outcome["reason"] == "it made no progress for 1 minutes, 2 times"
    ours = evaluations(folder)
    assert sorted(len(records) for records in ours.values())[1:] == [EVALUATIONS] * 2
    same(ours, results)


@pytest.mark.long
def test_a_sweep_without_its_clusters_head_says_so_and_is_resumed(
    start_sweeps, sweeps, write, results, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start_sweeps(log, "run", write())
    wait_for(lambda: [*tmp_path.glob("runs/*/trials/*/attempt-1/step-*")][3:], process, log)
    below_it = psutil.Process(process.pid).children(recursive=True)
    (head,) = [each for each in below_it if each.name() == "gcs_server"]
    head.kill()
    wait_for(lambda: "The cluster's head does not answer at" in log.read_text(), process, log)
    assert process.wait() == 1
    (folder,) = (tmp_path / "runs").iterdir()
    told = log.read_text()
    last = told.strip().splitlines()[-1]
    assert last.startswith("Failed, as the cluster's head has not answered for 4"), told
    assert last.endswith(f"s. Go on with: python -m sweeps resume {folder}"), told
    assert "Traceback" not in told and "Failed to connect to GCS" not in told, told
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    _, alive = psutil.wait_procs(below_it, timeout=30)
    assert alive == []
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    ours = evaluations(folder)
    assert [len(records) for records in ours.values()] == [EVALUATIONS] * 3
    same(ours, results)
