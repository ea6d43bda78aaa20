"""What the doctor finds in rows where one fault of each kind is planted, and that it leaves clean rows in peace."""

import csv
import json
import time
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainables.data.config import DataConfig
from trainables.data.doctor.examine import Examination
from trainables.data.doctor.near import jaccard, pieces
from trainables.data.doctor.secrets import _kinds
from trainables.data.prepare import prepare

WORDS = [f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("ra", "len", "tos", "mik")]


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = {c: i for i, c in enumerate(["[UNK]", "[PAD]", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.BPE(alphabet, [], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=512
    )


def sentences(count, seed=0, least=8, most=25):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(least, most))) for _ in range(count)]


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def look(data, tokenizer, folder, task="classification", others=None):
    manifest = prepare(data, task, tokenizer, 0, folder, 512, Examination(others=others or {}))
    found = {}
    for finding in manifest.findings:
        found.setdefault(finding.kind, []).append(finding)
    return found


def table(count, seed=0):
    random = np.random.default_rng(seed + 1)
    labels = random.choice(["positive", "negative", "neutral"], count)
    return [
        {"text": text, "label": str(label)}
        for text, label in zip(sentences(count, seed), labels, strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_clean_rows_are_left_in_peace(tokenizer, tmp_path, seed):
    file = write(tmp_path / "a.csv", table(2000, seed))
    found = look(DataConfig(train=file, validation=0.1, test=0.1), tokenizer, tmp_path / "out")
    assert set(found) == {"power"}


def test_clean_conversations_are_left_in_peace(tokenizer, tmp_path):
    texts = sentences(1200)
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": p, "completion": c} for p, c in zip(texts[::2], texts[1::2], strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = look(DataConfig(train=str(file)), tokenizer, tmp_path / "out", "instruction")
    assert not {f.kind for each in found.values() for f in each if f.severity != "note"} - {
        "endless_answers"  # the tokenizer here has no token that ends an answer
    }


@pytest.fixture(scope="module")
def planted(tokenizer, tmp_path_factory):
    """10,000 rows, with one fault of each kind."""
    folder = tmp_path_factory.mktemp("planted")
    rows = table(10_000)
    random = np.random.default_rng(5)
    for i, row in enumerate(rows):
        row |= {
            "user": f"u{random.integers(0, 3000)}",
            "grade": {"positive": "3", "neutral": "2", "negative": "1"}[row["label"]],
            "batch": "2026-11",
            "comment": "",
            "id": str(i),
        }
    rows[1]["label"] = "positve"
    rows[2]["label"] = "Positive"
    rows[3]["label"] = " negative"
    rows[10]["text"] = "  "
    rows[20] |= {"text": rows[21]["text"].upper(), "label": "neutral"}
    rows[21]["label"] = "positive"
    rows[30]["text"] += " AKIAIOSFODNN7EXAMPLE"
    rows[31]["text"] += " write to someone@example.org"
    rows[32]["text"] += " 4111 1111 1111 1111"
    rows[40]["text"] = rows[41]["text"] + " indeed"
    rows[50]["text"] = "the rain in spain stays mainly in the plain and never on the hills they say"
    benchmark = ["It is said: the rain in Spain stays mainly in the plain, and never on the hills!"]
    data = DataConfig(
        train=write(folder / "a.csv", rows), validation=0.1, test=0.1, bad_rows="drop",
        duplicates="drop",
    )  # fmt: skip
    # classes of one row cannot be split: they get a second one, as a real mistake would
    rows += [{**rows[i], "text": sentences(1, 100 + i)[0]} for i in (1, 2, 3)]
    write(folder / "a.csv", rows)
    return look(data, tokenizer, folder / "out", others={"a benchmark": benchmark})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bad_rows", "row 11: 'text' is empty"),
        ("labels_alike", "'Positive'"),
        ("labels_alike", "' negative'"),
        ("label_typo", "label 'positve' of 2 row(s) is likely 'positive'"),
        ("two_labels", "1 text(s) occur with more than one label"),
        ("secrets", "an AWS access key"),
        ("secrets", "an e-mail address"),
        ("secrets", "a card number"),
        ("no_group", "'user'"),
        ("gives_label_away", "'grade'"),
        ("constant_column", "'batch' is the same"),
        ("constant_column", "'comment' is empty"),
        ("contamination", "1 of 1 text(s) of a benchmark"),
    ],
)
def test_every_planted_fault_is_found(planted, kind, words):
    assert any(words in finding.line for finding in planted[kind]), planted[kind]


def test_a_row_that_is_nearly_another_is_found_wherever_it_is(planted):
    near = [*planted.get("near_duplicates", ()), *planted.get("near_duplicates_between", ())]
    found = [finding for finding in near if "row 41" in finding.line]
    assert found and "row 42" in found[0].line and 0.8 <= jaccard(
        pieces("one two three four five"), pieces("One, two three four five six")
    )  # fmt: skip


def test_nothing_of_a_secret_is_shown(planted):
    told = json.dumps([vars(f) for each in planted.values() for f in each])
    assert "AKIA" not in told and "someone" not in told and "4111" not in told


def test_what_was_not_planted_is_not_found(planted):
    follows = {"repeated", "absent_label", "small_classes", "same_names", "in_two_splits"}
    assert set(planted) - follows - {"near_duplicates", "near_duplicates_between"} == {
        "bad_rows", "labels_alike", "label_typo", "two_labels", "secrets", "no_group", "power",
        "gives_label_away", "constant_column", "contamination",
    }  # fmt: skip


def test_near_duplicates_between_splits_count_those_with_another_answer(tokenizer, tmp_path):
    train = table(1000)
    test = [{"text": row["text"] + " so", "label": "neutral"} for row in train[:50]]
    other = Counter(row["label"] for row in train[:50])
    found = look(
        DataConfig(
            train=write(tmp_path / "a.csv", train),
            validation=write(tmp_path / "b.csv", table(200, 7)),
            test=write(tmp_path / "c.csv", test + table(150, 9)),
        ),
        tokenizer,
        tmp_path / "out",
    )
    (finding,) = found["near_duplicates_between"]
    assert finding.severity == "warning" and finding.rows == 50
    assert "two splits: 50 of 200 of test as in train" in finding.message
    assert f"{50 - other['neutral']} of them with another answer" in finding.message


def test_splits_in_other_languages_and_of_other_lengths_are_told(tokenizer, tmp_path):
    english = [
        f"The quick brown fox number {i} jumps over the lazy dogs of the town." for i in range(300)
    ]
    german = [
        f"Der schnelle braune Fuchs mit der Nummer {i} springt {'und springt noch einmal ' * 4} weit."
        for i in range(100)
    ]
    found = look(
        DataConfig(
            train=write(tmp_path / "a.csv", [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(english)]),
            validation=write(tmp_path / "b.csv", [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(german)]),
        ),
        tokenizer,
        tmp_path / "out",
    )  # fmt: skip
    assert "de 100% of the rows, in train 0%" in found["language_shift"][0].message
    assert "Kolmogorov-Smirnov distance 1.00" in found["length_shift"][0].message


def test_a_label_that_stands_in_its_text_and_a_sorted_file_are_told(tokenizer, tmp_path):
    rows = sorted(table(600), key=lambda row: row["label"])
    for row in rows:
        row["text"] = f"{row['text']} It was {row['label']}."
    found = look(DataConfig(train=write(tmp_path / "a.csv", rows)), tokenizer, tmp_path / "out")
    assert "hold the name of their class" in found["label_in_text"][0].message
    assert "sorted by label (2 changes" in found["sorted"][0].message


def test_most_rows_of_one_class_are_told(tokenizer, tmp_path):
    rows = table(1000)
    for row in rows[:950]:
        row["label"] = "neutral"
    found = look(DataConfig(train=write(tmp_path / "a.csv", rows)), tokenizer, tmp_path / "out")
    assert "% of the rows are 'neutral'" in found["imbalance"][0].message


def test_real_tweets_have_at_most_one_warning(shared_data, tokenizer, tmp_path):
    files = {s: str(shared_data / f"tweets/{s}.csv") for s in ("train", "validation", "test")}
    found = look(DataConfig(**files, duplicates="drop"), tokenizer, tmp_path / "out")
    warnings = [f for each in found.values() for f in each if f.severity == "warning"]
    assert [f.kind for f in warnings if f.kind != "unknown_tokens"] == ["length_shift"]
    assert not [f for each in found.values() for f in each if f.severity == "error"]


def test_long_runs_of_words_without_spaces_are_looked_through_once():
    began = time.monotonic()
    assert dict(_kinds("a-1." * 20_000 + " x@y.org ")) == {"e-mail address": [True]}
    assert time.monotonic() - began < 5


def test_a_dozen_users_in_two_files_are_told_of_by_their_name(tokenizer, tmp_path):
    rows = [row | {"user_id": f"u{i % 12}"} for i, row in enumerate(table(120))]
    data = DataConfig(
        train=write(tmp_path / "a.csv", rows[:80]), validation=write(tmp_path / "b.csv", rows[80:])
    )
    (finding,) = look(data, tokenizer, tmp_path / "out")["no_group"]
    assert finding.message.startswith("40 of 40 rows of validation share their 'user_id'")
