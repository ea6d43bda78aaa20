"""A sweep whose processes are killed, crash or stand still ends as one that nobody disturbs."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.sweeps.run.killing import evaluations, of_the_sweep, same, wait_for, without_memory

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

REST = """
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 2}
search:
  trials: 3
  scheduler: none
  early_stopping: {overfit: false, diverged: false}
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
        ("Slot", signal.SIGKILL),
        ("Slot", signal.SIGSEGV),
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


def test_a_trial_that_the_kernel_kills_for_its_memory_is_tried_again_and_then_fails_alone(
    start_sweeps, write, results, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with without_memory() as starve:
        process = start_sweeps(log, "run", write())
        for attempt in (1, 2, 3):
            begun = f"runs/*/trials/t0002/attempt-{attempt}"
            if attempt == 1:
                begun += "/step-*/evaluation.json"
            wait_for(lambda begun=begun: [*tmp_path.glob(begun)], process, log)
            worker = of_the_sweep(process.pid, "Slot")
            starve(worker.pid)
            worker.wait()
        assert process.wait() == 0, log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    outcome = json.loads((folder / "trials/t0002/outcome.json").read_text())
    assert outcome["status"] == "failed"
    assert outcome["reason"] == (
        "it does not fit the memory of its host: its worker process died 3 times with no"
        " evaluation in between, each time as the kernel ended processes for being out of memory"
    )
    assert outcome["reason"] in log.read_text()
    ours = evaluations(folder)
    assert sorted(len(records) for records in ours.values())[1:] == [EVALUATIONS] * 2
    same(ours, results)


def test_data_that_change_under_a_sweep_change_nothing_and_are_told(
    start_sweeps, sweeps, write, results, tmp_path: Path
) -> None:
    log, text = tmp_path / "log", tmp_path / "text.txt"
    file = write()
    (line,) = [line for line in file.read_text().splitlines() if line.startswith("data:")]
    source = line.split("train: ")[1].split(",")[0]
    text.write_bytes(Path(source).read_bytes())
    file.write_text(file.read_text().replace(source, str(text)))
    process = start_sweeps(log, "run", file)
    wait_for(lambda: [*tmp_path.glob("runs/*/trials/*/attempt-1/step-*")][3:], process, log)
    text.write_text("Nothing of this was ever in a play. " * 4000)
    wait_for(lambda: [*tmp_path.glob("runs/*/trials/*/attempt-1/step-*")][5:], process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "runs").iterdir()
    changed = (
        f"data.train: {text} is no longer the file that the sweep read; it uses the data that it"
        " prepared"
    )
    done = sweeps("resume", folder)
    assert done.code == 0 and done.out.count(changed) == 1, done.out + done.err
    ours = evaluations(folder)
    assert [len(records) for records in ours.values()] == [EVALUATIONS] * 3
    same(ours, results)
    verified = sweeps("verify", folder)
    assert verified.code == 0, verified.out + verified.err
    assert changed in verified.out and "MISMATCH" not in verified.out


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


def test_eight_trials_of_one_group_go_on_together_when_their_worker_is_killed(
    start_sweeps, write, tmp_path: Path
) -> None:
    """What is trained is the same bit for bit, in passes of one row each. What is measured rounds
    otherwise where other trials are evaluated beside, as some are after the kill.
    """
    found, weights = [], []
    for name in ("undisturbed", "killed"):
        log = tmp_path / f"{name}.log"
        rates = ", ".join(f"0.00{number}" for number in range(1, 9))
        process = start_sweeps(
            log,
            "run",
            write(),
            f"storage={tmp_path}/{name}",
            "train.max_tokens=64",
            "cluster.trials_per_slot=8",
            "search.trials=8",
            f"search.space.learning_rate.choice=[{rates}]",
        )
        if name == "killed":
            half = f"{name}/*/trials/*/attempt-1/step-00000040"
            wait_for(lambda half=half: len([*tmp_path.glob(half)]) == 8, process, log)
            of_the_sweep(process.pid, "Slot").kill()
        assert process.wait() == 0, log.read_text()
        (folder,) = (tmp_path / name).iterdir()
        found.append(evaluations(folder))
        weights.append(weights_of(folder))
        again = [json.loads(path.read_text()) for path in folder.glob("trials/*/attempt-2/*.json")]
        assert len([*folder.glob("trials/*/attempt-3")]) == 0
        assert len(again) == (8 if name == "killed" else 0)
        assert all("/attempt-1/step-000000" in each["from"] for each in again), (
            "none from its start"
        )
    assert weights[0] == weights[1] and len(weights[0]) == 8
    undisturbed, killed = found
    assert [len(records) for records in killed.values()] == [EVALUATIONS] * 8
    for params, records in killed.items():
        np.testing.assert_allclose(records, undisturbed[params], rtol=1e-6)


def weights_of(folder: Path) -> dict[tuple[str, str], bytes]:
    """Of every checkpoint that is kept, by parameters and step."""
    return {
        (params, checkpoint.parents[1].name): checkpoint.read_bytes()
        for trial in (folder / "trials").iterdir()
        for params in [json.dumps(json.loads((trial / "trial.json").read_text())["params"])]
        for checkpoint in trial.glob("attempt-*/step-*/checkpoint/adapter_model.safetensors")
    }
