"""Whole sweeps whose storage is full, read-only or gone while they run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disks import fill, remount, small_disk
from tests.sweeps.run.failing import IN_ORDER, Running, evaluated, folder_of, results

SOON_S = 120.0  # in which a sweep that has given up must have ended, on a busy machine
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What a sweep comes to whose storage never fails; made once, by the first that asks."""
    return {}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where sweeps store, a disk of 64 MiB."""
    with small_disk(tmp_path / "runs", "64m"):
        yield tmp_path / "runs"


@pytest.fixture
def running(ray_tmp: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a sweep's process; kills what is left of them."""
    started: list[Running] = []

    def start(*arguments: object, wait_s: float | None = None) -> Running:
        log = tmp_path / f"log{len(started)}"
        started.append(Running(ray_tmp, log, *arguments, wait_s=wait_s))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def expected(undisturbed, sweeps, shakespeare, tmp_path: Path) -> dict[str, Any]:
    if not undisturbed:
        done = sweeps("run", shakespeare(IN_ORDER), f"storage={tmp_path}/undisturbed")
        assert done.code == 0, done.out + done.err
        undisturbed.update(results(sweeps("best", done.last_line, "--json").out))
    return undisturbed


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while(expected, disk, running, sweeps, shakespeare) -> None:
    sweep = running("run", shakespeare(IN_ORDER))
    folder = sweep.until(lambda: evaluated(disk, 3))
    filler = fill(disk)
    sweep.waits_for_storage()
    assert sweeps("resume", folder).code == 2  # it runs
    filler.unlink()
    assert sweep.end(600) == 0, sweep.log
    assert "Traceback" not in sweep.log and "No space left on device" in sweep.log, sweep.log
    assert "storage works again" in sweep.log, sweep.log
    assert results(sweeps("best", folder, "--json").out) == expected


@pytest.mark.long
@pytest.mark.parametrize("fails", ["full", "read-only"])
def test_a_disk_that_stays_as_it_is(fails, expected, disk, running, sweeps, shakespeare) -> None:
    sweep = running("run", shakespeare(IN_ORDER), wait_s=15.0)
    folder = sweep.until(lambda: evaluated(disk, 3))
    filler = fill(disk) if fails == "full" else None
    if filler is None:
        remount(disk, "ro")
    words = "Read-only file system" if filler is None else "No space left on device"
    sweep.told(words)
    assert sweep.end(15.0 + SOON_S) == 1, sweep.log
    log = sweep.log
    assert "Traceback" not in log and "failed" not in log, log
    assert f"python -m sweeps resume {folder}" in log.splitlines()[-1], log
    sweep.gone(SOON_S)
    if filler is None:
        remount(disk, "rw")
    else:
        filler.unlink()
    assert '"status": "interrupted"' in sweeps("best", folder, "--json").out
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    assert results(sweeps("best", folder, "--json").out) == expected


@pytest.mark.long
def test_the_sweeps_folder_is_deleted(disk, running, shakespeare) -> None:
    sweep = running("run", shakespeare(IN_ORDER))
    folder = sweep.until(lambda: evaluated(disk, 3))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    assert sweep.end(SOON_S) == 1, sweep.log
    assert "Traceback" not in sweep.log, sweep.log
    assert f"{folder}" in sweep.log.splitlines()[-1] and "is gone" in sweep.log.splitlines()[-1]
    assert not folder.exists() and folder_of(disk) is None
    sweep.gone(SOON_S)


@pytest.mark.parametrize("words", ["Read-only file system", "No space left on device"])
def test_a_disk_that_cannot_be_written_from_the_start(words, disk, sweeps, shakespeare) -> None:
    file = shakespeare(IN_ORDER)
    if words.startswith("Read"):
        remount(disk, "ro")
    else:
        fill(disk)
    for command in ("check", "run"):
        done = sweeps(command, file)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.out + done.err
        assert done.err.startswith("storage: cannot write to ") and words in done.err
