"""A reader for each kind of file: its rows one by one, with the values as they stand there.

`datasets` reads these kinds, too (tried with 5.2), but of CSV it makes the text `NA` a null, `01`
the number 1 and a line that is too short a row with nulls; of JSON it makes texts that look like
dates datetimes, gives a row the keys of all others as nulls, and where a line is no JSON it names
neither file nor line. A training file is better refused at a line number than changed, so files are
read here; what is on a hub has been through Arrow already and is left to `datasets` (hub.py).
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from trainables.data.files import File, one_line
from trainables.data.rows import MOST_DIGITS, BadRow, Row, json_fault, shorten
from trainables.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")

Rows = Iterator[Row | BadRow]
"""What cannot be used stands where the row would, so that those after it can be read."""

Reader = Callable[[File], Rows]
"""Raises InputError for what is wrong with the file as a whole."""

PIECE_ROWS, PIECE_CHARACTERS = 256, 1 << 23
NESTED = PIECE_CHARACTERS >> 8  # characters that a list or an object is taken for
BATCH = 256  # rows of Arrow that are Python objects at a time
LONGEST_FIELD = 1 << 27  # characters; a quote that is never closed shall not fill the memory
BLANK = re.compile(r"[ \t\n\r]*")  # white space as JSON has it
TSV_FIELD = re.compile(r'("(?:[^"]|"")*"|[^\t]*)(?:\t|\Z)')


# --- Tables of text ---


def read_csv(file: File) -> Rows:
    """Fields between commas, in quotes where they hold commas, quotes or line breaks (RFC 4180)."""
    # its default, 131,072 characters, refuses long documents; it is one setting for all readers
    csv.field_size_limit(LONGEST_FIELD)
    with file.text(newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            first = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                fault = _quoting_fault(file, first, reader.line_num, str(error))
                if header is None or not isinstance(fault, BadRow):
                    raise InputError(str(fault)) from None
                number += 1
                yield fault
                continue
            if fields is None:
                return
            if not fields:
                continue
            nul = _nul(file, first, "".join(fields))
            if header is None:
                header = _checked_header(file, fields, ",", nul)
                continue
            number += 1
            if nul is not None:
                yield nul
            elif len(fields) == len(header):
                yield file.row(f"row {number}", dict(zip(header, fields, strict=True)))
            else:
                yield _ragged(file, reader.line_num, len(fields), len(header), ",")


def read_tsv(file: File) -> Rows:
    """Fields between tabs, a row a line. A quote is text like any other, except that a field that
    begins and ends with one and has all inside it doubled is what pandas and Excel write for a
    field with quotes in it: it loses the outer ones and the doubling. Such a field may hold a tab,
    where the line has as many fields as the header only if it does. No field spans lines.
    """
    header: list[str] | None = None
    number = 0
    with file.text() as lines:
        for line_number, line in enumerate(lines, start=1):
            line = line.rstrip("\n").removesuffix("\r")
            if not line:
                continue
            nul = _nul(file, line_number, line)
            if header is None:
                header = _checked_header(file, _tsv_fields(line, None), "\t", nul)
                continue
            number += 1
            fields = _tsv_fields(line, len(header))
            if nul is not None:
                yield nul
            elif len(fields) == len(header):
                yield file.row(f"row {number}", dict(zip(header, fields, strict=True)))
            else:
                yield _ragged(file, line_number, len(fields), len(header), "\t")


def _tsv_fields(line: str, wanted: int | None) -> list[str]:
    fields = line.split("\t")
    if '"' not in line:
        return fields
    if wanted is not None and len(fields) != wanted:
        quoted = [found[1] for found in TSV_FIELD.finditer(line)]
        if line and not line.endswith("\t"):
            quoted.pop()  # the empty match at its end
        if len(quoted) == wanted:
            fields = quoted
    return [_unquoted(field) for field in fields]


def _unquoted(field: str) -> str:
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return field
    inside = field[1:-1]
    return field if '"' in inside.replace('""', "") else inside.replace('""', '"')


def _nul(file: File, first: int, text: str) -> BadRow | None:
    """What is wrong with a row that begins in line `first` and has a NUL, which no text has."""
    if "\0" not in text:
        return None
    line = first + text.partition("\0")[0].count("\n")
    return file.bad(f"line {line}", "has a NUL character; tr -d '\\000' removes them from a file")


def _checked_header(
    file: File, header: list[str], delimiter: str, fault: BadRow | None
) -> list[str]:
    if fault is not None:
        raise InputError(str(fault))
    if len(set(header)) < len(header):
        raise file.error(f"two columns have the same name in the header {shorten(header)}")
    if len(header) == 1:
        for other in (",", ";", "\t", "|"):
            if other in header[0]:
                kind = {",": ".csv", "\t": ".tsv"}.get(other)
                raise file.error(
                    f"its header is a single column, {shorten(header[0])}: columns seem to be"
                    f" separated by {other!r}, not {delimiter!r}; "
                    + (f"name it {kind}" if kind else f"write it with {delimiter!r} between them")
                )
    return header


def _ragged(file: File, line: int, fields: int, columns: int, delimiter: str) -> BadRow:
    advice = (
        f"quote text that holds {delimiter!r}"
        if delimiter == ","
        else "a field holds no tab and no line break"
    )
    count = f"{fields} field{'s' * (fields != 1)}"
    return file.bad(f"line {line}", f"{count} where the header has {columns}; {advice}")


def _quoting_fault(file: File, first: int, last: int, message: str) -> InputError:
    """Of a row of CSV that begins in line `first` and could not be read on in line `last`: BadRow
    where it is a single line, so that the next begins a row for sure.
    """
    is_open = "end of data" in message or "field limit" in message
    if first == last and not is_open:
        return file.bad(f"line {last}", f'{message}; a quote that is text is doubled: ""')
    with file.text(newline="") as lines:
        opened = first + _opening_line("".join(islice(lines, first - 1, last)))
    found = "is never closed" if is_open else f"is closed inside line {last}"
    return file.error(
        f'the quote that opens here {found}; a quote that is text is doubled: ""',
        f"line {opened}",
    )


def _opening_line(text: str) -> int:
    """Line, from 0, of the quote that opens the field that is not closed as it must be."""
    at = 0
    while at < len(text):
        opened = at
        if text[at] != '"':
            ends = [end for c in ",\r\n" if (end := text.find(c, at)) >= 0]
            at = min(ends, default=len(text)) + 1
            continue
        at = text.find('"', at + 1)
        while at >= 0 and text[at + 1 : at + 2] == '"':
            at = text.find('"', at + 2)
        if at < 0 or text[at + 1 : at + 2] not in (",", "\r", "\n", ""):
            return len(re.findall(r"\r\n|\r|\n", text[:opened]))
        at += 2
    return 0


# --- JSON ---


class JSONFault(ValueError):
    """Why a text is not taken as JSON."""


# Called for every object, it costs a third of the decoder's time, a sixth of that of reading.
def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):  # of which json keeps the last
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JSONFault(f"the key {shorten(twice)} stands twice in an object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
LENIENT = json.JSONDecoder(parse_int=len)  # finds the end of what the other refuses


def parse_json(text: str) -> object:
    """Raises JSONFault also for what Python would take: a key that stands twice."""
    try:
        return DECODER.decode(text)
    except JSONFault:
        raise
    except json.JSONDecodeError as error:
        raise JSONFault(f"not JSON: {json_fault(error)}") from None
    except RecursionError:
        raise JSONFault("nested too deeply") from None
    except ValueError:
        raise JSONFault(f"an integer of more than {MOST_DIGITS} digits") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Of JSON, of a file: not yet parsed, which another process may do."""

    file: File
    lines: Sequence[tuple[int, str]]
    """Beside each its number."""

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self) -> Rows:
        for number, line in self.lines:
            try:
                row = parse_json(line)
            except JSONFault as fault:
                hint = "; an object stands on one line" if line.strip() == "{" else ""
                yield self.file.bad(f"line {number}", f"{fault}{hint}")
                continue
            if isinstance(row, dict):
                yield self.file.row(f"line {number}", row)
            else:
                yield self.file.bad(
                    f"line {number}",
                    f'must be an object like {{"text": ...}}, got {shorten(row)}',
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """Rows as they were read."""

    given: Sequence[Row | BadRow]

    def __len__(self) -> int:
        return len(self.given)

    def rows(self) -> Rows:
        return iter(self.given)


Piece = Lines | Given
"""Rows of a file that can be sent to another process."""


def jsonl_pieces(file: File) -> Iterator[Lines]:
    """A JSON object a line."""
    with file.text() as lines:
        numbered = ((i, line) for i, line in enumerate(lines, start=1) if not line.isspace())
        for i, found in enumerate(in_pieces(numbered, lambda pair: len(pair[1]))):
            if i == 0:
                _check_first(file, *found[0])
            yield Lines(file=file, lines=found)


def _check_first(file: File, number: int, line: str) -> None:
    """Raise InputError where the first line shows that no line is a row."""
    if re.match(r"\s*\[\s*(\{|$)", line):
        raise file.error("a list of objects, as .json has it, not one object a line; name it .json")
    with suppress(JSONFault):
        row = parse_json(line)
        if isinstance(row, dict) and _is_pandas(row):
            raise file.error(f"not one object a line, but {PANDAS}", f"line {number}")


def read_jsonl(file: File) -> Rows:
    """A JSON object a line."""
    for piece in jsonl_pieces(file):
        yield from piece.rows()


def in_pieces(
    items: "Iterable[Item]", characters: "Callable[[Item], int]"
) -> "Iterator[list[Item]]":
    """Of at most so many rows and characters; a longer one is a piece."""
    piece, size = [], 0
    for item in items:
        piece.append(item)
        size += characters(item)
        if len(piece) == PIECE_ROWS or size >= PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def characters_of(row: Row | BadRow) -> int:
    """As far as that is known at once: a list may hold any number."""
    if isinstance(row, BadRow):
        return 0
    return sum(
        len(value) if isinstance(value, str) else NESTED
        for value in row.columns.values()
        if isinstance(value, str | list | dict)
    )


def read_json(file: File) -> Rows:
    """A list of objects; the text is in memory as a whole."""
    with file.text(newline="") as stream:
        text = stream.read()
    at = _after_blank(text, 0)
    if at == len(text):
        return
    if text[at] != "[":
        given, end = _decoded(file, text, at)
        if (end := _after_blank(text, end)) != len(text):
            raise _not_json(file, json.JSONDecodeError("Extra data", text, end))
        raise _no_list(file, given)
    at = _after_blank(text, at + 1)
    number = 0
    more = text[at : at + 1] != "]"
    while more:
        number += 1
        start = at
        fault, row = None, None
        try:
            row, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _not_json(file, error) from None
        except RecursionError:
            raise file.error("nested too deeply", f"row {number}") from None
        except JSONFault as error:
            fault = file.bad(f"row {number}", str(error))
        except ValueError:
            fault = file.bad(f"row {number}", f"an integer of more than {MOST_DIGITS} digits")
        if fault is not None:
            at = _decoded(file, text, start)[1]
            yield fault
        elif isinstance(row, dict):
            yield file.row(f"row {number}", row)
        else:
            raise _no_list(file, [row])
        at = _after_blank(text, at)
        more = text[at : at + 1] == ","
        if more:
            at = _after_blank(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _not_json(file, json.JSONDecodeError("Expecting ',' delimiter", text, at))
    if (at := _after_blank(text, at + 1)) != len(text):
        raise _not_json(file, json.JSONDecodeError("Extra data", text, at))


def _after_blank(text: str, at: int) -> int:
    found = BLANK.match(text, at)
    return found.end() if found else at


def _decoded(file: File, text: str, at: int) -> tuple[object, int]:
    """The value that begins there, but for its integers, and where it ends."""
    try:
        return LENIENT.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(file, error) from None
    except RecursionError:
        raise file.error("nested too deeply") from None


def _not_json(file: File, error: json.JSONDecodeError) -> InputError:
    hint = "; one object a line is .jsonl" if error.msg == "Extra data" else ""
    return file.error(f"not JSON: {json_fault(error)}{hint}", f"line {error.lineno}")


def _no_list(file: File, given: object) -> InputError:
    return file.error(f'must be a list of objects like [{{"text": ...}}, ...], {_found(given)}')


def _found(given: object) -> str:
    """What a file of JSON holds that is no list of objects."""
    if _is_pandas(given):
        return f"got {PANDAS}"
    if not isinstance(given, dict):
        return "got a number" if type(given) is int else f"got {shorten(given)}"
    names = [name for name in ROWS_NAMES if _is_list_of(dict, given.get(name))]
    if len(names) == 1:
        return f"got an object that has one under {shorten(names[0])}; write that list alone"
    return f"got an object with the keys {shorten([*given])}; a single row is a list of one"


PANDAS = "a table as pandas writes it; to_json(path, orient='records', lines=True) writes .jsonl"
ROWS_NAMES = ("data", "rows", "examples", "instances", "train", "validation", "test")


def _is_pandas(given: object) -> bool:
    """Whether it is what `DataFrame.to_json` makes with another orient than records: columns (its
    default) or index, by the row's numbers; split, table, values.
    """
    if not isinstance(given, dict):
        return _is_list_of(list, given)
    data = given.get("data")
    if ("columns" in given and _is_list_of(list, data)) or (
        "schema" in given and _is_list_of(dict, data)
    ):
        return True
    values = [*given.values()]
    inner = [key for value in values if isinstance(value, dict) for key in value]
    by_number = (all(map(str.isdigit, keys)) and bool(keys) for keys in (given, inner))
    return all(isinstance(value, dict) for value in values) and any(by_number)


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)


# --- Arrow ---


def read_parquet(file: File) -> Rows:
    import pyarrow.parquet

    with file.content(can_seek=True) as stream, _arrow_faults(file, "a Parquet file"):
        # pre_buffer would hold a whole row group
        table = pyarrow.parquet.ParquetFile(
            file.local or stream, pre_buffer=False, buffer_size=1 << 20
        )
        yield from _arrow_rows(file, table.schema_arrow, table.iter_batches(batch_size=BATCH))


def read_arrow(file: File) -> Rows:
    """Arrow's IPC format as a file or as a stream, which is what `datasets` writes."""
    import pyarrow

    with file.content(can_seek=True) as stream, _arrow_faults(file, "an Arrow file"):
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        with pyarrow.memory_map(str(file.local)) if file.local else stream as source:
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            else:
                reader = batches = pyarrow.ipc.open_stream(source)
            yield from _arrow_rows(file, reader.schema, _validated(batches))


def _validated(batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
    """Small ones, none of which points outside its buffers."""
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def _arrow_rows(file: File, schema: "pa.Schema", batches: "Iterable[pa.RecordBatch]") -> Rows:
    if len(set(schema.names)) < len(schema.names):
        raise file.error(f"two columns have the same name: {shorten(schema.names)}")
    columns = [(each.name, arrow_value(each.type)) for each in schema]
    changed = {name: value for name, value in columns if value is not None}
    number = 0
    for batch in batches:
        for row in python_rows(batch, changed):
            number += 1
            if isinstance(row, str):
                yield file.bad(f"row {number}", row)
            else:
                yield file.row(f"row {number}", row)


Value = Callable[[Any], Any]


def arrow_value(kind: "pa.DataType", *, keep_nulls: bool = False) -> Value | None:
    """What makes of a value, as pyarrow gives it, the one that was stored. None: it is the same.

    Arrow gives all objects of a column the same fields: those that only others have are null, and
    are left out again (unless keep_nulls). A null that was written on purpose goes with them, since
    Arrow does not tell them apart. A map is an object, and JSON that is kept as such is read.
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else parse_json(text)
    if isinstance(kind, pa.BaseExtensionType):
        return arrow_value(kind.storage_type, keep_nulls=keep_nulls)
    if pa.types.is_dictionary(kind):
        return arrow_value(kind.value_type, keep_nulls=keep_nulls)
    if pa.types.is_map(kind):
        item = arrow_value(kind.item_type, keep_nulls=keep_nulls)
        return lambda pairs: (
            None if pairs is None else {k: item(v) if item else v for k, v in pairs}
        )
    if pa.types.is_struct(kind):
        fields = {each.name: arrow_value(each.type, keep_nulls=keep_nulls) for each in kind}
        return _struct_value(fields, keep_nulls)
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType):
        item = arrow_value(kind.value_type, keep_nulls=keep_nulls)
        return item and (lambda values: None if values is None else [item(v) for v in values])
    return None


def _struct_value(fields: dict[str, Value | None], keep_nulls: bool) -> Value | None:
    if keep_nulls and not any(fields.values()):
        return None

    def value(given: dict[str, Any] | None) -> dict[str, Any] | None:
        if given is None:
            return None
        return {
            name: change(each) if (change := fields[name]) else each
            for name, each in given.items()
            if keep_nulls or each is not None
        }

    return value


def python_rows(
    batch: "pa.RecordBatch | pa.Table", changed: Mapping[str, Value]
) -> Iterator[dict[str, Any] | str]:
    """Rows as Python objects, or why one has no such form. changed: `arrow_value` of columns."""
    try:
        rows: Sequence[dict[str, Any] | str] = batch.to_pylist()
    except (ValueError, OverflowError):  # a date beyond the year 9999, text that is not UTF-8
        rows = [_python_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
    for row in rows:
        if isinstance(row, dict):
            try:
                for name, value in changed.items():
                    row[name] = value(row[name])
            except JSONFault as fault:
                row = str(fault)
        yield row


def _python_row(batch: "pa.RecordBatch | pa.Table") -> dict[str, Any] | str:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return f"a value cannot be read: {one_line(error)}"


@contextmanager
def _arrow_faults(file: File, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except pyarrow.ArrowNotImplementedError as error:
        raise file.error(f"cannot be read: {one_line(error)}") from None
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as e:
        if isinstance(e, OSError) and e.errno is not None:  # of the system, not of what is in it
            raise
        if file.local is None and not isinstance(e, pyarrow.ArrowException):  # of its protocol
            raise
        if file.is_blank():
            raise file.error("the file is empty") from None
        raise file.error(f"not {kind}, or only part of one") from e


# --- Text ---


def read_document(file: File) -> Rows:
    """A single row, whose only column is the text, with line breaks as they are in Unix."""
    with file.text(newline="") as stream:
        text = stream.read().replace("\r\n", "\n")
    if text.strip():
        yield file.row("row 1", {"text": text if "\n" in text else text.replace("\r", "\n")})


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_document,
}
BINARY = (".parquet", ".arrow")  # compressed inside
DOCUMENT = ".txt"
