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


def cache_folder() -> Path:
    """`finetune-sweeps/data` of the user's caches."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
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
    kept = cache_folder() / key
    try:
        if read_manifest(kept) is None:
            return None
        with suppress(PermissionError):  # it is another user's
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
    """Keep a copy of the prepared data in `folder`. A cache that cannot be written costs time, no
    more.
    """
    if sum(split.read for split in manifest.splits.values()) < ROWS:
        return
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        # moved there and away as a whole: no process sees a part of it
        with tempfile.TemporaryDirectory(dir=root, prefix=PARTIAL) as scratch:
            partial, dropped = Path(scratch, "new"), Path(scratch, "old")
            partial.mkdir()
            dropped.mkdir()
            _copy(folder, partial)
            if (root / key).exists():  # damaged, or of a process that was faster
                os.replace(root / key, dropped / key)
            os.replace(partial, root / key)
            kept = [path for path in root.iterdir() if not path.name.startswith(PARTIAL)]
            kept.sort(key=lambda path: -path.stat().st_mtime)
            for old in (*kept[KEPT:], *_abandoned(root)):
                os.replace(old, dropped / old.name)
    except OSError:
        return


def _abandoned(root: Path) -> Iterator[Path]:
    """What processes left that were killed."""
    for path in root.glob(f"{PARTIAL}*"):
        if time.time() - path.stat().st_mtime > DAY:
            yield path


def _copy(source: Path, target: Path) -> None:
    """The files of a prepared folder, the manifest last."""
    files = [path for path in source.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        shutil.copyfile(path, target / path.name)
