"""Execution accuracy of SQL: whether an answer's query gives what the reference's gives."""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.rows import fenced

ALLOWED = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
REFUSED_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"})
MOST_ROWS = 100_000  # that a reference may give
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a value: bounds what one step can take
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
STEPS = 1000  # of SQLite's machine, between two looks at the clock
TOKENS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | --[^\n]* | /\*.*?(?:\*/|\Z)"""
    r"""| [()] | \w+ | \S""",
    re.VERBOSE | re.DOTALL,
)
COMMENTS = ("--", "/*")
Results = tuple[bytes, ...]
"""A digest of each row."""


@dataclass(frozen=True, kw_only=True)
class SqlExecution:
    """1 where the answer's query gives the rows that the reference's gives: in its order where the
    reference has ORDER BY at its top level, else in any. NaN where the reference does not run.

    Columns count by position, not by name; numbers to 10 digits, whole ones whatever their type.
    Only one SELECT (or WITH ... SELECT) runs, read-only, within `timeout` seconds; values of more
    than 1 MB and references of more than 100,000 rows count as not run.
    """

    name: str = "sql_execution"
    database: Path
    timeout: float = 5.0
    lower_is_better = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"sql_execution.timeout: must be above 0, got {self.timeout}")
        check_database(self.database)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        with closing(connect(self.database)) as connection:

            @cache
            def wanted(reference: str) -> Results | None:
                return self._run(connection, reference, MOST_ROWS)

            values = []
            for each in answers:
                expected = wanted(each.reference)
                if expected is None:
                    values.append(np.nan)
                    continue
                found = self._run(connection, each.text, len(expected))
                values.append(float(_are_same(found, expected, each.reference)))
        return np.array(values, dtype=np.float64)

    def _run(self, connection: sqlite3.Connection, text: str, most: int) -> Results | None:
        """None where the query is refused or wrong, takes too long or gives more rows."""
        query = query_of(text)
        if next(words(query), "").upper() not in ("SELECT", "WITH"):
            return None
        deadline = time.perf_counter() + self.timeout
        connection.set_progress_handler(lambda: time.perf_counter() > deadline, STEPS)
        try:
            with closing(connection.execute(query)) as cursor:
                found = []
                for row in cursor:
                    if len(found) == most or time.perf_counter() > deadline:
                        return None
                    found.append(_digest(row))
                return tuple(found)
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError):
            return None


def _are_same(found: Results | None, expected: Results, reference: str) -> bool:
    if found is None:
        return False
    return found == expected if is_ordered(reference) else Counter(found) == Counter(expected)


def query_of(text: str) -> str:
    """The SQL of an answer: what stands in its first fence, if it has one, without semicolons at
    the end.
    """
    inner = fenced(text)
    return (text if inner is None else inner).strip().rstrip("; \t\r\n")


def words(query: str) -> Iterator[str]:
    """Names, literals, brackets and signs; no comments."""
    return (found[0] for found in TOKENS.finditer(query) if not found[0].startswith(COMMENTS))


def is_ordered(text: str) -> bool:
    """Whether a query has ORDER BY outside brackets."""
    depth, before = 0, ""
    for word in words(query_of(text)):
        depth += (word == "(") - (word == ")")
        if depth == 0 and before == "ORDER" and word.upper() == "BY":
            return True
        before = word.upper()
    return False


def _digest(row: Sequence[object]) -> bytes:
    digest = blake2b(digest_size=16)
    for value in row:
        part = _written(value)
        digest.update(b"%d:" % len(part) + part)
    return digest.digest()


def _written(value: object) -> bytes:
    match value:
        case bytes():
            return b"b" + value
        case str():
            return b"s" + value.encode(errors="surrogateescape")
        case float() if value.is_integer() and abs(value) < 1 << 53:
            return b"%d" % int(value)
        case float():
            return f"{value:.10g}".encode()
    return str(value).encode()


# --- the database ---


def connect(database: Path) -> sqlite3.Connection:
    """To a file that nothing is written to, or to beside it. Raises sqlite3.Error."""
    uri = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorise)
    return connection


def _authorise(
    action: int, first: str | None, second: str | None, database: str | None, within: str | None
) -> int:
    is_refused = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in REFUSED_FUNCTIONS
    return sqlite3.SQLITE_OK if action in ALLOWED and not is_refused else sqlite3.SQLITE_DENY


def check_database(database: Path) -> None:
    """Raise InputError unless it is a SQLite file with tables, all of it in the one file."""
    where = f"sql_execution.database: {str(database)!r}"
    if not database.is_file():
        raise InputError(f"{where} is no file")
    log = database.with_name(f"{database.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise InputError(
            f"{where} has changes that are still in {log.name!r}: close what writes to it, or run"
            " PRAGMA wal_checkpoint(TRUNCATE)"
        )
    try:
        with closing(connect(database)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise InputError(f"{where} cannot be read as SQLite: {error}") from None
    if not tables:
        raise InputError(f"{where} has no tables")
