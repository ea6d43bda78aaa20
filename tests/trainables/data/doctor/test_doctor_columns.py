"""What columns beside the text tell, with memory that does not grow with their values."""

import tracemalloc

import numpy as np
import pytest

from tests.trainables.data.doctor.examined import examine, prepared, sentences, write
from trainables.data.doctor import columns as module
from trainables.data.doctor.columns import column_findings


def table(count: int, seed: int = 0, **columns) -> list[dict]:
    """columns: what each has in a row, by the row's number."""
    random = np.random.default_rng(seed)
    labels = random.choice(["good", "bad"], count)
    return [
        {"text": text, "label": str(label)} | {name: of(i) for name, of in columns.items()}
        for i, (text, label) in enumerate(zip(sentences(count, seed), labels, strict=True))
    ]


def found_in(tmp_path, rows, name="a.csv", **data):
    return prepared(tmp_path, train=write(tmp_path / name, rows), **{"validation": 0.2, **data})


def kinds(found) -> dict[str, list]:
    by_kind = {}
    for each in found:
        by_kind.setdefault(each.kind, []).append(each)
    return by_kind


def test_columns_that_could_be_the_group_are_one_warning_that_names_the_likeliest(tmp_path):
    rows = table(
        600,
        place=lambda i: f"town {i % 50}",
        user_id=lambda i: f"u{i % 90}",
        user_name=lambda i: f"someone {i % 90}",
    )
    (finding,) = kinds(column_findings(found_in(tmp_path, rows)))["no_group"]
    assert finding.severity == "warning" and finding.setting == "data.group: user_id"
    assert "share their 'user_id' with rows of train (and 'user_name' likewise)" in finding.message
    assert "place" not in finding.message
    assert finding.examples[0].startswith("a.csv row ") and ": 'u" in finding.examples[0]
    assert len(finding.examples) == 3


def test_a_group_is_suggested_once_where_rows_are_also_nearly_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("trainables.data.doctor.examine.shifts", lambda _: ())  # takes seconds
    rows = table(400, user_id=lambda i: f"u{i // 2}")
    for i in range(1, 400, 2):
        rows[i] |= {"text": rows[i - 1]["text"] + " again and", "label": rows[i - 1]["label"]}
    found = kinds(examine(found_in(tmp_path, rows)))
    assert found["near_duplicates_between"][0].severity == "warning"
    assert [f.setting for each in found.values() for f in each if "data.group" in f.setting] == [
        "data.group: user_id"
    ]
    for row in rows:
        del row["user_id"]
    (again,) = kinds(examine(found_in(tmp_path, rows)))["near_duplicates_between"]
    assert again.setting == "data.group: the column that says what rows come from"


@pytest.mark.parametrize(
    "of",
    [
        lambda i: i % 60,
        lambda i: f"{i % 70 / 10:.1f}",
        lambda i: f"{i % 60}%",
        lambda i: f"${i % 60}.99",
        lambda i: f"2026-{i % 12 + 1:02}-{i % 28 + 1:02}",
        lambda i: f"2026-03-{i % 28 + 1:02}T{i % 24:02}:15:00Z",
        lambda i: f"{i % 24:02}:{i % 60:02}",
        lambda i: f"{i % 28 + 1}/{i % 12 + 1}/2026",
    ],
)
def test_numbers_and_dates_are_not_what_rows_come_from(tmp_path, of):
    assert "no_group" not in kinds(column_findings(found_in(tmp_path, table(600, value=of))))


def test_a_few_sources_of_many_rows_are_kinds_of_rows(tmp_path):
    rows = table(1500, source=lambda i: ["mail", "web", "phone"][i % 3])
    (finding,) = kinds(column_findings(found_in(tmp_path, rows)))["no_group"]
    assert finding.severity == "note"
    (finding,) = kinds(column_findings(found_in(tmp_path, rows[:200])))["no_group"]
    assert finding.severity == "note"


def test_a_column_named_as_an_origin_is_told_of_however_seldom_it_repeats(tmp_path):
    rows = table(400, thread=lambda i: f"t{i}")
    other = table(100, 1, thread=lambda i: f"v{i}")
    data = {"validation": write(tmp_path / "b.csv", other), "name": "a.csv"}
    other[3]["thread"] = "t70"
    write(tmp_path / "b.csv", other)
    (finding,) = kinds(column_findings(found_in(tmp_path, rows, **data)))["no_group"]
    assert finding.examples == ("b.csv row 4: 't70'",) and finding.severity == "warning"
    assert finding.setting == "data.group: thread" and finding.rows == 1
    write(tmp_path / "b.csv", [*other, *table(100, 2, thread=lambda i: f"w{i}")])
    (finding,) = kinds(column_findings(found_in(tmp_path, rows, **data)))["no_group"]
    assert finding.severity == "note"


def test_examples_say_where_and_what(tmp_path):
    rows = table(300, batch=lambda i: "b7", note=lambda i: "")
    for row in rows:
        row["code"] = {"good": "1", "bad": "0"}[row["label"]]
    found = kinds(column_findings(found_in(tmp_path, rows)))
    same, empty = found["constant_column"]
    assert same.message == "column 'batch' is the same in all 300 rows"
    assert same.examples[0].endswith(": 'b7'") and empty.examples[0].endswith(": ''")
    (told,) = found["gives_label_away"]
    assert told.examples[0][-3:] in ("'1'", "'0'") and told.examples[0].startswith("a.csv row")


def test_a_column_that_only_some_rows_have_gives_the_label_away(tmp_path):
    rows = table(300)
    for row in rows:
        if row["label"] == "bad":
            row["reason"] = f"because of {len(row['text']) % 7}"
    found = kinds(column_findings(found_in(tmp_path, rows, "a.jsonl")))
    assert "'reason' alone tells the label of 100.0%" in found["gives_label_away"][0].message
    assert "constant_column" not in found


def test_many_columns_are_looked_at_some_at_a_time(tmp_path, monkeypatch):
    rows = table(60, 0, **{f"c{n}": lambda i, n=n: f"same {n}" for n in range(25)})
    whole = list(column_findings(found_in(tmp_path, rows)))
    monkeypatch.setattr(module, "AT_ONCE", 4 * 60)
    assert [f.message for f in column_findings(found_in(tmp_path, rows))] == [
        f.message for f in whole
    ]
    assert len(whole) == 25


def test_memory_is_some_tens_of_bytes_a_row(tmp_path):
    def peak(count: int) -> int:
        rows = [
            {
                "text": f"text {i}",
                "label": "ab"[i % 2],
                "id": f"row with a rather long name {i}",
                "user": f"customer number {i // 3}",
                "url": f"https://www.example.org/{i}",
                "score": f"{i / 7:.5f}",
                "state": "open",
            }
            for i in range(count)
        ]
        found = found_in(tmp_path, rows)
        del rows
        tracemalloc.start()
        try:
            list(column_findings(found))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = 1000, 4000
    assert (peak(many) - peak(few)) / (many - few) < 5 * 8 + 80
