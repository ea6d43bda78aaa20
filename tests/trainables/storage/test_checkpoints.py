"""Attempts, and evaluations that appear together with their checkpoints."""

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from trainables.evaluation.record import Evaluation, MeasuredEvaluation, Position, read_position
from trainables.storage.checkpoints import (
    CHECKPOINT,
    EVALUATION,
    LOSSES,
    OUTCOMES,
    STATE,
    begin_attempt,
    delete_pauses,
    evaluation_folders,
    is_pause,
    read_evaluation,
    read_evaluations,
    write_evaluation,
    write_pause,
    write_rows,
)
from trainables.storage.records import finite_or_none, from_json
from trainables.storage.store import Store

EXAMPLE = MeasuredEvaluation(
    step=5,
    samples_seen=20,
    epoch=1.0,
    val_loss=0.5,
    probe_loss=0.4,
    train_loss=0.45,
    learning_rate=1e-3,
    metrics={"accuracy": 0.75},
    trainable_parameters=10,
    finished=False,
    majority_share=0.5,
    slices={"de": {"rows": 2, "loss": 0.5, "accuracy": 0.75}},
    forgetting=0.25,
    kl=0.125,
    inference_cost=1.0,
    losses=np.array([[0.25, 1.0], [0.75, 1.0]], dtype=np.float32),
)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path / "sweep"))
        return
    yield Store(f"memory://{tmp_path.name}/sweep")
    fsspec.filesystem("memory").store.clear()


def write(store, attempt, step, *, finished=False, state=True, trial="t0001"):
    def save(folder: Path) -> None:
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "weights").write_text(f"{attempt} {step}")
        if state and not finished:
            (folder / STATE).write_text("moments")

    return write_evaluation(
        store, trial, attempt, replace(EXAMPLE, step=step, finished=finished), save
    )


def test_outcomes_lie_beside_the_losses_where_there_are_any(store):
    answers = np.array([[0, 1], [1, 1]], dtype=np.int32)

    def save(folder: Path) -> None:
        (folder / CHECKPOINT).mkdir()

    begin_attempt(store, "t0001")
    record = write_evaluation(store, "t0001", 1, replace(EXAMPLE, outcomes=answers), save)
    written = store.read_json(f"{record.folder}/{EVALUATION}")
    assert "outcomes" not in written and "losses" not in written
    read = np.load(io.BytesIO(store.read_bytes(f"{record.folder}/{OUTCOMES}")))
    assert np.array_equal(read, answers) and read.dtype == np.int32
    write_rows(store, "baselines/test/winner", EXAMPLE.losses, answers)
    write_rows(store, "baselines/test/untuned", EXAMPLE.losses)
    names = ["untuned.npy", "winner.npy", "winner.outcomes.npy"]
    assert sorted(store.find("baselines")) == [f"baselines/test/{name}" for name in names]


def folders(store, trial="t0001"):
    """(attempt, step) of the evaluations that count."""
    found = evaluation_folders(store, trial, store.find(f"trials/{trial}"))
    parts = [folder.split("/") for folder in found]
    assert all(part[:2] == ["trials", trial] for part in parts)
    return [
        (int(part[2].removeprefix("attempt-")), int(part[3].removeprefix("step-")))
        for part in parts
    ]


def folder_of(attempt, step, trial="t0001"):
    return f"trials/{trial}/attempt-{attempt}/step-{step:08d}"


def test_an_evaluation_is_where_it_was_found_whatever_it_says(store):
    """What cannot win is deleted by its folder."""
    begin_attempt(store, "t0001")
    record = write(store, 1, 5)
    written = store.read_json(f"{record.folder}/{EVALUATION}")
    store.write_json(f"{record.folder}/{EVALUATION}", written | {"folder": "../../other"})
    found = read_evaluation(store, record.folder)
    assert found.folder == record.folder and "other" not in str(found.checkpoint)


def test_an_evaluation_is_all_that_its_folder_holds(store, tmp_path):
    begin_attempt(store, "t0001")
    record = write(store, 1, 5)
    assert record.folder == folder_of(1, 5)
    assert store.find(record.folder) == sorted(
        f"{record.folder}/{name}" for name in (f"{CHECKPOINT}/weights", EVALUATION, LOSSES, STATE)
    )
    written = store.read_json(f"{record.folder}/{EVALUATION}")
    assert from_json(Evaluation, written, "") == record
    assert written == {
        "step": 5,
        "samples_seen": 20,
        "epoch": 1.0,
        "val_loss": 0.5,
        "probe_loss": 0.4,
        "train_loss": 0.45,
        "learning_rate": 1e-3,
        "metrics": {"accuracy": 0.75},
        "trainable_parameters": 10,
        "finished": False,
        "majority_share": 0.5,
        "slices": {"de": {"rows": 2, "loss": 0.5, "accuracy": 0.75}},
        "forgetting": 0.25,
        "kl": 0.125,
        "inference_cost": 1.0,
        "base_cost": 1.0,
        "attempt": 1,
        "checkpoint_bytes": 3,  # on disk, whatever of it is trained
        "folder": folder_of(1, 5),
        "files": {f"{CHECKPOINT}/weights": 3, STATE: 7},
    }
    losses = np.load(store.fetch(record.folder, tmp_path / "fetched") / LOSSES)
    assert np.array_equal(losses, EXAMPLE.losses) and losses.dtype == np.float32


def test_numbers_that_are_none_become_null(store):
    begin_attempt(store, "t")
    wild = replace(
        EXAMPLE,
        val_loss=math.nan,
        train_loss=math.inf,
        metrics={"perplexity": math.inf, "accuracy": 0.5},
    )
    record = write_evaluation(store, "t", 1, wild, lambda folder: None)
    assert (record.val_loss, record.train_loss) == (None, None)
    assert record.metrics == {"perplexity": None, "accuracy": 0.5}
    written = json.loads(store.read_bytes(f"{record.folder}/{EVALUATION}"))
    assert from_json(Evaluation, written, "") == record


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (math.nan, None),
        (-math.inf, None),
        (np.float64("nan"), None),
        (3, 3),
        ("nan", "nan"),
        (None, None),
        ({"a": {"b": math.nan, "c": 1.0}}, {"a": {"b": None, "c": 1.0}}),
    ],
)
def test_finite_or_none(value, expected):
    assert finite_or_none(value) == expected


def test_a_save_that_breaks_leaves_nothing_that_counts(store):
    begin_attempt(store, "t0001")

    def broken(folder: Path) -> None:
        (folder / CHECKPOINT).mkdir()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_evaluation(store, "t0001", 1, EXAMPLE, broken)
    assert folders(store) == []
    assert store.find() == ["trials/t0001/attempt-1/attempt.json"]
    if store.local:
        assert not list(store.local.glob(".partial-*")), (
            "a half-written model must not fill the disk"
        )


def test_a_folder_without_its_evaluation_does_not_exist(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    store.write_bytes(f"{folder_of(1, 10)}/{CHECKPOINT}/weights", b"half an upload")
    store.write_bytes(f"{folder_of(1, 10)}/{STATE}", b"half an upload")
    assert folders(store) == [(1, 5)]
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 5))


def test_a_first_attempt_begins_at_the_start(store):
    assert begin_attempt(store, "t0001") == (1, None)
    assert store.read_json("trials/t0001/attempt-1/attempt.json") == {"from": None}
    assert folders(store) == []


def test_the_next_attempt_goes_on_from_the_last_evaluation(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10)
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 10))
    assert store.read_json("trials/t0001/attempt-2/attempt.json") == {"from": folder_of(1, 10)}
    write(store, 2, 15)
    assert folders(store) == [(1, 5), (1, 10), (2, 15)]
    assert begin_attempt(store, "t0001") == (3, folder_of(2, 15))


def test_an_attempt_that_wrote_nothing_still_counts_as_a_number(store):
    assert [begin_attempt(store, "t0001") for _ in range(3)] == [(1, None), (2, None), (3, None)]
    write(store, 3, 5)
    assert begin_attempt(store, "t0001") == (4, folder_of(3, 5))


def test_what_a_cut_off_attempt_writes_later_is_void(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    begin_attempt(store, "t0001")
    write(store, 1, 10)  # the first host still runs
    assert folders(store) == [(1, 5)]
    write(store, 2, 10)
    write(store, 1, 15)
    assert folders(store) == [(1, 5), (2, 10)]
    assert begin_attempt(store, "t0001") == (3, folder_of(2, 10))
    write(store, 1, 20, finished=True)
    write(store, 2, 15)
    write(store, 3, 15)
    assert folders(store) == [(1, 5), (2, 10), (3, 15)]


def test_an_attempt_from_the_start_voids_all_before(store):
    begin_attempt(store, "t0001")
    begin_attempt(store, "t0001")  # nothing was saved yet
    write(store, 1, 5)
    assert folders(store) == []
    write(store, 2, 5)
    assert folders(store) == [(2, 5)]


def test_a_long_chain_of_cuts(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10)
    begin_attempt(store, "t0001")  # from 1, 10
    write(store, 2, 15)
    begin_attempt(store, "t0001")  # from 2, 15
    write(store, 1, 15)
    write(store, 2, 20)
    begin_attempt(store, "t0001")  # from 2, 15 too: the third has written nothing
    write(store, 3, 20)
    write(store, 4, 20)
    assert store.read_json("trials/t0001/attempt-4/attempt.json") == {"from": folder_of(2, 15)}
    assert folders(store) == [(1, 5), (1, 10), (2, 15), (4, 20)]


def test_only_evaluations_with_their_state_are_resumed(store):
    """Old states may be deleted to save space; the evaluations still count."""
    begin_attempt(store, "t0001")
    for step in (5, 10, 15):
        write(store, 1, step)
    for step in (10, 15):
        store.delete(f"{folder_of(1, step)}/{STATE}")
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 5))
    assert folders(store) == [(1, 5)], "what is trained again is not counted twice"


def test_a_finished_trial_is_resumed_at_its_end(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10, finished=True)
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 10))


def test_steps_are_ordered_as_numbers_and_trials_do_not_mix(store):
    for trial in ("t0001", "t00010"):
        begin_attempt(store, trial)
    for step in (100_000_000, 9, 10):
        write(store, 1, step)
    write(store, 1, 7, trial="t00010")
    assert folders(store) == [(1, 9), (1, 10), (1, 100_000_000)]
    assert folders(store, "t00010") == [(1, 7)]


def test_ten_attempts_are_ordered_as_numbers(store):
    for attempt in range(1, 12):
        assert begin_attempt(store, "t0001")[0] == attempt
        write(store, attempt, 5 * attempt)
    assert folders(store) == [(attempt, 5 * attempt) for attempt in range(1, 12)]


def sizes(store, trial="t0001"):
    return {name: seen.size for name, seen in store.stamps(f"trials/{trial}").items()}


CUT_SHORT = {
    "weights": lambda store: store.write_bytes(f"{folder_of(1, 10)}/{CHECKPOINT}/weights", b"1"),
    "state": lambda store: store.write_bytes(f"{folder_of(1, 10)}/{STATE}", b""),
    "no weights": lambda store: store.delete(f"{folder_of(1, 10)}/{CHECKPOINT}/weights"),
    "no state": lambda store: store.delete(f"{folder_of(1, 10)}/{STATE}"),
    "evaluation": lambda store: store.write_bytes(f"{folder_of(1, 10)}/{EVALUATION}", b'{"step"'),
    "nothing of it": lambda store: store.write_bytes(f"{folder_of(1, 10)}/{EVALUATION}", b""),
}


@pytest.mark.parametrize("cut", CUT_SHORT)
def test_a_trial_goes_on_from_the_checkpoint_before_one_that_is_cut_short(store, cut):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10)
    CUT_SHORT[cut](store)
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 5))
    write(store, 2, 10)
    read = read_evaluations(store, "t0001", sizes(store))
    assert [(each.attempt, each.step) for each in read] == [(1, 5), (2, 10)]
    assert all(each.checkpoint is not None for each in read)


@pytest.mark.parametrize("cut", ["weights", "no weights", "evaluation", "nothing of it"])
def test_a_checkpoint_that_is_cut_short_is_none(store, cut):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10)
    CUT_SHORT[cut](store)
    read = read_evaluations(store, "t0001", sizes(store))
    assert [each.step for each in read if each.checkpoint is not None] == [5]


def test_a_last_checkpoint_that_is_cut_short_is_trained_again(store):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    write(store, 1, 10, finished=True)
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 10))
    store.write_bytes(f"{folder_of(1, 10)}/{CHECKPOINT}/weights", b"1")
    assert begin_attempt(store, "t0001") == (3, folder_of(1, 5))


def test_what_a_killed_writer_has_left_is_no_evaluation(store, monkeypatch):
    """Between any two files."""
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    put, written = Store._put, []

    def killed(self, local, name):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        put(self, local, name)

    monkeypatch.setattr(Store, "_put", killed)
    monkeypatch.setattr("os.rename", lambda *paths: killed(store, *paths))
    written += [] if store.local is None else ["", ""]
    with pytest.raises(KeyboardInterrupt):
        write(store, 1, 10)
    monkeypatch.undo()
    assert folders(store) == [(1, 5)]
    assert begin_attempt(store, "t0001") == (2, folder_of(1, 5))


def test_attempts_that_begin_at_once_have_numbers_of_their_own(store):
    with ThreadPoolExecutor(8) as pool:
        begun = [*pool.map(lambda _: begin_attempt(store, "t0001")[0], range(8))]
    assert sorted(begun) == [*range(1, 9)]


# --- pauses ---


def pause(store, attempt, step, trial="t0001"):
    def save(folder: Path) -> None:
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "weights").write_text(f"{attempt} {step}")
        (folder / STATE).write_text("moments")

    position = Position(step=step, train_nll=0.1 + 0.2, train_targets=7)
    write_pause(store, trial, attempt, position, save)
    return f"trials/{trial}/attempt-{attempt}/paused/step-{step:08d}"


def test_a_trial_goes_on_from_its_pause_until_it_is_evaluated(store, tmp_path):
    begin_attempt(store, "t0001")
    write(store, 1, 5)
    folder = pause(store, 1, 8)
    assert begin_attempt(store, "t0001") == (2, folder) and is_pause(folder)
    found = read_position(store.fetch(folder, tmp_path / "fetched"))
    assert found == Position(step=8, train_nll=0.1 + 0.2, train_targets=7)
    assert begin_attempt(store, "t0001") == (3, folder), "killed before it came to an evaluation"
    names = store.find("trials/t0001")
    assert [each[-1] for each in evaluation_folders(store, "t0001", names)] == ["5"]
    evaluated = write(store, 3, 10)
    delete_pauses(store, "t0001")
    assert begin_attempt(store, "t0001") == (4, evaluated.folder)
    names = store.find("trials/t0001")
    assert not [name for name in names if "paused" in name]
    assert [each[-2:] for each in evaluation_folders(store, "t0001", names)] == ["05", "10"]


def test_a_pause_that_is_not_whole_or_is_overtaken_is_none(store):
    begin_attempt(store, "t0001")
    evaluated = write(store, 1, 5)
    folder = pause(store, 1, 8)
    state = store.read_bytes(f"{folder}/{STATE}")
    store.write_bytes(f"{folder}/{STATE}", state[:2])
    assert begin_attempt(store, "t0001") == (2, evaluated.folder)
    store.write_bytes(f"{folder}/{STATE}", state)
    assert begin_attempt(store, "t0001") == (3, evaluated.folder), "attempt 2 began before it"


def test_where_an_evaluated_trial_is(store, tmp_path):
    begin_attempt(store, "t0001")
    record = write(store, 1, 5)
    assert read_position(store.fetch(record.folder, tmp_path / "fetched")) == Position(step=5)
