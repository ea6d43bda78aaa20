"""The bytes and the text of a file, here or at a URL, plain or compressed; or one line on why it
cannot be read.
"""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import shutil
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from trainables.data.rows import BadRow, Row
from trainables.errors import InputError
from trainables.storage.url_secrets import refuse_secrets

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 1 << 20  # bytes
PIECE = 1 << 12  # bytes decompressed at once, since they may become thousands of times more
HEAD = 1 << 16  # bytes: enough to tell an encoding and the line ends of most files

LATIN = ("cp1250", "cp1254")
ENCODINGS = {
    "cp1252": "cp1252",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1253": "cp1253",
    "cp1254": "cp1254",
    "cp1255": "cp1255",
    "cp1256": "cp1256",
    "koi8_r": "koi8-r",
    "cp932": "cp932",
    "euc_jp": "euc-jp",
    "cp949": "cp949",
    "gb18030": "gb18030",
    "big5": "big5",
    "utf_16": "utf-16",
    "utf_16_le": "utf-16le",
    "utf_16_be": "utf-16be",
}
"""Those that files are in where they are not UTF-8: Python's name and that of iconv."""

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_url(source: str) -> bool:
    return "://" in source


def kind_of(address: str) -> tuple[str, str]:
    """The kind of a file and how it is compressed, by its suffixes: (".jsonl", ".gz")."""
    path = urllib.parse.urlsplit(address).path if address.startswith("http") else address
    path = PurePosixPath(Path(path).name.lower())
    if path.suffix in DECOMPRESS and (inner := PurePosixPath(path.stem).suffix):
        return inner, path.suffix
    return path.suffix, ""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that a reader takes rows from."""

    key: str
    """Setting that named it: `data.train`, `data.validation` or `data.test`."""
    name: str
    """As it is shown."""
    address: str
    """Where it is: a path or a URL."""

    def __post_init__(self) -> None:
        refuse_secrets(self.address, self.key)

    @property
    def local(self) -> Path | None:
        """Its path, where it is on this machine."""
        return None if is_url(self.address) else Path(self.address).expanduser()

    def error(self, message: str, where: str = "") -> InputError:
        """Of the file as a whole."""
        return InputError(f"{self.key}: {self.name}{where and ' ' + where}: {message}")

    def bad(self, where: str, message: str) -> BadRow:
        """Of one row of it: where is `row 12` or `line 7`."""
        return BadRow(f"{self.key}: {self.name} {where}: {message}")

    def row(self, where: str, columns: dict[str, object]) -> Row:
        return Row(key=self.key, place=f"{self.name} {where}", columns=columns)

    @contextmanager
    def content(self, *, can_seek: bool = False) -> Iterator[IO[bytes]]:
        """Its content, decompressed. Whatever is wrong with it while it is read is InputError."""
        compression = kind_of(self.address)[1]
        with self._faults(compression), self._open(can_seek) as raw:
            if compression:
                with DECOMPRESS[compression](raw) as stream:
                    yield stream
            else:
                yield raw

    @contextmanager
    def text(self, newline: str | None = None) -> Iterator[IO[str]]:
        """Its lines, which must be UTF-8.

        newline: as `open` takes it. None: a carriage return ends a line only in a file in which
        nothing else does, and stays inside a line otherwise.
        """
        with self.content() as stream:
            head = stream.read(HEAD)
            self._check_encoding(head)
            if newline is None:
                newline = "\r" if _ends_lines_with_cr(head) else "\n"
            whole = io.BufferedReader(_Again(head, stream), CHUNK)
            with io.TextIOWrapper(whole, encoding="utf-8-sig", newline=newline) as text:
                yield text

    def is_blank(self) -> bool:
        """Nothing in it but white space."""
        with self.content() as stream:
            return all(not chunk.strip() for chunk in _chunks(stream))

    def digest(self) -> str:
        """SHA-256 of its bytes as they lie there, compressed or not."""
        found = hashlib.sha256()
        with self._faults(""), self._open() as raw:
            for chunk in _chunks(raw):
                found.update(chunk)
        return found.hexdigest()

    def state(self) -> tuple[int, int, int] | None:
        """What is another once it was written to: its size, time and inode. None at a URL."""
        if self.local is None:
            return None
        with self._faults(""):
            found = self.local.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino

    def copied(self, path: Path) -> "File":
        """Its bytes as they lie there, at `path`, which must have its suffixes."""
        with self._faults(""), self._open() as raw, path.open("wb") as copy:
            shutil.copyfileobj(raw, copy, CHUNK)
        return replace(self, address=str(path))

    def _open(self, can_seek: bool = False) -> IO[bytes]:
        if self.local is not None:
            return self.local.open("rb")
        from fsspec.core import url_to_fs

        # in a single request, which is all that some servers answer
        http = {"block_size": 0} if self.address.startswith("http") and not can_seek else {}
        files, path = url_to_fs(self.address)
        # without its decompression, which ends a .zst after the first frame, or wherever it is cut
        return cast(IO[bytes], files.open(path, "rb", **http))

    @contextmanager
    def _faults(self, compression: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except UnicodeDecodeError:
            raise self._not_utf8() from None
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._broken(compression, error) from None
        except FileNotFoundError:
            raise self.error("no such file") from None
        except IsADirectoryError:
            raise self.error("is a folder, not a file") from None
        except OSError as error:
            if compression and error.errno is None:
                raise self._broken(compression, error) from None
            raise self.error(f"cannot be read: {error.strerror or one_line(error)}") from None
        except Exception as error:
            if self.local is not None:
                raise
            # what a protocol's library raises is its own: aiohttp, botocore, gcsfs, ...
            raise self.error(f"cannot be read: {one_line(error)}") from error

    def _broken(self, compression: str, error: Exception) -> InputError:
        return self.error(f"not a {compression} file, or only part of one: {one_line(error)}")

    def _check_encoding(self, head: bytes) -> None:
        for mark, encoding in MARKS.items():
            if head.startswith(mark):
                raise self.error(
                    f"not UTF-8 but {encoding.upper()}: iconv -f {encoding} -t utf-8 converts it"
                )
        # every other byte is zero where letters are ASCII, and that is UTF-8, too
        zeros = [head[start:4096:2].count(0) for start in (0, 1)]
        if sum(zeros) > len(head[:4096]) / 5 and max(zeros) > 19 * min(zeros):
            encoding = "utf-16be" if zeros[0] > zeros[1] else "utf-16le"
            raise self.error(
                f"not UTF-8; it looks like {encoding}: iconv -f {encoding} -t utf-8 converts it"
            )

    def _not_utf8(self) -> InputError:
        """Where its first byte is that is not UTF-8, and what it may be instead."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset, line = 0, 1
        with self.content() as stream:
            for chunk in chain(_chunks(stream), [b""]):
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    before = error.object[: error.start]
                    offset += len(chunk) - len(error.object) + error.start
                    line += before.count(b"\n")
                    return self.error(
                        f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {offset},"
                        f" line {line}); {_other_encoding(error.object, error.start)}"
                    )
                offset += len(chunk)
                line += chunk.count(b"\n")
        return self.error("not UTF-8")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(CHUNK), b"")


def _ends_lines_with_cr(head: bytes) -> bool:
    """As old Macs did."""
    return b"\r" in head[:-1] and b"\n" not in head


def _other_encoding(content: bytes, start: int) -> str:
    sample = content[max(start - HEAD // 2, 0) : start + HEAD // 2]
    text = sample.decode(errors="replace")
    if sum(c > "\x7f" and c != "\ufffd" for c in text) > 2 * text.count("\ufffd"):
        return "what else is around it is UTF-8: mend or leave out what is not"
    import charset_normalizer

    best = charset_normalizer.from_bytes(sample, cp_isolation=list(ENCODINGS)).best()
    if best is None:
        return "convert it with iconv"
    likely = ENCODINGS[best.encoding]
    # the commonest of the Latin ones, which the detector tells apart by little
    first = "cp1252" if "cp1252" in best.could_be_from_charset or likely in LATIN else likely
    if first == likely or "cp1252" in best.could_be_from_charset:
        return f"it looks like {first}: iconv -f {first} -t utf-8 converts it"
    near = content[max(start - 12, 0) : start + 12]
    shown = (f"{name} ({near.decode(name, errors='replace')!r})" for name in (first, likely))
    return f"it may be {' or '.join(shown)}: iconv -f {first} -t utf-8 converts it"


class _Again(io.RawIOBase):
    """A stream from its beginning, of which the head has been read."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = memoryview(head)
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        into = memoryview(buffer).cast("B")
        given = self._head or self._stream.read(len(into))
        size = min(len(into), len(given))
        into[:size] = given[:size]
        self._head = self._head[size:]
        return size


class _Zstandard(io.RawIOBase):
    """Content of a .zst file of any number of frames; ends with EOFError where one is cut off, of
    which the package's own reader says nothing.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise InputError(
                "a .zst file needs the package zstandard: pip install zstandard"
            ) from None
        self._raw = raw
        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = None
        self._given = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        into = memoryview(buffer).cast("B")
        while not self._ready:
            self._given = self._given or self._raw.read(
                1 << 12
            )  # it may become a thousand times as much
            if not self._given:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._decompress()
        size = min(len(into), len(self._ready))
        into[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self) -> None:
        frame = self._frame or self._new_frame()
        try:
            self._ready = memoryview(frame.decompress(self._given))
        except self._error as error:
            raise EOFError(str(error)) from None
        self._given = frame.unused_data
        self._frame = None if frame.eof else frame


DECOMPRESS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw)),
    ".zst": lambda raw: cast(IO[bytes], io.BufferedReader(_Zstandard(raw), CHUNK)),
    ".bz2": lambda raw: cast(IO[bytes], bz2.BZ2File(raw)),
    ".xz": lambda raw: cast(IO[bytes], lzma.LZMAFile(raw)),
}
"""Compressed text, by the last suffix."""
