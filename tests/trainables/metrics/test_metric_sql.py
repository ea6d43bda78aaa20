"""Execution accuracy, and SQL that means harm."""

import hashlib
import json
import sqlite3
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.sql import SqlExecution, is_ordered, query_of

FOREVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "
ALL = "SELECT name, size FROM city"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("sql") / "a city #1?.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE city (name TEXT, size INTEGER, share REAL)")
        rows = [
            ("Ulm", 3, 0.1),
            ("Bonn", 5, 0.2),
            ("Jena", 3, None),
            ("Jena", 3, None),
            ("Köln", 9, 2.0),
        ]
        connection.executemany("INSERT INTO city VALUES (?, ?, ?)", rows)
        connection.execute("CREATE TABLE broken (text TEXT)")
        connection.execute("INSERT INTO broken VALUES (CAST(x'ff41' AS TEXT))")
        connection.commit()
    return path


@pytest.fixture(scope="module")
def same(database):
    metric = SqlExecution(database=database, timeout=0.5)
    return lambda answer, reference=ALL: metric.score([Answer("", answer, reference)])[0]


@pytest.mark.parametrize(
    "answer",
    [
        ALL,
        f"  {ALL} ; \n",
        f"```sql\n{ALL};\n```",
        f"This is the query:\n```SQL\n{ALL}\n```\nIt gives all.",
        f"-- all\n/* of them */ {ALL} -- end",
        "SELECT c.name AS x, c.size FROM city c ORDER BY size DESC, name",
        "WITH c AS (SELECT * FROM city) SELECT name, size * 1.0 FROM c",
        "SELECT name, size + 1e-14 FROM city",
    ],
)
def test_other_words_for_the_same_rows(same, answer):
    assert same(answer) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no SQL",
        "SELECT",
        "SELECT nothing FROM city",
        "SELECT size, name FROM city",
        "SELECT name, CAST(size AS TEXT) FROM city",
        "SELECT DISTINCT name, size FROM city",
        f"{ALL} UNION ALL SELECT 'Ulm', 3",
        f"{ALL} LIMIT 4",
        f"{ALL} WHERE name = ?",
        f"{ALL}\0",
        f"{ALL} WHERE name = '\ud800'",
        f"{ALL}; {ALL}",
    ],
)
def test_other_rows_or_none(same, answer):
    assert same(answer) == 0


def test_order_counts_where_the_reference_has_one(same):
    ordered = f"{ALL} ORDER BY size, name"
    assert same(ordered, ordered) == 1
    assert same(f"{ALL} ORDER BY size DESC, name", ordered) == 0
    assert same(f"{ALL} ORDER BY name DESC", f"SELECT * FROM ({ordered} LIMIT 9)") == 1


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a;", True),
        ("SELECT a FROM t ORDER/**/BY a LIMIT 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'x ORDER BY y' FROM t", False),
        ('SELECT "(" FROM t ORDER BY a', True),
        ("SELECT a FROM t -- ORDER BY a", False),
        ("SELECT a FROM t /* ORDER BY a */", False),
        ("WITH c AS (SELECT a FROM t ORDER BY a) SELECT a FROM c", False),
        ("SELECT a AS [order by] FROM t", False),
    ],
)
def test_where_order_by_stands(query, ordered):
    assert is_ordered(query) is ordered


def test_a_reference_that_does_not_run_tells_nothing(same):
    assert np.isnan(same(ALL, "SELECT nothing FROM city"))
    assert np.isnan(same(ALL, "DROP TABLE city"))
    assert np.isnan(same(ALL, f"{FOREVER} count(*) FROM n"))
    assert np.isnan(same("SELECT 1", f"{FOREVER} 1 FROM n LIMIT 200000"))


def test_text_that_is_no_unicode_compares(same):
    assert same("SELECT text FROM broken", "SELECT * FROM broken") == 1
    assert same("SELECT 'xA'", "SELECT * FROM broken") == 0
    assert same("SELECT CAST(text AS BLOB) FROM broken", "SELECT * FROM broken") == 0


def test_an_empty_result_is_a_result(same):
    assert same("SELECT 1 WHERE 0", f"{ALL} WHERE size > 99") == 1
    assert same(ALL, f"{ALL} WHERE size > 99") == 0


@pytest.mark.parametrize(
    "answer",
    [
        "DROP TABLE city",
        "DELETE FROM city",
        "WITH c AS (SELECT 1) DELETE FROM city",
        "WITH c AS (SELECT 'x' AS name) INSERT INTO city SELECT name, 1, 1 FROM c",
        "UPDATE city SET size = 0",
        "CREATE TABLE mine (a)",
        "CREATE TEMP TABLE mine (a)",
        "ATTACH '{folder}/new.sqlite' AS other",
        "VACUUM INTO '{folder}/new.sqlite'",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_table_info('city')",
        "SELECT load_extension('{folder}/x.so')",
        "SELECT LOAD_EXTENSION('{folder}/x.so')",
        "SELECT writefile('{folder}/new.sqlite', 'x')",
        "SELECT fts3_tokenizer('simple')",
        "EXPLAIN SELECT 1",
        "VALUES (1)",
        "BEGIN",
        "SELECT 1; DROP TABLE city",
        "/* SELECT */ DROP TABLE city",
    ],
)
def test_harm_is_refused(database, same, answer):
    before = hashlib.sha256(database.read_bytes()).hexdigest(), sorted(database.parent.iterdir())
    answer = answer.replace("{folder}", str(database.parent))
    assert same(answer) == 0
    assert np.isnan(same(ALL, answer)), "it ran as a reference"
    assert (
        hashlib.sha256(database.read_bytes()).hexdigest(),
        sorted(database.parent.iterdir()),
    ) == before


@pytest.mark.parametrize(
    "answer",
    [
        f"{FOREVER} count(*) FROM n",
        f"{FOREVER} i FROM n",
        f"{FOREVER} i FROM n ORDER BY i DESC LIMIT 5",
        "SELECT count(*) FROM city a, city b, city c, city d, city e, city f, city g, city h, city i, city j, city k, city l, city m",
        "SELECT hex(zeroblob(1000000000))",
        "SELECT hex(randomblob(900000)) FROM city a, city b, city c, city d",
        "SELECT replace(hex(zeroblob(50000)), '0', 'a') LIKE '%a%a%a%a%a%a%a%a%a%b'",
        "SELECT " + "(" * 50_000 + "1" + ")" * 50_000,
        "SELECT '" + "x" * 5_000_000 + "'",
        "SELECT '" + "''" * 200_000,
    ],
)
def test_what_would_never_end_or_be_too_large_ends(database, answer):
    metric = SqlExecution(database=database, timeout=0.3)
    began = time.perf_counter()
    assert metric.score([Answer("", answer, ALL)]) == [0]
    assert time.perf_counter() - began < 60, "nothing but the clock of the metric ends some of them"


def test_after_one_that_took_too_long_the_others_run(database):
    metric = SqlExecution(database=database, timeout=0.2)
    rows = [Answer("", f"{FOREVER} count(*) FROM n", ALL), Answer("", ALL, ALL)]
    assert metric.score(rows).tolist() == [0, 1]


VALUES = (
    st.none() | st.integers(-3, 3) | st.sampled_from(["", "a", "é"]) | st.sampled_from([0.5, 1.0])
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=5), st.randoms())
def test_rows_are_compared_as_multisets(database, rows, random):
    def query(rows):
        cells = [", ".join("NULL" if v is None else repr(v) for v in row) for row in rows]
        return " UNION ALL ".join(f"SELECT {row}" for row in cells) or "SELECT 1, 1 WHERE 0"

    metric = SqlExecution(database=database)
    other = random.sample(rows, len(rows))
    fewer = other[: max(0, len(other) - random.randint(0, 1))] + (
        [("a", 7)] if random.random() < 0.3 else []
    )
    found = metric.score(
        [Answer("", query(other), query(rows)), Answer("", query(fewer), query(rows))]
    )
    assert found.tolist() == [1, float(Counter(fewer) == Counter(rows))]


@pytest.mark.parametrize("kind", ["absent", "folder", "text", "empty", "log"])
def test_a_database_that_cannot_be_read_is_refused(tmp_path, database, kind):
    path = tmp_path / "x.sqlite"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("name,size\n" * 500)
    elif kind == "empty":
        sqlite3.connect(path).close()
        path.touch()
    elif kind == "log":
        path.write_bytes(database.read_bytes())
        path.with_name("x.sqlite-wal").write_text("changes")
    said = {
        "absent": "is no file",
        "folder": "is no file",
        "text": "file is not a database",
        "empty": "has no tables",
        "log": "'x.sqlite-wal'",
    }
    with pytest.raises(InputError, match="^sql_execution.database: ") as error:
        SqlExecution(database=path)
    assert said[kind] in str(error.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_above_zero(database, timeout):
    with pytest.raises(InputError, match="sql_execution.timeout: must be above 0"):
        SqlExecution(database=database, timeout=timeout)


def test_an_unclosed_fence_is_read():
    assert query_of("```sql\nSELECT 1;\n") == "SELECT 1"


def test_real_references_give_what_they_give(shared_data):
    folder = shared_data / "text_to_sql"
    if not (folder / "geography.sqlite").is_file():
        pytest.skip(f"needs {folder}")
    queries = [
        json.loads(line)["sql"] for line in (folder / "geography.jsonl").read_text().splitlines()
    ]
    metric = SqlExecution(database=folder / "geography.sqlite")
    distinct = list(dict.fromkeys(queries))
    found = metric.score([Answer("", f"```sql\n{query}\n```", query) for query in distinct])
    runs = ~np.isnan(found)
    assert (found[runs] == 1).all() and runs.mean() > 0.95
    others = metric.score([Answer("", distinct[0], query) for query in distinct[1:]])
    assert np.nanmean(others) < 0.1
