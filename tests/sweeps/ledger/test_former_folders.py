"""Folders that sweeps wrote before their settings had the names of today: they are read, and gone on with.

`former_interrupted.json` (a classifier's sweep, stopped after two of its four trials) and
`former_finished.json` (a language model's, with finalists) hold what such folders held, by file: JSON
as it was, text as its lines. Arrays and weights are left out.
"""

import json
import sys
from pathlib import Path

import pytest

from sweeps.__main__ import main
from sweeps.config.loading import with_own_space
from sweeps.ledger.opening import open_sweep
from sweeps.run.folder import amend
from sweeps.run.study_file import StudyFile
from sweeps.search.following import follow_space
from sweeps.search.study import open_study, trials_of
from trainables.evaluation.record import UntunedResults
from trainables.storage.checkpoints import CHECKPOINT, STATE, begin_attempt
from trainables.storage.store import Store

WEIGHTS = {
    "interrupted": ("t0001/attempt-1/step-00000030", "t0002/attempt-1/step-00000015"),
    "finished": tuple(f"t000{n}/attempt-1/step-00000010" for n in range(1, 7)),
}
GOES_ON = "trials/t0003/attempt-1/step-00000015"  # the last evaluation of a trial that was stopped


@pytest.fixture
def former(tmp_path):
    """Writes a recorded folder, an empty file in the place of each file of weights."""

    def write(name: str) -> str:
        store = Store(str(tmp_path / name))
        recorded = json.loads(Path(__file__).with_name(f"former_{name}.json").read_text())
        for file, content in recorded.items():
            if file.endswith(".json"):
                store.write_json(file, content)
            else:
                store.write_bytes(file, "".join(f"{line}\n" for line in content).encode())
        for folder in WEIGHTS[name]:
            store.write_bytes(f"trials/{folder}/{CHECKPOINT}/model.safetensors", b"")
        if name == "interrupted":
            store.write_bytes(f"{GOES_ON}/{CHECKPOINT}/adapter_model.safetensors", b"")
            store.write_bytes(f"{GOES_ON}/{STATE}", b"")
        return store.url

    return write


def best(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "argv", ["sweeps", "best", folder, "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    out, err = capsys.readouterr()
    assert not err
    return json.loads(out)


def test_best_of_one_that_was_interrupted(former, monkeypatch, capsys):
    board = best(monkeypatch, capsys, former("interrupted"))
    assert board["status"] == "interrupted" and board["winner"]["trial"] == "t0001"
    assert board["winner"]["val_loss"] == 1.010911259651184
    assert str(board["winner"]["slices"]["neutral"]["rows"]) == "43"  # rows are counted
    assert {trial["id"]: trial["status"] for trial in board["trials"]} == {
        "t0001": "complete",
        "t0002": "pruned",
        "t0003": "running",
        "t0004": "running",
    }
    assert board["baselines"]["untuned"]["val_loss"] == 1.1020760130882263
    assert board["baselines"]["prior"]["class"] == "neutral"


def test_best_of_one_that_has_ended(former, monkeypatch, capsys):
    folder = former("finished")
    board = best(monkeypatch, capsys, folder)
    winner = board["winner"]
    assert board["status"] == "finished" and winner["trial"] == "t0004"
    assert (winner["val_loss"], winner["forgetting"]) == (3.647289496991466, 0.3227348164515882)
    assert winner["expected"]["seeds"] == {"t0003": 3.672935732790714, "t0004": 3.647289496991466}
    assert board["test"]["scores"]["winner"]["loss"] == 3.685478456716899
    assert board["forgetting"]["after"] == 2.9336052709916194
    assert len(board["trials"]) == 6
    assert open_sweep(folder)[0].load().holds("t0004", 10)


def test_resume_takes_up_what_was_under_way(former):
    """The configuration is the one that it ran with, the study knows its trials at their points, and the trials go
    on from where they were."""
    ledger, config = open_sweep(former("interrupted"))
    ledger.load()
    assert config.cluster.trials_per_slot == 2
    assert ledger.untuned() == UntunedResults(
        val_loss=1.1020760130882263,
        probe_loss=1.099465375766158,
        metrics={"accuracy": 0.23, "macro_f1": 0.22506744137787923},
    )
    config = with_own_space(config)
    assert amend(ledger, config) == []
    study_file = StudyFile(ledger, Path(ledger.store.url))
    study = open_study(study_file.open(), ledger.name, config.search, config.seed)
    said: list[str] = []
    followed = follow_space(study, config, ledger, said.append)
    assert followed.study_name == study.study_name and not said
    assert dict(trials_of(followed)).keys() == {"t0001", "t0002", "t0003", "t0004"}
    assert ledger.unfinished() == ["t0003", "t0004"]
    assert begin_attempt(ledger.store, "t0003") == (2, GOES_ON)
    assert begin_attempt(ledger.store, "t0004") == (2, None)


def test_one_that_is_extended_is_written_in_the_words_of_today(former):
    ledger, config = open_sweep(former("interrupted"), ["cluster.trials_per_slot=4"])
    ledger.load()
    assert amend(ledger, with_own_space(config)) == ["Changed: cluster.trials_per_slot: 2 to 4"]
    assert ledger.store.find("configurations")[-1] == "configurations/002.yaml"
    again, config = open_sweep(ledger.store.url)
    assert amend(again.load(), with_own_space(config)) == []
