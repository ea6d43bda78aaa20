"""A text for a text: rows, losses, and what an encoder-decoder has that other models have not."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from sweeps.reporting.card import usage_code
from trainables.data.batches import cut_micro_batches
from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare
from trainables.data.records import Encoding
from trainables.data.showing import shown_rows
from trainables.engine.dropout import RowKeys
from trainables.engine.regularisation import InputNoise
from trainables.engine.scoring import evaluate_model
from trainables.errors import InputError
from trainables.methods import ADDITIVE
from trainables.models.checkpoint import complete, loading_code
from trainables.models.config import ModelConfig
from trainables.models.decoder import decoder_inputs
from trainables.models.loading import load_model
from trainables.models.output import hidden_states, output_layer
from trainables.models.structure import input_embedding
from trainables.tasks import TASKS, take_targets

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
TASK = TASKS["seq2seq"]
MODELS = ["t5-seq2seq", "bart-seq2seq"]
WORDS = {
    word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(97))])
}


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, and `</s>` at the end of a text, as T5's."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )


# --- rows ---


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def pairs(count, length=3):
    """Rows of `length` words whose targets are those words backwards."""
    rng = np.random.default_rng(0)
    rows = [[f"w{i}" for i in rng.integers(0, 97, length)] for _ in range(count)]
    return [[" ".join(row), " ".join(reversed(row))] for row in rows]


def ids(*words):
    return [WORDS[word] for word in words]


def test_sources_are_read_and_targets_are_learnt_with_their_ends(tokenizer, tmp_path):
    rows = [["en", "de", "mood"], ["w1 w2", "w3", "good"], *(row + [""] for row in pairs(20))]
    data = DataConfig(
        train=write(tmp_path / "a.csv", rows),
        columns={"source": "en", "target": "de"},
        source_prefix="w96 ",
        validation=0.2,
    )
    manifest = prepare(data, "seq2seq", tokenizer, 0, tmp_path / "out")
    split = open_split(tmp_path / "out", "train")
    of_train = [
        (row["input_ids"].tolist(), row["labels"].tolist()) for row in split.rows(range(17))
    ]
    assert (ids("w96", "w1", "w2", "</s>"), ids("w3", "</s>")) in of_train or len(of_train) == 17
    for source, target in of_train:
        assert source[0] == WORDS["w96"] and source[-1] == target[-1] == 1
        assert target[:-1] == source[1:-1][::-1] or target == ids("w3", "</s>")
    summary = manifest.splits["train"]
    assert summary.tokens == sum(len(source) + len(target) for source, target in of_train)
    assert summary.targets == sum(len(target) for _, target in of_train)
    assert split.lengths.tolist() == [len(source) + len(target) for source, target in of_train]
    assert split.parts.tolist() == [[len(source), len(target)] for source, target in of_train]
    assert "not used: mood (1 row(s))" in " ".join(manifest.notes)
    encoding = Encoding(max_length=64, source_prefix="w96 ")
    first = next(shown_rows(data, "seq2seq", tokenizer, encoding, 1))
    assert [(piece.text, piece.learnt) for piece in first.segments] == [
        ("w96 ", False),
        ("w1 w2", False),
        ("\nw3", True),
    ]


def test_a_target_that_is_cut_has_no_end(tokenizer, tmp_path):
    rows = [["source", "target"], ["w1 w2 w3 w4 w5", "w6"], ["w7", "w1 w2 w3 w4 w5"], *pairs(9, 2)]
    data = DataConfig(train=write(tmp_path / "a.csv", rows), validation=0.2, max_length=4)
    manifest = prepare(data, "seq2seq", tokenizer, 3, tmp_path / "out")
    found = [
        (row["input_ids"].tolist(), row["labels"].tolist())
        for name in ("train", "validation")
        for row in open_split(tmp_path / "out", name).rows(range(manifest.splits[name].rows))
    ]
    assert (ids("w1", "w2", "w3", "</s>"), ids("w6", "</s>")) in found
    assert (ids("w7", "</s>"), ids("w1", "w2", "w3", "w4")) in found
    notes = " ".join(manifest.notes)
    assert "1 of" in notes and "cut to 4 tokens" in notes
    assert "targets of 1 row(s) are longer than data.max_length" in notes


def test_a_tokenizer_that_ends_no_text_is_helped(tmp_path):
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
    data = DataConfig(train=write(tmp_path / "a.csv", [["source", "target"], *pairs(9)]))
    prepare(data, "seq2seq", plain, 0, tmp_path / "out")
    for row in open_split(tmp_path / "out", "train").rows(range(8)):
        assert row["labels"].tolist() == [*row["input_ids"].tolist()[::-1], 1]


def test_the_same_source_with_another_target_is_another_row(tokenizer, tmp_path):
    rows = [["source", "target"], *([source, f"w{i}"] for i, (source, _) in enumerate(pairs(9)))]
    twice = [*rows, *([source, "w50"] for source, _ in rows[1:])]
    data = DataConfig(train=write(tmp_path / "a.csv", twice), validation=0.3)
    found = prepare(data, "seq2seq", tokenizer, 0, tmp_path / "out")
    assert {*found.duplicates_dropped.values(), *found.duplicates_inside.values()} == {0}
    same = DataConfig(
        train=write(tmp_path / "b.csv", rows), validation=write(tmp_path / "c.csv", rows[:3])
    )
    with pytest.raises(InputError, match=r"^data\.\w+: 2 row\(s\)"):
        prepare(same, "seq2seq", tokenizer, 0, tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"a.txt": "a text"}, {"train": "a.txt"}, "data.train: a.txt: a .txt file has no targets; seq2seq takes a table with columns 'source' and 'target'"),
        ({"a.csv": "en,de\na,b\n"}, {"train": "a.csv"}, "data.train: a.csv: needed are columns 'source' and 'target', got en, de. Columns of other names are told by data.columns: {source: ..., target: ...}"),
        ({"a.csv": "en,de\na,b\n"}, {"train": "a.csv", "columns": {"source": "en", "target": "fr"}}, "data.columns: a.csv has no column 'fr', only en, de."),
        ({"a.csv": "source,target\na, \n"}, {"train": "a.csv"}, "data.train: a.csv row 1: 'target' is empty"),
        ({"a.csv": "source,target\na,b\n"}, {"train": "a.csv", "max_length": 1}, "data.max_length: must be at least 2 tokens, got 1"),
    ],
)  # fmt: skip
def test_mistakes(files, settings, message, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        prepare(DataConfig(**settings), "seq2seq", tokenizer, 0, tmp_path / "out", context=64)
    assert str(error.value) == message


# --- what the decoder is given ---


def test_the_decoder_begins_as_the_model_says():
    labels = torch.tensor([[5, 6, 1, -100], [7, 8, 9, 1]])
    small = dict(vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0)
    sizes = {**small, **heads, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "eos_token_id": 1}
    bart = transformers.BartForConditionalGeneration(
        transformers.BartConfig(**sizes, decoder_start_token_id=2)
    )
    assert decoder_inputs(bart, labels).tolist() == [[2, 5, 6, 1], [2, 7, 8, 9]]
    mbart = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**sizes))
    assert decoder_inputs(mbart, labels).tolist() == [[1, 5, 6, 1], [1, 7, 8, 9]]
    m2m = transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(**sizes, decoder_start_token_id=3)
    )
    assert not hasattr(m2m, "prepare_decoder_input_ids_from_labels")
    assert decoder_inputs(m2m, labels).tolist() == [[3, 5, 6, 1], [3, 7, 8, 9]]
    with torch.no_grad():
        batch = {"input_ids": labels.clamp(min=0), "attention_mask": torch.ones_like(labels)}
        given = m2m.eval()(**batch, decoder_input_ids=decoder_inputs(m2m, labels)).logits
        torch.testing.assert_close(given, m2m(**batch, labels=labels).logits)
    assert labels[0, -1] == -100


def test_a_model_that_does_not_say_how_to_begin_is_refused(lab, tmp_path):
    model = lab.plain("t5-seq2seq")
    model.config.decoder_start_token_id = None
    model.save_pretrained(tmp_path / "model")
    spec = lab.spec("t5-seq2seq")
    own = replace(spec, model=ModelConfig(name=str(tmp_path / "model")))
    with pytest.raises(InputError, match="does not say which token its decoder begins with"):
        load_model(own, device=torch.device("cpu"), seed=0)


def test_a_causal_language_model_is_refused(lab):
    spec = lab.spec("t5-seq2seq")
    own = replace(spec, model=ModelConfig(name=str(lab.folder("llama"))))
    with pytest.raises(InputError) as error:
        load_model(own, device=torch.device("cpu"), seed=0)
    assert str(error.value) == (
        "model.name: transformers has no llama that is an encoder-decoder language model"
        " (AutoModelForSeq2SeqLM); choose another model, or another task"
    )


# --- losses ---


def collated(lab, model, rows=range(6)):
    return TASK.collate(lab.split(model).rows(list(rows)), 0)


def test_every_token_of_a_target_counts_the_first_too(lab):
    batch = collated(lab, "t5-seq2seq", [0, 1, 2])
    rows = lab.split("t5-seq2seq").rows([0, 1, 2])
    lengths = [len(row["labels"]) for row in rows]
    assert batch["labels"].shape == (3, max(lengths))
    assert (batch["labels"] == -100).sum().item() == 3 * max(lengths) - sum(lengths)
    assert TASK.count_targets([row["labels"] for row in rows]) == TASK.target_count(rows)
    assert TASK.target_count(rows) == sum(lengths)
    logits = torch.randn(*batch["labels"].shape, 100, dtype=torch.float64)
    nll, targets = TASK.row_losses(logits, batch["labels"])
    assert targets.tolist() == lengths
    log_p = logits.log_softmax(-1)
    expected = -sum(log_p[0, at, token] for at, token in enumerate(rows[0]["labels"]))
    assert nll[0].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_that_of_transformers(lab, model):
    """And its gradient, with the output layer taken apart where the task does so."""
    plain = lab.plain(model, dtype=torch.float64)
    batch = collated(lab, model)
    expected = plain(**batch).loss
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in plain.named_parameters()}
    plain.zero_grad()
    output = output_layer(plain)
    labels, *_ = take_targets(batch, TASK, plain)
    with hidden_states(output):
        hidden = plain(**batch).logits
    nll, targets = TASK.row_losses(hidden, labels, output)
    loss = nll.sum() / targets.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_t5_scales_what_goes_into_its_output_layer(lab, tied):
    """So the chunks of its loss are exact, and those of BART, which adds a bias to logits, are not made."""
    config = transformers.AutoConfig.from_pretrained(lab.folder("t5-seq2seq"))
    config.tie_word_embeddings = config.scale_decoder_outputs = tied
    model = transformers.T5ForConditionalGeneration(config).eval()
    output = output_layer(model)
    assert output is model.lm_head
    inputs = {"input_ids": torch.arange(2, 6)[None], "decoder_input_ids": torch.arange(3)[None]}
    with torch.no_grad():
        with hidden_states(output):
            hidden = model(**inputs).logits
        torch.testing.assert_close(output(hidden), model(**inputs).logits)
        states = model(**inputs, output_hidden_states=True).decoder_hidden_states[-1]
    assert torch.allclose(hidden, states * 32**-0.5 if tied else states)
    assert output_layer(lab.plain("bart-seq2seq")) is None


def test_chunks_of_the_loss_change_no_result(lab, monkeypatch, tmp_path):
    hp = lab.params("lora", dropout=0.1, label_smoothing=0.1, epochs=1)
    group = lab.group("t5-seq2seq", dtype=torch.float64)
    whole = lab.run(group, tmp_path / "whole", hp)
    monkeypatch.setattr("trainables.tasks.causal_lm.task.CHUNK_LOGITS", 300)
    lab.assert_alike(
        lab.run(lab.group("t5-seq2seq", dtype=torch.float64), tmp_path / "chunks", hp), whole, 1e-10
    )


@pytest.mark.parametrize("model", MODELS)
def test_what_is_measured_is_what_the_checkpoint_gives_again(lab, model, tmp_path):
    hp = lab.params("full", learning_rate=1e-2)
    evaluation, folder = lab.run(lab.group(model), tmp_path, hp)[-1]
    plain = lab.plain(model, folder / "checkpoint")
    split = lab.split(model, "validation")
    found = evaluate_model(plain, TASK, split, np.arange(len(split)), 0, 100, torch.device("cpu"))
    assert found.loss == pytest.approx(evaluation.val_loss, rel=1e-5)
    rows = [TASK.collate(split.rows([i]), 0) for i in range(len(split))]
    with torch.no_grad():
        sums = [float(plain(**batch).loss) * batch["labels"].shape[1] for batch in rows]
    assert evaluation.val_loss == pytest.approx(sum(sums) / split.parts[:, 1].sum(), rel=1e-5)
    assert evaluation.metrics == {"perplexity": pytest.approx(np.exp(evaluation.val_loss))}


# --- training ---

UNLIKE = {
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1, "batch_size": 5, "seed": 2},
    "noise": {"method": "lora", "rank": 2, "targets": "attention", "neftune_alpha": 5.0},
    "dora": {
        "method": "lora",
        "rank": 2,
        "use_dora": True,
        "label_smoothing": 0.1,
        "batch_size": 3,
    },
    "ia3": {"method": "ia3", "learning_rate": 3e-2, "batch_size": 4, "seed": 1},
    "adapter": {"method": "adapter", "bottleneck": 3, "batch_size": 7},
    "vera": {"method": "vera", "rank": 6, "dropout": 0.2, "batch_size": 2, "learning_rate": 3e-2},
}
PROMPTS = {
    f"prompt-{seed}": {
        "method": "prompt",
        "virtual_tokens": 3,
        "seed": seed,
        "batch_size": 3 + seed,
    }
    for seed in range(3)
}


@pytest.mark.parametrize(
    ("model", "gradient_checkpointing", "trials"),
    [
        ("t5-seq2seq", True, UNLIKE),
        ("bart-seq2seq", False, UNLIKE),
        ("t5-seq2seq", False, PROMPTS),
        ("bart-seq2seq", True, PROMPTS),
    ],
    ids=["t5", "bart", "t5-prompts", "bart-prompts"],
)
def test_a_group_of_unlike_trials_equals_them_alone(
    lab, model, gradient_checkpointing, trials, tmp_path
):
    """With the dropout of both stacks, whatever the passes are and whether they are computed again."""
    hps = {name: lab.params(**more, epochs=1) for name, more in trials.items()}
    settings = {"gradient_checkpointing": gradient_checkpointing, "max_tokens": 70}
    group = lab.group(model, dtype=torch.float64, **settings)
    found = lab.together(group, tmp_path, hps, joins={list(hps)[1]: 2})
    for name, hp in hps.items():
        alone = lab.run(lab.group(model, dtype=torch.float64), tmp_path / name, hp)
        lab.assert_alike(found[name], alone, 1e-9)


@pytest.mark.parametrize(
    ("model", "method"),
    [("t5-seq2seq", "full"), ("t5-seq2seq", "lora"), ("bart-seq2seq", "prompt")],
)
def test_resumed_equals_uninterrupted_bit_for_bit(lab, model, method, tmp_path):
    options = {"virtual_tokens": 3} if method == "prompt" else {}
    hp = lab.params(method, learning_rate=1e-2, **options)
    whole = lab.run(lab.group(model), tmp_path / "whole", hp)
    resumed = lab.run(lab.group(model), tmp_path / "resumed", hp, checkpoint=whole[0][1])
    lab.assert_same(resumed, whole[1:])


@pytest.mark.parametrize("model", MODELS)
def test_bases_are_shared_and_rows_never_flattened(lab, model):
    group = lab.group(model, varlen=True)
    group.join("t", lab.params("lora"))
    assert group._base.can_be_shared and group.padded
    assert group._base.varlen_rows([3, 4]) is None


@pytest.mark.parametrize("model", MODELS)
def test_noise_is_put_on_what_the_encoder_reads_alone(lab, model):
    plain, keys, seen = lab.base(model).model, RowKeys(), {}
    keys.set(0, 0, torch.arange(2))
    noise = InputNoise(input_embedding(plain), keys)
    hps, lengths = [lab.params("lora", neftune_alpha=5.0)], np.array([2, 3])
    with noise.on(hps, np.zeros(2, dtype=int), lengths, torch.from_numpy), torch.no_grad():
        for name in ("encoder", "decoder"):

            def record(embedding, inputs, output, name=name):
                seen[name] = (output - embedding.weight[inputs[0]]).abs().amax(dim=(1, 2))

            getattr(plain, f"get_{name}")().get_input_embeddings().register_forward_hook(record)
        plain(
            input_ids=torch.tensor([[5, 6, 0], [7, 8, 9]]),
            decoder_input_ids=torch.tensor([[0, 5], [0, 6]]),
        )
    assert (seen["encoder"] > 0).all() and (seen["decoder"] == 0).all()
    assert (seen["encoder"] <= 5 / torch.tensor([2, 3]).mul(32).sqrt()).all()


@pytest.mark.parametrize("model", MODELS)
def test_what_leaves_is_loaded_by_peft_s_auto_class(lab, model, tmp_path):
    import peft

    evaluation, folder = lab.run(lab.group(model), tmp_path, lab.params("lora", epochs=1))[-1]
    described = json.loads((folder / "checkpoint" / "adapter_config.json").read_text())
    assert described["task_type"] == "SEQ_2_SEQ_LM"
    loaded = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(folder / "checkpoint").eval()
    merged = loaded.merge_and_unload()
    split = lab.split(model, "validation")
    found = evaluate_model(merged, TASK, split, np.arange(len(split)), 0, 100, torch.device("cpu"))
    assert found.loss == pytest.approx(evaluation.val_loss, rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "prompt", "adapter"])
def test_the_code_on_the_card_writes(lab, method, tokenizer, tmp_path, monkeypatch, capsys):
    options = {"virtual_tokens": 3} if method == "prompt" else {}
    hp = lab.params(method, epochs=1, **options)
    _, folder = lab.run(lab.group("t5-seq2seq"), tmp_path, hp)[-1]
    monkeypatch.chdir(tmp_path)
    winner = (folder / "checkpoint").rename(tmp_path / "winner")
    tokenizer.save_pretrained(winner)
    spec = lab.spec("t5-seq2seq")
    complete(winner, spec, "winner")
    data = DataConfig(train="a.csv", source_prefix="w1 ")
    config = SimpleNamespace(task="seq2seq", data=data)
    manifest = SimpleNamespace(max_length=8)
    code = usage_code(
        loading_code(winner, spec, "winner"), cast("Any", config), cast("Any", manifest)
    )
    assert any("tokenizer(['w1 a text']" in line for line in code)
    said: dict = {}
    exec("\n".join(code), said)
    assert said["written"].shape[0] == 1 and capsys.readouterr().out.startswith("[")


def test_whole_layers_are_not_dropped_out(lab, tmp_path):
    """Which of them, only a generator of the whole process could say."""
    model = lab.plain("bart-seq2seq")
    model.config.encoder_layerdrop = model.config.decoder_layerdrop = 0.5
    model.save_pretrained(tmp_path / "model")
    spec = lab.spec("bart-seq2seq")
    own = replace(spec, model=ModelConfig(name=str(tmp_path / "model")))
    base = load_model(own, device=torch.device("cpu"), seed=0)
    assert base.model.model.encoder.layerdrop == base.model.model.decoder.layerdrop == 0
    assert base.config.decoder_layerdrop == 0.5  # what is saved is as the user knows it


def test_a_classifier_over_an_encoder_decoder_takes_no_virtual_tokens(lab):
    options = lab.params("prompt", virtual_tokens=3).options
    with pytest.raises(InputError, match=r"^method: prompt cannot train T5ForSequenceClass"):
        ADDITIVE["prompt"].plan(lab.base("t5"), options)


# --- which rows may share a pass ---


def test_rows_share_an_unpadded_pass_only_where_both_texts_are_as_long(lab):
    split = lab.split("t5-seq2seq")
    passes = cut_micro_batches(split.lengths, 100, kinds=split.kinds)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(split)))
    assert all(len({*map(tuple, split.parts[rows].tolist())}) == 1 for rows in passes)
    assert max(map(len, passes)) >= 1
    totals = [int(split.lengths[rows[0]]) for rows in passes]
    assert totals == sorted(totals, reverse=True)
