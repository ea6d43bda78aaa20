"""Prepared data by content: of the same rows, tokenizer and settings, once on a machine."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from trainables.data.manifest import MANIFEST, Manifest, read_manifest
from trainables.storage.records import Json

ROWS = 20_000  # fewer are prepared in seconds
KEPT = 5  # prepared data, those that were used last


def cache_folder() -> Path:
    """`finetune-sweeps/data` of the user's caches."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "finetune-sweeps" / "data"


def cache_key(content: Mapping[str, Json]) -> str:
    """Of all that prepared data depend on, and of the code that prepares them."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    rooms = Path(__file__).parent.parent
    for path in sorted([*(rooms / "data").rglob("*.py"), *(rooms / "tasks").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def take(key: str, folder: Path) -> Manifest | None:
    """Copy what is kept under `key` to `folder`; None where nothing is."""
    kept = cache_folder() / key
    if read_manifest(kept) is None:
        return None
    os.utime(kept)
    _copy(kept, folder)
    return read_manifest(folder)


def keep(key: str, folder: Path, manifest: Manifest) -> None:
    """Keep a copy of the prepared data in `folder`. A cache that cannot be written costs time, no
    more.
    """
    if sum(split.read for split in manifest.splits.values()) < ROWS:
        return
    root = cache_folder()
    partial = root / f"{key}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        _copy(folder, partial)
        os.replace(partial, root / key)
        for old in sorted(root.iterdir(), key=lambda path: -path.stat().st_mtime)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """The files of a prepared folder, the manifest last."""
    files = [path for path in source.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        shutil.copyfile(path, target / path.name)
