"""One fault of each kind, planted in ten thousand rows: each is told, with its rows, their places and what mends it."""

from pathlib import Path

import numpy as np
import pytest
from test_doctor_secrets import REAL
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.trainables.data.doctor.examined import sentences, write
from trainables.data.config import DataConfig
from trainables.data.doctor.examine import Examination
from trainables.data.prepare import prepare

BENCHMARK = "the rain in spain stays mainly in the plain and never on the hills they say"
ENGLISH = "the quick fox number {} jumps over the lazy dogs of the small town and nobody looks"
GERMAN = "der schnelle Fuchs Nummer {} springt über die müden Hunde der Stadt, und noch einmal über alle Gräben"


@pytest.fixture(scope="module")
def tokenizer():
    """Of printable ASCII; what else there is, it does not know."""
    alphabet = {c: i for i, c in enumerate(["[UNK]", "[PAD]", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.BPE(alphabet, [], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=512
    )


def look(folder: Path, tokenizer, task="classification", benchmark: str = "", **data) -> dict:
    """Findings by kind, with places as a user in the folder would read them."""
    files = {
        name: str(folder / given) if isinstance(given, str) and "." in given else given
        for name, given in data.items()
    }
    others = {"bench.jsonl": [benchmark]} if benchmark else {}
    manifest = prepare(
        DataConfig(**files), task, tokenizer, 0, folder / "out", 512, Examination(others=others)
    )
    found = {}
    for each in manifest.findings:
        here = [example.replace(f"{folder}/", "") for example in each.examples]
        message = each.line.replace(f"{folder}/", "")
        found.setdefault(each.kind, []).append((each, tuple(here), message))
    return found


def changed(text: str, at: int, word: str = "otherwise") -> str:
    words = text.split()
    return " ".join([*words[:at], word, *words[at + 1 :]])


@pytest.fixture(scope="module")
def labelled(tokenizer, tmp_path_factory):
    """Ten thousand rows of train; validation and test are files of their own."""
    folder = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(5)
    grades = {"positive": "3", "neutral": "2", "negative": "1"}

    def rows_of(count: int, seed: int) -> list[dict]:
        labels = random.choice(list(grades), count)
        return [
            {
                "text": text, "label": str(label), "user": "", "grade": grades[label],
                "batch": "2026-11", "comment": "", "id": f"{seed}-{i}",
            }
            for i, (text, label) in enumerate(zip(sentences(count, seed, 20, 30), labels, strict=True))
        ]  # fmt: skip

    train, validation, test = rows_of(10_000, 1), rows_of(600, 2), rows_of(600, 3)
    for each in (train, validation, test):
        for i, row in enumerate(each):
            row["user"] = f"{'u' if each is train else each[0]['id'][0]}{i % 900}"
    for i in range(40):  # rows 501 to 540, and their users' rows of train
        validation[500 + i]["user"] = f"u{i}"
    train[10]["text"] = "  "
    train[11] |= {
        "text": train[12]["text"].upper(),
        "label": train[12]["label"],
        "grade": train[12]["grade"],
    }
    train[21] |= {"text": train[20]["text"], "label": "neutral"}
    train[20]["label"] = "positive"
    for i in range(3):
        train[40 + i]["text"] = changed(train[30 + i]["text"], 9)
        test[40 + i] |= {"text": changed(train[50 + i]["text"], 9), "label": train[50 + i]["label"]}
        train[60 + i]["label"], validation[40 + i]["label"] = "positive", "negative"
        validation[40 + i]["text"] = changed(train[60 + i]["text"], 9)
    test[7] |= {"text": train[70]["text"], "label": train[70]["label"]}
    train[80]["label"], train[81]["label"], train[82]["label"] = "Positive", " negative", "ｎeutral"
    train[83]["label"] = "positve"
    for i in range(30):
        train[100 + i] |= {
            "text": f"{train[100 + i]['text']} a complaint",
            "label": "complaint",
            "grade": "",
        }
        if i < 4:
            validation[i] |= {"text": f"{validation[i]['text']} a complaint", "label": "complaint"}
    train[140] |= {"text": f"{train[141]['text']} 😀", "label": "neutral"}
    train[141] |= {"text": f"{train[141]['text']} 😡", "label": "positive"}
    train[150]["label"], train[151]["label"] = "😀", "😡"
    train[160]["text"] = " ".join([train[160]["text"]] * 9)
    train[170]["text"] = BENCHMARK
    for i, secret in enumerate(REAL.values()):
        train[200 + i]["text"] += f" {secret}"
    files = {
        name: write(folder / f"{name}.csv", rows)
        for name, rows in (("train", train), ("validation", validation), ("test", test))
    }
    said = BENCHMARK.upper().replace(" AND", ", and")
    return look(folder, tokenizer, benchmark=f"As they say: {said}!", bad_rows="drop",
                duplicates="drop", max_length=400, **files)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows", "words", "example", "setting"),
    [
        ("bad_rows", 1, "train: 1 row(s) left out", "train.csv row 11: 'text' is empty", ""),
        ("in_two_splits", 1, "train: 1 row(s) dropped", "train.csv row 71 and test.csv row 8", ""),
        ("repeated", 2, "train: 2 row(s) repeat", "train.csv row 13 and train.csv row 12", ""),
        ("two_labels", 1, "1 text(s)", "train.csv row 21: 'positive' and train.csv row 22: 'neutral'", ""),
        ("near_duplicates", 4, "train: 4 of", "train.csv row 43 and train.csv row 33, similarity 0.9", ""),
        ("near_duplicates_between", 6, "3 of 600 of validation as in train, 3 of 600 of test as in train, 3 of them"
         " with another answer", "validation.csv row 41 and train.csv row 61", ""),
        ("no_group", 40, "40 of 600 rows of validation share their 'user'", "validation.csv row 501: 'u0'",
         "data.group: user"),
        ("labels_alike", None, "'Positive' (1 rows)", "train.csv row 81: 'Positive'", ""),
        ("labels_alike", None, "' negative' (1 rows)", "train.csv row 82: ' negative'", ""),
        ("labels_alike", None, "'ｎeutral' (1 rows)", "train.csv row 83: 'ｎeutral'", ""),
        ("label_typo", 1, "label 'positve' of 1 row(s) is likely 'positive'", "train.csv row 84: 'positve'", ""),
        ("small_classes", 4, "'complaint' (4)", "validation.csv row 1: 'complaint'", "data.validation: a larger share"),
        ("gives_label_away", None, "column 'grade' alone", "train.csv row 1: ", ""),
        ("constant_column", None, "column 'batch' is the same", "train.csv row 1: '2026-11'", ""),
        ("constant_column", None, "column 'comment' is empty", "train.csv row 1: ''", ""),
        ("label_in_text", 30, "texts of 'complaint' hold the name", "train.csv row 103: 'complaint'", ""),
        ("contamination", 1, "1 of 1 text(s) of bench.jsonl", "train.csv row 171", ""),
        ("power", 600, "validation: with 600 rows", None, "data.validation: a larger share"),
        ("truncated", 1, "train: 1 of ", "train.csv row 161: ", "raise data.max_length"),
        ("same_tokens", 2, "train: 2 row(s) have the same tokens as a row with another label",
         "train.csv row 141 and train.csv row 142", ""),
        ("same_names", 2, "labels '😀', '😡' are the same tokens", "train.csv row 151: '😀'", ""),
        ("absent_label", None, "validation: no row of ", "train.csv row 81: 'Positive'", ""),
        *(("secrets", 1, f" {name}:", f"train.csv row {201 + i}", "") for i, name in enumerate(REAL)),
    ],
)  # fmt: skip
def test_each_fault_of_labelled_rows_is_told(labelled, kind, rows, words, example, setting):
    told = [each for each in labelled.get(kind, ()) if words in each[2]]
    assert told, [message for *_, message in labelled.get(kind, ())]
    finding, examples, _ = told[0]
    assert rows in (None, finding.rows) and finding.rows > 0
    assert finding.setting == setting
    if example is not None:
        assert any(each.startswith(example) for each in examples), examples
        # a pair of rows that became the same is one example
        assert len(examples) == (1 if kind == "same_tokens" else min(3, finding.rows)), examples


def test_nothing_else_is_told_of_labelled_rows(labelled):
    assert set(labelled) == {
        "bad_rows", "in_two_splits", "repeated", "two_labels", "near_duplicates", "near_duplicates_between", "no_group",
        "labels_alike", "label_typo", "small_classes", "gives_label_away", "constant_column", "label_in_text",
        "contamination", "power", "truncated", "same_tokens", "same_names", "absent_label", "secrets",
    }  # fmt: skip
    assert len(labelled["secrets"]) == len(REAL) and len(labelled["labels_alike"]) == 3
    assert not [f for each in labelled.values() for f, *_ in each if f.severity == "error"]


def test_no_secret_is_shown(labelled):
    told = repr([vars(finding) for each in labelled.values() for finding, *_ in each])
    assert not [secret for secret in REAL.values() if secret[:10] in told]


@pytest.fixture(scope="module")
def unlike(tokenizer, tmp_path_factory):
    """What cannot be planted beside the others: most rows of one class, sorted by it, and other splits of another kind."""
    folder = tmp_path_factory.mktemp("unlike")
    train = [
        {"text": ENGLISH.format(i), "label": "rare" if i >= 1880 else "usual"} for i in range(2000)
    ]
    other = [{"text": GERMAN.format(i), "label": "usual" if i else "rare"} for i in range(200)]
    files = {
        "train": write(folder / "train.csv", train),
        "validation": write(folder / "validation.csv", other),
    }
    return look(folder, tokenizer, **files)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows", "words", "example", "setting"),
    [
        ("imbalance", 1880, "train: 94.0% of the rows are 'usual'", "train.csv row 1881: 'rare'",
         "data.slice: label, which measures each class"),
        ("sorted", 2000, "sorted by label (1 changes", "train.csv row 1881: 'rare' begins", ""),
        ("language_shift", 200, "de 100% of the rows, in train 0%", "validation.csv row 1",
         "data.validation: a share of train, such as 0.1"),
        ("length_shift", 200, "distance 1.00", "validation.csv row ", "data.validation: a share of train, such as 0.1"),
        ("unknown_tokens", 200, "validation: ", "validation.csv row 1: 4 of ",
         "model.name: a model whose tokenizer knows the rows' language and signs"),
    ],
)  # fmt: skip
def test_each_fault_of_splits_that_are_unlike_is_told(unlike, kind, rows, words, example, setting):
    ((finding, examples, message),) = unlike[kind]
    assert words in message and finding.rows == rows and finding.setting == setting
    assert any(each.startswith(example) for each in examples), examples
    assert len(examples) == (1 if kind == "sorted" else 3)


@pytest.fixture(scope="module")
def conversations(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    asked, answered = sentences(1200, 1, 12, 20), sentences(1200, 2, 6, 9)
    rows = [
        {"prompt": p, "completion": c, "thread_id": f"t{i}"}
        for i, (p, c) in enumerate(zip(asked, answered, strict=True))
    ]
    train, validation = rows[:1000], rows[1000:]
    validation[5]["prompt"] = train[50]["prompt"]
    validation[6]["prompt"] = changed(train[60]["prompt"], 11)
    validation[7]["thread_id"], validation[8]["thread_id"] = "t70", "t70"
    train[30]["completion"] += " AKIAIOSFODNN7EXAMPLE"
    train[31]["completion"] += f" {BENCHMARK}"
    for i in range(20):
        train[100 + i]["prompt"] += " so" * 200
    for row in validation[20:]:
        row["completion"] += " and so on" * 40
    files = {
        "train": write(folder / "train.jsonl", train),
        "validation": write(folder / "validation.jsonl", validation),
    }
    return look(folder, tokenizer, "instruction", BENCHMARK, max_length=400, **files)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows", "words", "example", "setting"),
    [
        ("near_duplicates_between", 2, "2 of 200 of validation as in train, 2 of them with another answer",
         "validation.jsonl line 6 and train.jsonl line 51", ""),
        ("no_group", 2, "2 of 200 rows of validation share their 'thread_id'", "validation.jsonl line 8: 't70'",
         "data.group: thread_id"),
        ("secrets", 1, "an AWS access key", "train.jsonl line 31", ""),
        ("contamination", 1, "share a run of 13 words", "train.jsonl line 32", ""),
        ("no_answer", 20, "train: 20 row(s) dropped", "train.jsonl line 101", "raise data.max_length"),
        ("endings_cut", 180, "validation: 180 of 200 conversations lose their end", "validation.jsonl line ",
         "raise data.max_length"),
        ("truncated", 20, "train: 20 of 1000 row(s) cut", "train.jsonl line 1", "raise data.max_length"),
        ("truncated", 180, "validation: 180 of 200 row(s) cut", "validation.jsonl line ", "raise data.max_length"),
        ("endless_answers", 1000, "train: 1000 answer(s) end in no special token of this tokenizer", None,
         "data.chat_template: one that ends an answer with a special token"),
        ("length_shift", 200, "validation: rows are of other lengths", "validation.jsonl line ",
         "data.validation: a share of train, such as 0.1"),
        ("power", 200, "validation: with 200 rows", None, "data.validation: a larger share"),
        ("unused", 1000, "not used: thread_id", None, ""),
    ],
)  # fmt: skip
def test_each_fault_of_conversations_is_told(conversations, kind, rows, words, example, setting):
    told = [each for each in conversations.get(kind, ()) if words in each[2]]
    assert told, [message for *_, message in conversations.get(kind, ())]
    finding, examples, _ = told[0]
    assert finding.rows == rows and finding.setting == setting
    if example is not None:
        assert any(each.startswith(example) for each in examples), examples
        assert len(examples) == min(3, rows)
