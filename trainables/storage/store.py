"""Files of a sweep, in a local folder or on any fsspec path. Paths are relative to the root, with
forward slashes.
"""

import copy
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar

import fsspec

from trainables.errors import InputError
from trainables.storage.patience import Patience, StorageTaken
from trainables.storage.url_secrets import refuse_secrets

Given = ParamSpec("Given")
Done = TypeVar("Done")


class Damaged(InputError):
    """A file is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What is another once a file has been written anew, and how large it is."""

    size: int
    mark: str


def insisting(
    method: "Callable[Concatenate[Store, Given], Done]",
) -> "Callable[Concatenate[Store, Given], Done]":
    """A method of a store that is tried again where the store is told to be patient."""

    @wraps(method)
    def tried(store: "Store", *given: Given.args, **named: Given.kwargs) -> Done:
        return store.again(partial(method, store, *given, **named))

    return tried


class Store:
    """Reads and writes below one root; what is written whole becomes visible whole.

    On a local file system visibility is a rename. An object store makes single objects visible at
    once, so a folder there is complete when its `last` file is.
    """

    def __init__(self, url: str) -> None:
        self.url = str(url).rstrip("/")
        refuse_secrets(self.url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (
            ImportError,
            ValueError,
        ) as error:  # a protocol that nobody knows, or whose package is not installed
            raise InputError(f"{self.url}: cannot be opened as a folder or URL: {error}") from error
        self.local = Path(self._root) if "file" in self._fs.protocol else None
        self._patience: Patience | None = None
        self._marker: str | None = None  # a file that is there for as long as the folder is
        self._tries_once = False

    # --- storage that fails ---

    def insist(self, patience: Patience, marker: str | None = None) -> None:
        """From now on what fails is tried again; and as soon as `marker`, a file of the folder, is
        not there any more, nothing is written, as somebody has deleted the folder.
        """
        known = self.local is not None and marker is not None and (self.local / marker).exists()
        self._patience, self._marker = patience, marker if known else None

    def once(self) -> "Store":
        """This store, of which nothing is tried again."""
        made = copy.copy(self)
        made._tries_once = True
        return made

    def above(self) -> "Store":
        """The folder that this one is in, as patient."""
        made = Store(self.url.rsplit("/", 1)[0])
        made._patience = self._patience
        return made

    def again(self, action: Callable[[], Done]) -> Done:
        """What comes of `action`, something that is done in this store."""
        if self._patience is None:
            return action()

        def here() -> Done:
            self._check_present()
            try:
                return action()
            except FileNotFoundError:
                self._check_present()
                raise

        if self._tries_once:
            return self._patience.once(here)
        return self._patience.again(here, self.path("").rstrip("/"))

    def _check_present(self) -> None:
        """An object store has no folder that could be deleted."""
        if self.local is None or self._marker is None or (self.local / self._marker).exists():
            return
        if not self.local.parent.exists():  # a file system that is not mounted at the moment
            raise OSError(errno.EIO, "the folder above it is not there", str(self.local))
        raise StorageTaken(f"{self.local}: the sweep's folder is gone")

    # --- files ---

    def claim(self) -> bool:
        """Make the root for the caller alone; False when somebody else has it, or wants it at the
        same moment.

        An object store makes no folders: there everybody leaves a token and looks who else did. At
        most one sees none but its own where a listing shows what was written before it.
        """
        if self.local:
            self.local.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.local.mkdir()
            except FileExistsError:
                return False
            return True
        token = f"claims/{uuid.uuid4().hex}"
        self.write_bytes(token, b"")
        if self.find() == [token]:
            return True
        self.delete(token)
        return False

    def path(self, name: str) -> str:
        """What a user can type to get at `name`: a path, or a URL."""
        return str(self.local / name) if self.local else f"{self.url}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Inside, whatever the library of an object store raises is an OSError, as of any other
        disk.
        """
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise OSError(f"{self.url}: {type(error).__name__}: {first}") from error

    @insisting
    def exists(self, name: str) -> bool:
        with self._reaching():
            return self._fs.exists(f"{self._root}/{name}")

    @insisting
    def find(self, below: str = "") -> list[str]:
        """Names of all files below a folder, sorted; one listing, whatever the file system."""
        if self.local:
            top = str(self.local / below) if below else str(self.local)
            cut = len(str(self.local)) + 1
            names = [
                os.path.join(folder, file)[cut:]
                for folder, _, files in os.walk(top)
                for file in files
            ]
        else:
            top = f"{self._root}/{below}" if below else self._root
            with self._reaching():
                self._fs.invalidate_cache()
                found = self._fs.find(top) if self._fs.exists(top) else []
            names = [name[len(self._root) :].lstrip("/") for name in found]
        return sorted(names)

    def size(self) -> int:
        """Bytes of all files."""
        with self._reaching():
            return self._fs.du(self._root) if self._fs.exists(self._root) else 0

    @insisting
    def stamps(self, below: str = "") -> dict[str, Stamp]:
        """The same names, each with its stamp."""
        if self.local:
            found, root = {}, str(self.local)
            for name in self.find(below):
                with suppress(FileNotFoundError):  # deleted since it was listed
                    seen = os.stat(f"{root}/{name}")
                    mark = f"{seen.st_ino} {seen.st_mtime_ns} {seen.st_size}"
                    found[name] = Stamp(size=seen.st_size, mark=mark)
            return found
        top = f"{self._root}/{below}" if below else self._root
        with self._reaching():
            self._fs.invalidate_cache()
            listed = self._fs.find(top, detail=True) if self._fs.exists(top) else {}
        cut = len(self._root)
        return {
            name[cut:].lstrip("/"): Stamp(size=listed[name]["size"], mark=str(listed[name]))
            for name in sorted(listed)
        }

    def folders(self) -> list[str]:
        """Names of the folders right below the root, sorted; none where there is no root."""
        if self.local:
            return sorted(each.name for each in self.local.glob("*/"))
        with self._reaching():
            self._fs.invalidate_cache()
            found = self._fs.ls(self._root) if self._fs.exists(self._root) else []
        names = [each["name"] for each in found if each["type"] == "directory"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    @insisting
    def read_bytes(self, name: str) -> bytes:
        if self.local:
            return (self.local / name).read_bytes()
        with self._reaching():
            return self._fs.cat_file(f"{self._root}/{name}")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise Damaged(f"{self.path(name)}: damaged, it is not JSON ({error})") from error

    @insisting
    def write_bytes(self, name: str, content: bytes) -> None:
        if not self.local:
            with self._reaching():
                self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        target = self._with_parents(name)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)  # half of it, where the disk is full

    def write_json(self, name: str, value: object) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, allow_nan=False).encode())

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that nobody has written before; False where somebody has."""
        try:
            self._create(name, content)
        except FileExistsError:
            return False
        return True

    @insisting
    def _create(self, name: str, content: bytes) -> None:
        if not self.local:
            with self._reaching():
                self._fs.pipe_file(f"{self._root}/{name}", content, mode="create")
            return
        target = self._with_parents(name)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            os.link(temporary, target)  # whole, or not at all
        finally:
            temporary.unlink(missing_ok=True)

    @insisting
    def age_s(self, name: str) -> float:
        """Seconds since a file was written, by the clock of the storage alone: those of machines
        that share it may differ.
        """
        probe = f".now-{uuid.uuid4().hex}"
        if self.local:
            now = self.local / probe
            try:
                now.touch()
                return now.stat().st_mtime - (self.local / name).stat().st_mtime
            finally:
                now.unlink(missing_ok=True)
        with self._reaching():
            path = f"{self._root}/{probe}"
            self._fs.pipe_file(path, b"")
            try:
                modified = [self._fs.modified(each) for each in (path, f"{self._root}/{name}")]
            finally:
                self._fs.rm_file(path)
        return (modified[0] - modified[1]).total_seconds()

    @insisting
    def scratch(self) -> Path:
        """A fresh local folder to prepare something in for `publish`; on the same file system where
        the store is local.
        """
        if not self.local:
            return Path(tempfile.mkdtemp(prefix=".partial-"))
        folder = self._with_parents(f".partial-{uuid.uuid4().hex}")
        folder.mkdir()
        return folder

    def _with_parents(self, name: str) -> Path:
        """The local path of `name`, the folders above it made. The root is not made again where it
        is known to have been there.
        """
        assert self.local is not None, "an object store has no folders"
        if self._marker is None:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
        else:
            for folder in reversed([*Path(name).parents][:-1]):
                (self.local / folder).mkdir(exist_ok=True)
        return self.local / name

    def clear_scratch(self) -> None:
        """Delete what a killed process had begun to prepare; only when no process of the sweep
        runs.
        """
        for left in self.local.glob(".partial-*") if self.local else ():
            shutil.rmtree(left, ignore_errors=True)

    @insisting
    def publish(self, folder: Path, name: str, last: str) -> None:
        """Move a local folder to `name`; readers that look for the file `last` see all of it or
        nothing.
        """
        if self.local:
            target = self._with_parents(name)
            if target.exists():  # left by an attempt that was cut off after its rename
                shutil.rmtree(target)
            _obey_umask(folder)
            os.rename(folder, target)
            return
        for file in sorted(folder.rglob("*"), key=lambda file: file == folder / last):
            if file.is_file():
                self._put(file, f"{name}/{file.relative_to(folder).as_posix()}")
        shutil.rmtree(folder)

    def fetch(self, name: str, into: Path) -> Path:
        """`name` (a folder) as a local folder: itself where the store is local, else a copy below
        `into`.
        """
        if self.local:
            return self.local / name
        target = into / name
        for file in self.find(name):
            if ".." in PurePosixPath(file).parts:  # an object's name may be any
                raise OSError(f"{self.url}: the file {file!r} would leave its folder")
            local = into / file
            local.parent.mkdir(parents=True, exist_ok=True)
            self._get(file, local)
        return target

    @insisting
    def _get(self, name: str, local: Path) -> None:
        with self._reaching():
            self._fs.get_file(f"{self._root}/{name}", str(local))

    @insisting
    def _put(self, local: Path, name: str) -> None:
        with self._reaching():
            self._fs.put_file(str(local), f"{self._root}/{name}")

    @contextmanager
    def working_copy(self, name: str, into: Path) -> Iterator[Path]:
        """`name` (a folder) to write in, as `fetch` gives it: what has changed in a copy is written
        back at the end. Raises OSError where that fails; the copy stays as it is.
        """
        folder = self.fetch(name, into)
        before = {} if self.local else _digests(folder)
        try:
            yield folder
        finally:
            for file, digest in ({} if self.local else _digests(folder)).items():
                if before.get(file) != digest:
                    self._put(folder / file, f"{name}/{file}")

    @insisting
    def delete(self, name: str) -> None:
        """Delete a file or a folder with all in it; nothing happens when it is not there."""
        path = f"{self._root}/{name}"
        if self.local:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)
        else:
            with self._reaching():
                if self._fs.exists(path):
                    self._fs.rm(path, recursive=True)


def _digests(folder: Path) -> dict[str, bytes]:
    """Of all files below a folder, by their names."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").digest()
            found[file.relative_to(folder).as_posix()] = digest
    return found


def _obey_umask(folder: Path) -> None:
    """Give all below `folder` the rights that it was made with: some libraries write files that
    only their owner reads, and a copy has the rights of its original.
    """
    rights = stat.S_IMODE(folder.stat().st_mode)
    for below, folders, files in os.walk(folder):
        for names, wanted in ((folders, rights), (files, rights & 0o666)):
            for path in (Path(below, name) for name in names):
                if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != wanted:
                    path.chmod(wanted)
