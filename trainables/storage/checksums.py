"""SHA-256 of the files of a folder, kept beside them as `sha256sum --check` reads them."""

import hashlib
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
CARD = "README.md"


def write_checksums(folder: Path) -> None:
    """Of all files below `folder`, which then does not change any more."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in _names(folder)]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def with_checksum(sums: bytes, name: str, content: bytes) -> bytes:
    """What `write_checksums` has written, after the file `name` was written anew."""
    lines = sums.decode().splitlines(keepends=True)
    kept = [line for line in lines if line.rstrip("\n").partition("  ")[2] != name]
    new = f"{hashlib.sha256(content).hexdigest()}  {name}\n"
    return "".join(sorted([*kept, new], key=lambda line: line.partition("  ")[2])).encode()


def digest_of_checksums(content: bytes) -> str:
    """One word for all files, of what `write_checksums` has written; the card counts for nothing,
    as it is written anew when more of the same weights is measured.
    """
    lines = content.decode().splitlines(keepends=True)
    kept = [line for line in lines if line.rstrip("\n").partition("  ")[2] != CARD]
    return hashlib.sha256("".join(kept).encode()).hexdigest()


def altered_files(folder: Path) -> list[str]:
    """Files that are not what their sums say, are missing, or have none; none where the folder has
    no sums.
    """
    if not (folder / CHECKSUMS).is_file():
        return []
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = set(_names(folder))
    wrong = {name for name in found & sums.keys() if _digest(folder / name) != sums[name]}
    return sorted(wrong | (found ^ sums.keys()))


def _names(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    names = (file.relative_to(folder).as_posix() for file in files)
    return sorted(name for name in names if name != CHECKSUMS)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
