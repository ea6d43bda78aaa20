"""Storage that fails for a while, for ever, or because the folder is gone."""

import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.disks import fill, remount, small_disk
from trainables.evaluation.record import MeasuredEvaluation
from trainables.storage.checkpoints import (
    CHECKPOINT,
    EVALUATION,
    LOSSES,
    STATE,
    begin_attempt,
    write_evaluation,
)
from trainables.storage.patience import Patience, StorageLost, StorageTaken, of_disk
from trainables.storage.store import Store

LONG_S, SHORT_S = 60.0, 0.5
EXAMPLE = MeasuredEvaluation(
    step=5,
    samples_seen=20,
    epoch=1.0,
    val_loss=0.5,
    probe_loss=0.4,
    losses=np.ones((4, 2), np.float32),
)
MODEL = {"weight": torch.ones(2**18)}


class Told:
    """What a patience tells."""

    def __init__(self, wait_s):
        self.waits, self.lost = [], []
        self.patience = Patience(self.waits.append, self.lost.append, wait_s)

    def waiting(self):
        while not self.waits:
            time.sleep(0.01)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "4m"):
        yield tmp_path / "disk"


def of(disk, told):
    """A sweep's folder on the disk."""
    (disk / "sweep").mkdir()
    (disk / "sweep" / "sweep.yaml").touch()
    store = Store(str(disk / "sweep"))
    store.insist(told.patience, marker="sweep.yaml")
    return store


def save(folder):
    (folder / CHECKPOINT).mkdir()
    save_file(MODEL, folder / CHECKPOINT / "weights.safetensors")
    save_file(MODEL, folder / STATE)


def test_a_checkpoint_is_written_whole_as_soon_as_there_is_room(disk):
    told = Told(LONG_S)
    store = of(disk, told)
    assert begin_attempt(store, "t") == (1, None)
    filler, written = fill(disk), []
    thread = threading.Thread(
        target=lambda: written.append(write_evaluation(store, "t", 1, EXAMPLE, save))
    )
    thread.start()
    told.waiting()
    time.sleep(1.0)
    assert store.once().find("trials") == ["trials/t/attempt-1/attempt.json"] and not written
    filler.unlink()
    thread.join()
    names = (f"{CHECKPOINT}/weights.safetensors", EVALUATION, LOSSES, STATE)
    assert store.find(written[0].folder) == sorted(f"{written[0].folder}/{n}" for n in names)
    assert not [*(disk / "sweep").glob(".*")], "no part stays"
    assert len(told.waits) == 2 and "No space left on device" in told.waits[0]
    assert str(disk) in told.waits[0] and told.waits[1] is None and not told.lost


def test_what_takes_part_of_the_room_is_taken_back(disk):
    """The first file fits, the second does not."""
    told = Told(LONG_S)
    store = of(disk, told)
    filler = disk / "filler"
    filler.write_bytes(b"x" * (3 * 2**20 - 2**19))
    thread = threading.Thread(target=write_evaluation, args=(store, "t", 1, EXAMPLE, save))
    thread.start()
    told.waiting()
    filler.unlink()
    thread.join()
    assert store.exists(f"trials/t/attempt-1/step-{5:08d}/{EVALUATION}")
    assert not [*(disk / "sweep").glob(".*")]


def test_what_never_works_is_given_up_for_all(disk):
    told = Told(SHORT_S)
    store = of(disk, told)
    remount(disk, "ro")
    with pytest.raises(StorageLost, match=r"disk/sweep: Read-only file system, for \d+ s$"):
        write_evaluation(store, "t", 1, EXAMPLE, save)
    assert len(told.lost) == 1 and len(told.waits) == 1
    remount(disk, "rw")
    for act in (lambda: store.write_bytes("a", b""), lambda: store.read_bytes("sweep.yaml")):
        with pytest.raises(StorageLost):
            act()
    store.once().write_bytes("status.json", b"{}")  # where it works, the end is told
    assert store.once().read_bytes("status.json") == b"{}"


def test_who_must_end_waits_no_longer(disk):
    told = Told(LONG_S)
    store = of(disk, told)
    remount(disk, "ro")
    threading.Timer(0.5, told.patience.hurry).start()
    began = time.monotonic()
    with pytest.raises(StorageLost):
        store.write_bytes("a", b"")
    assert time.monotonic() - began < LONG_S / 2


WRITES = {
    "a file": lambda store: store.write_bytes("deep/er/a", b"1"),
    "a new file": lambda store: store.create("deep/a", b"1"),
    "scratch": lambda store: store.scratch(),
    "an attempt": lambda store: begin_attempt(store, "t"),
    "a checkpoint": lambda store: write_evaluation(store, "t", 1, EXAMPLE, save),
    "once": lambda store: store.once().write_bytes("a", b"1"),
    "reading": lambda store: store.read_bytes("a"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("left", [(), ("trials",)])
def test_a_folder_that_was_deleted_is_not_made_again(tmp_path, write, left):
    told = Told(LONG_S)
    store = of(tmp_path, told)
    shutil.rmtree(tmp_path / "sweep")
    for name in left:
        (tmp_path / "sweep" / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageTaken, match=r"/sweep: the sweep's folder is gone$"):
        WRITES[write](store)
    assert sorted(tmp_path.rglob("*")) == before and not told.waits
    with pytest.raises(StorageTaken):
        store.once().write_bytes("status.json", b"{}")


def test_a_folder_that_is_deleted_under_a_writer(tmp_path, monkeypatch):
    """After it was looked for."""
    told = Told(LONG_S)
    store = of(tmp_path, told)
    there = store._with_parents

    def deleted(name):
        shutil.rmtree(tmp_path / "sweep")
        return there(name)

    monkeypatch.setattr(store, "_with_parents", deleted)
    with pytest.raises(StorageTaken):
        store.write_bytes("deep/a", b"1")
    assert not (tmp_path / "sweep").exists()


def test_a_file_system_that_is_not_mounted_for_a_while_is_waited_for(tmp_path):
    told = Told(LONG_S)
    (tmp_path / "mounted").mkdir()
    store = of(tmp_path / "mounted", told)
    os.rename(tmp_path / "mounted", tmp_path / "away")

    def back():
        told.waiting()
        os.rename(tmp_path / "away", tmp_path / "mounted")

    thread = threading.Thread(target=back)
    thread.start()
    store.write_bytes("a", b"1")
    thread.join()
    assert store.read_bytes("a") == b"1" and len(told.waits) == 2


def test_what_is_not_there_is_not_waited_for(tmp_path):
    told = Told(LONG_S)
    store = of(tmp_path, told)
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")
    assert not store.create("sweep.yaml", b"") and not told.waits


def test_errors_of_a_disk_are_known_whoever_raises_them(disk):
    fill(disk)
    with pytest.raises(SafetensorError) as raised:
        save_file(MODEL, disk / "a")
    assert of_disk(raised.value).strerror == "No space left on device"
    with pytest.raises(RuntimeError) as raised:
        torch.save(MODEL, disk / "b")
    assert of_disk(raised.value) is not None
    assert of_disk(ValueError("rank")) is None


def test_an_object_store_that_fails_is_tried_again(monkeypatch):
    told, calls = Told(LONG_S), []
    store = Store("memory://patience/sweep")
    store.insist(told.patience, marker="sweep.yaml")
    write = type(store._fs).pipe_file

    def refuses(self, *given, **named):
        calls.append(given)
        if len(calls) < 3:
            raise RuntimeError("SlowDown")  # no OSError, as of many libraries
        return write(self, *given, **named)

    monkeypatch.setattr(type(store._fs), "pipe_file", refuses)
    store.write_bytes("a", b"1")
    assert store.read_bytes("a") == b"1" and len(calls) == 3
    assert told.waits == ["memory://patience/sweep: RuntimeError: SlowDown", None]
    store._fs.store.clear()


def test_several_that_wait_are_told_once(disk):
    told = Told(LONG_S)
    store = of(disk, told)
    remount(disk, "ro")
    threads = [
        threading.Thread(target=store.write_bytes, args=(f"a{number}", b"1")) for number in range(4)
    ]
    for each in threads:
        each.start()
    time.sleep(1.0)
    remount(disk, "rw")
    for each in threads:
        each.join()
    assert len(told.waits) == 2 and store.find() == ["a0", "a1", "a2", "a3", "sweep.yaml"]
