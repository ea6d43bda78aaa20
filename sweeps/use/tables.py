"""Tables that are written: CSV, JSONL and Parquet, here or at a URL; a file is there whole or not
at all.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainables.data.files import is_url, kind_of
from trainables.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000  # of a batch of Parquet

Table = Callable[[], Iterator[Mapping[str, object]]]
"""Its rows, from the first, each time that it is called."""
Writer = Callable[[Path, Sequence[str], Table], None]


def check_table(out: str, setting: str) -> None:
    """Raise InputError unless `out` names a kind of table that is written, where none is yet."""
    kind, compression = kind_of(out)
    if kind not in WRITERS or compression:
        raise InputError(
            f"{setting}: {out}: unknown kind of file {kind + compression!r}; allowed are"
            f" {', '.join(WRITERS)}"
        )
    if not is_url(out) and not Path(out).absolute().parent.is_dir():
        raise InputError(f"{setting}: {out}: there is no folder {Path(out).absolute().parent}")
    if _exists(out):
        raise InputError(f"{setting}: {out} is there already; remove it, or name another file")


def _exists(out: str) -> bool:
    if not is_url(out):
        return Path(out).exists()
    from fsspec.core import url_to_fs

    files, path = url_to_fs(out)
    return files.exists(path)


def write_table(out: str, columns: Sequence[str], table: Table) -> None:
    """columns: their order, of all that rows have."""
    with _placed(out) as path:
        WRITERS[kind_of(out)[0]](path, columns, table)


@contextmanager
def _placed(out: str) -> Iterator[Path]:
    """A path to write to, which is moved to `out` at the end."""
    if not is_url(out):
        target = Path(out)
        partial = target.with_name(f".{target.name}.partial")
        try:
            yield partial
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return
    from fsspec.core import url_to_fs

    files, path = url_to_fs(out)
    with TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        yield (local := Path(scratch) / "table")
        files.put_file(str(local), path)


def _write_csv(path: Path, columns: Sequence[str], table: Table) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in table():
            writer.writerow([_cell(row.get(name)) for name in columns])


def _cell(value: object) -> object:
    """Lists and objects as JSON."""
    return _json(value) if isinstance(value, list | dict | tuple) else value


def _write_jsonl(path: Path, columns: Sequence[str], table: Table) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in table():
            stream.write(_json({name: row[name] for name in columns if name in row}) + "\n")


def _json(value: object) -> str:
    """What JSON has no kind for (dates, bytes) as text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _write_parquet(path: Path, columns: Sequence[str], table: Table) -> None:
    """Of a column whose values are of no common kind, as text of JSON."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = _kinds(columns, table)
    schema = pa.schema([(name, kind or pa.string()) for name, kind in kinds.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _batches(table()):
            cells = {name: _column(rows, name) for name in columns}
            for name in (name for name, kind in kinds.items() if kind is None):
                cells[name] = list(map(_json, cells[name]))
            writer.write_batch(pa.record_batch(cells, schema=schema))


def _kinds(columns: Sequence[str], table: Table) -> "dict[str, pa.DataType | None]":
    """Of each column; None: its values have none in common."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType | None] = {name: pa.null() for name in columns}
    for rows in _batches(table()):
        for name, kind in kinds.items():
            kinds[name] = None if kind is None else _common(kind, _column(rows, name))
    return kinds


def _common(kind: "pa.DataType", values: list[object]) -> "pa.DataType | None":
    """A kind of Arrow that holds both; None: there is none."""
    import pyarrow as pa

    try:
        schemas = [pa.schema([("x", each)]) for each in (kind, pa.array(values).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowException, OverflowError):
        return None


def _column(rows: Iterable[Mapping[str, object]], name: str) -> list[object]:
    return [row.get(name) for row in rows]


def _batches(rows: Iterator[Mapping[str, object]]) -> Iterator[list[Mapping[str, object]]]:
    return iter(lambda: list(islice(rows, ROWS)), [])


WRITERS: dict[str, Writer] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".parquet": _write_parquet,
}
