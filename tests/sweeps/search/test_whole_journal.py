"""The study's journal on a disk that fails: a record is there whole or not at all."""

import json
import shutil
import threading
import time

import pytest

from sweeps.config.schema import SearchConfig
from sweeps.search.study import STUDY, open_study
from tests.disks import fill, remount, small_disk
from trainables.storage.patience import Patience, StorageLost, StorageTaken
from trainables.storage.store import Store

CONFIG = SearchConfig(sampler="random", trials=2)
LARGE = "x" * 6000  # more than the page of a disk


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m"):
        (tmp_path / "disk" / "s").mkdir()
        (tmp_path / "disk" / "s" / "sweep.yaml").touch()
        yield tmp_path / "disk"


def opened(disk, waits, wait_s):
    store = Store(str(disk / "s"))
    store.insist(Patience(waits.append, wait_s=wait_s), marker="sweep.yaml")
    return open_study(disk / "s" / STUDY, "s", CONFIG, 0, again=store.again)


def told(study, number):
    study.ask().set_user_attr("note", LARGE + str(number))


def whole(disk):
    """Every line of the journal."""
    text = (disk / "s" / STUDY).read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("left", [0, 4096])
def test_a_full_disk_leaves_no_half_record(disk, left):
    waits = []
    study = opened(disk, waits, 60.0)
    told(study, 1)
    filler = fill(disk)
    with filler.open("rb+") as stream:
        stream.truncate(max(0, filler.stat().st_size - left))  # room for a part
    before = whole(disk)
    thread = threading.Thread(target=told, args=(study, 2))
    thread.start()
    while not waits:
        time.sleep(0.01)
    assert "No space left on device" in waits[0] and whole(disk)[: len(before)] == before
    filler.unlink()
    thread.join()
    assert [t.user_attrs["note"][-1] for t in opened(disk, waits, 1.0).trials] == ["1", "2"]
    assert whole(disk) and waits[-1] is None


def test_a_disk_that_stays_read_only(disk):
    waits = []
    study = opened(disk, waits, 0.5)
    told(study, 1)
    remount(disk, "ro")
    with pytest.raises(StorageLost, match="Read-only file system"):
        told(study, 2)
    remount(disk, "rw")
    assert len(opened(disk, waits, 1.0).trials) == 1


def test_a_journal_whose_folder_is_gone_is_not_begun_anew(disk):
    study = opened(disk, [], 60.0)
    told(study, 1)
    shutil.rmtree(disk / "s")
    with pytest.raises(StorageTaken):
        told(study, 2)
    assert not [*disk.iterdir()]
