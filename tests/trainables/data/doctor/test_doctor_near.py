"""Rows that are nearly the same are found among rows that share a template, and at a cost that grows with the rows."""

import numpy as np
import pytest

from tests.trainables.data.doctor.examined import prepared, sentences, words, write
from trainables.data.doctor import near
from trainables.data.doctor.near import jaccard, near_duplicates, pieces, say_something_else


def texts_with(planted: dict[int, int], count: int, before: str = "", after: str = "") -> list[str]:
    """In the place of each planted row, another with its tenth word changed."""
    texts = sentences(count, 3, 20, 30)
    for row, other in planted.items():
        changed = texts[other].split()
        changed[9] = "otherwise"
        texts[row] = " ".join(changed)
    return [f"{before}{text}{after}" for text in texts]


def found_in(tmp_path, texts, **data):
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    return prepared(tmp_path, train=write(tmp_path / "a.csv", rows), **{"validation": 0.1, **data})


def rows_told(found) -> set[int]:
    """Numbers of the rows in the examples, from 0."""
    told = [
        place for each in found for example in each.examples for place in example.split(" and ")
    ]
    return {int(place.split(",")[0].split()[-1]) - 1 for place in told}


@pytest.mark.parametrize("template", ["", "before", "both"])
def test_rows_are_told_by_what_they_have_beside_a_template(tmp_path, template):
    long = " ".join(words(200, 1))
    texts = texts_with(
        {300: 20, 500: 40, 700: 60},
        800,
        before=f"{long} " if template else "",
        after=f" {long[:500]}" if template == "both" else "",
    )
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert sum(each.rows for each in found) == 3
    assert rows_told(found) == {300, 20, 500, 40, 700, 60}
    assert not any("at least" in each.message for each in found)


def test_each_of_several_templates_is_left_out(tmp_path):
    """None of them stands in most rows."""
    templates = [" ".join(words(100, seed)) for seed in range(10, 16)]
    texts = texts_with({}, 900)
    texts = [f"{templates[i % 6]} {text} {templates[i // 6 % 6]}" for i, text in enumerate(texts)]
    texts[600] = texts[300].replace(" ", "  ", 1) + " so"
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert [each.rows for each in found] == [1] and rows_told(found) == {600, 300}


def test_words_that_are_common_are_no_template(tmp_path):
    """Rows of few words have all of them in common with many."""
    random, known = np.random.default_rng(0), words(60, 2)
    texts = [" ".join(random.choice(known, 15)) for _ in range(600)]
    texts[400] = f"{texts[200]} again"
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert sum(each.rows for each in found) == 1 and rows_told(found) == {400, 200}


def test_a_row_that_is_all_template_is_compared_by_it(tmp_path):
    long = " ".join(words(30, 1))
    texts = [f"{long} {text}" for text in texts_with({}, 400)]
    texts[100], texts[200] = long, f"{long}!"  # the same but for a mark
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert sum(each.rows for each in found) == 1 and rows_told(found) == {100, 200}


def test_texts_without_letters_are_compared_by_what_they_have(tmp_path):
    texts = [*texts_with({}, 100), "😀😀", "🙁🙁🙁", "!!!", "???", "...", "👍"]
    assert not list(near_duplicates(found_in(tmp_path, texts)))
    assert (
        jaccard(pieces("!!!"), pieces("???")) == 0 and jaccard(pieces("A b!"), pieces("a  B")) == 1
    )


def test_few_rows_of_each_band_are_compared_and_it_says_at_least(tmp_path, monkeypatch):
    """A text that many rows share in good part, though too few for a template."""
    compared = []
    likeness = near._likeness
    monkeypatch.setattr(
        near, "_likeness", lambda of, rows, *more: compared.append(len(rows)) or likeness(of, rows, *more)
    )  # fmt: skip
    texts = texts_with({2500: 30}, 3000)
    shared = " ".join(words(40, 5))
    crowd = range(1, 3000, 25)
    for i in crowd:
        texts[i] = f"{shared} {' '.join(words(7, 100 + i))}"
    other = [{"text": text, "label": "a"} for text in sentences(20, 9)]
    data = found_in(tmp_path, texts, validation=write(tmp_path / "b.csv", other))
    (found,) = near_duplicates(data)
    assert found.message.startswith("train: at least 1 of 3000 row(s)")
    assert 0 < sum(compared) <= len(crowd) * near.BANDS * near.COMPARED


def test_pieces_of_a_text_are_made_a_few_times_however_many_rows_are_like_it(tmp_path, monkeypatch):
    made = []
    pieces_of = near._pieces
    monkeypatch.setattr(near, "_pieces", lambda text: made.append(1) or pieces_of(text))
    long = " ".join(words(200, 1))
    texts = [f"{long} {' '.join(words(3, i))}" for i in range(600)]
    list(near_duplicates(found_in(tmp_path, texts)))
    assert len(made) <= 4 * len(texts)


def test_copies_are_looked_at_once(tmp_path):
    """They are told of as repeated; what is nearly the same as they are is one row."""
    texts = [*texts_with({}, 200), *["the very same text stands here again and again"] * 300]
    texts.append("the very same text stands here again and again so")
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert sum(each.rows for each in found) == 1
    assert "301" not in found[0].message.split("(")[0]


def test_memory_does_not_grow_with_the_length_of_rows_that_are_alike(tmp_path, monkeypatch):
    most = [0]
    compared = near._Search._compared

    def counted(self, rows, others):
        most[0] = max(most[0], len(rows))
        return compared(self, rows, others)

    monkeypatch.setattr(near, "BATCH", 50)
    monkeypatch.setattr(near._Search, "_compared", counted)
    texts = texts_with({i: i - 200 for i in range(200, 400)}, 400)
    found = list(near_duplicates(found_in(tmp_path, texts)))
    assert sum(each.rows for each in found) >= 190 and most[0] <= 50


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("turn on light 3", "turn on light 4"),
        ("turn on the light", "turn on the light 4"),
        ("wake me up at 22:19", "wake me up at 22:15"),
        ("how many people live in the state of Alaska", "how many people live in the state of Alabama"),
        ("read a3f9b2 of node-17 at 12:01", "read b7c1d0 of node-18 at 12:01"),
        ("明日は3時に起こしてください", "明日は5時に起こしてください"),
    ],
)  # fmt: skip
def test_short_rows_with_another_word_and_rows_with_other_numbers_are_others(one, other):
    assert say_something_else(one, other, len(pieces(one)))
    assert say_something_else(other, one, len(pieces(one)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Turn on: light 3!", "turn on light 3"),
        ("the lamp is broken again", "the lamp is broken again so"),
        ("is the lamp broken again", "the lamp is broken again"),
        (" ".join(words(30, 1)), " ".join(words(30, 1)[:-1])),
        (" ".join(words(30, 1)), " ".join([*words(30, 1)[:-1], "otherwise"])),
        (" ".join(words(300, 1)) + " seen 1034 times", " ".join(words(300, 1)) + " seen 1071 times"),
    ],
)  # fmt: skip
def test_rows_that_say_the_same_are_no_others(one, other):
    assert not say_something_else(one, other, len(pieces(one)))
    assert not say_something_else(other, one, len(pieces(one)))


def test_a_question_with_one_more_word_and_an_answer_of_its_own_is_another(tmp_path):
    asked = [f"how many people live in {name}" for name in words(40, 1)]
    rows = [{"prompt": f"{text}{more}", "completion": f"{i} {more}"}
            for i, text in enumerate(asked) for more in ("", " city")]  # fmt: skip
    data = {"train": write(tmp_path / "a.jsonl", rows), "validation": 0.2}
    assert not list(near_duplicates(prepared(tmp_path, "instruction", **data)))
    for row in rows:
        row["completion"] = "many"
    write(tmp_path / "a.jsonl", rows)
    assert list(near_duplicates(prepared(tmp_path, "instruction", **data)))


def test_rows_that_differ_in_what_many_have_are_others(tmp_path):
    """Each of a few stretches, from which rows are put together, stands in many rows."""
    random, parts = np.random.default_rng(0), [" ".join(words(10, seed)) for seed in range(12)]
    chosen = {tuple(random.choice(12, 3, replace=False).tolist()) for _ in range(500)}
    texts = [f"{parts[a]} {parts[b]} so {parts[c]}" for a, b, c in chosen]
    assert not list(near_duplicates(found_in(tmp_path, texts)))


def test_a_single_row_that_is_like_one_of_another_split_is_a_note(tmp_path):
    def severity(planted: int) -> str:
        texts = texts_with({i: i + 100 for i in range(planted)}, 200)
        other = write(tmp_path / "b.csv", [{"text": text, "label": "a"} for text in texts[:50]])
        data = found_in(tmp_path, [*texts[50:], *sentences(20, 8)], validation=other)
        (found,) = near_duplicates(data)
        assert found.rows == planted and found.kind == "near_duplicates_between"
        return found.severity

    assert [severity(1), severity(2), severity(3)] == ["note", "note", "warning"]
