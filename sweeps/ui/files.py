"""The files that the page keeps beside the sweeps of a STORAGE: none is ever written over."""

from pathlib import Path

from trainables.errors import InputError

UPLOADS, SWEEP_FILES = "ui/uploads", "ui/sweep-files"
"""One folder deeper than sweeps, so that a file called sweep.yaml makes none of them."""


def claim(folder: Path, name: str) -> Path:
    """A new, empty file in `folder`: `name`, or where that is taken NAME-2, NAME-3, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, dot, suffixes = name.partition(".")
    number = 1
    while True:
        tried = folder / (name if number == 1 else f"{stem}-{number}{dot}{suffixes}")
        try:
            tried.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return tried


def is_name(given: str) -> bool:
    """Whether it is the name of something in a folder, and no way out of it."""
    return given not in ("", ".", "..") and "/" not in given and "\\" not in given


def plain_name(given: str) -> str:
    """Of a file, without the folders before it. Raises InputError for what is no name."""
    name = given.replace("\\", "/").rsplit("/", 1)[-1].strip()
    if not name.strip(".") or not name.isprintable() or len(name.encode()) > 200:
        raise InputError(f"{given!r}: must be a name of a file, of at most 200 bytes")
    return name.lstrip(".")
