"""Labels that are likely one: by their form, by a slip of the pen, and among thousands of them."""

from difflib import SequenceMatcher

import pytest

from tests.trainables.data.doctor.examined import prepared, words, write
from trainables.data.doctor import labels as module
from trainables.data.doctor.labels import label_findings


def found_for(tmp_path, counts: dict[str, int]) -> list:
    given = [label for label, count in counts.items() for _ in range(count)]
    rows = [{"text": f"text number {i}", "label": label} for i, label in enumerate(given)]
    other = [{"text": f"other {i}", "label": label} for i, label in enumerate(counts)]
    file, validation = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", other)
    return list(label_findings(prepared(tmp_path, train=file, validation=validation)))


def kinds(found, *wanted: str) -> dict[str, list]:
    return {kind: [each for each in found if each.kind == kind] for kind in wanted}


@pytest.mark.parametrize(
    "same",
    [
        ("1", "1.0"),
        ("0", "00"),
        ("-2", "-2.50", "-2.5"),
        ("+3", "3", "3.000"),
        ("true", "True", "TRUE"),
        ("１", "1"),
        ("not  ok", "Not ok"),
    ],
)
def test_labels_that_mean_the_same_are_told(tmp_path, same):
    counts = dict.fromkeys(["other", *same], 4)
    (finding,) = kinds(found_for(tmp_path, counts), "labels_alike")["labels_alike"]
    alike = same[1:] if same[0] == "-2" else same
    assert finding.rows == 5 * len(alike) and finding.severity == "warning"
    assert all(repr(label) in finding.message for label in alike)
    assert finding.examples[0] == f"a.csv row {5 if alike == same else 9}: {alike[0]!r}"


@pytest.mark.parametrize(
    "apart",
    [
        ("1", "10", "-1", "0.1"),
        ("C", "C++", "C#"),
        (">50K", "<=50K"),
        ("1.1", "1.10.0", "1.0.1"),
        ("nan", "inf", "infinity"),
        ("9" * 30, "9" * 29 + "8"),
        ("1e3", "1000"),
    ],
)
def test_labels_that_mean_something_else_are_left_in_peace(tmp_path, apart):
    assert not kinds(found_for(tmp_path, dict.fromkeys(apart, 4)), "labels_alike")["labels_alike"]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("postive", "positive"),
        ("positivee", "positive"),
        ("possitve", "positive"),
        ("psoitive", "positive"),
        ("pozitive", "positive"),
        ("Wrold", "World"),
        ("cancel oder", "cancel order"),
        ("track_order", "track_orders"),
    ],
)
def test_a_likely_typo_is_told_with_what_it_was_to_be(tmp_path, typo, meant):
    found = found_for(tmp_path, {meant: 400, "unlike": 300, typo: 2})
    (finding,) = kinds(found, "label_typo")["label_typo"]
    assert finding.message == f"label {typo!r} of 3 row(s) is likely {meant!r}, of 401"
    assert finding.examples == tuple(
        f"{place}: {typo!r}" for place in ("a.csv row 701", "a.csv row 702", "b.csv row 3")
    )
    assert finding.rows == 3


@pytest.mark.parametrize(
    ("rare", "common"),
    [
        ("irrelevant", "relevant"),
        ("asymptomatic", "symptomatic"),
        ("incomplete", "complete"),
        ("B-PER", "I-PER"),
        ("class_12", "class_1"),
        ("grade A", "grade B"),
        ("type ii", "type i"),
        ("female", "male"),
        ("good", "gold"),
        ("11234", "11235"),
    ],
)
def test_a_rare_class_with_a_name_like_another_is_left_in_peace(tmp_path, rare, common):
    found = found_for(tmp_path, {common: 400, "unlike": 300, rare: 2})
    assert not kinds(found, "label_typo")["label_typo"]


def test_of_thousands_of_labels_few_are_compared(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        module, "SequenceMatcher", lambda *of: compared.append(1) or SequenceMatcher(*of)
    )
    names = list(dict.fromkeys(words(2000, 1)))
    common, rare = names[:40], names[40:1500]
    counts = {**dict.fromkeys(common, 120), **dict.fromkeys(rare, 1), f"{common[3]}s": 1}
    found = kinds(found_for(tmp_path, counts), "label_typo")["label_typo"]
    assert f"label '{common[3]}s' of 2 row(s) is likely '{common[3]}', of 121" in {
        each.message for each in found
    }
    assert len(compared) < 2 * len(names)


def test_of_many_findings_the_first_are_told_and_the_others_counted(tmp_path):
    names = list(dict.fromkeys(words(60, 1)))[:40]
    found = found_for(tmp_path, dict.fromkeys([*names, *(name.upper() for name in names)], 2))
    alike = kinds(found, "labels_alike")["labels_alike"]
    assert len(alike) == module.MOST + 1 and sum(each.rows for each in alike) == 2 * 3 * len(names)
    assert alike[-1].message.startswith(f"{len(names) - module.MOST} more such label(s), the first")
    assert len(alike[-1].examples) == 3


def test_one_class_above_all_names_rows_of_the_others_and_how_to_look_at_each(tmp_path):
    found = kinds(
        found_for(tmp_path, {"usual": 300, "rare": 4, "odd": 3}), "imbalance", "small_classes"
    )
    (imbalance,) = found["imbalance"]
    assert imbalance.examples == (
        "a.csv row 301: 'rare'", "a.csv row 302: 'rare'", "a.csv row 305: 'odd'",
    )  # fmt: skip
    assert imbalance.setting == "data.slice: label, which measures each class"
    (small,) = found["small_classes"]
    assert small.examples[0] == "b.csv row 1: 'usual'"
