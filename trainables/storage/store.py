"""Files of a sweep, in a local folder or on any fsspec path. Paths are relative to the root, with
forward slashes.
"""

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from trainables.errors import InputError


class Store:
    """Reads and writes below one root; what is written whole becomes visible whole.

    On a local file system visibility is a rename. An object store makes single objects visible at
    once, so a folder there is complete when its `last` file is.
    """

    def __init__(self, url: str) -> None:
        self.url = str(url).rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (
            ImportError,
            ValueError,
        ) as error:  # a protocol that nobody knows, or whose package is not installed
            raise InputError(f"{self.url}: cannot be opened as a folder or URL: {error}") from error
        self.local = Path(self._root) if "file" in self._fs.protocol else None

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

    def exists(self, name: str) -> bool:
        with self._reaching():
            return self._fs.exists(f"{self._root}/{name}")

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

    def read_bytes(self, name: str) -> bytes:
        if self.local:
            return (self.local / name).read_bytes()
        with self._reaching():
            return self._fs.cat_file(f"{self._root}/{name}")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise InputError(f"{self.path(name)}: damaged, it is not JSON ({error})") from error

    def write_bytes(self, name: str, content: bytes) -> None:
        if not self.local:
            with self._reaching():
                self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)  # half of it, where the disk is full

    def write_json(self, name: str, value: object) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, allow_nan=False).encode())

    def scratch(self) -> Path:
        """A fresh local folder to prepare something in for `publish`; on the same file system where
        the store is local.
        """
        if not self.local:
            return Path(tempfile.mkdtemp(prefix=".partial-"))
        folder = self.local / f".partial-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder

    def clear_scratch(self) -> None:
        """Delete what a killed process had begun to prepare; only when no process of the sweep
        runs.
        """
        for left in self.local.glob(".partial-*") if self.local else ():
            shutil.rmtree(left, ignore_errors=True)

    def publish(self, folder: Path, name: str, last: str) -> None:
        """Move a local folder to `name`; readers that look for the file `last` see all of it or
        nothing.
        """
        if self.local:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # left by an attempt that was cut off after its rename
                shutil.rmtree(target)
            _obey_umask(folder)
            os.rename(folder, target)
            return
        for file in sorted(folder.rglob("*"), key=lambda file: file == folder / last):
            if file.is_file():
                with self._reaching():
                    self._fs.put_file(
                        str(file), f"{self._root}/{name}/{file.relative_to(folder).as_posix()}"
                    )
        shutil.rmtree(folder)

    def fetch(self, name: str, into: Path) -> Path:
        """`name` (a folder) as a local folder: itself where the store is local, else a copy below
        `into`.
        """
        if self.local:
            return self.local / name
        target = into / name
        for file in self.find(name):
            local = into / file
            local.parent.mkdir(parents=True, exist_ok=True)
            with self._reaching():
                self._fs.get_file(f"{self._root}/{file}", str(local))
        return target

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
