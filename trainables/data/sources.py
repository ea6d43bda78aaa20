"""Read rows from a file or from the Hugging Face hub, or say in one line why not."""

import csv
import hashlib
import io
import json
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainables.data.config import DataConfig
from trainables.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they were read; nothing is converted, since a reader that guesses types turns the
    text 'NA' into a missing value.
    """

    key: str
    """Setting that named the source: `data.train`, `data.validation` or `data.test`."""
    name: str
    """The source as the user wrote it."""
    rows: Sequence[Mapping[str, object]]
    fingerprint: str
    """SHA-256 of the file's bytes; for a hub dataset, of its rows."""
    is_document: bool = False
    """A .txt file: one row, whose only column is the text."""
    unit: str = "row"
    numbers: Sequence[int] = field(default=())
    """Number of each row, from 1, in `unit`s. Empty: 1, 2, 3, ..."""

    def place(self, index: int) -> str:
        return f"{self.name} {self.unit} {self.numbers[index] if self.numbers else index + 1}"

    def error(self, index: int, message: str) -> InputError:
        return InputError(f"{self.key}: {self.place(index)}: {message}")

    def columns(self) -> list[str]:
        """All columns, in the order in which they first appear."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def column(self, column: str, setting: str) -> list[object]:
        """The values of `column` [rows]. Raises InputError, naming `setting`, where the table or
        one of its rows lacks it.
        """
        self.check_column(column, setting)
        for index, row in enumerate(self.rows):
            if is_missing(row.get(column)):
                raise self.error(index, f"{column!r} is missing")
        return [row[column] for row in self.rows]

    def check_column(self, column: str, setting: str) -> None:
        columns = self.columns()
        if column not in columns:
            raise InputError(
                f"data.{setting}: {self.name} has no column {column!r}, only {', '.join(columns)}."
                + did_you_mean(column, columns)
            )

    def texts(self, column: str, setting: str) -> list[str]:
        """Like `column`, and every value is a string with something in it."""
        texts = []
        for index, text in enumerate(self.column(column, setting)):
            if not isinstance(text, str):
                raise self.error(
                    index, f"{column!r} must be text, got {type(text).__name__} {shorten(text)}"
                )
            self.check_text(index, text, repr(column))
            texts.append(text)
        return texts

    def check_text(self, index: int, text: str, where: str) -> None:
        """Raise InputError unless `text` has something in it that a tokenizer can read."""
        if not text.strip():
            raise self.error(index, f"{where} is empty")
        try:
            text.encode()
        except (
            UnicodeEncodeError
        ) as error:  # half of a character beyond U+FFFF, as a careless cut of JSON leaves it
            half = text[error.start]
            raise self.error(
                index, f"{where} is not Unicode text: it has a lone surrogate {half!r}"
            ) from None


Reader = Callable[[bytes, str, str], Table]
"""Of a file's content, the setting that named it and the name that the user wrote."""


def is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def shorten(value: object, characters: int = 60) -> str:
    """`value` as it would be written in Python, on one line and cut."""
    text = repr(value)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def check_sources(data: DataConfig) -> None:
    """Files that are named must be there and of a kind that can be read: known before anything else
    is loaded.
    """
    for key in ("train", "validation", "test"):
        source = getattr(data, key)
        if isinstance(source, str) and source and not source.startswith("hf:"):
            _reader(source, f"data.{key}")


def _reader(source: str, key: str) -> Reader:
    path = Path(source).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{key}: {source}: unknown kind of file {path.suffix!r}; allowed are"
            f" {', '.join(READERS)} and hf:owner/name"
        )
    if not path.exists():
        siblings = (
            [str(path.with_name(p.name)) for p in path.parent.iterdir()]
            if path.parent.is_dir()
            else []
        )
        raise InputError(
            f"{key}: {source}: no such file (looked from"
            f" {Path.cwd()}).{did_you_mean(str(path), siblings)}"
        )
    return reader


def read_source(source: str, key: str) -> Table:
    """The rows of `source` (see DataConfig). Raises InputError where there are none."""
    if source.startswith("hf:"):
        return _not_empty(_read_hub(source, key))
    reader, path = _reader(source, key), Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"{key}: {source}: is a folder, not a file")
    content = path.read_bytes()
    if not content.strip():
        raise InputError(f"{key}: {source}: the file is empty")
    return _not_empty(reader(content, key, source))


def source_fingerprint(source: str) -> str | None:
    """SHA-256 of a source's file as it is now, as `read_source` gives it; None for what is on a hub
    or no longer here.
    """
    path = Path(source).expanduser()
    return None if source.startswith("hf:") or not path.is_file() else _digest(path.read_bytes())


def _not_empty(table: Table) -> Table:
    if not table.rows:
        raise InputError(f"{table.key}: {table.name}: no rows")
    return table


def _decode(content: bytes, key: str, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{key}: {name}: not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start});"
            " convert it, for example with iconv -f latin1 -t utf-8"
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _separated(delimiter: str) -> Reader:
    def read(content: bytes, key: str, name: str) -> Table:
        text = _decode(content, key, name)
        limit = csv.field_size_limit(
            sys.maxsize
        )  # its default, 131,072 characters, refuses long documents
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(reader)
            if len(set(header)) < len(header):
                raise InputError(
                    f"{key}: {name}: two columns have the same name in the header {shorten(header)}"
                )
            rows = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise InputError(
                        f"{key}: {name} line {reader.line_num}: {len(fields)} fields where the"
                        f" header has {len(header)}; quote text that holds {delimiter!r}"
                    )
                rows.append(dict(zip(header, fields, strict=True)))
        except csv.Error as error:
            raise InputError(f"{key}: {name} line {reader.line_num}: {error}") from None
        finally:
            csv.field_size_limit(limit)
        return Table(key=key, name=name, rows=rows, fingerprint=_digest(content))

    return read


def _read_jsonl(content: bytes, key: str, name: str) -> Table:
    rows, numbers = [], []
    # Not str.splitlines, which also splits at characters that JSON allows inside a string (U+2028).
    for number, line in enumerate(_decode(content, key, name).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{key}: {name} line {number}: not JSON: {error.msg} (column {error.colno})"
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f'{key}: {name} line {number}: must be an object like {{"text": ...}}, got'
                f" {shorten(row)}"
            )
        rows.append(row)
        numbers.append(number)
    return Table(
        key=key, name=name, rows=rows, fingerprint=_digest(content), unit="line", numbers=numbers
    )


def _read_json(content: bytes, key: str, name: str) -> Table:
    try:
        rows = json.loads(_decode(content, key, name))
    except json.JSONDecodeError as error:
        hint = "; one object a line is .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{key}: {name} line {error.lineno}: not JSON: {error.msg} (column {error.colno}){hint}"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{key}: {name}: must be a list of objects like [{{"text": ...}}, ...]')
    return Table(key=key, name=name, rows=rows, fingerprint=_digest(content))


def _read_parquet(content: bytes, key: str, name: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowInvalid:
        raise InputError(f"{key}: {name}: not a Parquet file, or only part of one") from None
    return Table(key=key, name=name, rows=table.to_pylist(), fingerprint=_digest(content))


def _read_document(content: bytes, key: str, name: str) -> Table:
    text = _decode(content, key, name).replace("\r\n", "\n")
    return Table(
        key=key, name=name, rows=[{"text": text}], fingerprint=_digest(content), is_document=True
    )


READERS: dict[str, Reader] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_document,
}

HUB_OPTIONS = ("split", "config", "revision")


def _read_hub(source: str, key: str) -> Table:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, query = source.removeprefix("hf:").partition("?")
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in HUB_OPTIONS:
            raise InputError(
                f"{key}: {source}: unknown option {option!r}; allowed are {', '.join(HUB_OPTIONS)}."
                + did_you_mean(option, HUB_OPTIONS)
            )
    split = options.get("split", key.removeprefix("data."))
    try:
        dataset = datasets.load_dataset(
            name, options.get("config"), split=split, revision=options.get("revision")
        )
    except (OSError, ValueError, DatasetsError) as error:
        # Hub, network, cache, the dataset's own layout: each fails in its own way, and the user can
        # mend each.
        raise InputError(
            f"{key}: {source}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    rows = dataset.to_list()
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:  # -1: the hidden label of a test split
                row[column] = (
                    feature.names[row[column]]
                    if row[column] is not None and row[column] >= 0
                    else None
                )
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return Table(key=key, name=source, rows=rows, fingerprint=digest.hexdigest())


class Source:
    def __init__(self, table: Table) -> None:
        self._t = table
        self.key, self.name, self.weight, self.is_document = (
            table.key,
            table.name,
            1.0,
            table.is_document,
        )
        self.columns = tuple(table.columns())

    def rows(self):
        from trainables.data.rows import Row

        for i, row in enumerate(self._t.rows):
            yield Row(key=self.key, place=self._t.place(i), columns=row)

    def fingerprint(self) -> str:
        return self._t.fingerprint

    def check_column(self, column: str | None, setting: str) -> None:
        if column is not None and not self.is_document:
            self._t.check_column(column, setting)


def open_sources(data: DataConfig, split: str) -> list[Source]:
    return [Source(read_source(p.source, f"data.{split}")) for p in data.parts(split)]
