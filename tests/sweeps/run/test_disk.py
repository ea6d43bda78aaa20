"""The storage budget: which checkpoints go, which never do, and when no trial starts any more."""

import pytest
from omegaconf import OmegaConf

from sweeps.config.loading import from_tree
from sweeps.ledger.folder import Ledger
from sweeps.run.disk import Disk
from trainables.errors import InputError
from trainables.storage.checkpoints import CHECKPOINT, EVALUATION, read_evaluation

MB = 1_000_000


def configured(budget=None, **more):
    tree = {
        "name": "quick",
        "task": "causal_lm",
        "model": {"name": "tiny"},
        "data": {"train": "rows.txt"},
        "storage_budget": budget,
        "search": {"space": {"method": "lora", "learning_rate": 1e-3, "batch_size": 2}},
        "train": {"epochs": 2},
        "generation": {"candidates": 1},
    }
    return from_tree(OmegaConf.create(tree | more), (), "sweep.yaml")


def run(ledger, trial, loss, *, size=10 * MB, ended=True, **more):
    ledger.begin(trial, {"method": "lora", "learning_rate": loss / 1000, "batch_size": 2}, **more)
    folder = f"trials/{trial}/attempt-1/step-00000010"
    evaluation = {
        "step": 10,
        "samples_seen": 20,
        "epoch": 2.0,
        "val_loss": loss,
        "probe_loss": loss,
        "metrics": {},
        "trainable_parameters": 1,
        "checkpoint_bytes": size,
        "folder": folder,
    }
    ledger.store.write_bytes(f"{folder}/{CHECKPOINT}/adapter_model.safetensors", b"")
    ledger.store.write_json(f"{folder}/{EVALUATION}", evaluation)
    ledger.record(trial, read_evaluation(ledger.store, folder))
    if ended:
        ledger.finish(trial, "complete", None)


@pytest.fixture
def ledger(tmp_path):
    """The default and a trial that runs are the worst, the third the best."""
    found = Ledger(str(tmp_path / "quick"))
    run(found, "t0001", 9.0, default=True)
    for number, loss in ((2, 3.0), (3, 1.0), (4, 2.0), (5, 4.0)):
        run(found, f"t000{number}", loss)
    run(found, "t0006", 9.5, ended=False)
    return found


def kept(ledger):
    """As a process finds it that reads the folder anew."""
    return {
        curve.id
        for curve in Ledger(ledger.store.url).load().curves()
        if any(point.checkpoint for point in curve.points)
    }


@pytest.mark.parametrize(
    ("budget", "left", "full"),
    [
        (None, {1, 2, 3, 4, 5, 6}, False),
        ("60MB", {1, 2, 3, 4, 5, 6}, False),
        ("55MB", {1, 2, 3, 4, 6}, False),
        ("0.04GB", {1, 3, 4, 6}, False),
        ("30MB", {1, 3, 6}, False),
        ("29MB", {1, 3, 6}, True),
    ],
)
def test_the_worst_go_and_what_best_names_stays(ledger, budget, left, full):
    said = []
    config = configured(budget)
    before, _ = ledger.select(config.selection)
    disk = Disk(config, ledger, said.append)
    for _ in range(2):
        disk.keep_to_the_budget()
    assert kept(ledger) == {f"t000{number}" for number in left}
    assert disk.full is full
    assert sum("no new trial starts" in line for line in said) == full
    after, _ = ledger.select(config.selection)
    assert before is not None and after is not None and after.trial == before.trial == "t0003"
    assert all(curve.points for curve in ledger.curves()), "evaluations stay"


def test_finalists_their_new_seeds_and_those_to_be_asked_stay(ledger):
    run(ledger, "t0007", 8.0, finalist_of="t0003")
    selection = {"finalists": {"top": 2, "seeds": 1}}
    config = configured("1MB", selection=selection, generation={"candidates": 3})
    Disk(config, ledger, print).keep_to_the_budget()
    # t0004 is the second finalist, t0002 the third whose answers may be asked for
    assert kept(ledger) == {"t0001", "t0002", "t0003", "t0004", "t0006", "t0007"}


def test_there_is_room_again_with_a_larger_budget_or_a_trial_that_ends(ledger):
    disk = Disk(configured("29MB"), ledger, print)
    disk.keep_to_the_budget()
    assert disk.full
    ledger.finish("t0006", "pruned", "behind the others")
    disk.keep_to_the_budget()
    assert not disk.full and kept(ledger) == {"t0001", "t0003"}


def test_a_trial_at_a_time_comes_to_the_same(ledger, monkeypatch):
    """Only the trial that is named is looked at."""
    disk = Disk(configured("60MB"), ledger, print)
    disk.keep_to_the_budget()
    for number, loss in ((7, 3.5), (8, 0.5)):
        run(ledger, f"t000{number}", loss)
        with monkeypatch.context() as patch:
            if number == 8:  # with room for it
                disk._config = configured("70MB")
                patch.setattr(Ledger, "curves", lambda _: pytest.fail("all trials"))
            disk.keep_to_the_budget(f"t000{number}")
    # t0005 went for t0007; the default and the one that runs stay
    assert kept(ledger) == {"t0001", "t0002", "t0003", "t0004", "t0006", "t0007", "t0008"}
    disk._config = configured("60MB")
    disk.keep_to_the_budget("t0008")
    assert kept(ledger) == {"t0001", "t0002", "t0003", "t0004", "t0006", "t0008"}


@pytest.mark.parametrize("budget", ["50", "0GB", "50 GiB", "much"])
def test_a_budget_that_is_none(budget):
    with pytest.raises(
        InputError, match="storage_budget: must be a number with MB, GB or TB, such"
    ):
        configured(budget)
