"""Rows of files as they stand there, or one line on what is wrong."""

import bz2
import csv
import datetime
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import threading
import tracemalloc
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainables.data.config import DataConfig
from trainables.data.files import File
from trainables.data.rows import BadRow, Row
from trainables.data.sources import (
    check_sources,
    open_sources,
    source_fingerprint,
    unread_files,
)
from trainables.errors import InputError

GOOD = "text,label\na,x\n"
ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
CSV = "text,label\na,x\nb,y\n"
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    if folder := os.path.dirname(name):
        os.makedirs(folder, exist_ok=True)
    with open(name, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sources(source):
    return open_sources(DataConfig(train=source), "train")


def read(source):
    """Columns of all rows, and the words of those that cannot be used."""
    return [
        dict(row.columns) if isinstance(row, Row) else str(row).removeprefix("data.train: ")
        for one in sources(source)
        for row in one.rows()
    ]


def fault(source):
    with pytest.raises(InputError) as error:
        read(source)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, BadRow)
    return str(error.value).removeprefix("data.train: ")


def places(source):
    return [row.place for one in sources(source) for row in one.rows()]


# --- Values never change ---

WORDS = ["NA", "null", "1e5", "007", " spaces ", "", "nan", "True", "2020-01-01", "1.0"]


def test_what_looks_like_something_else_stays_text():
    for name, tabs in (("a.csv", ","), ("a.tsv", "\t")):
        write(name, "".join(f"{word}{tabs}x\n" for word in ["text", *WORDS]))
        assert [row["text"] for row in read(name)] == WORDS


def test_a_null_that_was_written_stays_where_json_has_it():
    rows = [{"m": [{"a": None, "b": {"c": None}}], "n": None}, {"m": [{"z": 1}]}]
    write("a.jsonl", "\n".join(map(json.dumps, rows)))
    write("a.json", json.dumps(rows))
    assert read("a.jsonl") == read("a.json") == rows


CHATS = [
    {"id": 1, "messages": [{"role": "user", "content": "x"}], "extra": None},
    {
        "id": 2,
        "messages": [{"role": "tool", "call": {"name": "f", "args": [{"a": 1}, {"b": 2}]}}],
        "extra": {"k": "v"},
    },
]


def write_arrow(name, table, is_stream=False):
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(name, table.schema) as writer:
        writer.write_table(table)


def test_fields_that_only_other_rows_have_are_not_read_as_nulls():
    table = pa.Table.from_pylist(CHATS)
    pa.parquet.write_table(table, "a.parquet")
    write_arrow("a.arrow", table)
    write_arrow("b.arrow", table, is_stream=True)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        assert read(name) == CHATS
        assert places(name) == [f"{name} row 1", f"{name} row 2"]
        assert sources(name)[0].columns == ("id", "messages", "extra")


def test_a_map_is_an_object_and_its_nulls_were_written():
    kind = pa.map_(pa.string(), pa.struct({"a": pa.int64(), "b": pa.int64()}))
    table = pa.table({"m": pa.array([[("x", {"a": 1}), ("y", None)], None], kind)})
    pa.parquet.write_table(table, "a.parquet")
    assert read("a.parquet") == [{"m": {"x": {"a": 1}, "y": None}}, {"m": None}]


def test_json_that_datasets_keeps_as_such_is_read():
    datasets = pytest.importorskip("datasets")
    rows = [{"a": [{"b": 0}, {"c": None}]}, {"a": ["text"]}]
    made = datasets.Dataset.from_dict({"a": [row["a"] for row in rows]}, on_mixed_types="use_json")
    made.to_parquet("a.parquet")
    made.save_to_disk("saved")
    assert read("a.parquet") == read("saved") == rows


def test_dates_are_passed_on_and_one_without_a_form_is_a_bad_row():
    kind = pa.timestamp("s")
    pa.parquet.write_table(pa.table({"t": pa.array([0, 10**15, 1], kind)}), "a.parquet")
    first, second, third = read("a.parquet")
    assert first == {"t": datetime.datetime(1970, 1, 1)}
    assert second.startswith("a.parquet row 2: a value cannot be read: ")
    assert third == {"t": datetime.datetime(1970, 1, 1, 0, 0, 1)}


def test_arrow_columns_of_one_name():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    pa.parquet.write_table(table, "a.parquet")
    assert fault("a.parquet") == 'a.parquet: two columns have the same name: ["a", "a"]'


# --- Line ends, marks, blank lines ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", CSV), ("a.tsv", CSV.replace(",", "\t")), ("a.jsonl", JSONL), ("a.ndjson", JSONL)],
)
def test_line_ends_and_marks(name, content, end, mark):
    for text in (content, content.rstrip("\n"), content.replace("\n", "\n\n")):
        write(name, mark + text.replace("\n", end).encode())
        assert read(name) == ROWS


def test_a_carriage_return_inside_a_line_stays():
    write("a.tsv", "text\tlabel\na\rb\tx\n")
    write("a.jsonl", '{"text":\r"a"}\n{"text": "b\u2028c"}\n')
    write("a.csv", 'text,label\r\n"a\rb\nc",x\r\n')
    assert read("a.tsv") == [{"text": "a\rb", "label": "x"}]
    assert read("a.jsonl") == [{"text": "a"}, {"text": "b\u2028c"}]
    assert read("a.csv") == [{"text": "a\rb\nc", "label": "x"}]


def test_a_document():
    for end in ("\n", "\r\n", "\r"):
        write("a.txt", f"a{end}{end}b")
        write("a.txt.gz", gzip.compress(f"a{end}{end}b".encode()))
        for name in ("a.txt", "a.txt.gz"):
            assert read(name) == [{"text": "a\n\nb"}]
            assert sources(name)[0].is_document
            assert places(name) == [f"{name} row 1"]
    write("a.csv", CSV)
    assert not sources("a.csv")[0].is_document


def test_numbers_of_rows_and_lines_are_those_of_the_file():
    write("a.csv", 'text,label\n"a\nb",x\n\nc,y,z\nd,y\n"e,",f\n')
    assert (
        read("a.csv")[1]
        == "a.csv line 5: 3 fields where the header has 2; quote text that holds ','"
    )
    rows = list(sources("a.csv")[0].rows())
    assert [row.place for row in rows if isinstance(row, Row)] == [
        "a.csv row 1",
        "a.csv row 3",
        "a.csv row 4",
    ]
    write("a.jsonl", '\n{"a": 1}\n \n{"a"}\n{"a": 2}')
    assert read("a.jsonl") == [
        {"a": 1},
        "a.jsonl line 4: not JSON: Expecting ':' delimiter in column 5, between '{\"a\"' and '}'",
        {"a": 2},
    ]
    assert [row.place for row in sources("a.jsonl")[0].rows() if isinstance(row, Row)] == [
        "a.jsonl line 2",
        "a.jsonl line 5",
    ]


# --- Tables of text ---


def test_a_quote_in_tsv_swallows_nothing():
    write(
        "a.tsv",
        'text\tlabel\n"open\tx\n5" disk\ty\n"said ""hi"""\tz\n""\tw\n"a "b" c"\tv\n"\tu\n"a\tb"\tt\n',
    )
    assert [row["text"] for row in read("a.tsv")] == [
        '"open',
        '5" disk',
        'said "hi"',
        "",
        '"a "b" c"',
        '"',
        "a\tb",
    ]


def test_a_ragged_line_of_tsv():
    write("a.tsv", "text\tlabel\na\n\tx\ty\nb\tx\n")
    assert read("a.tsv") == [
        "a.tsv line 2: 1 field where the header has 2; a field holds no tab and no line break",
        "a.tsv line 3: 3 fields where the header has 2; a field holds no tab and no line break",
        {"text": "b", "label": "x"},
    ]


def test_the_line_where_a_quote_opens_that_is_never_closed():
    message = 'the quote that opens here is never closed; a quote that is text is doubled: ""'
    write("a.csv", GOOD + '"open,y\nb,x\nc,x\n')
    assert fault("a.csv") == f"a.csv line 3: {message}"
    write("a.csv", GOOD + '"more\nlines",y\n"two\nlines","open\nb,x\n')
    assert fault("a.csv") == f"a.csv line 6: {message}"
    write("a.csv", GOOD + '"open,y\nb,x\n"c",x\n')
    assert fault("a.csv") == f"a.csv line 3: {message}".replace(
        "never closed", "closed inside line 5"
    )


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("trainables.data.readers.LONGEST_FIELD", 1000)
    write("a.csv", GOOD + '"open,y\n' + "b,x\n" * 1000)
    assert fault("a.csv").startswith("a.csv line 3: the quote that opens here is never closed; ")


def test_a_quote_that_is_wrong_in_its_own_line_is_a_bad_row():
    write("a.csv", GOOD + '"say "hi" now",y\nb,x\n')
    assert read("a.csv") == [
        {"text": "a", "label": "x"},
        "a.csv line 3: ',' expected after '\"'; a quote that is text is doubled: \"\"",
        {"text": "b", "label": "x"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text;label\na;x\n", "a.csv: its header is a single column, 'text;label': columns seem to be separated by ';', not ','; write it with ',' between them"),
        ("a.csv", "text\tlabel\na\tx\n", "a.csv: its header is a single column, 'text\\tlabel': columns seem to be separated by '\\t', not ','; name it .tsv"),
        ("a.csv", "text|label\na|x\n", "a.csv: its header is a single column, 'text|label': columns seem to be separated by '|', not ','; write it with ',' between them"),
        ("a.tsv", "text,label\na,x\n", "a.tsv: its header is a single column, 'text,label': columns seem to be separated by ',', not '\\t'; name it .csv"),
        ("a.csv", 'text,label\n', "a.csv: no rows"),
        ("a.tsv", "text\tlabel\n", "a.tsv: no rows"),
        ("a.csv", '"text,label\na,b\n', "a.csv line 1: the quote that opens here is never closed; a quote that is text is doubled: \"\""),
        ("a.csv", 'te"xt,"label" \na,b\n', "a.csv line 1: ',' expected after '\"'; a quote that is text is doubled: \"\""),
        ("a.tsv", "text\ttext\na\tb\n", "a.tsv: two columns have the same name in the header [\"text\", \"text\"]"),
        *((f"a{kind}", content, f"a{kind}: the file is empty") for kind in (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".txt") for content in ("", " \n")if not (content and kind in (".parquet", ".arrow"))),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz: the file is empty"),
        ("a.json", "[]", "a.json: no rows"),
    ],
)  # fmt: skip
def test_a_table_that_is_none(name, content, words):
    write(name, content)
    assert fault(name) == words


def test_parquet_without_rows():
    pa.parquet.write_table(pa.table({"a": pa.array([], pa.string())}), "a.parquet")
    assert fault("a.parquet") == "a.parquet: no rows"


def test_a_field_of_any_length():
    write("a.csv", f"text,label\n{'a' * 200_000},x\n")
    assert len(read("a.csv")[0]["text"]) == 200_000


# --- JSON ---

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice in an object"),
        ('{"m": [{"role": "x", "role": "y"}]}', "the key 'role' stands twice in an object"),
        ('{"a": %s}' % ("1" * 5000), "an integer of more than 4300 digits"),
    ],
)
def test_what_json_would_take_silently_or_break_at(row, words):
    write("a.jsonl", f'{{"a": 0}}\n{row}\n{{"a": 2}}\n')
    write("a.json", f'[{{"a": 0}},\n {row} , {{"a": 2}}]')
    assert read("a.jsonl") == [{"a": 0}, f"a.jsonl line 2: {words}", {"a": 2}]
    assert read("a.json") == [{"a": 0}, f"a.json row 2: {words}", {"a": 2}]


def test_json_that_is_nested_too_deeply():
    write("a.jsonl", f'{{"a": {DEEP}}}\n{{"a": 2}}\n')
    assert read("a.jsonl") == ["a.jsonl line 1: nested too deeply", {"a": 2}]
    write("a.json", f'[{{"a": 1}}, {{"a": {DEEP}}}]')
    assert fault("a.json") == "a.json row 2: nested too deeply"
    write("a.json", f'{{"a": {DEEP}}}')
    assert fault("a.json") == "a.json: nested too deeply"


def test_one_kind_of_json_under_the_name_of_the_other():
    for content in ('[{"a": 1}, {"a": 2}]', '\n[\n  {"a": 1}\n]', '[\r\n{"a": 1}]'):
        write("a.jsonl", content)
        assert (
            fault("a.jsonl")
            == "a.jsonl: a list of objects, as .json has it, not one object a line; name it .json"
        )
    write("a.json", JSONL)
    assert (
        fault("a.json")
        == 'a.json line 2: not JSON: Extra data in column 1, before \'{"text": "b", "label": "…\'; one object a line is .jsonl'
    )
    write("a.jsonl", '{\n  "a": 1\n}\n')
    assert (
        read("a.jsonl")[0]
        == "a.jsonl line 1: not JSON: Expecting property name enclosed in double quotes; an object stands on one line"
    )


LIST = 'a.json: must be a list of objects like [{"text": ...}, ...], '


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"data": [{"a": 1}]}', LIST + "got an object that has one under 'data'; write that list alone"),
        ('{"messages": [{"role": "user"}]}', LIST + 'got an object with the keys ["messages"]; a single row is a list of one'),
        ("3", LIST + "got a number"),
        ("null", LIST + "got null"),
        ('[{"a": 1}, 2]', LIST + "got [2]"),
        ('[{"a": 1},]', "a.json line 1: not JSON: Expecting value in column 11, between '[{\"a\": 1},' and ']'"),
        ('[{"a": 1}\n {"a": 2}]', "a.json line 2: not JSON: Expecting ',' delimiter in column 2, between ' ' and '{\"a\": 2}]'"),
        ('[{"a": 1}', "a.json line 1: not JSON: Expecting ',' delimiter in column 10, at the end of '[{\"a\": 1}'"),
        ('[{"a": 1}] x', "a.json line 1: not JSON: Extra data in column 12, between '[{\"a\": 1}] ' and 'x'; one object a line is .jsonl"),
        ('[{"a": None}]', "a.json line 1: not JSON: Expecting value in column 8, between '[{\"a\": ' and 'None}]'; JSON has null for None"),
        ("[", "a.json line 1: not JSON: Expecting value in column 2, at the end of '['"),
        ('{"a": ', "a.json line 1: not JSON: Expecting value in column 7, at the end of '{\"a\": '"),
    ],
)  # fmt: skip
def test_json_that_is_no_list_of_objects(content, words):
    write("a.json", content)
    assert fault("a.json") == words


PANDAS = "a table as pandas writes it; to_json(path, orient='records', lines=True) writes .jsonl"


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "values"])
def test_json_as_pandas_writes_it(orient):
    table = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    write("a.json", table.to_json(orient=orient))
    assert fault("a.json") == f"{LIST}got {PANDAS}"
    table.to_json("b.json", orient="records")
    table.to_json("b.jsonl", orient="records", lines=True)
    assert read("b.json") == read("b.jsonl") == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]  # fmt: skip
    if orient in ("columns", "index"):
        write("a.jsonl", table.to_json(orient=orient))
        assert fault("a.jsonl") == f"a.jsonl line 1: not one object a line, but {PANDAS}"


def test_a_long_line_is_shown_around_its_fault():
    first, other = "a" * 90, "b" * 90
    write("a.jsonl", f'{{"text": "{first}" "label": "{other}"}}\n')
    assert read("a.jsonl") == [
        "a.jsonl line 1: not JSON: Expecting ',' delimiter in column 103, between '…aaaaaaaaaaaaaaaaaaaaaa\" '"
        ' and \'"label": "bbbbbbbbbbbbbb…\''
    ]


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_nul_is_no_text(mark):
    name = "a.csv" if mark == "," else "a.tsv"
    write(name, f"text{mark}label\na{mark}x\nb\0{mark}y\nc{mark}z\n")
    faulty = f"{name} line 3: has a NUL character; tr -d '\\000' removes them from a file"
    assert read(name) == [{"text": "a", "label": "x"}, faulty, {"text": "c", "label": "z"}]
    write(name, f"te\0xt{mark}label\na{mark}x\n")
    assert fault(name) == faulty.replace("line 3", "line 1")


def test_a_nul_in_a_field_of_several_lines():
    write("a.csv", 'text,label\n"a\nb\0",x\nc,z\n')
    assert "a.csv line 3: has a NUL" in str(read("a.csv")[0]) and len(read("a.csv")) == 2


# --- Encodings ---

FRENCH = (
    "text,label\n"
    + "Les élèves de l’école préfèrent étudier à la bibliothèque. Ça ne fait rien,oui\n" * 20
)
RUSSIAN = (
    "text,label\n"
    + "Съешь же ещё этих мягких французских булок, да выпей чаю,да\n".replace(", ", " ") * 20
)
JAPANESE = (
    "text,label\n" + "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。,はい\n" * 5
)
SHORT = "text,label\ncafé,yes\n"


@pytest.mark.parametrize(
    ("text", "encoding", "iconv"),
    [
        (SHORT, "latin-1", "cp1252"),
        (FRENCH, "cp1252", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (JAPANESE, "cp932", "cp932"),
    ],
)
def test_an_encoding_is_named(text, encoding, iconv):
    write("a.csv", text.encode(encoding))
    assert fault("a.csv").endswith(f"it looks like {iconv}: iconv -f {iconv} -t utf-8 converts it")
    write("a.csv.gz", gzip.compress(text.encode(encoding)))
    assert f"it looks like {iconv}" in fault("a.csv.gz")


def test_encodings_that_are_alike_are_both_named_with_what_they_make_of_it():
    write("a.csv", ("text,label\n" + "naïve déjà vu Größe café – so,oui\n" * 60).encode("cp1252"))
    words = fault("a.csv")
    assert "it may be cp1252 (" in words and "naïve" in words and "cp1250 (" in words
    assert words.endswith("iconv -f cp1252 -t utf-8 converts it")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.txt"])
def test_utf_16(name):
    write(name, CSV.encode("utf-16"))
    assert fault(name) == f"{name}: not UTF-8 but UTF-16: iconv -f utf-16 -t utf-8 converts it"
    for encoding in ("utf-16le", "utf-16be"):
        write(name, CSV.encode(encoding))
        assert (
            fault(name)
            == f"{name}: not UTF-8; it looks like {encoding}: iconv -f {encoding} -t utf-8 converts it"
        )


def test_where_a_byte_is_that_is_not_utf_8():
    content = ("é" * 3_000_000 + "\n").encode()
    write("a.txt", b"\xef\xbb\xbf" + content + "naïve caf".encode() + b"\xe9\n")
    offset = 3 + len(content) + len("naïve caf".encode())
    assert (
        fault("a.txt")
        == f"a.txt: not UTF-8 (byte 0xe9 at offset {offset}, line 2); what else is around it is UTF-8: mend or leave out what is not"
    )
    write("a.txt", b"cut \xe2\x82")
    assert fault("a.txt").startswith("a.txt: not UTF-8 (byte 0xe2 at offset 4, line 1); ")


# --- Compression ---

PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
try:
    import zstandard

    PACKERS[".zst"] = zstandard.ZstdCompressor(write_checksum=True).compress
except ImportError:
    pass


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_text(suffix):
    pack = PACKERS[suffix]
    for name, content in (
        ("a.csv", CSV),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.jsonl", JSONL),
        ("a.json", json.dumps(ROWS)),
    ):
        write(name + suffix, pack(content.encode()))
        assert read(name + suffix) == ROWS
    half = len(JSONL) // 2
    write(f"b.JSONL{suffix}", pack(JSONL[:half].encode()) + pack(JSONL[half:].encode()))
    assert read(f"b.JSONL{suffix}") == ROWS
    assert places(f"b.JSONL{suffix}")[1] == f"b.JSONL{suffix} line 2"


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_text_that_is_cut_or_none(suffix):
    name = f"a.jsonl{suffix}"
    lines = "".join(
        json.dumps({"a": hashlib.sha256(b"%d" % i).hexdigest()}) + "\n" for i in range(3000)
    )
    whole = PACKERS[suffix](lines.encode())
    for content in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:5],
        lines.encode(),
        whole[:200] + b"\xff" * 200 + whole[400:],
    ):
        write(name, content)
        assert fault(name).startswith(f"{name}: not a {suffix} file, or only part of one: ")


def test_a_missing_zstandard_is_named(monkeypatch):
    write("a.jsonl.zst", b"x")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    assert fault("a.jsonl.zst") == "a .zst file needs the package zstandard: pip install zstandard"


# --- Files that are broken or gone ---


def test_part_of_an_arrow_file():
    table = pa.table({"a": [str(i) for i in range(5000)]})
    pa.parquet.write_table(table, "a.parquet")
    write_arrow("a.arrow", table)
    write_arrow("b.arrow", table, is_stream=True)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        with open(name, "rb") as file:
            content = file.read()
        kind = "a Parquet file" if name == "a.parquet" else "an Arrow file"
        for part in (content[: len(content) // 2], content[:7], b"text"):
            write(name, part)
            assert fault(name) == f"{name}: not {kind}, or only part of one"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.arrow", "a.txt"])
def test_a_file_that_goes_away(name):
    write(name, "x")
    [source] = sources(name)
    os.remove(name)
    for act in (lambda: list(source.rows()), source.fingerprint, lambda: source.columns):
        with pytest.raises(InputError, match=f"^data.train: {name}: no such file$"):
            act()
    os.mkdir(name)
    with pytest.raises(InputError, match=f"^data.train: {name}: is a folder, not a file$"):
        list(source.rows())


# --- Files that are written to while they are read ---

CHANGES = {
    "another size": lambda path: path.write_bytes(2 * path.read_bytes()),
    "another time": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "another file": lambda path: (
        Path("new").write_bytes(path.read_bytes()),
        os.utime("new", ns=(0, path.stat().st_mtime_ns)),
        os.replace("new", path),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_file_that_is_written_to_while_it_is_read_is_refused(name, change):
    """The rows would be others than those of the fingerprint."""
    message = f"data.train: {name}: was changed while it was read; start again when it is complete"
    if name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), name)
    else:
        write(name, JSONL if name.endswith("l") else gzip.compress(CSV.encode()))
    [before] = sources(name)
    before.fingerprint()
    CHANGES[change](Path(name))
    with pytest.raises(InputError) as error:
        list(before.rows())
    assert str(error.value) == message
    [meanwhile] = sources(name)
    rows = meanwhile.rows()
    next(rows)
    CHANGES[change](Path(name))
    with pytest.raises(InputError) as error:
        list(rows)
    assert str(error.value) == message
    [unchanged] = sources(name)
    assert unchanged.fingerprint() and list(unchanged.rows())


def test_what_is_wrong_with_half_a_file_is_not_told_where_it_was_written_to():
    write("a.json", json.dumps(ROWS))
    [source] = sources("a.json")
    source.fingerprint()
    write("a.json", json.dumps(ROWS)[:-4])
    with pytest.raises(InputError, match="a.json: was changed while it was read"):
        list(source.rows())


# --- Read as seldom as can be ---


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that were opened."""
    names, opens = [], File._open
    monkeypatch.setattr(
        File, "_open", lambda self, *args: names.append(self.name) or opens(self, *args)
    )
    return names


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_file_is_read_once_for_its_fingerprint_and_once_for_its_rows(name, opened):
    lines = "".join(json.dumps({"a": str(i), "b": "x"}) + "\n" for i in range(2500))
    contents = {
        "a.csv": "a,b\n" + "".join(f"{i},x\n" for i in range(2500)),
        "a.tsv": "a\tb\n" + "".join(f"{i}\tx\n" for i in range(2500)),
        "a.jsonl": lines,
        "a.json": "[" + ",".join(lines.splitlines()) + "]",
        "a.jsonl.gz": gzip.compress(lines.encode()),
    }
    if name == "a.parquet":
        pa.parquet.write_table(
            pa.Table.from_pylist(list(map(json.loads, lines.splitlines()))), name
        )
    else:
        write(name, contents[name])
    [source] = sources(name)
    source.fingerprint()
    assert source.columns == ("a", "b")
    rows = list(source.rows())
    assert [row.columns["a"] for row in rows] == list(map(str, range(2500)))
    assert source.columns == ("a", "b") and opened == [name, name]
    assert [row.columns for row in source.rows()] == [row.columns for row in rows]  # once more


# --- Folders, patterns, lists ---


def test_a_folder_and_a_pattern():
    for name in (
        "d/b.jsonl",
        "d/a.csv",
        "d/sub/c.json",
        "d/.hidden.csv",
        "d/.git/x.csv",
        "d/README.md",
    ):
        write(name, {"l": JSONL, "v": CSV, "n": json.dumps(ROWS), "d": "# x"}[name[-1]])
    assert [s.name for s in sources("d")] == ["d/a.csv", "d/b.jsonl", "d/sub/c.json"]
    assert read("d") == 3 * ROWS
    assert places("d")[2:4] == ["d/b.jsonl line 1", "d/b.jsonl line 2"]
    assert [s.name for s in sources("d/*")] == ["d/a.csv", "d/b.jsonl"]
    assert [s.name for s in sources("d/**/*.json*")] == ["d/b.jsonl", "d/sub/c.json"]
    write("d[1].csv", CSV)
    assert read("d[1].csv") == ROWS
    check_sources(DataConfig(train="d/*.csv", validation="d"))


def test_a_folder_with_nothing_in_it():
    write("d/a.xlsx", "x")
    write("d/b.xlsx", "x")
    write("d/LICENSE", "x")
    write("d/c.parquet.gz", "x")
    assert fault("d").startswith(
        "d: no file of a known kind, only .xlsx (2), LICENSE (1), .parquet.gz (1); allowed are .csv, "
    )
    os.mkdir("empty")
    assert fault("empty") == f"empty: no files (looked from {os.getcwd()})"
    assert fault("empty/*.csv") == f"empty/*.csv: no files (looked from {os.getcwd()})"
    assert fault("d/c.parquet.gz").startswith(
        "d/c.parquet.gz: unknown kind of file '.parquet.gz'; allowed are "
    )


def test_files_beside_those_that_are_read_are_told():
    """But not what systems and writers leave there."""
    for name in (
        "d/a.csv", "d/b.jsonl", "d/README.md", "d/x/1.png", "d/x/2.png", "d/c.csv.zip", "d/LICENSE",
        "d/.DS_Store", "d/.git/config", "d/Thumbs.db", "d/_SUCCESS", "d/a.csv~", "d/c.parquet.gz",
    ):  # fmt: skip
        write(name, CSV)
    found = unread_files(DataConfig(train=["d", "d/*"]), "train")
    assert (found.kind, found.split, found.severity) == ("unread_files", "train", "note")
    assert found.message == (
        "train: 10 of 14 file(s) are of no known kind and are not read: LICENSE (2), .md (2), .zip"
        " (2), .parquet.gz (2), .png (2)"
    )
    assert unread_files(DataConfig(train="d/a.csv"), "train") is None
    assert unread_files(DataConfig(train="d/*.csv", validation="d"), "train") is None
    assert unread_files(DataConfig(train="d/a.csv", validation="d"), "validation").rows == 0
    assert unread_files(DataConfig(train="hf:owner/name"), "train") is None
    os.mkdir("e")
    write("e/a.csv", CSV)
    assert unread_files(DataConfig(train="e"), "train") is None


def test_files_beside_those_of_a_url_are_told(memory):
    found = unread_files(DataConfig(train="memory://d"), "train")
    assert found.message.endswith("1 of 3 file(s) are of no known kind and are not read: .md (1)")
    assert found.examples == ("memory:///d/c.md",)


def test_sources_with_weights():
    write("a.csv", CSV)
    write("d/b.csv", CSV)
    write("d/c.csv", CSV)
    data = DataConfig(train=["a.csv", {"source": "d", "weight": 0.5}], validation=0.1)
    assert [(s.name, s.weight, s.key) for s in open_sources(data, "train")] == [
        ("a.csv", 1.0, "data.train"),
        ("d/b.csv", 0.5, "data.train"),
        ("d/c.csv", 0.5, "data.train"),
    ]
    assert open_sources(data, "validation") == open_sources(data, "test") == []


def test_what_datasets_saved(folder):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk("saved")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk("both")
    assert read("saved") == ROWS
    assert (
        fault("both") == "both: holds several datasets; name the folder of one of them: test, train"
    )
    assert read("both/train") == ROWS


def test_columns_are_those_of_the_first_thousand_rows():
    lines = [{"a": 1}, {"b": 1, "a": 2}, *[{"a": 1}] * 998, {"c": 1}]
    write("a.jsonl", "bad\n" + "\n".join(map(json.dumps, lines)))
    assert sources("a.jsonl")[0].columns == ("a", "b")


# --- Fingerprints ---


def test_fingerprints():
    for name in ("a.csv", "a.csv.gz"):
        content = gzip.compress(CSV.encode()) if name.endswith("gz") else CSV.encode()
        write(name, content)
        digest = hashlib.sha256(content).hexdigest()
        assert sources(name)[0].fingerprint() == source_fingerprint(name) == digest
    assert source_fingerprint("nowhere.csv") is None
    assert source_fingerprint("hf:owner/name") is None
    assert source_fingerprint("memory://a.csv") is None


# --- URLs ---


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe(
        {
            "/d/a.jsonl": JSONL.encode(),
            "/d/b.csv.gz": gzip.compress(CSV.encode()),
            "/d/.h.csv": b"x",
            "/d/c.md": b"x",
        }
    )
    yield files
    files.store.clear()


def test_urls(memory):
    assert read("memory://d/a.jsonl") == ROWS
    assert places("memory://d/a.jsonl")[1] == "memory://d/a.jsonl line 2"
    names = [source.name for source in sources("memory://d")]
    assert names == ["memory:///d/a.jsonl", "memory:///d/b.csv.gz"]
    assert read("memory://d") == 2 * ROWS
    assert read("memory://d/*.gz") == ROWS
    for name in ("a.parquet", "a.arrow"):
        table = pa.Table.from_pylist(CHATS)
        pa.parquet.write_table(table, name) if name == "a.parquet" else write_arrow(name, table)
        memory.put(name, f"/{name}")
        assert read(f"memory://{name}") == CHATS
    assert (
        sources("memory://d/a.jsonl")[0].fingerprint() == hashlib.sha256(JSONL.encode()).hexdigest()
    )
    assert read(f"file://{os.getcwd()}/a.parquet") == CHATS


def test_urls_that_cannot_be_read(memory):
    assert fault("memory://d/none.csv") == "memory://d/none.csv: no such file"
    assert fault("memory://none").startswith("memory://none: unknown kind of file ''; allowed are ")
    assert fault("memory://d/*.md").startswith(
        "memory://d/*.md: no file of a known kind, only .md (1); "
    )
    with pytest.raises(
        InputError, match="^data.train: nosuch://a.csv: Protocol not known: nosuch$"
    ):
        check_sources(DataConfig(train="nosuch://a.csv"))
    assert fault("http://127.0.0.1:9/a.csv").startswith("http://127.0.0.1:9/a.csv: ")


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    """Gives whole files of the current folder only."""
    Quiet.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_gives_whole_files_only(server):
    rows = [{"a": hashlib.sha256(b"%d" % i).hexdigest()} for i in range(2000)]
    content = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    write("a.jsonl.gz", content)
    pa.parquet.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert read(f"{server}/a.jsonl.gz?download=1") == rows
    assert sources(f"{server}/a.jsonl.gz")[0].fingerprint() == hashlib.sha256(content).hexdigest()
    assert fault(f"{server}/b.csv") == f"{server}/b.csv: no such file"
    assert "range requests" in fault(f"{server}/a.parquet")


def test_what_is_elsewhere_is_fetched_once_where_copies_may_be_kept(server):
    content = gzip.compress(JSONL.encode())
    write("a.jsonl.gz", content)
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), "b.parquet")
    os.mkdir("copies")
    for name in ("a.jsonl.gz", "b.parquet"):  # of which the second needs to seek
        data = DataConfig(train=[f"{server}/{name}"])
        [source] = open_sources(data, "train", Path("copies"))
        assert source.fingerprint() == hashlib.sha256(Path(name).read_bytes()).hexdigest()
        assert source.columns == ("text", "label")
        assert [row.columns for row in source.rows()] == ROWS
        assert next(source.rows()).place.startswith(f"{server}/{name} ")
    assert Quiet.asked == ["/a.jsonl.gz", "/b.parquet"]


def test_the_package_of_a_protocol_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InputError, match="^data.train: s3://bucket/a.csv: .*s3fs"):
        check_sources(DataConfig(train="s3://bucket/a.csv"))


# --- The hub (a folder stands for a repository) ---


@pytest.fixture
def hub(folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "m": {"a": datasets.Value("int64"), "b": datasets.Value("int64")},
        }
    )
    rows = [{"text": str(i), "label": i % 3 - 1, "m": {"a": i, "b": None}} for i in range(40)]
    os.mkdir("repository")
    datasets.Dataset.from_list(rows, features=features).to_parquet("repository/train-0.parquet")
    return f"hf:{folder}/repository"


def test_a_dataset_of_a_hub(hub):
    rows = read(f"{hub}?split=train")
    assert len(rows) == 40
    assert rows[:3] == [
        {"text": str(i), "label": label, "m": {"a": i}}
        for i, label in enumerate([None, "no", "yes"])
    ]
    assert places(f"{hub}?split=train")[39] == f"{hub}?split=train row 40"
    assert read(f"{hub}?split=train&streaming=1") == read(hub) == rows
    assert sources(hub)[0].columns == ("text", "label", "m")
    check_sources(DataConfig(train=hub))


def test_lists_of_classes_of_a_hub_are_named(folder):
    datasets = pytest.importorskip("datasets")
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": tags})
    rows = [{"tokens": ["a", "b"], "tags": [0, 1]}, {"tokens": ["c"], "tags": [-1]}, {"tokens": [], "tags": None}]  # fmt: skip
    os.mkdir("tagged")
    datasets.Dataset.from_list(rows, features=features).to_parquet("tagged/train-0.parquet")
    found = [row.get("tags") for row in read(f"hf:{folder}/tagged")]
    assert found == [["O", "B-X"], [None], None]


def test_arithmetic_of_splits(hub):
    for query in ("train[:2]+train[20:22]", "train[:2]%2Btrain[20:22]"):
        assert [row["text"] for row in read(f"{hub}?split={query}")] == ["0", "1", "20", "21"]


def test_the_fingerprint_of_a_dataset_is_that_of_its_rows(hub):
    names = ["no", "yes"]
    digest = hashlib.sha256()
    for i in range(40):
        number = i % 3 - 1
        row = {
            "text": str(i),
            "label": names[number] if number >= 0 else None,
            "m": {"a": i, "b": None},
        }
        digest.update(json.dumps(row, sort_keys=True).encode())
    assert sources(hub)[0].fingerprint() == digest.hexdigest()


def test_a_stream_comes_once_where_copies_may_be_kept(monkeypatch, folder):
    datasets = pytest.importorskip("datasets")
    begun = []

    def generated():
        begun.append(1)
        for i in range(600):
            yield {"text": str(i), "more": None if i < 256 else {"n": i}}

    stream = datasets.IterableDataset.from_generator(generated)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    data = DataConfig(train="hf:owner/name?streaming=1")
    [plain] = open_sources(data, "train")
    [copied] = open_sources(data, "train", folder)
    expected, digest = [row.columns for row in plain.rows()], plain.fingerprint()
    begun.clear()
    assert copied.fingerprint() == digest and copied.columns == ("text", "more")
    assert [row.columns for row in copied.rows()] == expected
    assert expected[255:257] == [{"text": "255", "more": None}, {"text": "256", "more": {"n": 256}}]
    assert len(begun) == 1


def test_a_dataset_that_cannot_be_had(hub):
    assert fault(f"{hub}?split=none").startswith(f"{hub}?split=none: ValueError: ")
    assert fault(f"{hub}2").startswith(f"{hub}2: ")
    assert (
        fault(f"{hub}?streaming=yes") == f"{hub}?streaming=yes: streaming must be 0 or 1, got 'yes'"
    )


def test_a_dataset_that_is_a_script(folder):
    write("scripted/scripted.py", "import datasets\n")
    assert fault(f"hf:{folder}/scripted").startswith(
        f"hf:{folder}/scripted: RuntimeError: Dataset scripts are no longer"
    )


# --- What may be stored ---


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"a": "\ud800"}], "m[0].a is not Unicode text: it has a lone surrogate '\\ud800'"),
        ({"a": 10**4300}, "m.a is an integer of more than 4300 digits"),
        ({"a": math.inf}, "m.a must be text, a number, a list or an object, got float inf"),
        ({"a": datetime.date(2020, 1, 1)}, "m.a must be text, a number, a list or an object, got date datetime.date(2020, 1, 1)"),
        (json.loads("[" * 300 + "]" * 300), "m is nested more than 200 levels deep"),
    ],
)  # fmt: skip
def test_what_may_not_be_stored(value, words):
    row = Row(key="data.train", place="a.jsonl line 1", columns={})
    with pytest.raises(BadRow) as error:
        row.check_storable(value, "m")
    assert str(error.value) == f"data.train: a.jsonl line 1: {words}"
    row.check_storable({"a": [None, True, 10**4300 - 1, -0.5, "x", {"b": ()}]}, "m")


# --- Memory ---


@pytest.mark.slow
def test_memory_does_not_grow_with_rows():
    text = "".join(chr(33 + i * i * 7919 % 93) for i in range(2000))
    for rows in (300, 4_000):
        lines = [
            f"{hashlib.sha256(b'%d' % i).hexdigest() * 10} {text}".replace('"', "")
            for i in range(rows)
        ]
        write(f"{rows}.csv", "text\n" + "\n".join(line.replace(",", "") for line in lines))
        write(f"{rows}.tsv", "text\n" + "\n".join(lines))
        write(f"{rows}.jsonl", "\n".join(json.dumps({"text": line}) for line in lines))
        for suffix, pack in PACKERS.items():
            write(
                f"{rows}.jsonl{suffix}",
                pack("\n".join(json.dumps({"text": line}) for line in lines).encode()),
            )
    for kind in (".csv", ".tsv", ".jsonl", *(f".jsonl{suffix}" for suffix in PACKERS)):
        peaks = []
        for rows in (300, 4_000):
            [source] = sources(f"{rows}{kind}")
            tracemalloc.start()
            assert sum(1 for _ in source.rows()) == rows
            source.fingerprint()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0] + 1e6, (kind, peaks)


# --- Whatever was written is read back; whatever stands there is answered ---

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
FIELDS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(FIELD, min_size=n, max_size=n), min_size=1, max_size=5)
)
MANY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@MANY
@given(rows=FIELDS)
def test_what_csv_writers_write_is_read_back(rows):
    header = [f"c{i}" for i in range(len(rows[0]))]
    for end, quoting in (("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)):
        stream = io.StringIO(newline="")
        csv.writer(stream, lineterminator=end, quoting=quoting).writerows([header, *rows])
        write("a.csv", stream.getvalue())
        assert [list(row.values()) for row in read("a.csv")] == rows


@MANY
@given(rows=FIELDS)
def test_what_tsv_writers_write_is_read_back(rows):
    rows = [[field.replace("\n", " ").replace("\r", " ") for field in row] for row in rows]
    header = [f"c{i}" for i in range(len(rows[0]))]
    for end, quoting in (("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)):
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter="\t", lineterminator=end, quoting=quoting).writerows(
            [header, *rows]
        )
        write("a.tsv", stream.getvalue())
        assert [list(row.values()) for row in read("a.tsv")] == rows


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@MANY
@given(
    rows=st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=4),
    ascii=st.booleans(),
)
def test_what_json_writes_is_read_back(rows, ascii):
    lines = [json.dumps(row, ensure_ascii=ascii).encode("utf-8", "surrogatepass") for row in rows]
    if not ascii and any(b"\xed" in line for line in lines):
        return  # a lone surrogate as such is no UTF-8
    write("a.jsonl", b"\n".join(lines))
    write("a.json", b"[" + b",".join(lines) + b"]")
    for name in ("a.jsonl", "a.json"):
        assert repr(read(name)) == repr(rows)  # of which -0.0 and 0.0 differ, and True and 1


BYTES = st.binary(max_size=200) | st.lists(
    st.sampled_from([b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"{", b"}", b"[", b"]", b":", b"a", b"1", b" ", b"NaN", b"\\", b"\xe9", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b'{"a": 1}', b'{"a": "b"}\n', b"text,label\n", b"text\tlabel\n"]),
    max_size=30,
).map(b"".join)  # fmt: skip
KINDS = [
    f"a{kind}"
    for kind in (
        ".csv",
        ".tsv",
        ".jsonl",
        ".json",
        ".txt",
        ".parquet",
        ".arrow",
        *(f".jsonl{suffix}" for suffix in PACKERS),
    )
]


@MANY
@given(content=BYTES, name=st.sampled_from(KINDS))
def test_any_bytes_are_rows_or_one_line(content, name):
    write(name, content)
    try:
        found = list(sources(name)[0].rows())
    except InputError as error:
        assert "\n" not in str(error) and "\r" not in str(error)
        assert not isinstance(error, BadRow)
        return
    assert found
    for row in found:
        if isinstance(row, BadRow):
            assert "\n" not in str(row) and "\r" not in str(row)
        else:
            assert not any(
                isinstance(value, float) and math.isnan(value) for value in row.columns.values()
            )
