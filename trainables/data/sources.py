"""Sources of rows: files, folders and patterns of files, URLs, datasets of the Hugging Face hub."""

import glob
import hashlib
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from trainables.data.config import DataConfig
from trainables.data.files import DECOMPRESS, File, is_url, kind_of, one_line
from trainables.data.findings import Finding
from trainables.data.hub import HubDataset, is_hub
from trainables.data.readers import (
    BINARY,
    DOCUMENT,
    READERS,
    Given,
    Item,
    Piece,
    Rows,
    characters_of,
    in_pieces,
    jsonl_pieces,
    read_jsonl,
)
from trainables.data.rows import BadRow, Row, check_column
from trainables.errors import InputError, did_you_mean

SPLITS = ("train", "validation", "test")
FIRST_ROWS = 1000  # whose columns are those of the source
KINDS = (
    f"{', '.join(READERS)} (those of text also as {', '.join(DECOMPRESS)}), folders and patterns of"
    " those, and hf:owner/name"
)
CLUTTER = ("Thumbs.db", "desktop.ini", "_SUCCESS", "_metadata", "_common_metadata")
SAVED_BY_DATASETS = ("dataset_info.json", "state.json")  # beside the .arrow files


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Rows of one file or one dataset of a hub."""

    key: str
    """Setting that named it: `data.train`, `data.validation` or `data.test`."""
    name: str
    """As the user wrote it, or the file's path where a folder or a pattern named it."""
    weight: float = 1.0
    """How often each of its rows stands in an epoch."""

    @property
    def is_document(self) -> bool:
        """A .txt file: one row, whose only column is the text."""
        return False

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Of its first rows, in the order in which they first appear. Raises InputError where none
        of those can be used.
        """
        pieces = self.pieces()
        first: deque[Piece] = deque()
        while sum(map(len, first)) < FIRST_ROWS and (piece := next(pieces, None)) is not None:
            first.append(piece)
        found = list(islice(chain.from_iterable(piece.rows() for piece in first), FIRST_ROWS))
        rows = [row for row in found if isinstance(row, Row)]
        bad = next((row for row in found if isinstance(row, BadRow)), None)
        if bad is not None and not rows:
            raise InputError(str(bad))
        self._begun.append(_again(first, pieces))
        return tuple(dict.fromkeys(name for row in rows for name in row.columns))

    def rows(self) -> Rows:
        """One after the other, with BadRow in the place of one that cannot be used. Raises
        InputError where there are none, or where something is wrong with all of them.
        """
        if self._begun:
            for piece in self._begun.pop():
                yield from piece.rows()
        else:
            yield from self._some(self._read())

    def pieces(self) -> Iterator[Piece]:
        """The same, in pieces that other processes can read."""
        return self._begun.pop() if self._begun else self._some(self._pieces())

    @cached_property
    def _begun(self) -> list[Iterator[Piece]]:
        """What is left of a reading whose columns have been looked at, so that it is the only
        one.
        """
        return []

    def _some(self, found: Iterator[Item]) -> Iterator[Item]:
        has_any = False
        for each in found:
            has_any = True
            yield each
        if not has_any:
            raise self._no_rows()

    def check_column(self, column: str | None, setting: str) -> None:
        """Raise InputError where the source lacks the column that `data.SETTING` names."""
        check_column(self.columns, self.name, column, setting)

    def fingerprint(self) -> str:
        """SHA-256 of a file's bytes; of a dataset of a hub, of its rows. As they were when it was
        first asked for: it takes a reading of its own.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._digest()

    @abstractmethod
    def _digest(self) -> str: ...

    def _pieces(self) -> Iterator[Piece]:
        for rows in in_pieces(self._read(), characters_of):
            yield Given(given=rows)

    @abstractmethod
    def _read(self) -> Rows: ...

    def _no_rows(self) -> InputError:
        return InputError(f"{self.key}: {self.name}: no rows")


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    file: File
    copy: Path | None = None
    """Where a file that is elsewhere is put, so that it is fetched once."""

    @property
    def is_document(self) -> bool:
        return self._kind == DOCUMENT

    @cached_property
    def _here(self) -> File:
        return self.file if self.copy is None else self.file.copied(self.copy)

    @cached_property
    def _state(self) -> tuple[int, int, int] | None:
        return self._here.state()

    def _digest(self) -> str:
        with self._unchanged():
            return self._here.digest()

    def _pieces(self) -> Iterator[Piece]:
        if READERS[self._kind] is not read_jsonl:
            yield from super()._pieces()
            return
        with self._unchanged():
            yield from jsonl_pieces(self._here)

    def _read(self) -> Rows:
        with self._unchanged():
            yield from READERS[self._kind](self._here)

    @property
    def _kind(self) -> str:
        return kind_of(self.file.address)[0]

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Raise InputError where the file is no longer as it was when it was first looked at: its
        rows would not be those of its fingerprint, or only some of them.
        """
        before = self._state
        fault: InputError | None = None
        try:
            yield
        except InputError as error:
            fault = error
        if self._here.state() != before:
            raise self.file.error("was changed while it was read; start again when it is complete")
        if fault is not None:
            raise fault

    def _no_rows(self) -> InputError:
        return self.file.error("the file is empty") if self.file.is_blank() else super()._no_rows()


@dataclass(frozen=True, kw_only=True)
class HubSource(Source):
    dataset: HubDataset

    def _digest(self) -> str:
        return self.dataset.fingerprint()

    def _read(self) -> Rows:
        return self.dataset.rows()


def open_sources(data: DataConfig, split: str, copies: Path | None = None) -> list[Source]:
    """The sources of a split, each file of a folder or a pattern by itself; none where it is a
    share of train or not given.

    copies: a folder that takes what comes over a network, so that it comes once however often it is
    read; as long as the sources are used.
    """
    key = f"data.{split}"
    found: list[Source] = []

    def copy(suffixes: str) -> Path | None:
        return None if copies is None else copies / f"{key}.{len(found)}{suffixes}"

    for part in data.parts(split):
        if is_hub(part.source):
            dataset = HubDataset.of(part.source, key, copy(".rows"))
            found.append(HubSource(key=key, name=part.source, weight=part.weight, dataset=dataset))
            continue
        for file in _files(part.source, key):
            kept = copy("".join(kind_of(file.address))) if is_url(file.address) else None
            found.append(
                FileSource(key=key, name=file.name, weight=part.weight, file=file, copy=kept)
            )
    return found


def _again(first: deque[Piece], rest: Iterator[Piece]) -> Iterator[Piece]:
    while first:
        yield first.popleft()
    yield from rest


def check_sources(data: DataConfig) -> None:
    """Files that are named must be there and of a kind that can be read: known before anything else
    is loaded. What is elsewhere is not asked for yet.
    """
    for split in SPLITS:
        for part in data.parts(split):
            key = f"data.{split}"
            if is_hub(part.source):
                HubDataset.of(part.source, key)
            elif is_url(part.source):
                _check_protocol(part.source, key)
            else:
                _files(part.source, key)


def unread_files(data: DataConfig, split: str) -> Finding | None:
    """What the folders and patterns of a split hold besides the files that are read."""
    key = f"data.{split}"
    members = [
        name
        for part in data.parts(split)
        if not is_hub(part.source)
        for name in _members(part.source, key) or ()
        if not _is_clutter(name)
    ]
    others = [name for name in members if not _is_known(name)]
    if not others:
        return None
    return Finding(
        kind="unread_files",
        split=split,
        message=f"{split}: {len(others)} of {len(members)} file(s) are of no known kind and are not"
        f" read: {_kinds(others)}",
        examples=tuple(map(_printable, others[:3])),
    )


def is_local(source: str) -> bool:
    """Whether it is a file, a folder or a pattern of this machine."""
    return not is_hub(source) and not is_url(source)


def local_files(source: str, key: str) -> list[Path]:
    """The files of a file, a folder or a pattern on this machine, in the order in which they are
    read.
    """
    return [Path(file.address).expanduser() for file in _files(source, key)]


def source_fingerprint(source: str) -> str | None:
    """SHA-256 of a source's file as it is now; None for what is not, or no longer, here."""
    path = Path(source).expanduser()
    if not is_local(source) or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(source: str, key: str) -> list[File]:
    if (members := _members(source, key)) is not None:
        return _of_known_kind(members, source, key)
    path = Path(source).expanduser()
    if not is_url(source) and not _is_known(source):
        raise _unknown_kind(source, key)
    if not is_url(source) and not path.exists():
        siblings = (
            [str(path.with_name(p.name)) for p in path.parent.iterdir()]
            if path.parent.is_dir()
            else []
        )
        raise InputError(
            f"{key}: {source}: no such file (looked from"
            f" {Path.cwd()}).{did_you_mean(str(path), siblings)}"
        )
    return [_file(source, key)]


def _file(name: str, key: str) -> File:
    file = File(key=key, name=name, address=name)
    if name != _printable(name):
        raise file.error("its name is not UTF-8; give it another")
    return file


def _printable(name: str) -> str:
    """A name with what is no text in it written out."""
    return name.encode(errors="backslashreplace").decode()


def _members(source: str, key: str) -> list[str] | None:
    """All files of a folder or a pattern, in order; None where the source is a single file."""
    if is_url(source):
        _check_protocol(source, key)
        is_file = "*" not in source and _is_known(source)
        return None if is_file else sorted(_listed(source, key))
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, source, key)
    if not path.exists() and glob.has_magic(source):
        return sorted(n for n in glob.glob(str(path), recursive=True) if Path(n).is_file())
    return None


def _in_folder(folder: Path, source: str, key: str) -> list[str]:
    if (folder / "dataset_dict.json").exists():
        splits = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise InputError(
            f"{key}: {source}: holds several datasets; name the folder of one of them:"
            f" {', '.join(splits)}"
        )
    is_saved = all((folder / name).exists() for name in SAVED_BY_DATASETS)
    paths = (
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (is_saved and path.name in SAVED_BY_DATASETS)
    )
    return sorted(map(str, paths))


def _of_known_kind(names: list[str], source: str, key: str) -> list[File]:
    """Those of the files that a folder or a pattern named that can be read."""
    known = [_file(name, key) for name in names if _is_known(name)]
    if known:
        return known
    if not names:
        looked = "" if is_url(source) else f" (looked from {Path.cwd()})"
        raise InputError(f"{key}: {source}: no files{looked}")
    raise InputError(
        f"{key}: {source}: no file of a known kind, only {_kinds(names)}; allowed are {KINDS}"
    )


def _kinds(names: list[str]) -> str:
    """The commonest ones, and how many files are of each."""
    kinds = ("".join(kind_of(name)) or PurePosixPath(name).name for name in names)
    counts = Counter(map(_printable, kinds))
    return ", ".join(f"{kind} ({count})" for kind, count in counts.most_common(5))


def _is_clutter(name: str) -> bool:
    """What systems and writers leave beside files."""
    last = PurePosixPath(name).name
    return last.startswith(".") or last in CLUTTER or last.endswith("~")


def _is_known(name: str) -> bool:
    kind, compression = kind_of(name)
    return kind in READERS and not (compression and kind in BINARY)


def _unknown_kind(source: str, key: str) -> InputError:
    return InputError(
        f"{key}: {source}: unknown kind of file {''.join(kind_of(source))!r}; allowed are {KINDS}"
    )


def _listed(url: str, key: str) -> Iterable[str]:
    """URLs of the files of a folder or a pattern."""
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(url)
        if "*" in url:
            paths: Iterator[str] = iter(files.glob(path))
        elif files.isdir(path):
            paths = (
                each
                for each in files.find(path)
                if not any(
                    part.startswith(".") for part in each.removeprefix(path).split("/") if part
                )
            )
        else:
            raise _unknown_kind(url, key)
        return [files.unstrip_protocol(each) for each in paths]
    except InputError:
        raise
    except Exception as error:  # each protocol's library has its own
        raise InputError(f"{key}: {url}: cannot be listed: {one_line(error)}") from error


def _check_protocol(url: str, key: str) -> None:
    """Raise InputError where fsspec does not know it, or lacks the package for it."""
    import fsspec

    for protocol in (each.split("://")[0] for each in url.split("::")):
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise InputError(f"{key}: {url}: {one_line(error)}") from None
