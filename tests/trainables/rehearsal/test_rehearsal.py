"""What a rehearsal finds before anything is spent, and how an architecture is made small."""

import numpy as np
import pytest
import torch
import transformers

import trainables.rehearsal.rehearse
from tests.trainables.architectures import PAD, _write_rows
from trainables.data.arrow import open_split, write_split
from trainables.data.records import Encoded
from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.rehearsal import miniature
from trainables.rehearsal.rehearse import TOKENS, _cut, rehearse

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
LLAMA = {"vocab_size": 1000, "num_key_value_heads": 8, "pad_token_id": PAD, "num_hidden_layers": 12}
RATE = {"learning_rate": 1e-3, "batch_size": 3, "epochs": 1}


@pytest.fixture
def rehearsed(tmp_path):
    """What came of trials over a configuration; no weights are needed."""

    def run(config, task, *trials):
        config.save_pretrained(tmp_path / "model")
        _write_rows(tmp_path / "data", task)
        return rehearse(
            ModelConfig(name=str(tmp_path / "model")),
            task,
            tmp_path / "data",
            [RATE | t for t in trials],
            PAD,
        )

    return run


def test_each_kind_of_trial_is_rehearsed_once(rehearsed):
    found = rehearsed(
        transformers.LlamaConfig(**LLAMA),
        "causal_lm",
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 8},
        {"method": "lora", "targets": "attention"},
        {"method": "partial", "layers": 2},
        {"method": "partial", "layers": 12},
    )
    assert [each.what for each in found.found] == [
        "lora on all-linear",
        "lora on attention",
        "partial",
    ]
    assert found.problems == [] and found.size.startswith("2 layers of width 64, ")
    assert [each.shares for each in found.found] == [True, True, False]
    # the formula for memory holds at this size too; of weights that are trained themselves it is not asked
    assert [each.memory is None for each in found.found] == [False, False, True]
    assert all(0.5 < each.memory < 2 for each in found.found[:2])
    assert [each.covers for each in found.found] == pytest.approx([1.0, 0.3, 1.0], abs=0.1)


def test_each_form_of_a_method_is_rehearsed(rehearsed):
    """Also of a rank, and with names of layers, that the small model does not have."""
    found = rehearsed(
        transformers.LlamaConfig(**LLAMA),
        "causal_lm",
        {"method": "lora", "use_dora": True},
        {"method": "lora", "init_lora_weights": "pissa_niter_4", "rank": 512},
        {"method": "lora", "freeze_a": True, "rank_pattern": ["layers.11.*=4"]},
        {"method": "adapter", "placement": "houlsby"},
        {"method": "adapter", "placement": "parallel"},
        {"method": "vera"},
        {"method": "adalora"},
        {"method": "prefix", "virtual_tokens": 3},
        {"method": "prefix", "virtual_tokens": 3, "prefix_projection": True},
    )
    assert [each.what for each in found.found] == [
        "lora on all-linear (DoRA)",
        "lora on all-linear (pissa_niter_4)",
        "lora on all-linear (layers.11.*=4) (A frozen)",
        "adapter (houlsby)",
        "adapter (parallel)",
        "vera on all-linear",
        "adalora on all-linear",
        "prefix",
        "prefix (projected)",
    ]
    assert found.problems == []
    assert all(each.shares for each in found.found)


def test_fused_experts_are_rehearsed(rehearsed):
    config = transformers.MixtralConfig(**{**LLAMA, "num_hidden_layers": 4})
    both = {"method": "lora", "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    found = rehearsed(
        config,
        "causal_lm",
        both,
        {**both, "targets": []},
        {"method": "lora", "target_parameters": ["experts.w1"]},
    )
    assert [each.what for each in found.found] == [
        "lora on all-linear (experts.gate_up_proj, experts.down_proj)",
        "lora (experts.gate_up_proj, experts.down_proj)",
        "lora on all-linear (experts.w1)",
    ]
    assert found.problems == [
        "lora on all-linear (experts.w1): target_parameters: no experts' weights are called"
        " 'experts.w1'; this model has experts.down_proj, experts.gate_up_proj"
    ]
    assert [each.by_settings for each in found.found] == [False, False, True]
    assert not any(each.shares for each in found.found)
    assert [each.covers for each in found.found[:2]] == pytest.approx([1.0, 0.97], abs=0.01)
    assert all(0.5 < each.memory < 2 for each in found.found[:2])


def test_rows_are_rehearsed_with_the_weights_of_their_tokens(tmp_path, monkeypatch):
    _write_rows(tmp_path / "data", "instruction")
    for name in ("train", "validation"):
        split = open_split(tmp_path / "data", name)
        rows = split.rows(range(len(split)))
        ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
        weights = [(row / 1000).astype(np.float32) for row in ids]
        write_split(
            tmp_path / "data" / f"{name}.arrow",
            Encoded(input_ids=ids, labels=labels, weights=weights),
        )
    written = []

    def write(path, encoded):
        written.append(encoded)
        return write_split(path, encoded)

    monkeypatch.setattr(trainables.rehearsal.rehearse, "write_split", write)
    transformers.LlamaConfig(**LLAMA).save_pretrained(tmp_path / "model")
    model, trial = ModelConfig(name=str(tmp_path / "model")), RATE | {"method": "lora"}
    found = rehearse(model, "instruction", tmp_path / "data", [trial], PAD)
    assert found.problems == [] and len(written) == 2
    for encoded in written:
        for ids, weights in zip(encoded.input_ids, encoded.weights, strict=True):
            np.testing.assert_array_equal(weights, (ids / 1000).astype(np.float32))


def test_what_the_real_model_does_not_have_is_told_of_the_settings(rehearsed):
    found = rehearsed(
        transformers.LlamaConfig(**LLAMA), "causal_lm", {"method": "partial", "layers": 13}
    )
    assert found.problems == ["partial: layers: must be at most the model's 12 layers, got 13"]
    assert found.found[0].by_settings


def test_a_checkpoint_that_is_loaded_as_another_model_is_caught(rehearsed, monkeypatch):
    """Here without the padding token that training sets, as the card said it once."""
    real = trainables.rehearsal.rehearse.loading_code

    def forgetful(folder, spec, name):
        return [
            line.replace(f", pad_token_id={PAD}", ", pad_token_id=5")
            for line in real(folder, spec, name)
        ]

    monkeypatch.setattr(trainables.rehearsal.rehearse, "complete", lambda *_: False)
    monkeypatch.setattr(trainables.rehearsal.rehearse, "loading_code", forgetful)
    found = rehearsed(transformers.LlamaConfig(**LLAMA), "classification", {"method": "lora"})
    assert len(found.problems) == 1
    assert (
        "lora on all-linear: loaded by the code on the card it gives a validation loss of "
        in found.problems[0]
    )


def test_a_model_that_sees_the_future_is_refused(rehearsed):
    config = transformers.BertConfig(vocab_size=1000, pad_token_id=PAD)
    with pytest.raises(InputError, match="sees the tokens that it is to predict"):
        rehearsed(config, "causal_lm", {"method": "full"})


def test_a_model_without_a_class_for_the_task_is_refused(rehearsed):
    with pytest.raises(
        InputError, match="^model.name: transformers has no mamba that classifies texts"
    ):
        rehearsed(
            transformers.MambaConfig(vocab_size=1000, pad_token_id=PAD),
            "classification",
            {"method": "full"},
        )


def test_what_cannot_be_made_small_is_said(rehearsed, monkeypatch):
    monkeypatch.setattr(miniature, "MOST_PARAMETERS", 10)
    found = rehearsed(transformers.LlamaConfig(**LLAMA), "causal_lm", {"method": "lora"})
    assert found.size is None and found.found == () and "few layers, narrow: " in found.why_not


def test_rehearsing_leaves_no_trace(rehearsed):
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    rehearsed(transformers.LlamaConfig(**LLAMA), "causal_lm", {"method": "lora"})
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), state)


def test_labels_of_a_row_are_not_cut_with_its_tokens():
    """Of several labels for each row, one number each, there may be more than tokens that are kept."""
    labels = np.zeros(200, dtype=np.float32)
    tokens = np.arange(200, dtype=np.int32)

    class Rows:
        def rows(self, chosen):
            of_tokens = {"input_ids": tokens, "labels": tokens, "weights": labels}
            return [{"input_ids": tokens, "labels": labels}, of_tokens]

    of_classes, of_tokens = _cut(Rows(), np.array([0, 1]))
    assert len(of_classes["input_ids"]) == TOKENS and len(of_classes["labels"]) == 200
    assert {len(value) for value in of_tokens.values()} == {TOKENS}
