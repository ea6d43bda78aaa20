"""A hundred trials that end at the same moment: none is lost, none runs twice, and all is written. What slots train is a formula."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.search.study import DUPLICATE_OF, STUDY, TRIAL
from tests.standing_in import DISK_S, ON_BOARD, write_sweep
from tests.sweeps.conftest import ROOT, environment
from tests.sweeps.run.failing import folder_of

SLOTS, SHARE = 13, 8
TRIALS = SLOTS * SHARE  # all at once
EPOCHS = 2
ONE_END = f"""
  sampler: random
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  initial: [{{epochs: {EPOCHS}}}]
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("disk_s", [0.0, pytest.param(0.05, marks=pytest.mark.long)])
def test_a_hundred_trials_end_at_once(disk_s, ray_tmp, tmp_path):
    """On a usual disk, and on a slow one. No trial is evaluated before all have come to a slot."""
    file = write_sweep(tmp_path, TRIALS, slots=SLOTS, share=SHARE, more=ONE_END)
    log = tmp_path / "log"
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", "from tests.standing_in import main; main()", "run", str(file)],
            cwd=ROOT,
            env={**environment(ray_tmp), ON_BOARD: str(TRIALS), DISK_S: str(disk_s)},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode == 0, log.read_text()
    folder = folder_of(tmp_path / "runs")
    assert folder is not None
    names = [f"t{number:04d}" for number in range(1, TRIALS + 1)]
    trials = [folder / "trials" / name for name in names]
    assert sorted((folder / "trials").iterdir()) == trials
    began = [read(trial / "trial.json")["started"] for trial in trials]
    ended = [read(trial / "outcome.json") for trial in trials]
    assert {each["status"] for each in ended} == {"complete"}
    assert max(began) < min(each["ended"] for each in ended), "they were on board at once"

    for trial in trials:  # each was evaluated once an epoch, also where it went to an idle slot
        found = [read(each) for each in trial.glob("attempt-*/*/evaluation.json")]
        found.sort(key=lambda each: each["step"])
        epochs = read(trial / "trial.json")["params"]["epochs"]
        assert [each["epoch"] for each in found] == [1.0 + k for k in range(epochs)], trial
        assert [each["finished"] for each in found] == [False] * (epochs - 1) + [True]
    told = Counter(line.split("] ")[1].split()[0] for line in lines_of(log, " complete"))
    assert told == Counter(names)

    storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    study = optuna.load_study(study_name=None, storage=storage)
    noted = [each for each in study.trials if DUPLICATE_OF not in each.user_attrs]
    assert sorted(each.user_attrs[TRIAL] for each in noted) == names
    assert {each.state for each in noted} == {optuna.trial.TrialState.COMPLETE}
    assert read(folder / "status.json")["status"] == "finished"


def lines_of(log: Path, words: str) -> list[str]:
    """Events that say so."""
    return [line for line in log.read_text().splitlines() if line.startswith("[") and words in line]
