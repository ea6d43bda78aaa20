"""Prepared data by content: of the same rows, tokenizer and settings, once on a machine."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from trainables.data.arrow import split_fingerprint
from trainables.data.manifest import MANIFEST, Manifest, read_manifest
from trainables.errors import InputError
from trainables.storage.records import Json

ROWS = 20_000  # fewer are prepared in seconds
PARTIAL = ".partial-"
DAY = 86400.0  # seconds
LIBRARIES = (
    "datasets",
    "jinja2",
    "numpy",
    "py3langid",
    "pyarrow",
    "rensa",
    "tokenizers",
    "transformers",
)
"""Whose next version may read, draw, render, tokenise or find something else."""
KEPT = 5  # prepared data, those that were used last
SHARE = 0.1  # that they take at most, of what would be free without them


def cache_folder() -> Path:
    """`finetune-sweeps/data` of the user's caches. Raises OSError where there is no home."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return Path(root) / "finetune-sweeps" / "data"


def cache_key(content: Mapping[str, Json], code: Iterable[Path] = ()) -> str:
    """Of all that prepared data depend on, and of the code that prepares them: this project's, the
    libraries', and files of `code`.
    """
    libraries = {name: version(name) for name in LIBRARIES} | {"python": python_version()}
    digest = hashlib.sha256(json.dumps([content, libraries], sort_keys=True).encode())
    rooms = Path(__file__).parent.parent
    own = [*(rooms / "data").rglob("*.py"), *(rooms / "tasks").rglob("*.py"), rooms / "streams.py"]
    for path in (*sorted(own), *sorted(code)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def take(key: str, folder: Path) -> Manifest | None:
    """Copy what is kept under `key` to `folder`; None where nothing is."""
    try:
        kept = cache_folder() / key
        if read_manifest(kept) is None:
            return None
        with suppress(OSError):  # it is another user's, or cannot be written to
            os.utime(kept)
        _copy(kept, folder)
        if (manifest := read_manifest(folder)) is not None and _is_whole(folder, manifest):
            return manifest
    except (OSError, ValueError, InputError):  # another process drops it, or it is damaged
        pass
    (folder / MANIFEST).unlink(missing_ok=True)
    return None


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return all(
        split_fingerprint(folder / f"{name}.arrow") == split.fingerprint
        for name, split in manifest.splits.items()
        if split.is_tokenised
    )


def keep(key: str, folder: Path, manifest: Manifest) -> None:
    """Keep a copy of the prepared data in `folder`, unless it is larger than the cache may be. A
    cache that cannot be written costs time, no more.
    """
    if sum(split.read for split in manifest.splits.values()) < ROWS:
        return
    try:
        root = cache_folder()
        root.mkdir(parents=True, exist_ok=True)
        size, most = _size(folder), SHARE * (shutil.disk_usage(root).free + _size(root))
        fits = size <= most
        # moved there and away as a whole: no process sees a part of it
        with tempfile.TemporaryDirectory(dir=root, prefix=PARTIAL) as scratch:
            for old in _outdated(root, key, most - size if fits else most):
                _drop(old, Path(scratch))
            if not fits:
                return
            partial = Path(scratch, "new")
            partial.mkdir()
            _copy(folder, partial)
            if (root / key).exists():  # damaged, or of a process that was faster
                _drop(root / key, Path(scratch))
            os.replace(partial, root / key)
    except OSError:
        return


def _outdated(root: Path, key: str, most: float) -> Iterator[Path]:
    """What goes so that the rest beside `key` is few and has at most so many bytes; and what
    processes left that were killed.
    """
    kept = [path for path in root.iterdir() if path.is_dir()]
    kept.sort(key=lambda path: -path.stat().st_mtime)
    count = held = 0
    for path in kept:
        if path.name.startswith(PARTIAL):
            if time.time() - path.stat().st_mtime > DAY:
                yield path
        elif path.name != key:
            count, held = count + 1, held + _size(path)
            if count >= KEPT or held > most:
                yield path


def _drop(path: Path, scratch: Path) -> None:
    os.replace(path, scratch / path.name)
    shutil.rmtree(scratch / path.name)


def _size(folder: Path) -> int:
    """Of all files in it, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """The files of a prepared folder, the manifest last."""
    files = [path for path in source.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        shutil.copyfile(path, target / path.name)
