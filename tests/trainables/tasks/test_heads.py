"""Tasks with a head of their own: rows, losses against transformers' own, metrics against other libraries'."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn import metrics as sklearn_metrics
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sweeps.ledger.folder import label_prior
from trainables.data.arrow import open_split
from trainables.data.config import DataConfig
from trainables.data.prepare import prepare
from trainables.engine.scoring import evaluate_model
from trainables.errors import InputError
from trainables.models.base import BaseSpec
from trainables.models.config import ModelConfig
from trainables.rehearsal.rehearse import rehearse
from trainables.tasks import TASKS
from trainables.tasks.declared import LabelSummary
from trainables.tasks.token_classification.spans import Entity, Tag, entities, scheme

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

REGRESSION, MULTI_LABEL = TASKS["regression"], TASKS["multi_label"]
TOKENS = TASKS["token_classification"]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


SENTENCES = [
    {
        "text": " ".join(f"w{(i * j) % 30}" for j in range(1, 3 + i % 5)),
        "tokens": [f"w{(i * j) % 30}" for j in range(1, 3 + i % 5)],
        "label": i / 3,
        "labels": ["a", "b", "c"][: i % 4],
        "tags": (["B-X", "I-X", "O", "B-Y", "I-Y", "O"] * 2)[: 2 + i % 5],
    }
    for i in range(24)
]


def ids(*values):
    return np.array(values, dtype=np.int32)


@pytest.fixture
def tokenizer():
    """A token of each word `w0` to `w29`; a word with a dash is a token for each of its parts."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(30)), "-"]
    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    from tokenizers.pre_tokenizers import Sequence

    backend.pre_tokenizer = Sequence([WhitespaceSplit(), Split("-", "removed")])
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def prepared(tokenizer, folder, task, rows, **settings):
    data = DataConfig(train=write(folder, "rows.jsonl", rows), **{"validation": 0.25, **settings})
    return prepare(data, task, tokenizer, 0, folder / "out", context=64)


def refused(tokenizer, folder, task, rows, **settings):
    with pytest.raises(InputError) as error:
        prepared(tokenizer, folder, task, rows, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def spec_of(task, labels):
    return BaseSpec(
        model=ModelConfig(name="any"),
        auto_class=task.auto_class,
        pad_token_id=0,
        outputs=task.outputs(labels),
        problem_type=task.problem_type,
    )


def model_of(task, labels=()):
    kind = {
        "AutoModelForSequenceClassification": transformers.BertForSequenceClassification,
        "AutoModelForTokenClassification": transformers.BertForTokenClassification,
    }[task.auto_class]
    torch.manual_seed(0)
    settings = spec_of(task, labels).settings
    return kind(transformers.BertConfig(**{**SIZES, **settings}, initializer_range=0.5)).eval()


# --- rows ---


def test_a_number_is_read_from_a_number_or_a_text(tokenizer, tmp_path):
    numbers = [3, -2.5, "4.25", " 1e2 ", "-.5", "7.", 0, True and 9]
    rows = [{"text": f"w{i}", "label": number} for i, number in enumerate(numbers)]
    manifest = prepared(tokenizer, tmp_path, "regression", rows)
    found = [
        row["labels"]
        for name in ("train", "validation")
        for row in open_split(tmp_path / "out", name).rows(range(manifest.splits[name].rows))
    ]
    assert sorted(found) == sorted([3.0, -2.5, 4.25, 100.0, -0.5, 7.0, 0.0, 9.0])
    assert manifest.labels == () and manifest.train.label_counts is None
    labels = open_split(tmp_path / "out", "train").labels
    assert manifest.train.label_mean == pytest.approx(labels.mean())
    assert manifest.train.label_variance == pytest.approx(labels.var())


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("many", "'label' must be a number, got str 'many'"),
        ("1,5", "'label' must be a number, got str '1,5'"),
        ("nan", "'label' must be a number, got str 'nan'"),
        ("1_000", "'label' must be a number, got str '1_000'"),
        ([1], "'label' must be a number, got list [1]"),
        (True, "'label' must be a number, got bool true"),
        (None, "'label' is missing"),
        (float("nan"), "'label' is missing"),
        (float("inf"), "'label' must be a finite number of at most 1e+15, got inf"),
        (10**400, "'label' must be a finite number of at most 1e+15, got 1000"),
        ("1e999", "'label' must be a finite number of at most 1e+15, got '1e999'"),
    ],
)
def test_what_is_no_number_is_one_line(tokenizer, tmp_path, label, wrong):
    rows = [{"text": f"w{i}", "label": 1.5} for i in range(8)]
    import pandas

    if isinstance(label, float):
        rows[3]["label"] = label
        pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(InputError) as error:
            data = DataConfig(train=str(tmp_path / "rows.parquet"), validation=0.25)
            prepare(data, "regression", tokenizer, 0, tmp_path / "out", context=64)
        message = str(error.value)
    else:
        message = refused(
            tokenizer, tmp_path, "regression", [*rows[:3], {**rows[3], "label": label}, *rows[4:]]
        )
    assert "rows." in message and wrong in message and "\n" not in message


def test_numbers_that_are_all_the_same_teach_nothing(tokenizer, tmp_path):
    rows = [{"text": f"w{i}", "label": 3} for i in range(8)]
    assert refused(tokenizer, tmp_path, "regression", rows) == (
        "data.label: all 6 rows of train have the same label, 3: there is nothing to learn"
    )


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1, None),
        (100, "the labels have mean 500 and standard deviation 500, and a new head begins near 0"),
        (0.001, "learnt faster is (label - 0.005) / 0.005"),
    ],
)
def test_numbers_far_from_what_a_new_head_gives_are_told(tokenizer, tmp_path, scale, said):
    rows = [{"text": f"w{i}", "label": scale * (i % 2) * 10} for i in range(20)]
    other = write(tmp_path, "other.jsonl", [{"text": "w20", "label": 1}])
    manifest = prepared(tokenizer, tmp_path, "regression", rows, validation=other)
    found = [each for each in manifest.findings if each.kind == "far_labels"]
    assert [said in each.message for each in found] == ([] if said is None else [True])


def test_names_are_a_list_or_a_text_put_apart(tokenizer, tmp_path):
    given = [["a", "b"], [], "b", "a, b", "", " ", '["b", "c"]', "c", [3], "a", "b", "c"] * 2
    rows = [{"text": f"w{i}", "labels": names} for i, names in enumerate(given)]
    manifest = prepared(tokenizer, tmp_path, "multi_label", rows)
    assert manifest.labels == ("3", "a", "b", "c")
    train = open_split(tmp_path / "out", "train")
    read = {
        int(row["input_ids"][1]) - 4: row["labels"].tolist()
        for row in train.rows(range(len(train)))
    }
    expected = [
        {"a", "b"}, set(), {"b"}, {"a", "b"}, set(), set(), {"b", "c"}, {"c"}, {"3"}, {"a"}, {"b"}, {"c"},
    ] * 2  # fmt: skip
    assert len(read) == 18
    for number, labels in read.items():
        assert labels == [float(name in expected[number]) for name in manifest.labels]
    counts = {name: sum(name in expected[number] for number in read) for name in manifest.labels}
    assert manifest.train.label_counts == counts


def test_names_of_another_separator(tokenizer, tmp_path):
    rows = [{"text": f"w{i}", "tags": "a, b;c" if i % 2 else "c"} for i in range(12)]
    manifest = prepared(tokenizer, tmp_path, "multi_label", rows, labels="tags", separator=";")
    assert manifest.labels == ("a, b", "c")


@pytest.mark.parametrize(
    ("task", "bad", "wrong"),
    [
        ("multi_label", {"labels": None}, "'labels' is missing"),
        ("multi_label", {"labels": 3}, "'labels' must be a list of names, or a text of names with ',' between them, got int 3"),
        ("multi_label", {"labels": ["a", 2.5]}, "a name in 'labels' must be a string or an integer, got float 2.5"),
        ("multi_label", {"labels": ["a", " "]}, "a name in 'labels' is empty"),
        ("multi_label", {"labels": "[a"}, "'labels' begins as a list of JSON and is none: '[a'"),
        ("token_classification", {"tokens": ["w1", "w2"], "tags": ["O"]}, "'tokens' has 2 words, 'tags' has 1 tags"),
        ("token_classification", {"tokens": [], "tags": []}, "'tokens' is empty"),
        ("token_classification", {"tokens": ["w1", " "], "tags": ["O", "O"]}, "tokens[1] is empty"),
        ("token_classification", {"tokens": ["w1", 5], "tags": ["O", "O"]}, "tokens[1] must be text, got int 5"),
        ("token_classification", {"tokens": ["w1"], "tags": [0.5]}, "tags[0] must be a string or an integer, got float 0.5"),
        ("token_classification", {"tokens": "w1 w2", "tags": ["O", "O"]}, "'tokens' must be a list, got str 'w1 w2'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_one_line(tokenizer, tmp_path, task, bad, wrong):
    good = {"text": "w1", "labels": ["a"], "tokens": ["w1", "w2"], "tags": ["B-X", "O"]}
    rows = [{**good, "text": f"w{i}", "tokens": [f"w{i}", "w2"]} for i in range(9)]
    rows[4] = {**rows[4], **bad}
    message = refused(tokenizer, tmp_path, task, rows)
    assert message.startswith("data.train: ") and "rows.jsonl" in message
    assert wrong in message and "data.bad_rows=drop" in message


def test_a_class_that_train_does_not_have_is_refused(tokenizer, tmp_path):
    rows = [{"text": f"w{i}", "labels": ["good", "bad"][: 1 + i % 2]} for i in range(8)]
    other = write(tmp_path, "other.jsonl", [{"text": "w20", "labels": ["goood"]}])
    message = refused(tokenizer, tmp_path, "multi_label", rows, validation=other)
    assert message == (
        f"data.validation: {other} line 1: 'goood' in labels is nowhere in train. Did you mean"
        " 'good'?"
    )
    alone = [{"text": f"w{i}", "labels": ["good"]} for i in range(8)]
    assert refused(tokenizer, tmp_path, "multi_label", alone) == (
        "data.labels: the rows of train have 1 class(es); at least two are needed"
    )


def test_a_rare_class_that_was_drawn_out_of_train_is_told(tokenizer, tmp_path):
    """No row of a class may be in train by chance alone: its head is there, and that nothing teaches it is said."""
    rows = [{"text": f"w{i}", "labels": ["good", "bad"][: 1 + i % 2]} for i in range(28)]
    for odd in range(28):
        (tmp_path / str(odd)).mkdir()
        made = [{**row, "labels": ["odd"]} if i == odd else row for i, row in enumerate(rows)]
        manifest = prepared(tokenizer, tmp_path / str(odd), "multi_label", made)
        assert manifest.labels == ("bad", "good", "odd")
        if not manifest.train.label_counts["odd"]:
            break
    told = [f.message for f in manifest.findings if (f.kind, f.split) == ("absent_label", "train")]
    assert told == ["train: no row of 'odd'"] and math.isfinite(label_prior(manifest).val_loss)


def test_a_document_has_no_labels(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2")
    for task, column in (("regression", "label"), ("multi_label", "labels"), ("token_classification", "tags")):  # fmt: skip
        with pytest.raises(InputError, match=f"a .txt file has no .*{task} takes .*'{column}'"):
            data = DataConfig(train=str(tmp_path / "a.txt"))
            prepare(data, task, tokenizer, 0, tmp_path / "out", context=64)


def test_a_word_s_tag_is_that_of_its_first_token(tokenizer):
    record = {"tokens": ["w1", "w2-w3-w4", "w5"], "tags": ["O", "B-X", "O"]}
    encoded = encode(tokenizer, [record], 16)
    assert encoded.input_ids[0].tolist() == [1, 5, 6, 7, 8, 9, 2]
    assert encoded.labels[0].tolist() == [-100, 1, 0, -100, -100, 1, -100]
    assert encoded.truncated == 0 and not encoded.noticed


def encode(tokenizer, rows, max_length):
    from trainables.data.records import Encoding, Record

    records = [Record(value=row, place=f"row {i}", key=b"", shown="") for i, row in enumerate(rows)]
    encoding = Encoding(max_length=max_length, labels=("B-X", "O"))
    return TOKENS.format.encode(records, tokenizer, encoding)


def test_words_beyond_the_length_are_counted(tokenizer, tmp_path):
    long = {"tokens": [f"w{i}" for i in range(6)], "tags": ["O"] * 6}
    encoded = encode(tokenizer, [long, {"tokens": ["w1"], "tags": ["B-X"]}], 5)
    assert encoded.input_ids[0].tolist() == [1, 4, 5, 6, 2] and encoded.truncated == 1
    assert encoded.labels[0].tolist() == [-100, 1, 1, 1, -100]
    noticed = encoded.noticed["words_cut"]
    assert (noticed.rows, noticed.messages, noticed.examples) == (1, 3, ("row 0",))
    rows = [
        {"tokens": [f"w{i}", "w1", "w2", "w3"], "tags": ["O", "B-X", "O", "O"]} for i in range(8)
    ]
    manifest = prepared(tokenizer, tmp_path, "token_classification", rows, max_length=4)
    (told,) = [f for f in manifest.findings if (f.kind, f.split) == ("words_cut", "train")]
    assert told.message.startswith("train: 12 word(s) of 6 row(s) are beyond the length")
    assert told.severity == "warning" and told.setting == "data.max_length: raise it"
    assert manifest.train.targets == 12 and manifest.train.label_counts == {"B-X": 6, "O": 6}


def test_words_that_are_nothing_to_the_tokenizer_are_counted(tokenizer):
    encoded = encode(tokenizer, [{"tokens": ["w1", "--", "w2"], "tags": ["O", "O", "B-X"]}], 16)
    assert encoded.labels[0].tolist() == [-100, 1, 0, -100]
    assert encoded.noticed["words_unread"].messages == 1


def test_words_of_a_tokenizer_whose_tokens_begin_with_the_space():
    """As byte-level BPE of GPT-2 has them, with and without offsets trimmed to the word."""
    from tokenizers.models import BPE
    from tokenizers.processors import ByteLevel as Trimmed

    for trims in (True, False):
        vocabulary = {token: i for i, token in enumerate(["a", "b", "Ġ", "Ġb"])}
        backend = Tokenizer(BPE(vocabulary, [("Ġ", "b")]))
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.post_processor = Trimmed(trim_offsets=trims)
        found = encode(
            PreTrainedTokenizerFast(tokenizer_object=backend),
            [{"tokens": ["ab", "b", "a"], "tags": ["B-X", "O", "B-X"]}],
            16,
        )
        assert found.input_ids[0].tolist() == [0, 1, 3, 2, 0]
        assert found.labels[0].tolist() == [0, -100, 1, -100, 0]


# --- losses ---


def test_the_loss_of_a_number_is_transformers_own():
    model = model_of(REGRESSION)
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    rows = [{"input_ids": ids(1, 5, 6), "labels": 2.5}, {"input_ids": ids(1, 7), "labels": -1.0}]
    batch = REGRESSION.collate(rows, 0)
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        own = model(**{**batch, "labels": batch["labels"].float()}).loss
    losses, targets = REGRESSION.row_losses(logits, batch["labels"])
    torch.testing.assert_close(losses.mean(), own)
    assert targets.tolist() == [1, 1] and REGRESSION.target_count(rows) == 2
    outcomes = REGRESSION.outcomes(logits, batch["labels"], ["label"])
    assert outcomes[:, 1].tolist() == [2.5, -1.0]
    assert outcomes[:, 0].tolist() == pytest.approx(logits[:, 0].tolist())


def test_the_loss_of_many_labels_is_transformers_own_summed_over_them():
    model = model_of(MULTI_LABEL, ("a", "b", "c"))
    assert model.config.problem_type == "multi_label_classification"
    labels = np.array([[0, 1, 1], [0, 0, 0]], dtype=np.float32)
    rows = [{"input_ids": ids(1, 5, 6), "labels": labels[0]}, {"input_ids": ids(1, 7), "labels": labels[1]}]  # fmt: skip
    batch = MULTI_LABEL.collate(rows, 0)
    with torch.no_grad():
        output = model(**batch)
    losses, targets = MULTI_LABEL.row_losses(output.logits, batch["labels"])
    torch.testing.assert_close(losses.mean() / 3, output.loss)
    assert targets.tolist() == [1, 1]
    smoothing = torch.tensor([0.2, 0.0])
    smoothed, _ = MULTI_LABEL.row_losses(output.logits, batch["labels"], smoothing=smoothing)
    own = torch.nn.functional.binary_cross_entropy_with_logits(
        output.logits[0], torch.tensor([0.1, 0.9, 0.9]), reduction="sum"
    )
    assert smoothed.tolist() == pytest.approx([float(own), float(losses[1])])


@pytest.mark.parametrize("virtual", [0, 3])
def test_the_loss_of_tags_is_transformers_own_over_the_words(virtual):
    model = model_of(TOKENS, ("B-X", "I-X", "O"))
    rows = [
        {"input_ids": ids(1, 5, 6, 2), "labels": ids(-100, 0, 1, -100)},
        {"input_ids": ids(1, 7, 2), "labels": ids(-100, 2, -100)},
        {"input_ids": ids(1, 2), "labels": ids(-100, -100)},
    ]
    batch = TOKENS.collate(rows, 0)
    with torch.no_grad():
        output = model(**batch)
    logits = torch.cat([torch.full((3, virtual, 3), 9.0), output.logits], dim=1)
    losses, targets = TOKENS.row_losses(logits, batch["labels"])
    assert targets.tolist() == [2, 1, 0] and losses[2] == 0
    assert TOKENS.target_count(rows) == TOKENS.count_targets([r["labels"] for r in rows]) == 3
    torch.testing.assert_close(losses.sum() / 3, output.loss)
    smoothed, _ = TOKENS.row_losses(logits, batch["labels"], smoothing=torch.full((3,), 0.3))
    own = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.3
    )
    torch.testing.assert_close(smoothed.sum() / 3, own)


@pytest.mark.parametrize("task", [REGRESSION, MULTI_LABEL, TOKENS], ids=lambda task: task.name)
def test_outcomes_do_not_depend_on_the_cut_into_micro_batches(task, tokenizer, tmp_path):
    manifest = prepared(tokenizer, tmp_path, task.name, SENTENCES, duplicates="drop", max_length=16)
    split = open_split(tmp_path / "out", "train")
    model, every = model_of(task, manifest.labels), np.arange(len(split))
    many, few = (
        evaluate_model(model, task, split, every, 0, tokens, torch.device("cpu"), True)
        for tokens in (4096, 20)
    )
    np.testing.assert_allclose(many.nll, few.nll, rtol=1e-5)
    np.testing.assert_allclose(many.outcomes, few.outcomes, rtol=1e-5, atol=1e-6)
    batch = task.collate(split.rows(every), 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        own = task.outcomes(model(**batch).logits, labels, task.outputs(manifest.labels))
    np.testing.assert_allclose(many.outcomes, own, rtol=1e-5, atol=1e-6)
    found = many.metrics(task)
    assert set(found) == set(task.metric_names) and many.targets.sum() == manifest.train.targets
    assert many.majority_share(task) is None
    half = many.of(np.arange(0, len(every), 2)).metrics(task)
    assert set(half) == set(found)


# --- through the life of a trial ---


@pytest.mark.parametrize("task", [REGRESSION, MULTI_LABEL, TOKENS], ids=lambda task: task.name)
def test_every_method_trains_and_loads_again_as_a_user_loads_it(task, tokenizer, tmp_path):
    """With transformers and PEFT alone, by the code on the card, too; the same beside others."""
    prepared(tokenizer, tmp_path, task.name, SENTENCES, duplicates="drop", max_length=16)
    config = transformers.BertConfig(**SIZES)
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ways = [{"method": m} for m in ("full", "partial", "lora", "ia3", "prompt", "adapter")]
    ways[1] |= {"layers": 1}
    trials = [{"learning_rate": 1e-3, "batch_size": 4, "epochs": 1, **way} for way in ways]
    model = ModelConfig(name=str(tmp_path / "model"))
    found = rehearse(model, task.name, tmp_path / "out", trials, 0)
    assert found.problems == [] and len(found.found) == len(ways)
    assert [each.shares for each in found.found] == [False, False, True, True, True, True]
    smoothed = rehearse(
        model, task.name, tmp_path / "out", [{**trials[2], "label_smoothing": 0.1}], 0
    )
    assert len(smoothed.problems) == (not task.loss.is_likelihood)
    balanced = rehearse(
        model, task.name, tmp_path / "out", [{**trials[2], "class_weights": "balanced"}], 0
    )
    assert "class_weights: balanced is for tasks with classes" in balanced.problems[0]


# --- metrics ---


def test_metrics_of_numbers_are_those_of_other_libraries():
    random = np.random.default_rng(0)
    true = np.round(random.normal(size=60), 1)  # with ties
    predicted = np.round(0.6 * true + random.normal(size=60) / 2, 1)
    found = REGRESSION.metrics(np.stack([predicted, true], 1))
    assert found == {
        "rmse": pytest.approx(math.sqrt(sklearn_metrics.mean_squared_error(true, predicted))),
        "mae": pytest.approx(sklearn_metrics.mean_absolute_error(true, predicted)),
        "pearson": pytest.approx(stats.pearsonr(predicted, true).statistic),
        "spearman": pytest.approx(stats.spearmanr(predicted, true).statistic),
    }
    constant = REGRESSION.metrics(np.stack([np.full(60, 0.1), true], 1))
    assert math.isnan(constant["pearson"]) and math.isnan(constant["spearman"])


def test_metrics_of_many_labels_are_scikit_learn_s():
    random = np.random.default_rng(0)
    true, predicted = random.random((50, 4)) < 0.4, random.random((50, 4)) < 0.4
    found = MULTI_LABEL.metrics(np.concatenate([predicted, true], 1).astype(float))
    assert found == {
        "micro_f1": pytest.approx(sklearn_metrics.f1_score(true, predicted, average="micro")),
        "macro_f1": pytest.approx(sklearn_metrics.f1_score(true, predicted, average="macro")),
        "subset_accuracy": pytest.approx(sklearn_metrics.accuracy_score(true, predicted)),
    }
    nothing = np.zeros((3, 8))
    assert MULTI_LABEL.metrics(nothing) == {"micro_f1": 0, "macro_f1": 0, "subset_accuracy": 1}
    by_class = MULTI_LABEL.by_class(
        np.concatenate([predicted, true], 1).astype(float), list("abcd")
    )
    assert by_class.names == tuple("abcd") and by_class.confusion is None
    assert by_class.counts.hits.tolist() == (true & predicted).sum(0).tolist()


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-X I-X O B-Y", [("X", 0, 2), ("Y", 3, 4)]),
        ("B-X B-X", [("X", 0, 1), ("X", 1, 2)]),
        ("I-X I-X O", [("X", 0, 2)]),  # IOB1, or a slip
        ("O I-X I-Y", [("X", 1, 2), ("Y", 2, 3)]),
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),
        ("S-X B-Y I-Y E-Y S-X", [("X", 0, 1), ("Y", 1, 4), ("X", 4, 5)]),
        ("I-X S-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("E-X E-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("O O", []),
    ],
)
def test_entities_of_tags(tags, found):
    """What seqeval.metrics.sequence_labeling.get_entities gives."""
    assert entities(scheme([*tags.split(), "B-Z"])[:-1]) == {Entity(*each) for each in found}


def test_tags_that_name_no_spans():
    assert scheme(["NOUN", "VERB"]) is None and scheme(["O", "0"]) is None and scheme(["O"]) is None
    assert scheme(["O", "B-X"]) == (Tag("O", None), Tag("B", "X"))


def logits_of(rows, names):
    """That answer such tags."""
    found = torch.zeros(len(rows), max(map(len, rows)), len(names))
    for i, row in enumerate(rows):
        for t, tag in enumerate(row):
            found[i, t, names.index(tag)] = 1.0
    return found


def test_metrics_of_entities():
    """Of 4 true and 4 answered entities 2 have type and both ends right."""
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    true = ["B-PER I-PER O B-LOC".split(), "B-LOC I-LOC B-PER".split()]
    said = ["B-PER I-PER O B-PER".split(), "B-LOC O B-PER".split()]
    labels = torch.full((2, 4), -100)
    for i, row in enumerate(true):
        labels[i, : len(row)] = torch.tensor([names.index(tag) for tag in row])
    outcomes = TOKENS.outcomes(logits_of(said, names), labels, names).numpy()
    assert TOKENS.metrics(outcomes) == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "macro_f1": pytest.approx((0.0 + 2 * 2 / (3 + 2)) / 2),
        "accuracy": pytest.approx(5 / 7),
    }
    by_class = TOKENS.by_class(outcomes, names)
    assert by_class.names == ("LOC", "PER")
    assert [each.tolist() for each in by_class.counts] == [[0, 2], [1, 3], [2, 2]]
    nothing = TOKENS.metrics(np.array([[3, 4, *([0] * 4), 1, 1]]))
    assert [nothing[name] for name in ("precision", "recall", "f1", "accuracy")] == [0, 0, 0, 0.75]
    twice = TOKENS.metrics(outcomes[[0, 0, 1, 1]])
    assert twice == pytest.approx(TOKENS.metrics(outcomes))


def test_metrics_of_tags_that_are_no_spans_are_those_of_words():
    names = ["NOUN", "VERB"]
    labels = torch.tensor([[0, 1, -100], [0, 0, 1]])
    said = [["NOUN", "NOUN", "NOUN"], ["NOUN", "VERB", "VERB"]]
    outcomes = TOKENS.outcomes(logits_of(said, names), labels, names).numpy()
    found = TOKENS.metrics(outcomes)
    assert found["accuracy"] == found["f1"] == pytest.approx(3 / 5)
    assert TOKENS.by_class(outcomes, names).names == ("NOUN", "VERB")


# --- the best single answer ---


def manifest_with(tokenizer, tmp_path, task, rows):
    manifest = prepared(tokenizer, tmp_path, task, rows)
    return manifest, open_split(tmp_path / "out", "validation")


def test_the_mean_of_train_is_worth_its_mean_squared_error(tokenizer, tmp_path):
    rows = [{"text": f"w{i}", "label": i * i / 10} for i in range(20)]
    manifest, validation = manifest_with(tokenizer, tmp_path, "regression", rows)
    mean = open_split(tmp_path / "out", "train").labels.mean()
    prior = label_prior(manifest)
    assert prior.val_loss == pytest.approx(np.square(validation.labels - mean).mean())
    assert prior.words == "train's mean label" and prior.label is None
    outcomes = np.stack([np.zeros(5), validation.labels], 1)
    given = REGRESSION.prior_outcomes(outcomes, manifest.train, ())
    assert REGRESSION.metrics(given)["rmse"] == pytest.approx(math.sqrt(prior.val_loss))


def test_label_frequencies_are_worth_their_cross_entropies(tokenizer, tmp_path):
    rows = [{"text": f"w{i}", "labels": ["a"] + ["b"] * (i % 4 == 0)} for i in range(24)]
    manifest, validation = manifest_with(tokenizer, tmp_path, "multi_label", rows)
    train = open_split(tmp_path / "out", "train")
    known = (train.values("labels").reshape(-1, 2).sum(0) + 1) / (len(train) + 2)
    logits = torch.from_numpy(np.log(known / (1 - known))).repeat(len(validation), 1)
    labels = torch.from_numpy(validation.values("labels").reshape(-1, 2).astype(np.float64))
    losses, _ = MULTI_LABEL.row_losses(logits, labels)
    assert label_prior(manifest).val_loss == pytest.approx(float(losses.mean()))
    assert label_prior(manifest).words == "train's label frequencies"
    given = MULTI_LABEL.prior_outcomes(np.zeros((3, 4)), manifest.train, ("a", "b"))
    assert given.tolist() == [[1, 0, 0, 0]] * 3


def test_tag_shares_are_worth_their_cross_entropy(tokenizer, tmp_path):
    rows = [{"tokens": [f"w{i}", "w1", "w2"], "tags": ["B-X", "O", "O"]} for i in range(12)]
    manifest, _ = manifest_with(tokenizer, tmp_path, "token_classification", rows)
    prior = label_prior(manifest)
    assert prior.val_loss == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3)
    assert prior.label == "O" and prior.metrics == {"accuracy": pytest.approx(2 / 3)}


def test_a_tag_that_only_cut_words_of_train_have_costs_no_infinite_loss(tokenizer, tmp_path):
    rows = [{"tokens": [f"w{i}", "w1", "w2"], "tags": ["B-X", "O", "B-Y"]} for i in range(8)]
    other = write(tmp_path, "other.jsonl", [{"tokens": ["w20", "w3"], "tags": ["B-Y", "O"]}])
    manifest = prepared(
        tokenizer, tmp_path, "token_classification", rows, validation=other, max_length=4
    )
    assert manifest.train.label_counts == {"B-X": 8, "B-Y": 0, "O": 8}
    expected = -(math.log(1 / 19) + math.log(9 / 19)) / 2
    assert label_prior(manifest).val_loss == pytest.approx(expected)


def test_a_split_without_labels_has_no_such_answer():
    for task in TASKS.values():
        split = replace(LabelSummary())
        summary = type("Summary", (), {"label_counts": split.counts, "label_mean": None, "label_variance": None, "rows": 1})  # fmt: skip
        assert task.prior(summary, summary) is None


@pytest.mark.parametrize("sign", [";", "|", "/"])
def test_names_that_are_joined_by_another_sign_are_told(tokenizer, tmp_path, sign):
    cycle = [f"red{sign}blue", "red", f"blue {sign} green", "green"]
    rows = [{"text": f"w{i % 29} w{i % 7} w{i % 5}", "labels": cycle[i % 4]} for i in range(60)]
    manifest = prepared(tokenizer, tmp_path, "multi_label", rows, duplicates="drop")
    (found,) = [each for each in manifest.findings if each.kind == "joined_names"]
    assert found.setting == f"data.separator: {sign!r}" and found.severity == "warning"
    assert f"'blue {sign} green', 'red{sign}blue' hold names of other classes" in found.message
    assert found.rows == sum(manifest.train.label_counts[name] for name in (cycle[0], cycle[2]))
    plain = [row | {"labels": ["red", f"dark{sign}er"]} for row in rows]
    (tmp_path / "plain").mkdir()
    manifest = prepared(tokenizer, tmp_path / "plain", "multi_label", plain, duplicates="drop")
    assert "joined_names" not in [each.kind for each in manifest.findings]
