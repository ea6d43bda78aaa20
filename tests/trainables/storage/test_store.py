"""Local folders and object stores behave alike; what is published is there whole or not at all."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE

import fsspec
import pytest

from trainables.storage.store import Store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path / "sweep"))
        return
    yield Store(f"memory://{tmp_path.name}/sweep")
    fsspec.filesystem("memory").store.clear()


def prepared(store: Store, **files: str) -> Path:
    folder = store.scratch()
    for name, content in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


def test_written_is_read(store):
    assert store.find() == [] and not store.exists("a.json")
    store.write_json("deep/er/a.json", {"x": [1, None, "é"]})
    store.write_bytes("b", b"\x00\xff")
    assert store.read_json("deep/er/a.json") == {"x": [1, None, "é"]}
    assert store.read_bytes("b") == b"\x00\xff"
    assert (
        store.exists("b")
        and store.exists("deep/er/a.json")
        and store.exists("deep/er")
        and not store.exists("c")
    )
    store.write_bytes("b", b"again")
    assert store.read_bytes("b") == b"again"
    assert store.find() == ["b", "deep/er/a.json"], "no temporary file stays"
    assert store.size() == sum(len(store.read_bytes(name)) for name in store.find())


def test_what_changes_in_a_working_copy_is_written_back(store, tmp_path, monkeypatch):
    store.publish(prepared(store, a="1", b__c="2"), "kept", last="")
    written = []
    put = type(store._fs).put_file
    monkeypatch.setattr(
        type(store._fs), "put_file", lambda *given: written.append(given[2]) or put(*given)
    )
    with store.working_copy("kept", tmp_path / "scratch") as folder:
        assert (folder / "a").read_text() == "1" and (folder / "b" / "c").read_text() == "2"
        (folder / "b" / "c").write_text("3")
        (folder / "new").write_text("4")
    assert [store.read_bytes(f"kept/{name}") for name in ("a", "b/c", "new")] == [b"1", b"3", b"4"]
    assert [name.rpartition("kept/")[2] for name in written] == (
        [] if store.local else ["b/c", "new"]
    )
    with store.working_copy("none", tmp_path / "scratch") as folder:
        assert not folder.exists()
    assert not store.exists("none")


def test_a_file_whose_name_leaves_its_folder_is_not_fetched(tmp_path):
    """An object of an object store may have any name."""
    store = Store(f"memory://{tmp_path.name}/sweep")
    store.write_bytes("kept/a", b"1")
    store.find = lambda below="": ["kept/a", "kept/../../../out"]
    with pytest.raises(OSError, match=r"'kept/\.\./\.\./\.\./out' would leave its folder"):
        store.fetch("kept", tmp_path / "in")
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["a"]
    fsspec.filesystem("memory").store.clear()


def test_find_lists_files_below_a_folder(store):
    for name in ("t/1/a", "t/1/b/c", "t/10/a", "u"):
        store.write_bytes(name, b"")
    assert store.find() == ["t/1/a", "t/1/b/c", "t/10/a", "u"]
    assert store.find("t/1") == ["t/1/a", "t/1/b/c"]
    assert store.find("t") == ["t/1/a", "t/1/b/c", "t/10/a"]
    assert store.find("nowhere") == []


def test_another_store_of_the_same_url_sees_it(store):
    twin = Store(store.url + "/")
    store.write_json("a.json", 1)
    assert twin.find() == ["a.json"] and twin.read_json("a.json") == 1
    assert twin.path("a.json") == store.path("a.json")


def test_path_is_what_a_user_can_open(store):
    store.write_json("t/a.json", 3)
    with fsspec.open(store.path("t/a.json")) as stream:
        assert json.load(stream) == 3


def test_reading_what_is_not_there(store):
    with pytest.raises(FileNotFoundError):
        store.read_bytes("no")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_numbers_that_are_none_are_refused(store, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("a.json", value)
    assert store.find() == []


def test_published_folder_is_there_whole_and_the_scratch_is_gone(store):
    folder = prepared(store, weights="w", sub__more="m", done="1")
    store.publish(folder, "t/step-1", last="done")
    assert not folder.exists()
    assert store.find() == ["t/step-1/done", "t/step-1/sub/more", "t/step-1/weights"]
    assert store.read_bytes("t/step-1/sub/more") == b"m"


def test_published_again_replaces(store):
    store.publish(prepared(store, weights="old", done="1"), "t", last="done")
    store.publish(prepared(store, weights="new", done="2"), "t", last="done")
    assert store.read_bytes("t/weights") == b"new" and store.read_bytes("t/done") == b"2"


def test_a_local_folder_appears_by_one_rename(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "sweep"))
    folder = prepared(store, weights="w", done="1")
    assert folder.parent == tmp_path / "sweep", "on the file system of the target"
    seen = []
    rename = os.rename
    monkeypatch.setattr(
        os, "rename", lambda *paths: (seen.append(store.exists("t/step-1")), rename(*paths))
    )
    store.publish(folder, "t/step-1", last="done")
    assert seen == [False]


def test_an_object_store_gets_the_last_file_last(tmp_path, monkeypatch):
    store = Store(f"memory://{tmp_path.name}")
    fs = fsspec.filesystem("memory")
    order = []
    put_file = type(fs).put_file
    monkeypatch.setattr(
        type(fs),
        "put_file",
        lambda self, local, remote, **more: (order.append(remote), put_file(self, local, remote)),
    )
    store.publish(prepared(store, a_done="1", weights="w", sub__z="z"), "t", last="a_done")
    assert len(order) == 3 and order[-1].endswith("/t/a_done")


def test_an_upload_that_breaks_leaves_no_last_file(tmp_path, monkeypatch):
    store = Store(f"memory://{tmp_path.name}")
    fs = fsspec.filesystem("memory")
    put_file = type(fs).put_file

    def broken(self, local, remote, **more):
        if remote.endswith("weights"):
            raise OSError("connection lost")
        put_file(self, local, remote)

    monkeypatch.setattr(type(fs), "put_file", broken)
    with pytest.raises(OSError, match="connection lost"):
        store.publish(prepared(store, a_done="1", weights="w"), "t", last="a_done")
    assert not store.exists("t/a_done")


def test_fetched_is_a_local_folder(store, tmp_path):
    store.publish(prepared(store, weights="w", sub__more="m", done="1"), "t/step-1", last="done")
    store.write_bytes("t/step-10/weights", b"other")
    folder = store.fetch("t/step-1", tmp_path / "into")
    assert {
        str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()
    } == {
        "weights": "w",
        "sub/more": "m",
        "done": "1",
    }
    if store.local:
        assert folder == store.local / "t/step-1"


def test_deleted_is_gone_and_nothing_else(store):
    for name in ("t/1/a", "t/1/b", "t/10/a"):
        store.write_bytes(name, b"")
    store.delete("t/1/a")
    assert store.find() == ["t/1/b", "t/10/a"]
    store.delete("t/1")
    store.delete("t/1")
    store.delete("nowhere/at/all")
    assert store.find() == ["t/10/a"]


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_rights(folder: Path, umask: int) -> dict[str, str]:
    """Of all at and below a folder, what does not have the rights that this umask leaves."""
    rights = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    wanted = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in rights}
    assert len(rights) > 1
    return {
        str(path.relative_to(folder)): oct(rights[path])
        for path in rights
        if rights[path] != wanted[path]
    }


def test_what_is_written_and_published_obeys_the_umask(tmp_path, umask):
    """Whatever the rights of files that libraries write, and of folders that were copied."""
    store = Store(str(tmp_path / "sweep"))
    store.write_json("below/a.json", 1)
    store.write_json("below/a.json", 2)
    folder = prepared(store, weights="w", sub__more="m", done="1")
    (folder / "weights").chmod(0o600)
    (folder / "sub/more").chmod(0o777)
    (folder / "sub").chmod(0o700)
    store.publish(folder, "t/step-1", last="done")
    store.publish(prepared(store, done="1"), "t/step-1", last="done")
    assert wrong_rights(tmp_path / "sweep", umask) == {}


@pytest.mark.parametrize("method", ["lora", "full", "adapter"])
def test_checkpoints_obey_the_umask(lab, tmp_path, umask, method):
    """safetensors writes files that only their owner reads."""
    group = lab.group("bert")
    group.join("t", lab.params(method))
    _, folder = lab.publish(group, tmp_path / "sweep")
    assert (folder / "checkpoint").is_dir() and (folder / "training_state.safetensors").is_file()
    assert wrong_rights(tmp_path / "sweep", umask) == {}


def test_a_write_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_bytes("a", b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write_bytes("a", b"new")
    assert store.find() == ["a"] and store.read_bytes("a") == b"old"


def test_a_relative_folder_stays_what_it_was(tmp_path, monkeypatch):
    """Tune changes the working directory of its trials."""
    monkeypatch.chdir(tmp_path)
    store = Store("sweep")
    store.write_json("a.json", 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.read_json("a.json") == 1
    assert store.path("a.json") == str(tmp_path / "sweep" / "a.json")


# --- a folder for one alone ---


@pytest.mark.parametrize("storage", ["{}/new/runs", "memory://claims-{}"])
def test_of_those_who_want_a_folder_at_once_one_at_most_gets_it(tmp_path, storage):
    """Threads that begin together, again and again; whoever loses takes another name, as a sweep does."""
    storage = storage.format(str(tmp_path) if "{}/" in storage else tmp_path.name)
    together = threading.Barrier(8)

    def want(name):
        together.wait()
        return Store(f"{storage}/{name}").claim()

    with ThreadPoolExecutor(8) as pool:
        for name in range(40):
            got = [*pool.map(want, [name] * 8)]
            assert sum(got) <= 1
            assert storage.startswith("memory") or sum(got) == 1
            assert not Store(f"{storage}/{name}").claim() or not any(got)


def test_processes_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    code = "import sys; from trainables.storage.store import Store; sys.stdin.readline(); print(Store(sys.argv[1]).claim())"
    command = [sys.executable, "-c", code, str(tmp_path / "runs" / "quick-20260101-120000")]
    started = [
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    got = [process.communicate()[0].strip() for process in started]
    assert sorted(got) == ["False", "False", "False", "True"]


@pytest.mark.parametrize("storage", ["{}/runs", "memory://taken-{}"])
def test_a_folder_in_which_something_lies_is_somebody_elses(tmp_path, storage):
    store = Store(storage.format(str(tmp_path) if "{}/" in storage else tmp_path.name) + "/quick")
    store.write_bytes("sweep.yaml", b"")
    assert not store.claim()
    assert store.find() == ["sweep.yaml"]
